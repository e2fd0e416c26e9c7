//! `inspect`: what a bundle is, needs and does, and everything that keeps this machine from running it. Reads, never
//! runs. The list of kernels is collapsed in `inspect/kernels.rs`.

mod kernels;
#[cfg(test)]
mod tests;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::output::{bytes, print, seconds, table};
use crate::bundle::{Bundle, Header, Machine};
use crate::device::cuda::{GpuInfo, OLDEST_DRIVER};
use crate::error::Error;
use crate::manifest::{BatchPrediction, Limits, Manifest, ModelCard, Program, Stage, TargetPlan};

/// Shows what a bundle is and whether this machine can run it.
#[derive(Clone, Debug, clap::Args)]
pub struct InspectArgs {
    /// The bundle
    #[arg(value_name = "BUNDLE")]
    pub bundle: PathBuf,
    /// Everything, as JSON
    #[arg(long)]
    pub json: bool,
}

impl InspectArgs {
    /// Runs the command. A bundle for another machine is shown like any other.
    ///
    /// # Errors
    /// The file is no bundle, damaged, or of another format version.
    pub fn execute(self) -> Result<(), Error> {
        let bundle = Bundle::open(&self.bundle)?;
        let machine = bundle.machine();
        let mismatches = bundle.mismatches(&machine);
        let view = View {
            path: &self.bundle,
            header: bundle.file_header(),
            manifest: bundle.manifest(),
            machine: &machine,
            mismatches: &mismatches,
            picked: bundle.pick_plan(&machine).ok(),
        };
        print(&if self.json { view.json() } else { view.text() })
    }
}

/// What there is to show.
struct View<'a> {
    path: &'a Path,
    header: &'a Header,
    manifest: &'a Manifest,
    machine: &'a Machine,
    mismatches: &'a [String],
    /// The plan this machine would run.
    picked: Option<&'a TargetPlan>,
}

