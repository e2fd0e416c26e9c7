//! `coldpress tune`: times the kernels a model could use on this machine and keeps the times for later compiles.

use crate::compile::{DEFAULT_BATCH, native_workers};
use crate::error::Error;
use crate::explain::{Notes, cut};
use crate::gguf::Gguf;
use crate::model;
use crate::pass;
use crate::plan::select::Selector;
use crate::plan::{MAX_BATCH, MAX_WORKERS, buckets, in_range};
use crate::target::TargetProfile;
use crate::tune::cache::{Cache, Device};
use crate::tune::{self, Shape, Task, Timed};
use clap::Args;
use coldpress_kernels::matmul::{Candidate, cheapest, measure};
use coldpress_runtime::bundle::{Bundle, SectionKind, folder_of};
use coldpress_runtime::cli as rt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Arguments of `coldpress tune`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  coldpress tune model.gguf && coldpress compile model.gguf\n  coldpress tune model.press --budget 5m -o machine.json && coldpress compile model.gguf --tune-cache machine.json"
)]
pub struct TuneArgs {
    /// The model: a GGUF, or a bundle.
    model: PathBuf,
    /// Time to spend, such as 60s or 5m; shapes that stream most bytes come first.
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = parse_time)]
    budget: Duration,
    /// Tune cache to add to [default: tune.json in the user's cache folder, where `compile` looks].
    #[arg(short, long, value_name = "CACHE")]
    output: Option<PathBuf>,
    /// Whose kernels to time; see `coldpress targets`.
    #[arg(long, default_value = "native")]
    target: String,
    /// Sequences that will decode together.
    #[arg(long, default_value_t = DEFAULT_BATCH, visible_aliases = ["parallel", "max-num-seqs", "max-batch-size"])]
    max_batch: usize,
    /// Worker threads; times count for plans with as many [default: physical cores].
    #[arg(short = 't', long)]
    threads: Option<usize>,
}

impl TuneArgs {
    /// Times, writes the cache, and prints what the times change.
    pub fn execute(self) -> Result<(), Error> {
        in_range("--max-batch", self.max_batch, MAX_BATCH)?;
        let workers = self.threads.unwrap_or_else(native_workers);
        in_range("--threads", workers, MAX_WORKERS)?;
        let target = TargetProfile::parse(&self.target)?;
        let path = match &self.output {
            Some(path) => path.clone(),
            None => default_cache(),
        };
        if self.output.is_none() {
            let folder = folder_of(&path);
            std::fs::create_dir_all(folder).map_err(|source| Error::Io {
                doing: format!("creating {}", folder.display()),
                source,
            })?;
        }
        // Before anything is timed: a damaged file would cost the whole budget.
        let mut cache = Cache::load(&path)?.unwrap_or_default();
        let shapes = shapes(&self.model)?;
        let device = Device::here(&target, workers);
        eprintln!("device   {device}");
        let task = Task {
            target: &target,
            workers,
            max_rows: buckets::max_rows(self.max_batch),
            budget: self.budget,
        };
        let timed = tune::time(&shapes, task, |i, shape| {
            let (number, all, count) = (i + 1, shapes.len(), shape.count);
            eprintln!("timing   {number}/{all}: {shape}, {count} per step");
        })?;
        let bandwidth = measure::read_bandwidth(workers);
        let measured: Vec<_> = timed.iter().map(|t| t.measured.clone()).collect();
        cache.merge(&device, &measured);
        cache.save(&path)?;
        let tuned = TargetProfile {
            measured,
            ..target.clone()
        };
        let rows = printed_rows(self.max_batch);
        let report = Report {
            shapes: &shapes,
            timed: &timed,
            table: &Selector::new(&target, workers),
            tuned: &Selector::new(&tuned, workers),
            bandwidth,
        };
        rt::print(&report.text(&rows))?;
        for shape in &shapes[timed.len()..] {
            eprintln!("skipped  {shape}: the budget is spent; raise --budget");
        }
        eprintln!("wrote {}", path.display());
        Ok(())
    }
}

/// The shapes of a GGUF or a bundle.
fn shapes(path: &Path) -> Result<Vec<Shape>, Error> {
    let shapes = if super::is_gguf(path)? {
        let mut graph = model::build(&Gguf::open(path)?)?.graph;
        pass::run_all(&mut graph, None)?;
        tune::shapes(&graph)?
    } else {
        let bundle = Bundle::open(path)?;
        let notes: Vec<Notes> = bundle.section_value(SectionKind::Notes)?;
        let plans = bundle.manifest().plans.iter().zip(&notes);
        let on_cpu = plans.into_iter().find(|(plan, _)| plan.gpu.is_none());
        let (_, notes) = on_cpu.ok_or_else(|| Error::Model {
            what: path.display().to_string(),
            why: "has no plan for a CPU, and only CPU kernels are timed: give the GGUF it was compiled from".into(),
        })?;
        tune::shapes_of_notes(notes)
    };
    if shapes.is_empty() {
        return Err(Error::Model {
            what: path.display().to_string(),
            why: "has no matmul to tune".into(),
        });
    }
    Ok(shapes)
}

