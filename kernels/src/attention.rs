//! The attention family: appending K and V to the paged cache, and grouped-query attention of each row over its own
//! slot up to its own position. Legality, bytes, symbol names and the naive reference; the micro-kernels are in
//! `cpu/<isa>/attention.rs`, the page layout in `cpu/abi.rs`.
//!
//! A sequence is cut into *splits* at absolute positions. Each split of a query gives a *partial*: the largest score, the
//! sum of the exponentials below it, and the weighted sum of V; inside a split softmax runs online, in pieces of
//! [`PIECE_TOKENS`] (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018). Partials are merged in the
//! order of splits, by the worker that has all of them or by a launch of its own ([`CombineFn`]) where several workers
//! have some. Either way a row's result depends on its position alone. `cpu/live.rs` says which worker computes what.

#[cfg(test)]
mod conformance;

use std::fmt;
use std::ops::Range;

use crate::cpu::Isa;
use crate::cpu::abi::{KvType, PAGE_TOKENS, Step, TILE_N};
use crate::cpu::pages::{HEAD_BATCH, KV_GROUP};

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

/// One worker's share of a step's attention: `(q, kv, out, scratch, step, heads, kv_heads, head_dim, worker, workers,
/// q_stride, out_stride, scratch_stride, cell_stride, scale_bits, window, softcap_bits, sinks)`. A row sees positions `0..=pos`,
/// or the last `window` of them when `window` is not 0. Scores are `scale * q.k`, then `cap * tanh(s / cap)` when the
/// softcap is not 0.0. `sinks` (or null) has a score for each head that takes part in the softmax and brings no value. All workers together write every head of every live row of `out`, or leave its partials in
/// `scratch`: worker w's slot begins at `w * scratch_stride`, the partials of the unit's i-th split `i * cell_stride` into
/// it, one query's after the other's ([`partial_bytes`]). `scratch` is not touched when there is one worker, or one split.
pub type AttentionFn = unsafe extern "C" fn(
    *const f32,
    *const u8,
    *mut f32,
    *mut u8,
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
    usize,
    usize,
    *const f32,
);

/// Merges the partials that [`AttentionFn`] left, each query by one worker: `(scratch, out, step, heads, kv_heads,
/// head_dim, worker, workers, out_stride, scratch_stride, cell_stride, window, sinks)`.
pub type CombineFn = unsafe extern "C" fn(
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
    *const f32,
);

/// Tokens whose scores are computed before any of their weights.
pub const PIECE_TOKENS: usize = 256;
/// Splits of [`PIECE_TOKENS`] tokens that a sequence begins with.
const SHORT_SPLITS: usize = 64;
/// How many times longer splits become, whenever the sequence has become that many times longer.
const GROWTH: usize = 4;

/// A run of equally long splits: its first position and split, how many there are, and the tokens of each.
struct Run {
    begin: usize,
    first: usize,
    splits: usize,
    tokens: usize,
}

impl Run {
    /// The run a sequence begins with.
    const SHORT: Run = Run {
        begin: 0,
        first: 0,
        splits: SHORT_SPLITS,
        tokens: PIECE_TOKENS,
    };

    /// First position after the run.
    const fn end(&self) -> usize {
        self.begin + self.splits * self.tokens
    }

    /// The run after this one.
    const fn next(&self) -> Run {
        Run {
            begin: self.end(),
            first: self.first + self.splits,
            splits: SHORT_SPLITS - SHORT_SPLITS / GROWTH,
            tokens: self.tokens * GROWTH,
        }
    }
}

/// Positions of a split: multiples of [`PIECE_TOKENS`]. The first 64 splits have one piece each, the next 48 have four,
/// the next 48 have 16, so that partials stay few in the longest context.
pub const fn split_range(split: usize) -> Range<usize> {
    let mut run = Run::SHORT;
    while split >= run.first + run.splits {
        run = run.next();
    }
    let begin = run.begin + (split - run.first) * run.tokens;
    begin..begin + run.tokens
}

/// The split that a position is in.
pub const fn split_of(pos: usize) -> usize {
    let mut run = Run::SHORT;
    while pos >= run.end() {
        run = run.next();
    }
    run.first + (pos - run.begin) / run.tokens
}

/// Splits of a sequence of `tokens` tokens.
pub const fn splits(tokens: usize) -> usize {
    match tokens {
        0 => 0,
        _ => split_of(tokens - 1) + 1,
    }
}

/// Floats of one query's partial: the padded weighted sum, then the largest score, then the sum of exponentials.
pub const fn partial_floats(head_dim: usize) -> usize {
    head_dim.next_multiple_of(KV_GROUP) + TILE_N
}

/// Bytes of one query's partial, a multiple of 64.
pub const fn partial_bytes(head_dim: usize) -> usize {
    partial_floats(head_dim) * 4
}

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
    /// Query heads of one KV head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Rows that share one pass over the cache where they are of one slot.
    pub fn rows_per_unit(&self) -> usize {
        (HEAD_BATCH / self.group()).max(1)
    }

    /// Most queries of one unit of work in a step of `rows` rows.
    pub fn queries_per_unit(&self, rows: usize) -> usize {
        self.group().min(HEAD_BATCH) * self.rows_per_unit().min(rows)
    }

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

/// Symbol of the [`CombineFn`]: `attention_combine_avx2`.
pub fn combine_symbol(isa: Isa) -> String {
    format!("attention_combine_{}", isa.name())
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
    reference_with_sinks(q, k, v, shape, None)
}

/// As [`reference`], with a score for each head that brings no value.
pub fn reference_with_sinks(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    shape: &Shape,
    sinks: Option<&[f32]>,
) -> Vec<f32> {
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
        let sink = sinks.map_or(f64::NEG_INFINITY, |sinks| f64::from(sinks[h]));
        let max = scores.iter().copied().fold(sink, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum::<f64>() + (sink - max).exp();
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
