//! The commands that `coldpress` and `coldpress-rt` share: one file per command, each an `Args` struct with
//! `execute(self)`. Results go to stdout, progress and errors to stderr. Nothing here is needed to embed the runtime.

pub mod bench;
pub mod inspect;
pub mod logits;
mod output;
pub mod run;
pub mod verify;

pub use output::print;

use std::ffi::OsString;
use std::io::ErrorKind;
use std::process::ExitCode;

use crate::error::Error;

/// Prints an error as the one line scripts look for, and turns the result of a command into its exit code. That nobody
/// reads stdout any more is no failure.
pub fn exit_code(result: Result<(), Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// The arguments of this process with llama-batched-bench's single-dash flags (`bench -npp 16`) in the form clap takes.
pub fn arguments() -> Vec<OsString> {
    bench::double_dashed(std::env::args_os())
}
