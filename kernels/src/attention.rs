//! The attention family: appending K and V to the paged cache, and grouped-query attention of each row over its own
//! slot up to its own position. Legality, bytes, symbol names and the naive reference; the micro-kernels are in
//! `cpu/<isa>/attention.rs`, the page layout in `cpu/abi.rs`.
//!
//! Softmax runs online, page by page (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018). Pages
//! are cut at absolute positions, so a row's result does not depend on the batch it is computed in.

#[cfg(test)]
mod conformance;

use std::fmt;

use crate::cpu::Isa;
use crate::cpu::abi::{KvType, PAGE_TOKENS, Step};

/// Stores K and V of each row in its page, converted to the cache type, padding zeroed: `(k, v, kv, step, kv_heads,
/// head_dim, row_begin, row_end, k_stride, v_stride)`. `kv` is the base of one layer's pages. Rows are clamped to
/// `step.rows`.
pub type KvAppendFn = unsafe extern "C" fn(
    *const f32,
    *const f32,
    *mut u8,
    *const Step,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
);

/// Attention of each unit, which is `row * kv_heads + kv_head` and covers the `heads / kv_heads` query heads of that KV
/// head: `(q, kv, out, step, heads, kv_heads, head_dim, unit_begin, unit_end, q_stride, out_stride, scale_bits, window,
/// softcap_bits)`. A row sees positions `0..=pos`, or the last `window` of them when `window` is not 0. Scores are
/// `scale * q.k`, then `cap * tanh(s / cap)` when the softcap is not 0.0. Units are clamped to `step.rows`.
pub type AttentionFn = unsafe extern "C" fn(
    *const f32,
    *const u8,
    *mut f32,
    *const Step,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
);

/// Longest head the kernels keep on the stack.
pub const MAX_HEAD_DIM: usize = 512;
/// Most query heads of one KV head.
pub const MAX_HEADS_PER_KV_HEAD: usize = 64;

/// What one attention layer computes for a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Query heads.
    pub heads: usize,
    /// KV heads, a divisor of `heads`.
    pub kv_heads: usize,
    /// Elements of a head, K and V alike.
    pub head_dim: usize,
    /// Factor of `q.k`, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Positions a row sees, itself included; 0 = all.
    pub window: usize,
    /// Scores saturate at this magnitude; 0.0 = they do not.
    pub softcap: f32,
}

/// Why an attention shape has no kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// `heads` is no multiple of `kv_heads`, or there are none.
    Heads {
        /// Query heads.
        heads: usize,
        /// KV heads.
        kv_heads: usize,
    },
    /// More query heads per KV head than [`MAX_HEADS_PER_KV_HEAD`].
    Group(usize),
    /// head_dim is 0 or above [`MAX_HEAD_DIM`].
    HeadDim(usize),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Heads { heads, kv_heads } => {
                write!(
                    f,
                    "{heads} query heads do not divide among {kv_heads} KV heads"
                )
            }
            Reason::Group(group) => {
                write!(
                    f,
                    "{group} query heads per KV head, at most {MAX_HEADS_PER_KV_HEAD}"
                )
            }
            Reason::HeadDim(head_dim) => {
                write!(f, "head_dim {head_dim} is not in 1..={MAX_HEAD_DIM}")
            }
        }
    }
}

impl std::error::Error for Reason {}

/// Whether there are kernels for this shape.
pub fn legal(shape: &Shape) -> Result<(), Reason> {
    let &Shape {
        heads,
        kv_heads,
        head_dim,
        ..
    } = shape;
    if kv_heads == 0 || heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(Reason::Heads { heads, kv_heads });
    }
    if heads / kv_heads > MAX_HEADS_PER_KV_HEAD {
        return Err(Reason::Group(heads / kv_heads));
    }
    if !(1..=MAX_HEAD_DIM).contains(&head_dim) {
        return Err(Reason::HeadDim(head_dim));
    }
    Ok(())
}

impl Shape {
    /// First position a row at `pos` sees.
    pub fn first(&self, pos: usize) -> usize {
        match self.window {
            0 => 0,
            window => (pos + 1).saturating_sub(window),
        }
    }

    /// Bytes read from the cache for one row at `pos`, K and V of all KV heads.
    pub fn kv_bytes(&self, kv: KvType, pos: usize) -> u64 {
        let tokens = (pos + 1 - self.first(pos)) as u64;
        tokens * 2 * self.kv_heads as u64 * kv.head_bytes(self.head_dim) as u64
    }

    /// Bytes moved for one row at `pos`: the cache, the query and the output.
    pub fn bytes(&self, kv: KvType, pos: usize) -> u64 {
        self.kv_bytes(kv, pos) + (2 * self.heads * self.head_dim * 4) as u64
    }
}

/// Symbol of the [`AttentionFn`] for a cache type: `attention_f16_avx512`.
pub fn symbol(kv: KvType, isa: Isa) -> String {
    format!("attention_{}_{}", kv.name(), isa.name())
}

/// Symbol of the [`KvAppendFn`] for a cache type: `kv_append_q8_0_scalar`.
pub fn append_symbol(kv: KvType, isa: Isa) -> String {
    format!("kv_append_{}_{}", kv.name(), isa.name())
}

/// Pages that `tokens` tokens of one slot occupy.
pub const fn pages(tokens: usize) -> usize {
    tokens.div_ceil(PAGE_TOKENS)
}

/// Naive attention of one row, in f64: the oracle. `q` is `[heads][head_dim]`; `k` and `v` are `[tokens][kv_heads]
/// [head_dim]`, the last token being the row's own.
pub fn reference(q: &[f32], k: &[f32], v: &[f32], shape: &Shape) -> Vec<f32> {
    let &Shape {
        heads,
        kv_heads,
        head_dim,
        ..
    } = shape;
    let tokens = k.len() / (kv_heads * head_dim);
    let cap = f64::from(shape.softcap);
    let mut out = Vec::with_capacity(q.len());
    for (h, q) in q.chunks_exact(head_dim).enumerate() {
        let at = |t: usize| (t * kv_heads + h / (heads / kv_heads)) * head_dim;
        let seen = shape.first(tokens - 1)..tokens;
        let scores = seen.clone().map(|t| {
            let pairs = q.iter().zip(&k[at(t)..]);
            let dot: f64 = pairs.map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
            let s = dot * f64::from(shape.scale);
            if cap == 0.0 {
                s
            } else {
                cap * (s / cap).tanh()
            }
        });
        let scores: Vec<f64> = scores.collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        out.extend((0..head_dim).map(|i| {
            let weighted = seen
                .clone()
                .zip(&scores)
                .map(|(t, s)| (s - max).exp() * f64::from(v[at(t) + i]));
            (weighted.sum::<f64>() / sum) as f32
        }));
    }
    out
}
