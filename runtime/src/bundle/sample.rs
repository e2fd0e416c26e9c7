//! A small well-formed bundle for unit tests: two workers, real x86-64 code, no model.
//!
//! Trunk programs meet at the barrier and do nothing. Head programs write the token id of logits row l, as f32, to
//! element 0 of row l.

use super::{BundleWriter, SectionKind};
use crate::error::Error;
use crate::manifest::*;
use coldpress_kernels::cpu::abi::KvType;
use std::path::Path;

pub(crate) const STRIDE: u64 = 64;
pub(crate) const VOCAB: u32 = 8;

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
            bytes: 2 * 6 * 128,
            layers: vec![
                KvLayerPlan {
                    offset: 0,
                    page_bytes: 128,
                },
                KvLayerPlan {
                    offset: 6 * 128,
                    page_bytes: 128,
                },
            ],
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

/// Writes `manifest` with weights and code.
pub(crate) fn write(path: &Path, manifest: &Manifest) -> Result<u64, Error> {
    let mut writer = BundleWriter::create(path)?;
    writer.write_section(SectionKind::Weights, &[7; 100])?;
    writer.write_section(SectionKind::Code, &code())?;
    writer.write_value(SectionKind::Manifest, manifest)?;
    let targets: Vec<Requirements> = manifest.plans.iter().map(|p| p.requires.clone()).collect();
    writer.finish("sample 1", &targets)
}
