//! The plan in words and numbers: memory, buckets, predicted curve, and a stable text dump for `--emit`.

use super::{Arg, Attention, ExpertPart, Launch, Plan, ProgramPlan, Work};
use coldpress_kernels::gpu::abi::StepLayout;
use coldpress_runtime::manifest::{BatchPrediction, GridArg, Stage};
use std::fmt::Write;

/// Bytes a plan needs, by purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Packed weights, mapped from the bundle.
    pub weights: u64,
    /// KV pool.
    pub kv: u64,
    /// KV of one token of one sequence in the layers that keep all of them.
    pub kv_per_token: u64,
    /// KV of one sequence in the layers that keep a window.
    pub kv_windows: u64,
    /// Of the KV pool, the recurrent states of one sequence.
    pub states: u64,
    /// Activation arena.
    pub arena: u64,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.kv + self.arena
    }
}

impl Plan {
    /// Where a GPU finds the rows of a step.
    pub fn step_layout(&self) -> StepLayout {
        StepLayout {
            max_rows: self.limits.max_rows,
            slots: self.limits.max_batch,
            pages_per_slot: self.kv.pages_per_slot,
            tables: 1 + self.kv.windows.len() as u32,
        }
    }

    /// Exact memory of this plan.
    pub fn memory(&self) -> Memory {
        Memory {
            weights: self.weight_bytes,
            kv: self.kv.bytes,
            kv_per_token: self.kv.bytes_per_token(),
            kv_windows: self.kv.window_bytes(),
            states: self.kv.state_bytes(),
            arena: self.arena_bytes as u64,
        }
    }

    /// Predicted decode time for `batch` sequences: trunk and head at the cheapest buckets that hold them.
    pub fn predicted_step(&self, batch: usize) -> Option<f64> {
        self.predict(batch).map(|p| p.predicted_seconds)
    }

    /// The predicted decode step of every batch size from 1 to the largest.
    pub fn curve(&self) -> Vec<BatchPrediction> {
        (1..=self.limits.max_batch as usize)
            .filter_map(|batch| self.predict(batch))
            .collect()
    }

    fn predict(&self, batch: usize) -> Option<BatchPrediction> {
        // The smallest of equally cheap ones, as the runtime picks.
        let cheapest = |stage: Stage| {
            self.programs
                .iter()
                .filter(|p| p.stage == stage && p.rows >= batch)
                .map(|p| (p.rows as u32, p.predicted_seconds()))
                .min_by(|a, b| a.1.total_cmp(&b.1))
        };
        let (trunk, head) = (cheapest(Stage::Trunk)?, cheapest(Stage::Head)?);
        Some(BatchPrediction {
            batch: batch as u32,
            trunk_rows: trunk.0,
            head_rows: head.0,
            predicted_seconds: trunk.1 + head.1,
        })
    }

    /// What most of the predicted time of a decode step goes into on a GPU, by name ([`super::Grid::bound_by`]), and its share
    /// of the time; `None` where no launch says so.
    pub fn bound_by(&self, batch: usize) -> Option<(&'static str, f64)> {
        let point = self.predict(batch)?;
        let mut walls: Vec<(&'static str, f64)> = Vec::new();
        for (stage, rows) in [
            (Stage::Trunk, point.trunk_rows),
            (Stage::Head, point.head_rows),
        ] {
            let own = |p: &&ProgramPlan| p.stage == stage && p.rows == rows as usize;
            for launch in self.programs.iter().filter(own).flat_map(|p| &p.launches) {
                let Work::Grid(grid) = &launch.work else {
                    continue;
                };
                match walls.iter_mut().find(|wall| wall.0 == grid.bound_by) {
                    Some(wall) => wall.1 += launch.seconds,
                    None => walls.push((grid.bound_by, launch.seconds)),
                }
            }
        }
        let most = walls.into_iter().max_by(|a, b| a.1.total_cmp(&b.1))?;
        Some((most.0, most.1 / point.predicted_seconds))
    }

    /// Batch sizes at which predicted tokens/s fall below a smaller batch's, with both rates.
    pub fn cliffs(&self) -> Vec<(usize, f64, f64)> {
        let mut best = 0.0f64;
        let mut cliffs = Vec::new();
        for point in self.curve() {
            let rate = f64::from(point.batch) / point.predicted_seconds;
            // Sums of the same terms in another order differ in the last digits.
            if rate < best * (1.0 - 1e-9) {
                cliffs.push((point.batch as usize, rate, best));
            }
            best = best.max(rate);
        }
        cliffs
    }

    /// One line per launch of every program.
    pub fn dump(&self) -> String {
        let mut out = String::new();
        let m = self.memory();
        let _ = writeln!(
            out,
            "plan for {}: {} workers, weights {} B, kv {} B, arena {} B",
            self.target.name(),
            self.workers,
            m.weights,
            m.kv,
            m.arena
        );
        for program in &self.programs {
            let us = program.predicted_seconds() * 1e6;
            let _ = writeln!(
                out,
                "\n{:?} {} rows, {us:.1} us predicted",
                program.stage, program.rows
            );
            for launch in &program.launches {
                let _ = writeln!(
                    out,
                    "{} {:<24} {}",
                    if launch.barrier { "|" } else { " " },
                    launch.label,
                    launch.describe()
                );
            }
        }
        out
    }
}

impl Launch {
    /// Kernels of the launch, as in the manifest.
    pub fn kernel(&self) -> String {
        match &self.work {
            Work::Call { symbol, .. }
            | Work::Recurrent { symbol, .. }
            | Work::Attention(Attention { symbol, .. }) => symbol.clone(),
            Work::Grid(grid) => grid.kernel.name.clone(),
            Work::Elementwise { op, .. } => format!("inline {op:?}"),
            Work::Experts(experts) => {
                let mut symbols: Vec<&str> = Vec::new();
                for part in &experts.parts {
                    if !symbols.contains(&part.symbol.as_str()) {
                        symbols.push(&part.symbol);
                    }
                }
                symbols.join(" + ")
            }
            Work::Matmul(matmul) => {
                let mut symbols: Vec<String> = Vec::new();
                for stamp in matmul.parts.iter().flat_map(|p| &p.stamps) {
                    if !symbols.contains(&stamp.symbol) {
                        symbols.push(stamp.symbol.clone());
                    }
                }
                symbols.join(" + ")
            }
        }
    }

