//! `coldpress-rt`: runs bundles; nothing of the compiler. Parses, dispatches, maps errors to exit codes.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use coldpress_runtime::Error;
use coldpress_runtime::cli::{
    self, bench::BenchArgs, inspect::InspectArgs, logits::LogitsArgs, run::RunArgs,
    verify::VerifyArgs,
};

/// Runs coldpress bundles. Treat a bundle like an executable: it contains machine code.
#[derive(Parser)]
#[command(name = "coldpress-rt", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Continue prompts; several decode as one batch
    Run(RunArgs),
    /// Write the logits of token sequences as a NumPy file
    Logits(LogitsArgs),
    /// Measure prompt and generation speed per batch size
    Bench(BenchArgs),
    /// Show what a bundle is, needs and does, and whether this machine can run it
    Inspect(InspectArgs),
    /// Check a bundle's results on this machine
    Verify(VerifyArgs),
}

fn main() -> ExitCode {
    cli::main_with(|args| match Arguments::try_parse_from(args) {
        Ok(arguments) => cli::exit_code(arguments.command.execute()),
        Err(error) => cli::usage(&error),
    })
}

impl Command {
    fn execute(self) -> Result<(), Error> {
        match self {
            Command::Run(args) => args.execute(),
            Command::Logits(args) => args.execute(),
            Command::Bench(args) => args.execute(),
            Command::Inspect(args) => args.execute(),
            Command::Verify(args) => args.execute(),
        }
    }
}
