//! The `coldpress` command: parse, dispatch, print one error line, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    coldpress_compiler::cli::main()
}
