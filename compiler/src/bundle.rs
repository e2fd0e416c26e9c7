//! A finished compile to bundle bytes: manifest, code, tokenizer, golden prompts, notes, then the weights as they are
//! packed. What the bytes look like is `coldpress_runtime::bundle`'s business.

use crate::codegen::cpu::CpuCode;
use crate::error::Error;
use crate::explain::Notes;
use crate::gguf::Gguf;
use crate::model::Model;
use crate::pack;
use crate::plan::Plan;
use coldpress_runtime::bundle::{BundleWriter, SectionKind};
use coldpress_runtime::manifest::{
    GoldenPrompt, Launch, Manifest, ModelCard, Program, Requirements, TargetPlan,
};
use coldpress_runtime::tokenizer::TokenizerSpec;
use std::path::Path;

/// What wrote the bundle.
pub const PRODUCER: &str = concat!("coldpress ", env!("CARGO_PKG_VERSION"));

/// Everything that goes into a bundle.
pub struct Contents<'a> {
    /// Source of the weights.
    pub gguf: &'a Gguf,
    /// What is compiled.
    pub model: &'a Model,
    /// How.
    pub plan: &'a Plan,
    /// Machine code.
    pub code: &'a CpuCode,
    /// Tokenizer and chat template.
    pub spec: &'a TokenizerSpec,
    /// Prompts with reference logits.
    pub golden: &'a [GoldenPrompt],
    /// Decisions, for `explain`.
    pub notes: &'a Notes,
    /// The model file, for its name.
    pub path: &'a Path,
}

/// Writes the bundle at `out`, under a temporary name until it is complete. `progress` receives packed bytes.
pub fn write(out: &Path, contents: &Contents<'_>, progress: impl FnMut(u64)) -> Result<(), Error> {
    let mut out = BundleWriter::create(out)?;
    let code_section = out.write_section(SectionKind::Code, &contents.code.bytes)?;
    out.write_value(SectionKind::Tokenizer, contents.spec)?;
    out.write_value(SectionKind::Golden, &contents.golden)?;
    out.write_value(SectionKind::Notes, contents.notes)?;
    let weights_section = out.begin_section(SectionKind::Weights)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    pack::pack(
        contents.gguf,
        &contents.model.graph,
        &contents.plan.weights,
        threads,
        &mut out,
        progress,
    )?;
    let manifest = manifest(contents, weights_section, code_section);
    out.write_value(SectionKind::Manifest, &manifest)?;
    let requires: Vec<Requirements> = manifest.plans.iter().map(|p| p.requires.clone()).collect();
    out.finish(PRODUCER, &requires)?;
    Ok(())
}

fn manifest(contents: &Contents<'_>, weights_section: u32, code_section: u32) -> Manifest {
    let Contents {
        gguf,
        model,
        plan,
        code,
        ..
    } = contents;
    let name = if model.info.name.is_empty() {
        contents
            .path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    } else {
        model.info.name.clone()
    };
    let programs = plan
        .programs
        .iter()
        .zip(&code.entries)
        .map(|(program, entries)| Program {
            stage: program.stage,
            rows: program.rows as u32,
            entries: entries.clone(),
            predicted_seconds: program.predicted_seconds(),
            launches: program
                .launches
                .iter()
                .map(|l| Launch {
                    label: l.label.clone(),
                    kernel: l.kernel(),
                    reason: l.reason.clone(),
                    bytes: l.bytes,
                    macs: l.macs,
                    predicted_seconds: l.seconds,
                    grid: None,
                })
                .collect(),
        })
        .collect();
    Manifest {
        model: ModelCard {
            name,
            architecture: model.info.architecture.clone(),
            parameters: model.info.parameters,
            vocab_size: model.info.vocab_size as u32,
            trained_context: model.info.max_context as u32,
            source_bytes: gguf.total_bytes(),
        },
        limits: plan.limits,
        plans: vec![TargetPlan {
            requires: Requirements {
                target: plan.target.name.to_string(),
                arch: plan.target.arch.to_string(),
                features: plan.target.features(),
                memory_bytes: plan.arena_bytes as u64 + plan.kv.bytes,
            },
            workers: plan.workers as u32,
            symbols: code.symbols.clone(),
            weights_section,
            code_section,
            arena_bytes: plan.arena_bytes as u64,
            logits_offset: plan.logits.offset as u64,
            logits_stride: plan.logits.stride as u64,
            kv: plan.kv.clone(),
            programs,
            curve: plan.curve(),
            gpu: None,
        }],
    }
}