impl View<'_> {
    fn text(&self) -> String {
        let mut out = self.head();
        for (index, plan) in self.manifest.plans.iter().enumerate() {
            let picked = self.picked.is_some_and(|p| std::ptr::eq(p, plan));
            let mark = if picked {
                " (runs on this machine)"
            } else {
                ""
            };
            let _ = write!(
                out,
                "\nplan {}: {}{mark}\n\n",
                index + 1,
                plan.requires.target
            );
            out.push_str(&needs(plan));
            for line in self.why_not(plan) {
                let _ = writeln!(out, "not here  {line}");
            }
            let weights = self
                .header
                .sections
                .get(plan.weights_section as usize)
                .map_or(0, |s| s.bytes);
            let _ = write!(
                out,
                "\nmemory\n{}\n",
                memory(plan, weights, self.manifest.limits)
            );
            let _ = write!(out, "\nbuckets\n{}\n", buckets(plan));
            let _ = write!(out, "\ndecode by batch size\n{}\n", curve(plan));
            let _ = write!(out, "\nkernels\n{}\n", kernels::table(plan));
        }
        out
    }

    /// Why another plan runs here than this one; nothing if this one does, or none.
    fn why_not(&self, plan: &TargetPlan) -> Vec<String> {
        match self.picked {
            Some(picked) if !std::ptr::eq(picked, plan) => {
                self.machine.refusal(&plan.requires, &picked.requires)
            }
            _ => Vec::new(),
        }
    }

    fn head(&self) -> String {
        let mut out = String::new();
        let ModelCard {
            name,
            architecture,
            parameters,
            vocab_size,
            trained_context,
            source_bytes,
        } = &self.manifest.model;
        let Limits {
            max_batch,
            max_context,
            max_rows,
        } = self.manifest.limits;
        let header = self.header;
        let machine = self.machine;
        let _ = write!(
            out,
            "bundle    {}: {}, {} sections, by {}\n\
             model     {name} ({architecture}): {:.1} M parameters, {vocab_size} tokens, trained for {trained_context}, from {}\n\
             limits    {max_batch} sequences of {max_context} tokens, {max_rows} rows per step\n\
             machine   {}, {} cores, {} available; {}\n",
            self.path.display(),
            bytes(header.file_bytes),
            header.sections.len(),
            header.producer,
            *parameters as f64 / 1e6,
            bytes(*source_bytes),
            machine.arch,
            machine.cores,
            if machine.memory_bytes == u64::MAX {
                "unknown memory".into()
            } else {
                bytes(machine.memory_bytes)
            },
            machine.features.join(" "),
        );
        for gpu in machine.gpus.iter().flatten() {
            let _ = writeln!(out, "gpu       {gpu}");
        }
        if let Ok(gpu) = &machine.metal {
            let _ = writeln!(out, "gpu       {gpu}");
        }
        match self.mismatches {
            [] => out.push_str("verdict   this machine runs it\n"),
            lines => {
                out.push_str("verdict   this machine cannot run it:\n");
                lines.iter().for_each(|line| {
                    let _ = writeln!(out, "          - {line}");
                });
            }
        }
        out
    }

    fn json(&self) -> String {
        let sections: Vec<serde_json::Value> = self
            .header
            .sections
            .iter()
            .map(|s| {
                serde_json::json!({
                    "kind": format!("{:?}", s.kind).to_lowercase(),
                    "offset": s.offset,
                    "bytes": s.bytes,
                    "checksum": format!("{:016x}", s.checksum),
                })
            })
            .collect();
        let refused: Vec<serde_json::Value> = self
            .manifest
            .plans
            .iter()
            .map(|plan| (plan, self.why_not(plan)))
            .filter(|(_, why)| !why.is_empty())
            .map(|(plan, why)| serde_json::json!({"target": plan.requires.target, "why": why}))
            .collect();
        let value = serde_json::json!({
            "file": self.path.display().to_string(),
            "file_bytes": self.header.file_bytes,
            "format_version": crate::bundle::header::FORMAT_VERSION,
            "producer": self.header.producer,
            "sections": sections,
            "machine": {
                "arch": self.machine.arch,
                "features": self.machine.features,
                "memory_bytes": self.machine.memory_bytes,
                "cores": self.machine.cores,
                "metal": self.machine.metal.as_ref().ok().map(|gpu| gpu.to_string()),
                "gpus": self.machine.gpus.iter().flatten().map(gpu_json).collect::<Vec<_>>(),
            },
            "runs_here": self.mismatches.is_empty(),
            "mismatches": self.mismatches,
            "target": self.picked.map(|plan| &plan.requires.target),
            "refused": refused,
            "manifest": self.manifest,
        });
        format!("{value:#}\n")
    }
}

fn gpu_json(gpu: &GpuInfo) -> serde_json::Value {
    serde_json::json!({
        "name": gpu.name,
        "capability": format!("{}.{}", gpu.capability.0, gpu.capability.1),
        "memory_bytes": gpu.memory_bytes,
        "multiprocessors": gpu.sms,
        "cuda": gpu.cuda_version(),
        "driver": gpu.driver,
    })
}

fn needs(plan: &TargetPlan) -> String {
    let requires = &plan.requires;
    let features = if requires.features.is_empty() {
        "no features".into()
    } else {
        requires.features.join(" ")
    };
    match &plan.gpu {
        Some(gpu) if requires.arch == "metal" => format!(
            "needs     a Mac whose GPU is {features} or later; {} kernels\n",
            gpu.kernels.len()
        ),
        Some(gpu) => format!(
            "needs     an NVIDIA GPU that runs {features}, driver {OLDEST_DRIVER} or later; {} kernels\n",
            gpu.kernels.len()
        ),
        None => format!(
            "needs     {} with {features}; {} threads\n",
            requires.arch, plan.workers
        ),
    }
}

