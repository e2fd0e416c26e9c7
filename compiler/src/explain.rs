//! What a bundle remembers of the decisions behind it, and how one tensor is followed from GGUF to machine code:
//! type and shape, packed place, candidates with costs, launch lines, instructions.

use crate::codegen::cpu::CpuCode;
use crate::error::Error;
use crate::graph::{OpGraph, dump};
use crate::plan::select::Selector;
use crate::plan::{Form, Plan, Work};
use coldpress_runtime::manifest::Stage;
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
    /// Code ranges of worker 0: `[program][launch] = (start, end)` in the code section.
    pub code: Vec<Vec<(u64, u64)>>,
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
    /// Variant id.
    pub variant: String,
    /// Predicted seconds, or why it is not legal.
    pub verdict: Result<(f64, String), String>,
    /// Whether the plan uses it.
    pub picked: bool,
}

impl Notes {
    /// Collects notes of a finished plan and its code.
    pub fn new(graph: &OpGraph, plan: &Plan, code: &CpuCode) -> Result<Notes, Error> {
        let selector = Selector::new(&plan.target, plan.workers);
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
            if place.form == Form::Tiles {
                layout = selector.layout(w)?.name();
                if let Some(stage) = stage_of(plan, place.offset) {
                    let key = (layout.clone(), w.n, w.k, stage);
                    choice = match seen.iter().find(|s| s.0 == key) {
                        Some(s) => Some(s.1),
                        None => {
                            let mut buckets = Vec::new();
                            for &(_, r) in rows.iter().filter(|r| r.0 == stage) {
                                buckets.push((r as u32, candidates(&selector, w, r)?));
                            }
                            let index = notes.choices.len() as u32;
                            notes.choices.push(Choice { buckets });
                            seen.push((key, index));
                            Some(index)
                        }
                    };
                }
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
        notes.code = code
            .launches
            .iter()
            .map(|p| p.iter().map(|r| (r.start, r.end)).collect())
            .collect();
        Ok(notes)
    }
}

/// The stage whose matmuls read the tiles at `offset`.
fn stage_of(plan: &Plan, offset: u64) -> Option<Stage> {
    plan.programs.iter().find_map(|program| {
        let reads = program.launches.iter().any(|l| match &l.work {
            Work::Matmul(m) => m.parts.iter().any(|p| p.weights == offset),
            _ => false,
        });
        reads.then_some(program.stage)
    })
}

fn candidates(
    selector: &Selector<'_>,
    weight: &crate::graph::Weight,
    rows: usize,
) -> Result<Vec<CandidateNote>, Error> {
    let picked = selector.pick(weight, rows)?;
    Ok(selector
        .candidates(weight, rows)?
        .into_iter()
        .map(|c| {
            let symbols: Vec<String> = c.batches.iter().map(|b| b.kernel.to_string()).collect();
            let used = symbols.len() == picked.stamps.len()
                && symbols
                    .iter()
                    .zip(&picked.stamps)
                    .all(|(s, stamp)| *s == stamp.symbol);
            CandidateNote {
                variant: format!("{} n{}", c.variant.isa.name(), c.variant.stamp),
                picked: used && c.verdict.is_ok(),
                verdict: match c.verdict {
                    Ok(cost) => Ok((cost.seconds, cost.to_string())),
                    Err(reason) => Err(reason.to_string()),
                },
            }
        })
        .collect())
}

/// A program of the bundle: stage, rows, label of each launch.
pub type ProgramNote = (Stage, u32, Vec<String>);

/// Follows the tensor (or launch label) `name`. `instructions` turns a code range into text, one instruction per line.
pub fn explain(
    notes: &Notes,
    name: &str,
    instructions: &dyn Fn(u64, u64) -> String,
    programs: &[ProgramNote],
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
        let (bits, end) = (
            t.bytes as f64 * 8.0 / (t.n as f64 * t.k as f64).max(1.0),
            t.offset.saturating_add(t.bytes),
        );
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
                    let verdict = match &c.verdict {
                        Ok((seconds, reason)) => format!("{:>9.1}  {reason}", seconds * 1e6),
                        Err(reason) => format!("not legal: {reason}"),
                    };
                    let mark = if c.picked { "  <--" } else { "" };
                    let _ = writeln!(out, "    {:<32} {verdict}{mark}", c.variant);
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
    for (p, (stage, rows, labels)) in programs.iter().enumerate() {
        let Some(code) = notes.code.get(p) else {
            continue;
        };
        let found: Vec<usize> = (0..labels.len())
            .filter(|&i| labels[i].split('+').any(|l| l == label))
            .collect();
        if found.is_empty() {
            continue;
        }
        let _ = writeln!(out, "\nmachine code, {stage:?} {rows} rows, worker 0:");
        for i in found {
            if let Some(&(start, end)) = code.get(i) {
                let _ = writeln!(out, "{}", instructions(start, end));
            }
        }
        break;
    }
    Ok(out)
}
