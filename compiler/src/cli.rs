//! The `coldpress` command line: one file per subcommand that needs the compiler; commands on bundles are the runtime's.
//! stdout carries results, stderr progress and errors.

pub mod compile;
pub mod explain;
pub mod inspect;
mod progress;
pub mod run;
pub mod targets;
pub mod tokenize;
pub mod tune;

use crate::error::Error;
use clap::{Parser, Subcommand};
use coldpress_runtime::cli as rt;
use std::path::Path;
use std::process::ExitCode;

/// Compile a GGUF once, run it as a batched decode loop with nothing left to decide.
#[derive(Parser)]
#[command(name = "coldpress", version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  coldpress compile model.gguf --max-batch 8 -c 4096 -o model.press
  coldpress run model.press -p 'Once upon a time' -p '17+25=' -n 64

Exit codes: 0 ok, 1 failure, 2 usage, 3 model or format not supported, 4 bundle does not match this machine,
5 does not fit in memory, 6 verification failed, 7 toolchain missing, 8 cliff";

#[derive(Subcommand)]
enum Command {
    /// Compile a GGUF into a bundle for one machine, batch size and context.
    Compile(compile::CompileArgs),
    /// Run prompts as one batch, on a bundle or on a GGUF (compiled for this machine first, and cached).
    Run(run::RunModelArgs),
    /// Write the f32 logits of given tokens.
    Logits(rt::logits::LogitsArgs),
    /// Print the token ids of a text.
    Tokenize(tokenize::TokenizeArgs),
    /// Measure prefill and decode at several batch sizes.
    Bench(rt::bench::BenchArgs),
    /// Show what a bundle holds, needs and chose, or whether a GGUF can be compiled.
    Inspect(inspect::InspectModelArgs),
    /// Follow one tensor from GGUF to machine code.
    Explain(explain::ExplainArgs),
    /// Check a bundle's answers on this machine.
    Verify(rt::verify::VerifyArgs),
    /// Time a model's kernels on this machine, for later compiles.
    Tune(tune::TuneArgs),
    /// List target presets and what this machine is.
    Targets(targets::TargetsArgs),
}

/// Runs the command line and returns its exit code.
pub fn main() -> ExitCode {
    rt::main_with(|args| match Cli::try_parse_from(args) {
        Ok(cli) => report(cli.command.execute()),
        Err(e) => rt::usage(&e),
    })
}

/// Prints an error as the one line scripts look for, and turns a result into an exit code.
fn report(result: Result<(), Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Runtime(e)) => rt::exit_code(Err(e)),
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(e.exit_code())
        }
    }
}

impl Command {
    fn execute(self) -> Result<(), Error> {
        match self {
            Command::Compile(args) => args.execute(),
            Command::Run(args) => args.execute(),
            Command::Tokenize(args) => args.execute(),
            Command::Explain(args) => args.execute(),
            Command::Tune(args) => args.execute(),
            Command::Targets(args) => args.execute(),
            Command::Inspect(args) => args.execute(),
            Command::Logits(args) => Ok(args.execute()?),
            Command::Bench(args) => Ok(args.execute()?),
            Command::Verify(args) => Ok(args.execute()?),
        }
    }
}

/// Whether the file begins like a GGUF.
fn is_gguf(path: &Path) -> Result<bool, Error> {
    use std::io::Read;
    let mut magic = [0u8; 4];
    let mut file = std::fs::File::open(path).map_err(|source| Error::Io {
        doing: format!("opening {}", path.display()),
        source,
    })?;
    Ok(file.read_exact(&mut magic).is_ok() && &magic == b"GGUF")
}
