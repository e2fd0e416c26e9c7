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

use crate::bundle::{Bundle, embedded};
use crate::error::Error;
use std::path::Path;

/// Multi-letter flags that llama.cpp's tools write with one dash, per command. Clap would take them for bundled
/// single-letter flags.
const SINGLE_DASH: [(&str, &[&str]); 3] = [
    ("bench", &["-npp", "-ntg", "-npl"]),
    ("run", &["-np", "-ub", "-sys"]),
    ("compile", &["-np"]),
];

/// Gives `run` the arguments of this process, llama.cpp's single-dash flags in the form clap takes (`--npp` for `-npp`);
/// an executable that carries a bundle runs it.
pub fn main_with(run: impl FnOnce(Vec<OsString>) -> ExitCode) -> ExitCode {
    run(double_dashed(
        embedded::arguments().unwrap_or_else(|| std::env::args_os().collect()),
    ))
}

fn double_dashed(mut args: Vec<OsString>) -> Vec<OsString> {
    let command = args.get(1).and_then(|command| command.to_str());
    let flags = SINGLE_DASH.iter().find(|(name, _)| Some(*name) == command);
    let flags = flags.map_or(&[][..], |(_, flags)| flags);
    for arg in args.iter_mut().skip(2) {
        let text = arg.to_string_lossy();
        if flags
            .iter()
            .any(|flag| text.split('=').next() == Some(flag))
        {
            *arg = format!("-{text}").into();
        }
    }
    args
}

/// Prints what clap has to say and returns its exit code: 0 for help and version, 2 for wrong use.
pub fn usage(error: &clap::Error) -> ExitCode {
    // Nobody is left to tell if stderr is closed too.
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { 2 } else { 0 })
}

/// Opens a bundle to run it. That it will run on the CPU where it has plans for GPUs is no error, but is said.
fn open(path: &Path) -> Result<Bundle, Error> {
    let bundle = Bundle::open(path)?;
    let plans = &bundle.manifest().plans;
    // Otherwise there is no choice, and no driver to ask.
    if plans.iter().any(|p| p.gpu.is_some()) && plans.iter().any(|p| p.gpu.is_none()) {
        for line in bundle.passed_over(&bundle.machine()) {
            eprintln!("note: this runs on the CPU: {line}");
        }
    }
    Ok(bundle)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama_cpps_single_dash_flags_are_understood() {
        let args = |line: &str| double_dashed(line.split(' ').map(OsString::from).collect());
        assert_eq!(
            args("rt bench m -npp 16 -npl=1,2 -d 3"),
            ["rt", "bench", "m", "--npp", "16", "--npl=1,2", "-d", "3"]
        );
        assert_eq!(
            args("rt run m -np 4 -n 3"),
            ["rt", "run", "m", "--np", "4", "-n", "3"]
        );
        assert_eq!(args("rt run -npp"), ["rt", "run", "-npp"]);
        assert_eq!(args("rt"), ["rt"]);
    }
}
