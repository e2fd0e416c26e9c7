//! `verify`: runs the prompts embedded in a bundle through every bucket and compares with the embedded logits, and the
//! buckets with each other bit by bit. Decides nothing about what is tolerable: each prompt carries its bound.

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use super::output::{print, table};
use crate::engine::Steps;
use crate::error::Error;
use crate::executor::{Executor, ExecutorOptions, Row};
use crate::manifest::{GoldenPrompt, Stage};

/// Checks a bundle on this machine.
#[derive(Clone, Debug, clap::Args)]
pub struct VerifyArgs {
    /// The bundle
    #[arg(value_name = "BUNDLE")]
    pub bundle: PathBuf,
}

impl VerifyArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// `Verification` if any logits differ too much or any two buckets differ at all; else what opening and running
    /// report.
    pub fn execute(self) -> Result<(), Error> {
        let bundle = super::open(&self.bundle)?;
        let prompts = bundle.golden_prompts()?;
        let bundle = Arc::new(bundle);
        let mut executor = Executor::new(Arc::clone(&bundle), ExecutorOptions::default())?;
        let programs = &bundle.manifest().plans[executor.plan()].programs;
        let trunks = programs.iter().filter(|p| p.stage == Stage::Trunk);
        let mut buckets: Vec<u32> = trunks.map(|p| p.rows).collect();
        buckets.sort_unstable();
        let report = check(&mut executor, &buckets, &prompts)?;
        print(&format!("{}\n", show(&report)))?;
        match report.iter().filter(|line| !line.passed()).count() {
            0 => Ok(()),
            failed => Err(Error::Verification(format!(
                "{}: {failed} of {} checks failed on this machine; recompile with --target native, and if that does not help report it",
                self.bundle.display(),
                report.len()
            ))),
        }
    }
}

/// One prompt run one way.
#[derive(Clone, Debug, PartialEq)]
struct Line {
    prompt: usize,
    /// Rows per step while the prompt lasts.
    bucket: u32,
    /// Copies of the prompt decoded together.
    copies: u32,
    /// Worst over the copies.
    nmse: f64,
    allowed: f64,
    /// Same bits as the same prompt alone, token by token.
    identical: bool,
}

impl Line {
    fn passed(&self) -> bool {
        // Written so that NaN fails.
        self.nmse <= self.allowed && self.identical
    }
}

/// Runs every prompt alone and token by token, then so that each bucket's rows are filled: by copies of it, and by
/// longer chunks where there are fewer slots than rows; and in one sequence in chunks of the bucket.
fn check(
    executor: &mut dyn Steps,
    buckets: &[u32],
    prompts: &[GoldenPrompt],
) -> Result<Vec<Line>, Error> {
    let max_batch = executor.limits().max_batch;
    let mut report = Vec::new();
    if prompts.is_empty() {
        return Err(Error::Verification(
            "the bundle holds no prompts to verify it with; compile it again".into(),
        ));
    }
    for (index, prompt) in prompts.iter().enumerate() {
        well_formed(executor, index, prompt)?;
        let mut alone = Vec::new();
        let worst = run(executor, prompt, 1, 1, &mut alone)?.nmse;
        let line = |bucket, copies, outcome: Outcome| Line {
            prompt: index,
            bucket,
            copies,
            nmse: outcome.nmse,
            allowed: prompt.nmse,
            identical: outcome.identical,
        };
        report.push(line(
            1,
            1,
            Outcome {
                nmse: worst,
                identical: true,
            },
        ));
        for &bucket in buckets {
            let most = bucket.min(executor.limits().max_rows);
            let mut ways = vec![(1, most), (max_batch.min(most), most)];
            ways.dedup();
            for (copies, rows) in ways.into_iter().filter(|&way| way != (1, 1)) {
                let outcome = run(executor, prompt, copies, rows, &mut alone)?;
                report.push(line(bucket, copies, outcome));
            }
        }
    }
    Ok(report)
}

/// A golden prompt is bytes from a file: its parts must fit each other and the model.
fn well_formed(executor: &dyn Steps, index: usize, prompt: &GoldenPrompt) -> Result<(), Error> {
    let vocab = executor.vocab_size();
    let positions = prompt.positions.len();
    let sound = !prompt.tokens.is_empty()
        && prompt.tokens.len() <= executor.limits().max_context as usize
        && prompt.tokens.iter().all(|&token| token < vocab)
        && positions > 0
        && prompt.positions.is_sorted_by(|a, b| a < b)
        && prompt
            .positions
            .iter()
            .all(|&p| (p as usize) < prompt.tokens.len())
        && prompt.ids.len() == positions
        && prompt.logits.len() == positions
        && prompt
            .ids
            .iter()
            .zip(&prompt.logits)
            .all(|(ids, logits)| ids.len() == logits.len())
        && prompt.ids.iter().flatten().all(|&id| id < vocab);
    if sound {
        Ok(())
    } else {
        Err(Error::Verification(format!(
            "embedded prompt {index} contradicts itself or the model; compile the bundle again"
        )))
    }
}

