//! Small well-formed bundles for unit tests: one of two workers, real x86-64 code and no model; one for a GPU.
//!
//! Trunk programs meet at the barrier and do nothing. Head programs write the token id of logits row l, as f32, to
//! element 0 of row l.

use super::{BundleWriter, SectionKind};
use crate::error::Error;
use crate::manifest::*;
use coldpress_kernels::cpu::abi::KvType;
use coldpress_kernels::gpu::abi::StepLayout;
use std::path::Path;

pub(crate) const STRIDE: u64 = 64;
pub(crate) const VOCAB: u32 = 8;
pub(crate) const WEIGHTS: [u8; 100] = [7; 100];
pub(crate) const SOURCE: &[u8] = b"one two tri ";

const RETURN: u64 = 0;
const BARRIER: u64 = 16;
const HEAD: u64 = 32;

/// Entry points at `RETURN`, `BARRIER` and `HEAD`.
fn code() -> Vec<u8> {
    let barrier = [
        0x48, 0x8b, 0x47, 0x20, // mov rax, [rdi + symbols]
        0x48, 0x8b, 0x7f, 0x28, // mov rdi, [rdi + barrier]
        0xff, 0x20, // jmp [rax]
    ];
    let head = [
        0x48,
        0x8b,
        0x07, // mov rax, [rdi + arena]
        0x48,
        0x8b,
        0x77,
        0x18, // mov rsi, [rdi + step]
        0x48,
        0x8b,
        0x56,
        0x08, // mov rdx, [rsi + logits]
        0x4c,
        0x8b,
        0x46,
        0x10, // mov r8, [rsi + tokens]
        0x4c,
        0x8b,
        0x4e,
        0x28, // mov r9, [rsi + logit_rows]
        0x48,
        0x85,
        0xd2, // next: test rdx, rdx
        0x74,
        0x1e, // je done
        0x41,
        0x8b,
        0x09, // mov ecx, [r9]
        0x41,
        0x8b,
        0x0c,
        0x88, // mov ecx, [r8 + 4 * rcx]
        0xf3,
        0x0f,
        0x2a,
        0xc1, // cvtsi2ss xmm0, ecx
        0xf3,
        0x0f,
        0x11,
        0x00, // movss [rax], xmm0
        0x48,
        0x05,
        STRIDE as u8,
        0,
        0,
        0, // add rax, stride
        0x49,
        0x83,
        0xc1,
        0x04, // add r9, 4
        0x48,
        0xff,
        0xca, // dec rdx
        0xeb,
        0xdd, // jmp next
        0xc3, // done: ret
    ];
    let mut code = vec![0xc3; HEAD as usize];
    code[BARRIER as usize..][..barrier.len()].copy_from_slice(&barrier);
    code.extend(head);
    code
}

fn program(stage: Stage, rows: u32) -> Program {
    let entries = match stage {
        Stage::Trunk => vec![BARRIER, BARRIER],
        Stage::Head => vec![HEAD, RETURN],
    };
    Program {
        stage,
        rows,
        entries,
        predicted_seconds: 1e-6 * f64::from(rows),
        launches: Vec::new(),
    }
}

/// Trunk buckets 1, 2, 4; head buckets 1, 2; 3 slots of 64 tokens.
pub(crate) fn manifest() -> Manifest {
    let plan = TargetPlan {
        requires: Requirements {
            target: "cpu:scalar".into(),
            arch: std::env::consts::ARCH.into(),
            features: Vec::new(),
            memory_bytes: 1 << 20,
            planned_for: None,
        },
        workers: 2,
        symbols: vec!["barrier".into()],
        weights_section: 0,
        code_section: 1,
        arena_bytes: 4096,
        logits_offset: 0,
        logits_stride: STRIDE,
        kv: KvPlan {
            kv_type: KvType::F16,
            page_tokens: 32,
            pages: 6,
            pages_per_slot: 2,
            windows: Vec::new(),
            bytes: 2 * 6 * 128,
            layers: vec![
                KvLayerPlan {
                    table: 0,
                    offset: 0,
                    page_bytes: 128,
                },
                KvLayerPlan {
                    table: 0,
                    offset: 6 * 128,
                    page_bytes: 128,
                },
            ],
            states: Vec::new(),
        },
        programs: vec![
            program(Stage::Trunk, 1),
            program(Stage::Trunk, 2),
            program(Stage::Trunk, 4),
            program(Stage::Head, 1),
            program(Stage::Head, 2),
        ],
        curve: vec![BatchPrediction {
            batch: 1,
            trunk_rows: 1,
            head_rows: 1,
            predicted_seconds: 2e-6,
        }],
        gpu: None,
    };
    Manifest {
        model: ModelCard {
            name: "sample".into(),
            vocab_size: VOCAB,
            ..ModelCard::default()
        },
        limits: Limits {
            max_batch: 3,
            max_context: 64,
            max_rows: 4,
        },
        plans: vec![plan],
    }
}