    fn describe(&self) -> String {
        match &self.work {
            Work::Call {
                symbol,
                args,
                units,
            } => {
                let args: Vec<String> = args.iter().map(text).collect();
                format!("{symbol}({}) / {units}", args.join(", "))
            }
            Work::Attention(a) => {
                let args: Vec<String> = a.args.iter().map(text).collect();
                format!("{}({}) / live", a.symbol, args.join(", "))
            }
            Work::Recurrent { symbol, args } => {
                let args: Vec<String> = args.iter().map(text).collect();
                format!("{symbol}({}) / live", args.join(", "))
            }
            Work::Grid(grid) => {
                let args: Vec<String> = grid.args.iter().map(grid_text).collect();
                let [x, y, z] = grid.geometry.grid;
                let (name, threads) = (&grid.kernel.name, grid.kernel.threads);
                let shared = grid.geometry.shared_bytes;
                let weights = match grid.weights.is_empty() {
                    true => String::new(),
                    false => format!(" {}", grid.weights.join("; ")),
                };
                let args = args.join(", ");
                format!("{name}<{x}x{y}x{z}, {threads}, {shared} B>({args}){weights}")
            }
            Work::Elementwise {
                op,
                inputs,
                output,
                width,
                rows,
            } => {
                let from: Vec<String> = inputs
                    .iter()
                    .map(|b| format!("arena+{}", b.offset))
                    .collect();
                format!(
                    "{op:?} {} -> arena+{} [{rows}, {width}]",
                    from.join(", "),
                    output.offset
                )
            }
            Work::Experts(e) => {
                let part = |p: &ExpertPart| {
                    let (n, to) = (p.tiles * 16, p.output.offset);
                    let shape = format!("{} x [{n}, {}]", e.experts, e.k);
                    format!("{} {shape} {} -> arena+{to}", p.label, p.symbol)
                };
                let parts: Vec<String> = e.parts.iter().map(part).collect();
                let (input, routes) = (e.input.offset, e.routes.offset);
                format!("arena+{input} by arena+{routes} x {}", parts.join("; "))
            }
            Work::Matmul(m) => {
                let parts: Vec<String> = m
                    .parts
                    .iter()
                    .map(|p| {
                        let stamps: Vec<&str> =
                            p.stamps.iter().map(|s| s.symbol.as_str()).collect();
                        let (n, to) = (p.tiles * 16, p.output.offset);
                        format!(
                            "{} [{n}, {}] {} -> arena+{to}",
                            p.label,
                            m.k,
                            stamps.join("+")
                        )
                    })
                    .collect();
                format!("arena+{} x {}", m.input.offset, parts.join("; "))
            }
        }
    }
}

fn grid_text(arg: &GridArg) -> String {
    match arg {
        GridArg::Const(c) => c.to_string(),
        GridArg::Weights(o) => format!("weights+{o}"),
        GridArg::Kv(o) => format!("kv+{o}"),
        GridArg::Arena(o) => format!("arena+{o}"),
        GridArg::Step(o) => format!("step+{o}"),
    }
}

fn text(arg: &Arg) -> String {
    match arg {
        Arg::Null => "null".into(),
        Arg::Step(0) => "step".into(),
        Arg::Step(table) => format!("step/{table}"),
        Arg::Const(c) => c.to_string(),
        Arg::Weights(o) => format!("weights+{o}"),
        Arg::Kv(o) => format!("kv+{o}"),
        Arg::Arena(o) => format!("arena+{o}"),
        Arg::ArenaAt { offset, stride } => format!("arena+{offset}+unit*{stride}"),
        Arg::Begin => "begin".into(),
        Arg::End => "end".into(),
        Arg::Count => "count".into(),
        Arg::Worker => "worker".into(),
        Arg::Workers => "workers".into(),
    }
}