struct Outcome {
    nmse: f64,
    identical: bool,
}

/// Runs `copies` of the prompt with `rows` rows per step, spread evenly. Fills `alone`, `[positions][vocab]`, if it is
/// empty, and compares with it otherwise.
fn run(
    executor: &mut dyn Steps,
    prompt: &GoldenPrompt,
    copies: u32,
    rows: u32,
    alone: &mut Vec<Vec<f32>>,
) -> Result<Outcome, Error> {
    let slots: Vec<u32> = (0..copies).map_while(|_| executor.acquire_slot()).collect();
    let outcome = run_in(executor, prompt, &slots, rows as usize, alone);
    slots
        .into_iter()
        .for_each(|slot| executor.release_slot(slot));
    outcome
}

fn run_in(
    executor: &mut dyn Steps,
    prompt: &GoldenPrompt,
    slots: &[u32],
    rows: usize,
    alone: &mut Vec<Vec<f32>>,
) -> Result<Outcome, Error> {
    let record = alone.is_empty();
    let mut fed = vec![0usize; slots.len()];
    let mut errors = vec![Errors::default(); slots.len()];
    let mut identical = true;
    while fed.iter().any(|&n| n < prompt.tokens.len()) {
        let mut step = Vec::with_capacity(rows);
        // (copy, index among the golden positions) of every row that wants logits.
        let mut wanted = Vec::new();
        for (copy, (&slot, fed)) in slots.iter().zip(&mut fed).enumerate() {
            let share = rows / slots.len() + usize::from(copy < rows % slots.len());
            let end = (*fed + share).min(prompt.tokens.len());
            for (position, &token) in prompt.tokens.iter().enumerate().take(end).skip(*fed) {
                let position = position as u32;
                let golden = prompt.positions.binary_search(&position).ok();
                step.push(Row {
                    token,
                    slot,
                    position,
                    wants_logits: golden.is_some(),
                });
                wanted.extend(golden.map(|at| (copy, at)));
            }
            *fed = end;
        }
        executor.step(&step)?;
        for (i, (copy, at)) in wanted.into_iter().enumerate() {
            let logits = executor.logits(i)?;
            errors[copy].add(&prompt.ids[at], &prompt.logits[at], logits);
            if record {
                alone.push(logits.to_vec());
            } else {
                let same = logits
                    .iter()
                    .zip(&alone[at])
                    .all(|(a, b)| a.to_bits() == b.to_bits());
                identical &= same;
            }
        }
    }
    let nmse = errors
        .iter()
        .map(Errors::nmse)
        .fold(0.0, |a, b| if b > a || b.is_nan() { b } else { a });
    Ok(Outcome { nmse, identical })
}

/// Normalised mean square error: squared differences over squared expectations.
#[derive(Clone, Copy, Default)]
struct Errors {
    difference: f64,
    reference: f64,
}

impl Errors {
    fn add(&mut self, ids: &[u32], expected: &[f32], logits: &[f32]) {
        for (&id, &expected) in ids.iter().zip(expected) {
            let expected = f64::from(expected);
            let found = logits.get(id as usize).map_or(f64::NAN, |&l| f64::from(l));
            self.difference += (found - expected).powi(2);
            self.reference += expected.powi(2);
        }
    }

    fn nmse(&self) -> f64 {
        if self.difference == 0.0 {
            0.0
        } else {
            self.difference / self.reference
        }
    }
}

fn show(report: &[Line]) -> comfy_table::Table {
    let mut table = table([
        "prompt",
        "rows",
        "sequences",
        "NMSE",
        "allowed",
        "same bits",
        "result",
    ]);
    for line in report {
        table.add_row([
            line.prompt.to_string(),
            line.bucket.to_string(),
            line.copies.to_string(),
            format!("{:.2e}", line.nmse),
            format!("{:.2e}", line.allowed),
            if line.identical { "yes" } else { "no" }.to_owned(),
            if line.passed() { "ok" } else { "FAILED" }.to_owned(),
        ]);
    }
    table
}
