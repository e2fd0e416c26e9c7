//! Attention on Apple GPUs: a thread block has one row and some query heads of one KV head, its warps take the splits of the
//! row's positions in turn, and it merges them itself.

use super::SHARED_BYTES;
use crate::attention::Shape;
use crate::cpu::abi::KvType;
use crate::gpu::abi::ActForm;
use crate::gpu::attention::{self, MAX_HEAD_DIM, Reason, kv_word};
use crate::gpu::{Constant, Geometry, Kernel};

arguments! {
    /// Arguments of [`attention`]; queries are ready, K and V of the step's rows are in the cache. Template: `attention`.
    pub struct AttentionArgs {
        /// Address of f32 rows of query heads.
        q,
        /// Address of a score for each query head, which takes part in the softmax and brings no value, or 0.
        sinks,
        /// Address of the layer's pages.
        kv,
        /// Address of rows in the kernel's form, `[heads][head_dim]` each; those of the live rows are written.
        out,
        /// Address of u32 positions of the rows.
        positions,
        /// Address of u32 slots of the rows.
        slots,
        /// Address of u32 pages of the slots.
        page_table,
        /// Address of the live rows and live logits rows, two u32.
        live,
        /// KV heads.
        kv_heads,
        /// Bytes between rows of `q`.
        q_stride,
        /// Bytes between rows of `out`.
        out_stride,
        /// Pages of a slot in `page_table`.
        pages_per_slot,
        /// Tokens of a split, a multiple of 32.
        split,
        /// Positions a row sees, itself included; 0 = all.
        window,
        /// Factor of q k (f32).
        scale,
        /// Scores saturate at this magnitude; 0.0 = they do not (f32).
        softcap,
    }
}

/// Query heads that share one read of K and V: as many as leave room for warps, of which each merges one.
const fn queries(head_dim: usize) -> usize {
    if head_dim > 256 { 2 } else { 4 }
}

/// Warps of a thread block: as many as have room for their partial results.
const fn warps(head_dim: usize) -> usize {
    let mut warps = 8;
    while warps > queries(head_dim) && bytes(warps, head_dim) > SHARED_BYTES as usize {
        warps -= 1;
    }
    warps
}

/// Shared memory: queries, then a cell for each warp and query.
const fn bytes(warps: usize, head_dim: usize) -> usize {
    let (queries, padded) = (queries(head_dim), head_dim.next_multiple_of(32));
    queries * padded * 4 + warps * queries * (padded + 4) * 4
}

/// Whether there are kernels for this shape.
///
/// # Errors
/// The first reason why not.
pub fn attention_legal(shape: &Shape) -> Result<(), Reason> {
    // Here all caches are computed in the same way.
    attention::legal(shape, KvType::F16)
}

/// Tokens of a split: short, so that the warps of a thread block have some each as early as possible.
pub const fn split() -> usize {
    64
}

/// Attention of `group` query heads per KV head, its rows left in `form`.
pub fn attention(kv: KvType, head_dim: usize, group: usize, form: ActForm) -> Kernel {
    let (cache, rows) = (kv.name(), form.name());
    Kernel {
        name: format!("attention_{cache}_d{head_dim}_g{group}_{rows}"),
        template: "attention",
        constants: vec![
            ("kv", Constant::Word(kv_word(kv).into())),
            ("head_dim", Constant::Int(head_dim as i64)),
            ("group", Constant::Int(group as i64)),
            ("queries", Constant::Int(queries(head_dim) as i64)),
            ("form", Constant::Word(form.name().into())),
        ],
        threads: 32 * warps(head_dim) as u32,
    }
}

/// Thread blocks of [`attention`] for a bucket of `rows` rows.
pub fn attention_geometry(shape: &Shape, rows: usize) -> Geometry {
    let batches = shape.group().div_ceil(queries(shape.head_dim));
    Geometry {
        grid: [(shape.kv_heads * batches) as u32, rows as u32, 1],
        shared_bytes: bytes(warps(shape.head_dim), shape.head_dim) as u32,
    }
}

/// Bytes that [`attention`] moves for one row at `pos`.
pub fn attention_bytes(shape: &Shape, kv: KvType, form: ActForm, pos: usize) -> u64 {
    shape.bytes(kv, pos) + form.stride(shape.heads * shape.head_dim) as u64
}

const _: () = assert!(bytes(warps(256), 256) <= SHARED_BYTES as usize);
const _: () = assert!(bytes(warps(MAX_HEAD_DIM), MAX_HEAD_DIM) <= SHARED_BYTES as usize);