/// Where `tune` writes and `compile` looks when nothing else is said.
pub(super) fn default_cache() -> PathBuf {
    coldpress_runtime::cache::home().join("tune.json")
}

/// Row counts worth a line: powers of two, and the largest batch.
fn printed_rows(max_batch: usize) -> Vec<usize> {
    let powers = std::iter::successors(Some(1), |r| Some(r * 2));
    let mut rows: Vec<usize> = powers.take_while(|&r| r < max_batch).collect();
    rows.push(max_batch);
    rows
}

/// What was measured, beside what the built-in table says.
struct Report<'a> {
    shapes: &'a [Shape],
    timed: &'a [Timed],
    table: &'a Selector<'a>,
    tuned: &'a Selector<'a>,
    /// Bytes per second.
    bandwidth: f64,
}

impl Report<'_> {
    fn text(&self, rows: &[usize]) -> String {
        let header = [
            "shape",
            "per step",
            "rounds",
            "rows",
            "picked",
            "us",
            "GB/s",
            "% of bw",
            "predicted us",
            "predicted pick",
        ];
        let mut lines = vec![header.map(str::to_string)];
        for timed in self.timed {
            let shape = &self.shapes[timed.index];
            for &rows in rows {
                lines.extend(self.line(shape, timed.rounds, rows));
            }
        }
        let width = |c: usize| lines.iter().map(|l| l[c].len()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..header.len()).map(width).collect();
        let mut text = String::new();
        for line in &lines {
            let cells = line.iter().zip(&widths);
            let cells: Vec<String> = cells.map(|(cell, &w)| format!("{cell:<w$}")).collect();
            text.push_str(cells.join("  ").trim_end());
            text.push('\n');
        }
        text.push_str(&format!(
            "measured read bandwidth: {:.1} GB/s\n",
            self.bandwidth / 1e9
        ));
        text
    }

    fn line(&self, shape: &Shape, rounds: usize, rows: usize) -> Option<[String; 10]> {
        let (measured, picked) = best(self.tuned, shape, rows)?;
        let (predicted, table_pick) = best(self.table, shape, rows)?;
        let rate = measured.1 / measured.0;
        let differs = picked != table_pick;
        Some([
            shape.to_string(),
            shape.count.to_string(),
            rounds.to_string(),
            rows.to_string(),
            picked,
            format!("{:.1}", measured.0 * 1e6),
            format!("{:.1}", rate / 1e9),
            format!("{:.0}", rate / self.bandwidth * 100.0),
            format!(
                "{:.1} ({:+.0} %)",
                predicted.0 * 1e6,
                (predicted.0 / measured.0 - 1.0) * 100.0
            ),
            if differs { table_pick } else { "same".into() },
        ])
    }
}

/// Seconds and bytes of the cheapest cut, and the cut.
fn best(selector: &Selector<'_>, shape: &Shape, rows: usize) -> Option<((f64, f64), String)> {
    let candidates: Vec<Candidate> =
        selector.shape_candidates(shape.layout, (shape.n, shape.k), rows);
    let best = cheapest(selector.in_class(&candidates))?;
    let cost = best.verdict.as_ref().ok()?;
    Some(((cost.seconds, cost.bytes as f64), cut(&best.batches)))
}

/// `60s`, `5m`, `500ms`, plain seconds.
fn parse_time(text: &str) -> Result<Duration, String> {
    let digits = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let number: f64 = text[..digits]
        .parse()
        .map_err(|_| format!("{text} is not a time such as 60s"))?;
    let unit = match text[digits..].trim() {
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        unit => return Err(format!("unknown unit {unit} (use ms, s, m, h)")),
    };
    const DAY: f64 = 86_400.0;
    match number * unit {
        seconds if seconds <= DAY => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("{text} is more than a day")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(parse_time("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(parse_time("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_time("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(parse_time("7"), Ok(Duration::from_secs(7)));
        for wrong in [
            "",
            "soon",
            "1 fortnight",
            "-1s",
            "1e9",
            "999999999h",
            "1.2.3s",
        ] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_largest_batch_has_a_line() {
        assert_eq!(printed_rows(1), [1]);
        assert_eq!(printed_rows(8), [1, 2, 4, 8]);
        assert_eq!(printed_rows(9), [1, 2, 4, 8, 9]);
    }
}
