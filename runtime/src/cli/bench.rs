//! `bench`: prompt and generation speed per batch size, in llama-batched-bench's columns, and how much of this machine's
//! memory bandwidth the generation reaches. Flags and the measuring loop, on the executor alone; `report` and `svg` show
//! the results, `profile` measures the whole engine instead.

mod bandwidth;
mod batches;
mod cliffs;
mod profile;
mod report;
mod svg;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use rand_pcg::Pcg64;
use rand_pcg::rand_core::{Rng, SeedableRng};

use super::output::{print, progress};
use crate::bundle::Bundle;
use crate::error::Error;
use crate::executor::{Executor, ExecutorOptions, GIVEN, Row, StepStats};
use crate::manifest::{Limits, TargetPlan};
use batches::Batches;

/// Measures prompt and generation speed.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchArgs {
    /// The bundle
    #[arg(value_name = "BUNDLE")]
    pub bundle: PathBuf,
    /// Prompt tokens per sequence (also -npp)
    #[arg(
        long,
        value_name = "N,...",
        value_delimiter = ',',
        default_value = "128"
    )]
    pub npp: Vec<u32>,
    /// Generated tokens per sequence (also -ntg)
    #[arg(
        long,
        value_name = "N,...",
        value_delimiter = ',',
        default_value = "32"
    )]
    pub ntg: Vec<u32>,
    /// Sequences decoded together (also -npl), as numbers and ranges like 1-32; default: 1, 2, 4, ... up to the
    /// bundle's, every number for a picture
    #[arg(long, value_name = "N|N-M,...", value_delimiter = ',')]
    pub npl: Vec<Batches>,
    /// Tokens already in each sequence before the measurement
    #[arg(
        short,
        long,
        alias = "n-depth",
        value_name = "DEPTH",
        default_value_t = 0
    )]
    pub depth: u32,
    /// Repetitions, one after the other through all batch sizes; the medians are shown
    #[arg(short, long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub repetitions: u32,
    /// Form of the output
    #[arg(short, long, value_name = "FORMAT", default_value = "md")]
    pub output: Format,
    /// Show where the time of a decode step goes instead, in kernels and outside of them: requests through the whole
    /// engine, with greedy and with default sampling
    #[arg(long, conflicts_with = "depth")]
    pub profile: bool,
}

/// Form of the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A Markdown table
    Md,
    /// A JSON array of objects
    Json,
    /// Comma-separated values with a header line
    Csv,
    /// A picture of the decode speed over the batch, as SVG
    Svg,
}

/// One measured configuration; times in seconds, medians.
#[derive(Clone, Debug, PartialEq)]
struct Measurement {
    prompt: u32,
    generated: u32,
    batch: u32,
    depth: u32,
    prefill: f64,
    decode: f64,
    /// The fastest decode step of all repetitions: what others on this machine slow down is not in it.
    fastest_step: f64,
    bucket: u32,
    /// Weights and cache read while decoding.
    decode_bytes: f64,
}

impl Measurement {
    /// Tokens per second in the fastest step.
    fn best(&self) -> f64 {
        per(f64::from(self.batch), self.fastest_step)
    }

    /// Generated tokens per second, all sequences together.
    fn speed(&self) -> f64 {
        per(
            f64::from(self.batch) * f64::from(self.generated),
            self.decode,
        )
    }
}

/// `amount` per second; 0 where nothing was timed.
fn per(amount: f64, seconds: f64) -> f64 {
    if seconds > 0.0 { amount / seconds } else { 0.0 }
}

/// A step is measured, not the system finding memory for it.
fn options() -> ExecutorOptions {
    ExecutorOptions {
        touch_memory: true,
        ..ExecutorOptions::default()
    }
}

