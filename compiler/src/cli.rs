//! The `coldpress` command line: one file per subcommand that needs the compiler; commands on bundles are the runtime's.
//! stdout carries results, stderr progress and errors.

pub mod compile;
pub mod explain;
mod progress;
pub mod run;
pub mod targets;
pub mod tokenize;

use crate::error::Error;
use clap::{Parser, Subcommand};
use coldpress_runtime::cli as rt;
use std::process::ExitCode;

/// Compile a GGUF once, run it as a batched decode loop with nothing left to decide.
#[derive(Parser)]
#[command(name = "coldpress", version, after_help = EXAMPLES)]
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
    /// Show what a bundle holds, needs and chose.
    Inspect(rt::inspect::InspectArgs),
    /// Follow one tensor from GGUF to machine code.
    Explain(explain::ExplainArgs),
    /// Check a bundle's answers on this machine.
    Verify(rt::verify::VerifyArgs),
    /// List target presets and what this machine is.
    Targets(targets::TargetsArgs),
}

/// A failure of either crate, with its exit code.
#[derive(Debug)]
pub enum Failure {
    /// From the compiler.
    Compile(Error),
    /// From the runtime.
    Runtime(coldpress_runtime::Error),
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Failure::Compile(e) => e.exit_code(),
            Failure::Runtime(e) => e.exit_code(),
        }
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        match e {
            Error::Runtime(e) => Failure::Runtime(e),
            e => Failure::Compile(e),
        }
    }
}

impl From<coldpress_runtime::Error> for Failure {
    fn from(e: coldpress_runtime::Error) -> Failure {
        Failure::Runtime(e)
    }
}

/// Runs the command line and returns its exit code.
pub fn main() -> ExitCode {
    rt::main_with(|args| {
        let cli = match Cli::try_parse_from(args) {
            Ok(cli) => cli,
            Err(e) => return rt::usage(&e),
        };
        match cli.command.execute() {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                match &failure {
                    Failure::Compile(e) => eprintln!("error: {e}"),
                    Failure::Runtime(e) => eprintln!("error: {e}"),
                }
                ExitCode::from(failure.exit_code())
            }
        }
    })
}

impl Command {
    fn execute(self) -> Result<(), Failure> {
        match self {
            Command::Compile(args) => Ok(args.execute()?),
            Command::Run(args) => args.execute(),
            Command::Tokenize(args) => args.execute(),
            Command::Explain(args) => args.execute(),
            Command::Targets(args) => args.execute(),
            Command::Logits(args) => Ok(args.execute()?),
            Command::Bench(args) => Ok(args.execute()?),
            Command::Inspect(args) => Ok(args.execute()?),
            Command::Verify(args) => Ok(args.execute()?),
        }
    }
}
