//! A finished compile to bundle bytes: manifest, code, tokenizer, golden prompts, notes, then the weights as they are
//! packed. What the bytes look like is `coldpress_runtime::bundle`'s business.

use crate::codegen::cuda::CudaCode;
use crate::codegen::metal::MetalCode;
use crate::codegen::{Code, gpu};
use crate::error::Error;
use crate::explain::Notes;
use crate::gguf::Gguf;
use crate::model::Model;
use crate::pack::Packer;
use crate::plan::{self, Plan, ProgramPlan, Work};
use coldpress_runtime::bundle::{BundleWriter, SectionKind};
use coldpress_runtime::manifest::{
    GoldenPrompt, GpuPlan, Grid, Launch, Manifest, ModelCard, Program, Requirements, TargetPlan,
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
    /// How, for each target.
    pub plans: &'a [Plan],
    /// Each plan's code.
    pub codes: &'a [Code],
    /// Tokenizer and chat template, if the model has any.
    pub spec: Option<&'a TokenizerSpec>,
    /// Prompts with reference logits.
    pub golden: &'a [GoldenPrompt],
    /// Decisions, for `explain`, plan by plan.
    pub notes: &'a [Notes],
    /// The model file, for its name.
    pub path: &'a Path,
}

/// Writes the bundle at `out`, under a temporary name until it is complete. `progress` receives packed bytes.
pub fn write(
    out: &Path,
    contents: &Contents<'_>,
    mut progress: impl FnMut(u64),
) -> Result<(), Error> {
    let mut out = BundleWriter::create(out)?;
    let mut sections = Vec::with_capacity(contents.plans.len());
    for code in contents.codes {
        let code = match code {
            Code::Cpu(code) => (out.write_section(SectionKind::Code, &code.bytes)?, 0),
            Code::Metal(code) => (
                out.write_section(SectionKind::Code, code.library.as_bytes())?,
                out.write_section(SectionKind::Source, &code.sources)?,
            ),
            Code::Cuda(code) => (
                out.write_section(SectionKind::Code, &code.bytes)?,
                out.write_section(SectionKind::Source, &code.sources)?,
            ),
        };
        sections.push(Sections {
            code: code.0,
            source: code.1,
            weights: 0,
        });
    }
    if let Some(spec) = contents.spec {
        out.write_value(SectionKind::Tokenizer, spec)?;
    }
    out.write_value(SectionKind::Golden, &contents.golden)?;
    out.write_value(SectionKind::Notes, &contents.notes)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for sharing in weight_sections(contents.plans) {
        let section = out.begin_section(SectionKind::Weights)?;
        let plan = &contents.plans[sharing[0]];
        let packer = Packer {
            gguf: contents.gguf,
            graph: &contents.model.graph,
            order: plan.target.order(),
        };
        packer.pack(&plan.weights, threads, &mut out, &mut progress)?;
        for index in sharing {
            sections[index].weights = section;
        }
    }
    let manifest = manifest(contents, &sections);
    out.write_value(SectionKind::Manifest, &manifest)?;
    let requires: Vec<Requirements> = manifest.plans.iter().map(|p| p.requires.clone()).collect();
    out.finish(PRODUCER, &requires)?;
    Ok(())
}

/// Plans by the section of weights they read: those whose weights lie in the same order at the same places share one.
pub fn weight_sections(plans: &[Plan]) -> Vec<Vec<usize>> {
    let mut sections: Vec<Vec<usize>> = Vec::new();
    for (index, plan) in plans.iter().enumerate() {
        let same = |other: &Plan| {
            other.target.order() == plan.target.order() && other.weights == plan.weights
        };
        match sections.iter_mut().find(|s| same(&plans[s[0]])) {
            Some(sharing) => sharing.push(index),
            None => sections.push(vec![index]),
        }
    }
    sections
}

/// Which sections a plan's bytes are in.
struct Sections {
    code: u32,
    source: u32,
    weights: u32,
}

fn manifest(contents: &Contents<'_>, sections: &[Sections]) -> Manifest {
    let Contents { gguf, model, .. } = contents;
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
    let plans = contents.plans.iter().zip(contents.codes).zip(sections);
    Manifest {
        model: ModelCard {
            name,
            architecture: model.info.architecture.clone(),
            parameters: model.info.parameters,
            vocab_size: model.info.vocab_size as u32,
            trained_context: model.info.max_context as u32,
            source_bytes: gguf.total_bytes(),
        },
        limits: contents.plans.first().map(|p| p.limits).unwrap_or_default(),
        plans: plans
            .map(|((plan, code), sections)| target_plan(plan, code, sections))
            .collect(),
    }
}

fn target_plan(plan: &Plan, code: &Code, sections: &Sections) -> TargetPlan {
    let (arch, features) = plan.target.requires();
    let mut memory_bytes = plan.arena_bytes as u64 + plan.kv.bytes;
    let (symbols, gpu) = match code {
        Code::Cpu(code) => (code.symbols.clone(), None),
        Code::Cuda(CudaCode { kernels, .. }) | Code::Metal(MetalCode { kernels, .. }) => {
            let step = plan.step_layout();
            memory_bytes += plan.weight_bytes + step.bytes();
            let gpu = GpuPlan {
                step,
                zeroed_bytes: plan.zeroed_bytes as u64,
                candidates: plan.candidates,
                source_section: sections.source,
                kernels: kernels.clone(),
            };
            (Vec::new(), Some(gpu))
        }
    };
    let program = |(index, program): (usize, &ProgramPlan)| Program {
        stage: program.stage,
        rows: program.rows as u32,
        entries: match code {
            Code::Cpu(code) => code.entries[index].clone(),
            Code::Cuda(_) | Code::Metal(_) => Vec::new(),
        },
        predicted_seconds: program.predicted_seconds(),
        launches: program.launches.iter().map(|l| launch(l, code)).collect(),
    };
    TargetPlan {
        requires: Requirements {
            target: plan.target.name().to_string(),
            arch,
            features,
            memory_bytes,
            planned_for: plan.target.planned_for(),
        },
        workers: plan.workers as u32,
        symbols,
        weights_section: sections.weights,
        code_section: sections.code,
        arena_bytes: plan.arena_bytes as u64,
        logits_offset: plan.logits.offset as u64,
        logits_stride: plan.logits.stride as u64,
        kv: plan.kv.clone(),
        programs: plan.programs.iter().enumerate().map(program).collect(),
        curve: plan.curve(),
        gpu,
    }
}

fn launch(launch: &plan::Launch, code: &Code) -> Launch {
    let grid = match &launch.work {
        Work::Grid(grid) => code.gpu_kernels().map(|kernels| Grid {
            kernel: gpu::index(kernels, &grid.kernel.name),
            grid: grid.geometry.grid,
            shared_bytes: grid.geometry.shared_bytes,
            args: grid.args.clone(),
            overlaps: grid.overlaps,
        }),
        _ => None,
    };
    Launch {
        label: launch.label.clone(),
        kernel: launch.kernel(),
        reason: launch.reason.clone(),
        bytes: launch.bytes,
        macs: launch.macs,
        predicted_seconds: launch.seconds,
        grid,
    }
}
