//! `run`: continues one or more prompts as one batch. Flags and printing; the batch itself is `engine`'s.

mod prompts;
mod sampling_args;
mod show;

use std::path::PathBuf;
use std::time::Instant;

use crate::engine::{Engine, EngineOptions, Event, Request};
use crate::error::Error;
use prompts::PromptArgs;
pub use sampling_args::SamplingArgs;
use show::Show;

/// Continues prompts; several decode as one batch.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// The bundle
    #[arg(value_name = "BUNDLE")]
    pub bundle: PathBuf,
    /// What to continue.
    #[command(flatten)]
    pub prompts: PromptArgs,
    /// Tokens to generate per prompt; -1: until the model ends or the context is full
    #[arg(
        short = 'n',
        long = "n-predict",
        aliases = ["predict", "max-tokens"],
        value_name = "N",
        default_value_t = -1,
        allow_negative_numbers = true
    )]
    pub max_tokens: i64,
    /// End a generation at this text, which is not printed (may be repeated)
    #[arg(
        short = 'r',
        long,
        alias = "reverse-prompt",
        value_name = "TEXT",
        allow_hyphen_values = true
    )]
    pub stop: Vec<String>,
    /// Never end before the wanted number of tokens
    #[arg(long)]
    pub ignore_eos: bool,
    /// Decode at most N prompts together
    #[arg(long, visible_alias = "max-num-seqs", alias = "np", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub parallel: Option<u32>,
    /// Process at most N prompt tokens per step
    #[arg(long, aliases = ["ub", "ubatch-size", "max-num-batched-tokens"], value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub prefill_chunk: Option<u32>,
    /// Print one JSON object per prompt instead of text
    #[arg(long)]
    pub json: bool,
    /// No statistics on stderr
    #[arg(short, long)]
    pub quiet: bool,
    /// How tokens are chosen.
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

impl RunArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// Usage: no prompt, a prompt too long, a parameter out of range. Otherwise what opening and running report.
    pub fn execute(self) -> Result<(), Error> {
        let options = EngineOptions {
            prefill_chunk: self.prefill_chunk,
            max_batch: self.parallel,
        };
        let sampling = self.sampling.sampling()?;
        let texts = self.prompts.texts()?;
        let mut engine = Engine::new(super::open(&self.bundle)?, options)?;
        let prompts = self.prompts.prompts(&texts, engine.tokenizer())?;
        let mut ids = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            ids.push(engine.submit(Request {
                max_tokens: u32::try_from(self.max_tokens).ok(),
                sampling: sampling.clone(),
                stop: self.stop.clone(),
                ignore_eos: self.ignore_eos,
                ..Request::new(prompt)
            })?);
        }
        let mut show = Show::new(ids, texts, self.json, self.quiet);
        let started = Instant::now();
        while !engine.is_idle() {
            for event in engine.step()? {
                match event {
                    Event::Prefill { id, done, total } => show.prefill(id, done, total),
                    Event::Token { id, token, text } => show.token(id, token, &text)?,
                    Event::Finished {
                        id,
                        reason,
                        text,
                        stats,
                    } => show.finished(id, reason, &text, stats)?,
                }
            }
        }
        show.total(started.elapsed());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        run: RunArgs,
    }

    fn parse(line: &[&str]) -> Result<RunArgs, clap::Error> {
        Command::try_parse_from([&["run", "m.press"], line].concat()).map(|c| c.run)
    }

    #[test]
    fn llama_cpp_and_vllm_spellings_are_understood() {
        for n in [["-n", "7"], ["--n-predict", "7"], ["--max-tokens", "7"]] {
            assert_eq!(parse(&n).expect("valid").max_tokens, 7);
        }
        let args = parse(&[
            "-p", "- a list", "-p", "b", "--temp", "0", "--top-k", "5", "--stop", "\n",
        ])
        .expect("valid");
        assert_eq!(
            args.prompts.texts().expect("two prompts"),
            ["- a list", "b"]
        );
        let sampling = args.sampling.sampling().expect("valid");
        assert_eq!(
            (sampling.temperature, sampling.top_k, sampling.top_p),
            (0.0, 5, 0.95)
        );
        assert_eq!(
            parse(&["--temperature", "0.5", "-s", "-1"])
                .expect("valid")
                .sampling
                .seed,
            -1
        );
        assert_eq!(
            parse(&["--max-num-seqs", "3"]).expect("valid").parallel,
            Some(3)
        );
        assert_eq!(parse(&["-n", "-1"]).expect("valid").max_tokens, -1);
    }

    #[test]
    fn nothing_to_continue_is_a_usage_error() {
        let error = parse(&[])
            .expect("clap has no objection")
            .prompts
            .texts()
            .expect_err("no prompt");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("-p"));
    }
}