/// The same model and buckets for a GPU: trunk programs are one launch of `embed`, head programs one of `gather` and one
/// of `head`. Logits are at arena offset 512, behind 256 zeroed bytes.
pub(crate) fn gpu_manifest() -> Manifest {
    let mut manifest = manifest();
    let plan = &mut manifest.plans[0];
    let kernel = |index: u64, name: &str| GpuKernel {
        name: name.into(),
        code: (16 * index, 8),
        source: (4 * index, 4),
        threads: 32 << index,
        registers: 16,
        spill_bytes: 0,
    };
    let step = StepLayout {
        max_rows: 4,
        slots: 3,
        pages_per_slot: 2,
        tables: 1,
    };
    let launch = |label: &str, kernel, rows, shared_bytes, args: Vec<GridArg>| Launch {
        label: label.into(),
        kernel: label.into(),
        reason: String::new(),
        bytes: 64,
        macs: 0,
        predicted_seconds: 1e-7,
        grid: Some(Grid {
            kernel,
            grid: [rows, 1, 1],
            shared_bytes,
            args,
            overlaps: kernel == 2,
        }),
    };
    plan.requires.target = "h200".into();
    plan.requires.arch = "cuda".into();
    plan.requires.features = vec!["sm_90a".into()];
    plan.workers = 1;
    plan.symbols.clear();
    plan.logits_offset = 512;
    for program in &mut plan.programs {
        program.entries.clear();
        let rows = program.rows;
        let live = GridArg::Step(StepLayout::LIVE);
        program.launches = match program.stage {
            Stage::Trunk => vec![launch(
                "token_embd",
                0,
                rows,
                0,
                vec![
                    live,
                    GridArg::Step(step.tokens()),
                    GridArg::Arena(256),
                    GridArg::Kv(128),
                ],
            )],
            Stage::Head => vec![
                launch(
                    "gather",
                    1,
                    rows,
                    256 * rows,
                    vec![
                        live,
                        GridArg::Step(step.logit_rows()),
                        GridArg::Arena(256),
                        GridArg::Arena(0),
                    ],
                ),
                launch(
                    "output",
                    2,
                    rows,
                    0,
                    vec![
                        live,
                        GridArg::Arena(0),
                        GridArg::Arena(512),
                        GridArg::Const(STRIDE),
                        GridArg::Weights(1),
                    ],
                ),
            ],
        };
    }
    plan.gpu = Some(GpuPlan {
        step,
        zeroed_bytes: 256,
        candidates: None,
        source_section: 2,
        kernels: vec![kernel(0, "embed"), kernel(1, "gather"), kernel(2, "head")],
    });
    manifest
}

/// Writes `manifest` with weights, code and sources.
pub(crate) fn write(path: &Path, manifest: &Manifest) -> Result<u64, Error> {
    let mut writer = BundleWriter::create(path)?;
    writer.write_section(SectionKind::Weights, &WEIGHTS)?;
    writer.write_section(SectionKind::Code, &code())?;
    if manifest.plans.iter().any(|plan| plan.gpu.is_some()) {
        writer.write_section(SectionKind::Source, SOURCE)?;
    }
    writer.write_value(SectionKind::Manifest, manifest)?;
    let targets: Vec<Requirements> = manifest.plans.iter().map(|p| p.requires.clone()).collect();
    writer.finish("sample 1", &targets)
}
