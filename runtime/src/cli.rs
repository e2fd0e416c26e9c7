//! The commands that `coldpress` and `coldpress-rt` share: one file per command, each an `Args` struct with
//! `execute(self)`. Results go to stdout, progress and errors to stderr. Nothing here is needed to embed the runtime.

pub mod bench;
pub mod inspect;
pub mod logits;
mod output;
pub mod run;
pub mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

pub use output::print;

use crate::error::Error;

/// Gives `run` the arguments of this process in the form clap takes: llama-batched-bench's single-dash flags
/// (`bench -npp 16`) become double-dashed.
pub fn main_with(run: impl FnOnce(Vec<OsString>) -> ExitCode) -> ExitCode {
    run(bench::double_dashed(std::env::args_os()))
}

/// Prints what clap has to say and returns its exit code: 0 for help and version, 2 for wrong use.
pub fn usage(error: &clap::Error) -> ExitCode {
    // Nobody is left to tell if stderr is closed too.
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { 2 } else { 0 })
}

/// Prints an error as the one line scripts look for, and turns the result of a command into its exit code.
pub fn exit_code(result: Result<(), Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
