//! What a bundle remembers of the decisions behind it, and how one tensor is followed from GGUF to machine code:
//! type and shape, packed place, candidates with costs, launch lines, instructions.

use crate::codegen::{self, Code};
use crate::error::Error;
use crate::graph::{OpGraph, Weight, dump};
use crate::plan::lower::gpu::{self, Machine};
use crate::plan::select::{Selector, packed_layout};
use crate::plan::{Form, Launch, Plan, Work};
use crate::target::Target;
use coldpress_kernels::matmul::{Reason, SubBatch};
use coldpress_runtime::manifest::{GpuKernel, GridArg, Stage};
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// Decisions kept in a bundle.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Notes {
    /// The graph after all passes, as text.
    pub graph: String,
    /// The plan, as text.
    pub plan: String,
    /// One per placed weight, in section order.
    pub tensors: Vec<TensorNote>,
    /// Candidate tables, shared by tensors of the same layout and shape.
    pub choices: Vec<Choice>,
    /// Every program's launches, in plan order.
    pub programs: Vec<ProgramNote>,
    /// GPU kernels: name, and what each takes of the target.
    pub kernels: Vec<(String, String)>,
}

/// One program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProgramNote {
    /// Which half of the step.
    pub stage: Stage,
    /// Bucket.
    pub rows: u32,
    /// Its launches in order.
    pub launches: Vec<LaunchNote>,
}

/// One launch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LaunchNote {
    /// Its own label and, of a fused matmul, every weight's.
    pub labels: Vec<String>,
    /// What runs.
    pub kernel: String,
    /// Why; empty where there was no choice.
    pub reason: String,
    /// Worker 0's instructions, (start, end) in the code section; of a GPU the source, in its section.
    pub code: (u64, u64),
}

/// One weight.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TensorNote {
    /// GGUF name.
    pub name: String,
    /// GGUF type.
    pub ty: String,
    /// Output features.
    pub n: u64,
    /// Row length.
    pub k: u64,
    /// Packed layout, or `f32 vector`.
    pub layout: String,
    /// Offset in the weights section.
    pub offset: u64,
    /// Bytes there.
    pub bytes: u64,
    /// Index into `choices` for matrices that a matmul reads.
    pub choice: Option<u32>,
}

/// Candidates of one (layout, n, k) for every bucket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// (rows, candidates).
    pub buckets: Vec<(u32, Vec<CandidateNote>)>,
}

/// One candidate at one bucket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CandidateNote {
    /// Widest stamp: `avx512 n8`.
    pub variant: String,
    /// Rows of each stamp: `8+1`.
    pub cut: String,
    /// Predicted seconds, or why it is not legal.
    pub verdict: Result<(f64, String), String>,
    /// Whether the plan uses it.
    pub picked: bool,
}

impl Notes {
    /// Collects notes of a finished plan and its code.
    pub fn new(graph: &OpGraph, plan: &Plan, code: &Code) -> Result<Notes, Error> {
        let catalogue = Catalogue::new(plan);
        let mut rows: Vec<(Stage, usize)> =
            plan.programs.iter().map(|p| (p.stage, p.rows)).collect();
        rows.sort_by_key(|r| r.1);
        let mut notes = Notes {
            graph: dump::dump(graph),
            plan: plan.dump(),
            ..Notes::default()
        };
        let mut seen: Vec<((String, usize, usize, Stage), u32)> = Vec::new();
        for place in &plan.weights {
            let w = &graph.weights[place.weight.0 as usize];
            let mut layout = "f32 vector".to_string();
            let mut choice = None;
            if place.form != Form::Vector {
                layout = packed_layout(w)?.name();
            }
            let stage = (place.form == Form::Tiles).then(|| stage_of(plan, place.offset));
            if let Some(stage) = stage.flatten() {
                let key = (layout.clone(), w.n, w.k, stage);
                choice = match seen.iter().find(|s| s.0 == key) {
                    Some(s) => Some(s.1),
                    None => {
                        let mut buckets = Vec::new();
                        for &(_, r) in rows.iter().filter(|r| r.0 == stage) {
                            buckets.push((r as u32, catalogue.candidates(w, place.offset, r)?));
                        }
                        let index = notes.choices.len() as u32;
                        notes.choices.push(Choice { buckets });
                        seen.push((key, index));
                        Some(index)
                    }
                };
            }
            notes.tensors.push(TensorNote {
                name: w.name.clone(),
                ty: w.ty.name().to_string(),
                n: w.n as u64,
                k: w.k as u64,
                layout,
                offset: place.offset,
                bytes: place.bytes,
                choice,
            });
        }
        if let Code::Metal(code) = code {
            let said = |k: &GpuKernel| (k.name.clone(), format!("{} threads", k.threads));
            notes.kernels = code.kernels.iter().map(said).collect();
        }
        if let Code::Cuda(code) = code {
            let kernels = code.resources.iter();
            notes.kernels = kernels
                .map(|(name, r)| (name.clone(), r.to_string()))
                .collect();
        }
        let programs = plan.programs.iter().enumerate();
        notes.programs = programs
            .map(|(index, program)| ProgramNote {
                stage: program.stage,
                rows: program.rows as u32,
                launches: match code {
                    Code::Cpu(code) => {
                        let ranges = program.launches.iter().zip(&code.launches[index]);
                        ranges.map(|(l, r)| launch(l, (r.start, r.end))).collect()
                    }
                    Code::Cuda(_) | Code::Metal(_) => {
                        let kernels = code.gpu_kernels().unwrap_or_default();
                        let launches = program.launches.iter();
                        let noted =
                            launches.map(|l| launch(l, codegen::gpu::source_of(kernels, l)));
                        noted.collect()
                    }
                },
            })
            .collect();
        Ok(notes)
    }
}

