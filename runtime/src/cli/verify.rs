//! `verify`: runs the prompts embedded in a bundle through every bucket and compares with the embedded logits, and the
//! buckets with each other bit by bit. Decides nothing about what is tolerable: each prompt carries its bound.

use std::path::PathBuf;
use std::sync::Arc;

use super::output::{print, table};
use crate::bundle::Bundle;
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
        let bundle = Bundle::open(&self.bundle)?;
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
            let logits = executor.logits(i);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Limits;

    /// Logits that depend on the slot's tokens; `fault` distorts steps of exactly that many rows.
    struct Model {
        slots: Vec<Option<Vec<u32>>>,
        logits: Vec<[f32; 3]>,
        fault: usize,
        error: f32,
        rows_seen: Vec<usize>,
    }

    fn model(fault: usize, error: f32) -> Model {
        Model {
            slots: vec![None; 3],
            logits: Vec::new(),
            fault,
            error,
            rows_seen: Vec::new(),
        }
    }

    impl Steps for Model {
        fn limits(&self) -> Limits {
            Limits {
                max_batch: 3,
                max_context: 20,
                max_rows: 8,
            }
        }
        fn vocab_size(&self) -> u32 {
            3
        }
        fn acquire_slot(&mut self) -> Option<u32> {
            let free = self.slots.iter().position(Option::is_none)?;
            self.slots[free] = Some(Vec::new());
            Some(free as u32)
        }
        fn release_slot(&mut self, slot: u32) {
            self.slots[slot as usize] = None;
        }
        fn step(&mut self, rows: &[Row]) -> Result<(), Error> {
            self.rows_seen.push(rows.len());
            self.logits.clear();
            let fault = if rows.len() == self.fault {
                self.error
            } else {
                0.0
            };
            for row in rows {
                let history = self.slots[row.slot as usize].as_mut().expect("in use");
                assert_eq!(row.position as usize, history.len());
                history.push(row.token);
                let sum = history.iter().sum::<u32>() as f32;
                if row.wants_logits {
                    self.logits.push([sum + 1.0, 2.0 - sum, 5.0 + fault]);
                }
            }
            Ok(())
        }
        fn logits(&self, i: usize) -> &[f32] {
            &self.logits[i]
        }
    }

    fn golden() -> GoldenPrompt {
        let sum = [1.0f32, 3.0, 3.0, 4.0, 6.0];
        let positions = vec![0, 1, 2, 3, 4];
        GoldenPrompt {
            tokens: vec![1, 2, 0, 1, 2],
            ids: vec![vec![0, 2]; 5],
            logits: positions
                .iter()
                .map(|&p: &u32| vec![sum[p as usize] + 1.0, 5.0])
                .collect(),
            positions,
            nmse: 1e-6,
        }
    }

    #[test]
    fn a_sound_bundle_passes_in_every_bucket() {
        let mut model = model(0, 0.0);
        let report = check(&mut model, &[1, 2, 4, 8], &[golden()]).expect("runs");
        assert!(
            report.iter().all(|line| line.passed() && line.nmse == 0.0),
            "{report:?}"
        );
        for rows in [1, 2, 4, 8] {
            assert!(
                model.rows_seen.contains(&rows),
                "bucket {rows} was exercised: {:?}",
                model.rows_seen
            );
        }
        assert_eq!(
            show(&report).lines().filter(|l| l.contains("ok")).count(),
            report.len()
        );
    }

    #[test]
    fn one_wrong_bucket_is_found() {
        let report = check(&mut model(4, 0.5), &[1, 2, 4, 8], &[golden()]).expect("runs");
        assert!(report.iter().any(|l| l.bucket == 4 && l.nmse > l.allowed));
        assert!(
            report.iter().all(|l| l.bucket > 2 || l.passed()),
            "{report:?}"
        );
    }

    #[test]
    fn a_difference_within_the_bound_still_breaks_identity() {
        let report = check(&mut model(8, 1e-6), &[1, 8], &[golden()]).expect("runs");
        let line = report
            .iter()
            .find(|l| l.bucket == 8 && l.copies == 3)
            .expect("checked");
        assert!(line.nmse <= line.allowed && !line.identical && !line.passed());
    }

    #[test]
    fn not_a_number_fails() {
        let report = check(&mut model(1, f32::NAN), &[1], &[golden()]).expect("runs");
        assert!(!report[0].passed(), "{report:?}");
    }

    #[test]
    fn contradictory_prompts_are_refused() {
        let refused = |prompt: GoldenPrompt| {
            check(&mut model(0, 0.0), &[1], &[prompt])
                .map(drop)
                .map_err(|e| e.exit_code())
        };
        assert_eq!(
            refused(GoldenPrompt {
                positions: vec![0, 1, 2, 3, 5],
                ..golden()
            }),
            Err(6)
        );
        assert_eq!(
            refused(GoldenPrompt {
                ids: vec![vec![0, 3]; 5],
                ..golden()
            }),
            Err(6)
        );
        assert_eq!(
            refused(GoldenPrompt {
                tokens: Vec::new(),
                ..golden()
            }),
            Err(6)
        );
        assert_eq!(
            check(&mut model(0, 0.0), &[1], &[])
                .map(drop)
                .map_err(|e| e.exit_code()),
            Err(6)
        );
    }
}