impl BenchArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// Usage: nothing to measure fits the bundle's limits. Otherwise what opening and running report.
    pub fn execute(self) -> Result<(), Error> {
        let bundle = Arc::new(super::open(&self.bundle)?);
        if self.profile {
            return self.profile(&bundle);
        }
        if self.output == Format::Svg && (self.npp.len(), self.ntg.len()) != (1, 1) {
            return Err(Error::Usage(
                "a picture shows one prompt length and one generated length; give one -npp and one -ntg".into(),
            ));
        }
        let mut executor = Executor::new(Arc::clone(&bundle), options())?;
        let plan = &bundle.manifest().plans[executor.plan()];
        let cases = self.cases(executor.limits())?;
        let bandwidth = measured_bandwidth(&mut executor, plan)?;
        let bar = progress(cases.len() as u64 * u64::from(self.repetitions), "runs");
        let mut runs: Vec<Vec<Run>> = cases.iter().map(|_| Vec::new()).collect();
        for _ in 0..self.repetitions {
            for (&case, runs) in cases.iter().zip(&mut runs) {
                runs.push(run(&mut executor, plan, case, self.depth)?);
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        let results = cases.iter().zip(&runs);
        let results: Vec<Measurement> = results
            .map(|(&(prompt, generated, batch), runs)| Measurement {
                prompt,
                generated,
                batch,
                depth: self.depth,
                prefill: median(runs.iter().map(|r| r.prefill).collect()),
                decode: median(runs.iter().map(|r| r.decode).collect()),
                fastest_step: least(runs.iter().map(|r| r.fastest_step)),
                bucket: runs[0].bucket,
                decode_bytes: runs[0].decode_bytes,
            })
            .collect();
        let cliffs = cliffs::find(&results);
        cliffs.iter().flatten().for_each(|c| eprintln!("{c}"));
        print(&match self.output {
            Format::Md => report::markdown(&results, bandwidth),
            Format::Json => report::json(&results, &cliffs, bandwidth),
            Format::Csv => report::csv(&results, bandwidth),
            Format::Svg => {
                let file = self.bundle.file_stem().unwrap_or_default();
                svg::draw(&svg::Picture {
                    file: &file.to_string_lossy(),
                    model: &bundle.manifest().model,
                    plan,
                    max_batch: executor.limits().max_batch,
                    results: &results,
                    cliffs: &cliffs,
                    bandwidth,
                })
            }
        })
    }

    fn profile(&self, bundle: &Arc<Bundle>) -> Result<(), Error> {
        if self.output == Format::Svg {
            let why = "a profile is a table; choose -o md, json or csv";
            return Err(Error::Usage(why.into()));
        }
        let cases = self.cases(bundle.manifest().limits)?;
        let bar = progress(2 * cases.len() as u64 * u64::from(self.repetitions), "runs");
        let profiles = profile::profile(bundle, &cases, self.repetitions, || bar.inc(1))?;
        bar.finish_and_clear();
        print(&profile::show(&profiles, self.output))
    }

    /// (prompt, generated, batch) of every run that fits the bundle; says on stderr which do not.
    fn cases(&self, limits: Limits) -> Result<Vec<(u32, u32, u32)>, Error> {
        let batches = match (&self.npl[..], self.output) {
            ([], Format::Svg) => vec![Batches::from(1..=limits.max_batch)],
            ([], _) => std::iter::successors(Some(1u32), |b| b.checked_mul(2))
                .take_while(|&b| b <= limits.max_batch)
                .map(|b| Batches::from(b..=b))
                .collect(),
            (given, _) => given.to_vec(),
        };
        let mut cases = Vec::new();
        for (&prompt, &generated) in self
            .npp
            .iter()
            .flat_map(|p| self.ntg.iter().map(move |g| (p, g)))
        {
            let context = u64::from(prompt) + u64::from(generated) + u64::from(self.depth);
            for range in &batches {
                let fit = range.up_to(limits.max_batch);
                let fit = fit.filter(|_| context <= u64::from(limits.max_context));
                if fit.as_ref() != Some(range) {
                    eprintln!(
                        "skipped: {range} sequences of {context} tokens; the bundle holds {} of {}",
                        limits.max_batch, limits.max_context
                    );
                }
                let fit = fit.into_iter().flat_map(|fit| fit.iter());
                cases.extend(fit.map(|batch| (prompt, generated, batch)));
            }
        }
        if cases.is_empty() {
            return Err(Error::Usage(format!(
                "nothing to measure: the bundle holds {} sequences of {} tokens; lower -npl, -npp, -ntg or -d",
                limits.max_batch, limits.max_context
            )));
        }
        Ok(cases)
    }
}

/// What the plan's kernels could read, bytes per second: of the device's memory if it has its own, else of this machine's.
fn measured_bandwidth(executor: &mut Executor, plan: &TargetPlan) -> Result<f64, Error> {
    let (bandwidth, by) = match executor.read_bandwidth()? {
        Some(bandwidth) => (bandwidth, "by a kernel that does nothing else".to_owned()),
        None if plan.gpu.is_some() => (
            0.0,
            "(too little of the GPU's memory is free to tell)".into(),
        ),
        None => (
            bandwidth::read_bandwidth(plan.workers as usize),
            format!("with {} threads", plan.workers),
        ),
    };
    let shown = bandwidth / 1e9;
    eprintln!("measured read bandwidth: {shown:.1} GB/s {by}");
    Ok(bandwidth)
}

/// One repetition: seconds, and what the decode steps ran in and read.
struct Run {
    prefill: f64,
    decode: f64,
    fastest_step: f64,
    bucket: u32,
    decode_bytes: f64,
}

/// Runs one configuration, of (prompt, generated, batch), on random tokens.
fn run(
    executor: &mut Executor,
    plan: &TargetPlan,
    (prompt, generated, batch): (u32, u32, u32),
    depth: u32,
) -> Result<Run, Error> {
    let slots: Vec<u32> = (0..batch).map_while(|_| executor.acquire_slot()).collect();
    let mut rng = Pcg64::seed_from_u64(u64::from(batch));
    let measured = (|| {
        feed(executor, &slots, 0..depth, &mut rng)?;
        let started = Instant::now();
        let start = depth + prompt;
        feed(executor, &slots, depth..start, &mut rng)?;
        let prefill = started.elapsed().as_secs_f64();
        let started = Instant::now();
        let (mut decode_bytes, mut steps) = (0.0, Vec::new());
        let mut last = started;
        let mut done = |stats: &StepStats, position: u32| {
            steps.push(last.elapsed().as_secs_f64());
            last = Instant::now();
            decode_bytes += step_bytes(plan, stats, batch, position + 1);
        };
        let end = start + generated;
        match executor.ahead() {
            Some(most) if most >= batch && generated > 0 => {
                follow(executor, &slots, start..end, &mut rng, &mut done)?;
            }
            _ => {
                for position in start..end {
                    feed(executor, &slots, position..position + 1, &mut rng)?;
                    done(executor.stats(), position);
                }
            }
        }
        let decode = started.elapsed().as_secs_f64();
        Ok(Run {
            prefill,
            decode,
            fastest_step: least(steps.into_iter()),
            bucket: executor.stats().bucket,
            decode_bytes,
        })
    })();
    executor.abandon();
    slots
        .into_iter()
        .for_each(|slot| executor.release_slot(slot));
    measured
}

/// Feeds random tokens at `positions` of every slot, as many rows per step as fit; logits of the last position only.
fn feed(
    executor: &mut Executor,
    slots: &[u32],
    positions: std::ops::Range<u32>,
    rng: &mut Pcg64,
) -> Result<(), Error> {
    let most = executor.limits().max_rows as usize;
    let vocab = executor.vocab_size();
    let all: Vec<Row> = slots
        .iter()
        .flat_map(|&slot| positions.clone().map(move |position| (slot, position)))
        .map(|(slot, position)| Row {
            token: rng.next_u32() % vocab,
            slot,
            position,
            wants_logits: position + 1 == positions.end,
        })
        .collect();
    all.chunks(most).try_for_each(|rows| executor.step(rows))
}

/// Decodes at `positions` as an engine does on a device that feeds back what it finds: the first tokens are random, and
/// each step is given to the device before the one before it is looked at.
fn follow(
    executor: &mut Executor,
    slots: &[u32],
    positions: std::ops::Range<u32>,
    rng: &mut Pcg64,
    done: &mut dyn FnMut(&StepStats, u32),
) -> Result<(), Error> {
    let vocab = executor.vocab_size();
    for position in positions.clone() {
        let row = |&slot: &u32| Row {
            token: rng.next_u32() % vocab,
            slot,
            position,
            wants_logits: true,
        };
        let rows: Vec<Row> = slots.iter().map(row).collect();
        let first = position == positions.start;
        let follows = (0..rows.len() as u32).map(|row| if first { GIVEN } else { row });
        executor.queue(&rows, &follows.collect::<Vec<_>>())?;
        if !first {
            executor.collect()?;
            done(executor.stats(), position - 1);
        }
    }
    executor.collect()?;
    done(executor.stats(), positions.end - 1);
    Ok(())
}

/// Bytes a decode step reads and writes: what its programs say, and the `tokens` cached tokens of every sequence.
fn step_bytes(plan: &TargetPlan, stats: &StepStats, batch: u32, tokens: u32) -> f64 {
    let program = |index: usize| -> u64 {
        plan.programs
            .get(index)
            .map_or(0, |p| p.launches.iter().map(|launch| launch.bytes).sum())
    };
    let head = stats.head_program.map_or(0, program) * u64::from(stats.head_runs);
    let cached = plan.kv.layers.iter().map(|layer| {
        let seen = plan
            .kv
            .window(layer.table)
            .map_or(tokens, |w| tokens.min(w.tokens));
        f64::from(seen) * layer.page_bytes as f64 / f64::from(plan.kv.page_tokens.max(1))
    });
    (program(stats.trunk_program) + head) as f64 + f64::from(batch) * cached.sum::<f64>()
}

/// 0 of nothing.
fn least(values: impl Iterator<Item = f64>) -> f64 {
    values.min_by(f64::total_cmp).unwrap_or(0.0)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}