fn launch(launch: &Launch, code: (u64, u64)) -> LaunchNote {
    let mut labels = vec![launch.label.clone()];
    match &launch.work {
        Work::Matmul(matmul) => labels.extend(matmul.parts.iter().map(|p| p.label.clone())),
        Work::Experts(experts) => labels.extend(experts.parts.iter().map(|p| p.label.clone())),
        Work::Grid(grid) => labels.extend(grid.weights.iter().cloned()),
        _ => {}
    }
    LaunchNote {
        labels,
        kernel: launch.kernel(),
        reason: launch.reason.clone(),
        code,
    }
}

/// The stage whose matmuls read the tiles at `offset`.
fn stage_of(plan: &Plan, offset: u64) -> Option<Stage> {
    plan.programs.iter().find_map(|program| {
        let reads = program.launches.iter().any(|l| match &l.work {
            Work::Matmul(m) => m.parts.iter().any(|p| p.weights == offset),
            Work::Grid(grid) if l.macs > 0 => grid.args.contains(&GridArg::Weights(offset)),
            _ => false,
        });
        reads.then_some(program.stage)
    })
}

/// Whoever chose the variants of a plan, to be asked again.
enum Catalogue<'a> {
    Cpu(Selector<'a>),
    Gpu(gpu::Selector, &'a Plan),
}

impl<'a> Catalogue<'a> {
    fn new(plan: &'a Plan) -> Catalogue<'a> {
        match &plan.target {
            Target::Cpu(profile) => Catalogue::Cpu(Selector::new(profile, plan.workers)),
            Target::Cuda(target) => Catalogue::gpu(&Machine::from(target), plan),
            Target::Metal(profile) => Catalogue::gpu(&Machine::from(profile), plan),
        }
    }

    fn gpu(machine: &Machine, plan: &'a Plan) -> Catalogue<'a> {
        let selector = gpu::Selector::new(machine, plan.limits.max_batch as usize);
        Catalogue::Gpu(selector, plan)
    }

    /// Candidates for `weight`, whose tiles are at `offset`.
    fn candidates(
        &self,
        weight: &Weight,
        offset: u64,
        rows: usize,
    ) -> Result<Vec<CandidateNote>, Error> {
        match self {
            Catalogue::Cpu(selector) => candidates(selector, weight, rows),
            Catalogue::Gpu(selector, plan) => {
                let used = |symbol: &str| runs(plan, offset, rows, symbol);
                selector.notes(weight, rows, &used)
            }
        }
    }
}

/// Whether the plan's program of `rows` rows multiplies the tiles at `offset` with a kernel of that name; of a pair, either may be.
fn runs(plan: &Plan, offset: u64, rows: usize, symbol: &str) -> bool {
    let programs = plan.programs.iter().filter(|p| p.rows == rows);
    programs.flat_map(|p| &p.launches).any(|l| match &l.work {
        Work::Grid(grid) => {
            grid.kernel.name.contains(symbol) && grid.args.contains(&GridArg::Weights(offset))
        }
        _ => false,
    })
}

fn candidates(
    selector: &Selector<'_>,
    weight: &Weight,
    rows: usize,
) -> Result<Vec<CandidateNote>, Error> {
    let picked = selector.pick(weight, rows)?;
    Ok(selector
        .candidates(weight, rows)?
        .into_iter()
        .map(|c| CandidateNote {
            variant: format!("{} n{}", c.variant.isa.name(), c.variant.stamp),
            cut: cut(&c.batches),
            picked: c.variant == picked.variant,
            verdict: match c.verdict {
                Ok(cost) => Ok((cost.seconds, cost.to_string())),
                Err(Reason::Rows { .. }) => Err("more rows than the bucket has".into()),
                Err(reason) => Err(reason.to_string()),
            },
        })
        .collect())
}

/// `8+8+1`; `16x8+1` where a stamp repeats often.
pub fn cut(batches: &[SubBatch]) -> String {
    let runs = batches.chunk_by(|a, b| a.rows == b.rows);
    let texts = runs.map(|run| match (run.len(), run[0].rows) {
        (n @ 4.., rows) => format!("{n}x{rows}"),
        (n, rows) => vec![rows.to_string(); n].join("+"),
    });
    texts.collect::<Vec<_>>().join("+")
}

/// Variants that are not legal, by reason, in table order.
fn refused(candidates: &[CandidateNote]) -> Vec<(&str, Vec<&str>)> {
    let mut by_reason: Vec<(&str, Vec<&str>)> = Vec::new();
    for c in candidates {
        let Err(reason) = &c.verdict else { continue };
        match by_reason.iter_mut().find(|r| r.0 == reason) {
            Some(known) => known.1.push(&c.variant),
            None => by_reason.push((reason, vec![&c.variant])),
        }
    }
    by_reason
}

/// Follows the tensor (or launch label) `name`. `instructions` turns a code range into text, one instruction per line.
pub fn explain(
    notes: &Notes,
    name: &str,
    instructions: &dyn Fn(u64, u64) -> String,
) -> Result<String, String> {
    let label = name.trim_end_matches(".weight");
    let mut out = String::new();
    let tensors: Vec<&TensorNote> = notes
        .tensors
        .iter()
        .filter(|t| t.name.trim_end_matches(".weight") == label)
        .collect();
    for t in &tensors {
        let _ = writeln!(out, "{}: {} [{}, {}] in the GGUF", t.name, t.ty, t.n, t.k);
        let bits = t.bytes as f64 * 8.0 / (t.n as f64 * t.k as f64).max(1.0);
        let end = t.offset.saturating_add(t.bytes);
        let _ = writeln!(
            out,
            "  packed as {} ({bits:.3} bits per weight) at {}..{end} of the weights section",
            t.layout, t.offset
        );
        if let Some(choice) = t.choice.and_then(|c| notes.choices.get(c as usize)) {
            let _ = writeln!(out, "\ncandidates (predicted us, <-- picked):");
            for (rows, candidates) in &choice.buckets {
                let _ = writeln!(out, "  {rows} rows");
                for c in candidates {
                    if let Ok((seconds, reason)) = &c.verdict {
                        let mark = if c.picked { "  <--" } else { "" };
                        let us = seconds * 1e6;
                        let _ = writeln!(
                            out,
                            "    {:<12} {:<10} {us:>9.1}  {reason}{mark}",
                            c.variant, c.cut
                        );
                    }
                }
                for (reason, variants) in refused(candidates) {
                    let _ = writeln!(out, "    not legal: {} ({reason})", variants.join(", "));
                }
            }
        }
    }
    let mentions = |line: &&str| {
        line.split(|c: char| !(c.is_alphanumeric() || "._".contains(c)))
            .any(|w| !w.is_empty() && w.trim_end_matches(".weight") == label)
    };
    let graph: Vec<&str> = notes.graph.lines().filter(mentions).collect();
    let plan: Vec<&str> = notes.plan.lines().filter(mentions).collect();
    if tensors.is_empty() && graph.is_empty() && plan.is_empty() {
        let mut near: Vec<&str> = notes
            .tensors
            .iter()
            .map(|t| t.name.as_str())
            .filter(|n| n.contains(label))
            .collect();
        near.truncate(8);
        let hint = if near.is_empty() {
            "`inspect` lists them".into()
        } else {
            format!("did you mean {}?", near.join(", "))
        };
        return Err(format!("no such tensor or launch in this bundle ({hint})"));
    }
    let _ = writeln!(out, "\ngraph:\n  {}", graph.join("\n  "));
    let _ = writeln!(out, "\nlaunches (| = workers meet before it):");
    for line in notes.plan.lines() {
        if line.contains(" rows, ") {
            let _ = writeln!(out, "  {line}");
        } else if mentions(&line) {
            let _ = writeln!(out, "    {line}");
        }
    }
    let reads = |launch: &&LaunchNote| launch.labels.iter().any(|l| l == label);
    if !notes.kernels.is_empty() {
        let _ = writeln!(out, "\nkernels:");
    }
    for (name, resources) in &notes.kernels {
        let mut reasons: Vec<(&str, u32)> = Vec::new();
        for program in &notes.programs {
            let own = program
                .launches
                .iter()
                .filter(|l| reads(l) && l.kernel == *name);
            for launch in own {
                reasons.push((&launch.reason, program.rows));
            }
        }
        if !reasons.is_empty() {
            let _ = writeln!(out, "  {name}\n    {resources}");
        }
        for (reason, rows) in reasons.iter().filter(|r| !r.0.is_empty()) {
            let _ = writeln!(out, "    {rows} rows: {reason}");
        }
    }
    let first = notes
        .programs
        .iter()
        .find(|p| p.launches.iter().any(|l| reads(&l)));
    if let Some(program) = first {
        let (stage, rows) = (program.stage, program.rows);
        let kind = match notes.kernels.is_empty() {
            true => "machine code",
            false => "source",
        };
        let _ = writeln!(out, "\n{kind}, {stage:?} {rows} rows:");
        for launch in program.launches.iter().filter(reads) {
            let _ = writeln!(out, "{}", instructions(launch.code.0, launch.code.1));
        }
    }
    Ok(out)
}