fn memory(plan: &TargetPlan, weights: u64, limits: Limits) -> comfy_table::Table {
    let kv = &plan.kv;
    let windows = match kv.window_bytes() {
        0 => String::new(),
        windows => format!(", {} per sequence in windows", bytes(windows)),
    };
    let states = match kv.state_bytes() {
        0 => String::new(),
        states => format!(", {} per sequence in recurrent states", bytes(states)),
    };
    let mut table = table(["what", "size", "how"]);
    let in_place = plan.gpu.is_some() && plan.requires.arch == "metal";
    table.add_row([
        "weights".into(),
        bytes(weights),
        match plan.gpu {
            Some(_) if in_place => "mapped from the bundle; the GPU reads them there".into(),
            Some(_) => "copied to the GPU".into(),
            None => "mapped from the bundle, shared and evictable".into(),
        },
    ]);
    table.add_row([
        "KV cache".into(),
        bytes(kv.bytes),
        format!(
            "{:?}, {} per token{windows}{states}, {} pages of {} tokens for {} sequences of {}; {}",
            kv.kv_type,
            bytes(kv.bytes_per_token()),
            kv.pages,
            kv.page_tokens,
            limits.max_batch,
            limits.max_context,
            kv.kept()
        ),
    ]);
    table.add_row([
        "activations".into(),
        bytes(plan.arena_bytes),
        "one arena for every bucket".into(),
    ]);
    // What an Apple GPU needs is allocated but for the weights.
    let mapped = if in_place { weights } else { 0 };
    table.add_row([
        "allocated".into(),
        bytes(plan.requires.memory_bytes.saturating_sub(mapped)),
        "all of it before the first step".into(),
    ]);
    if in_place {
        table.add_row([
            "in all".into(),
            bytes(plan.requires.memory_bytes),
            "what the GPU must be allowed to use, the weights once".into(),
        ]);
    }
    table
}

/// One line per row count: its trunk and head, predicted.
fn buckets(plan: &TargetPlan) -> comfy_table::Table {
    let mut table = table([
        "stage",
        "rows",
        "predicted",
        "rows/s",
        "read and written",
        "multiply-adds",
        "launches",
    ]);
    for program in &plan.programs {
        let sum =
            |of: fn(&crate::manifest::Launch) -> u64| program.launches.iter().map(of).sum::<u64>();
        let speed = if program.predicted_seconds > 0.0 {
            format!("{:.1}", f64::from(program.rows) / program.predicted_seconds)
        } else {
            "-".into()
        };
        table.add_row([
            stage_name(program.stage).into(),
            program.rows.to_string(),
            seconds(program.predicted_seconds),
            speed,
            bytes(sum(|launch| launch.bytes)),
            format!("{:.2} G", sum(|launch| launch.macs) as f64 / 1e9),
            launches(program),
        ]);
    }
    table
}

/// How many there are; on a GPU, where each waits for the one before it, also how many a layer but the first takes.
fn launches(program: &Program) -> String {
    let all = program.launches.len();
    match program.launches_of_a_layer() {
        Some(most) if program.launches.iter().any(|l| l.grid.is_some()) => {
            format!("{all}, {most} a layer")
        }
        _ => all.to_string(),
    }
}

/// One line per run of batch sizes that share their buckets: what a step takes, and where tokens/s fall.
fn curve(plan: &TargetPlan) -> comfy_table::Table {
    let mut table = table(["batch", "buckets", "predicted", "tok/s", ""]);
    let same = |a: &BatchPrediction, b: &BatchPrediction| {
        (a.trunk_rows, a.head_rows) == (b.trunk_rows, b.head_rows)
    };
    let rate = |point: &BatchPrediction| f64::from(point.batch) / point.predicted_seconds;
    let mut best = 0.0;
    for run in plan.curve.chunk_by(same) {
        let (first, last) = (&run[0], &run[run.len() - 1]);
        let falls = rate(first) < best * (1.0 - 1e-9);
        let note = if falls {
            format!("falls from {best:.1}")
        } else {
            String::new()
        };
        let (batch, speed) = if run.len() == 1 {
            (first.batch.to_string(), format!("{:.1}", rate(first)))
        } else {
            (
                format!("{}-{}", first.batch, last.batch),
                format!("{:.1}-{:.1}", rate(first), rate(last)),
            )
        };
        let buckets = format!("trunk {}, head {}", first.trunk_rows, first.head_rows);
        table.add_row([
            batch,
            buckets,
            seconds(first.predicted_seconds),
            speed,
            note,
        ]);
        best = rate(last).max(best);
    }
    table
}

fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Trunk => "trunk",
        Stage::Head => "head",
    }
}
