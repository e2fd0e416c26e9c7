//! Portable attention over the paged KV cache. Reading and writing of heads is in `cache`.

use std::ops::Range;

use crate::attention::{
    AttentionFn, CombineFn, KvAppendFn, MAX_HEAD_DIM, PIECE_TOKENS, Shape, partial_bytes, split_of,
    split_range,
};
use crate::cpu::abi::{PAGE_TOKENS, Step};
use crate::cpu::live::{Portion, Units};
use crate::cpu::pages::{HEAD_BATCH, KV_GROUP, Pages};
use crate::cpu::scalar::cache::{KV_TYPES, kv_append, load_head};
use crate::cpu::symbols::{Named, Symbol};

macro_rules! symbols {
    ($($name:literal $kv:literal),*) => {
        &[
            ("attention_combine_scalar", Symbol(combine as CombineFn as *const ())),
            $((concat!("attention_", $name, "_scalar"), Symbol(attention::<$kv> as AttentionFn as *const ())),
            (concat!("kv_append_", $name, "_scalar"), Symbol(kv_append::<$kv> as KvAppendFn as *const ())),)*
        ]
    };
}

/// `attention_<kv>_scalar` of type [`AttentionFn`], `kv_append_<kv>_scalar` of type [`KvAppendFn`] and
/// `attention_combine_scalar` of type [`CombineFn`].
pub const SYMBOLS: &[Named] = symbols!("f32" 0, "f16" 1, "q8_0" 2);

/// Sum of products over a multiple of 8 elements, in 8 interleaved sums.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    for (a, b) in a.chunks_exact(8).zip(b.chunks_exact(8)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let [a, b, c, d, e, f, g, h] = sums;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// Softmax state of one query over some tokens; the first `padded` sums count.
#[derive(Clone, Copy)]
struct Partial {
    max: f32,
    sum: f32,
    sums: [f32; MAX_HEAD_DIM],
}

const NOTHING: Partial = Partial {
    max: f32::NEG_INFINITY,
    sum: 0.0,
    sums: [0.0; MAX_HEAD_DIM],
};

impl Partial {
    fn clear(&mut self, padded: usize) {
        (self.max, self.sum) = (f32::NEG_INFINITY, 0.0);
        self.sums[..padded].fill(0.0);
    }

    /// No tokens, but the score of the head's sink if there are sinks: a token whose V is zero.
    ///
    /// # Safety
    /// `sinks` is null or has the head.
    unsafe fn begin(&mut self, padded: usize, sinks: *const f32, head: usize) {
        self.clear(padded);
        if !sinks.is_null() {
            // SAFETY: promised by the caller.
            (self.max, self.sum) = (unsafe { *sinks.add(head) }, 1.0);
        }
    }

    /// Adds the tokens of a later partial: its max, its sum and its weighted sums.
    fn merge(&mut self, max: f32, sum: f32, sums: &[f32]) {
        let largest = self.max.max(max);
        let (keep, weight) = ((self.max - largest).exp(), (max - largest).exp());
        self.max = largest;
        self.sum = self.sum * keep + sum * weight;
        for (x, y) in self.sums.iter_mut().zip(sums) {
            *x = *x * keep + y * weight;
        }
    }

    /// Replaces the scores of tokens that follow by their weights.
    fn soften(&mut self, scores: &mut [f32], padded: usize) {
        let max = scores.iter().fold(self.max, |m, &s| m.max(s));
        let keep = (self.max - max).exp();
        for s in scores.iter_mut() {
            *s = (*s - max).exp();
        }
        self.max = max;
        self.sum = self.sum * keep + scores.iter().sum::<f32>();
        for x in &mut self.sums[..padded] {
            *x *= keep;
        }
    }

    fn finish(&self, out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(&self.sums) {
            *out = x / self.sum;
        }
    }
}

/// One query of a unit.
#[derive(Clone, Copy)]
struct Query {
    q: [f32; MAX_HEAD_DIM],
    /// Positions it sees, begin and end.
    seen: (usize, usize),
    /// Of the splits so far, and of the present one.
    running: Partial,
    partial: Partial,
    /// Scores, then weights, of a piece.
    p: [f32; PIECE_TOKENS],
}

impl Query {
    /// Those of `tokens` that it sees.
    fn sees(&self, tokens: &Range<usize>) -> Range<usize> {
        tokens.start.max(self.seen.0)..tokens.end.min(self.seen.1)
    }
}

/// # Safety
/// The contract of [`AttentionFn`].
#[allow(clippy::too_many_arguments)]
unsafe extern "C" fn attention<const KV: usize>(
    q: *const f32,
    kv: *const u8,
    out: *mut f32,
    scratch: *mut u8,
    step: *const Step,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    worker: usize,
    workers: usize,
    q_stride: usize,
    out_stride: usize,
    scratch_stride: usize,
    cell_stride: usize,
    scale_bits: usize,
    window: usize,
    softcap_bits: usize,
    sinks: *const f32,
) {
    let shape = Shape {
        heads,
        kv_heads,
        head_dim,
        scale: f32::from_bits(scale_bits as u32),
        window,
        softcap: f32::from_bits(softcap_bits as u32),
    };
    let padded = head_dim.next_multiple_of(KV_GROUP);
    let mut storage = [Query {
        q: [0.0; MAX_HEAD_DIM],
        seen: (0, 0),
        running: NOTHING,
        partial: NOTHING,
        p: [0.0; PIECE_TOKENS],
    }; HEAD_BATCH];
    // SAFETY: the step is valid for the whole call; units have live rows, whose heads are inside q and out, which are
    // different buffers, and a cell of the scratch for each split where they straddle workers.
    unsafe {
        let step = &*step;
        let pages = Pages::new(kv.cast_mut(), step, KV_TYPES[KV], kv_heads, head_dim);
        for Portion {
            unit,
            splits,
            owner,
        } in Units::of_worker(step, &shape, worker, workers)
        {
            let each = unit.rows.clone();
            let each = each.flat_map(|r| unit.heads.clone().map(move |h| (r, h)));
            let queries = &mut storage[..unit.rows.len() * unit.heads.len()];
            for (query, (row, head)) in queries.iter_mut().zip(each.clone()) {
                let q = q.byte_add(row * q_stride).add(head * head_dim);
                query.q[..head_dim].copy_from_slice(std::slice::from_raw_parts(q, head_dim));
                let pos = *step.positions.add(row) as usize;
                query.seen = (shape.first(pos), pos + 1);
                query.running.begin(padded, sinks, head);
            }
            for split in splits.clone() {
                let tokens = split_range(split);
                of_split::<KV>(queries, &pages, &shape, (unit.slot, unit.kv_head), &tokens);
                for (i, query) in queries.iter_mut().enumerate() {
                    if query.sees(&tokens).is_empty() {
                        continue;
                    }
                    let (max, sum) = (query.partial.max, query.partial.sum);
                    let sums = &query.partial.sums[..padded];
                    let Some(owner) = owner else {
                        query.running.merge(max, sum, sums);
                        continue;
                    };
                    let cell = scratch
                        .add(owner * scratch_stride)
                        .add((split - unit.splits().start) * cell_stride)
                        .add(i * partial_bytes(head_dim))
                        .cast::<f32>();
                    cell.copy_from_nonoverlapping(sums.as_ptr(), padded);
                    cell.add(padded).write(max);
                    cell.add(padded + 1).write(sum);
                }
            }
            if owner.is_none() {
                for (query, (row, head)) in queries.iter().zip(each) {
                    let out = out.byte_add(row * out_stride).add(head * head_dim);
                    let out = std::slice::from_raw_parts_mut(out, head_dim);
                    query.running.finish(out);
                }
            }
        }
    }
}

/// Sets every query's partial to its attention to the tokens of one split. Each token's K and V are converted once.
///
/// # Safety
/// The tokens that queries see have pages.
unsafe fn of_split<const KV: usize>(
    queries: &mut [Query],
    pages: &Pages,
    shape: &Shape,
    (slot, kv_head): (usize, usize),
    tokens: &Range<usize>,
) {
    let padded = shape.head_dim.next_multiple_of(KV_GROUP);
    let mut head = [0.0f32; MAX_HEAD_DIM];
    let head = &mut head[..padded];
    for query in queries.iter_mut() {
        query.partial.clear(padded);
    }
    for begin in tokens.clone().step_by(PIECE_TOKENS) {
        let piece = begin..begin + PIECE_TOKENS;
        let seen = queries.iter().map(|q| q.sees(&piece));
        let seen = seen.filter(|s| !s.is_empty());
        let Some(any) = seen.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)) else {
            continue;
        };
        let at = |t: usize| t % PAGE_TOKENS * pages.head_bytes;
        for t in any.clone() {
            // SAFETY: the token is at or before a position that some query sees, so it has a page.
            unsafe {
                let page = pages.head(slot, t / PAGE_TOKENS, kv_head);
                load_head(KV_TYPES[KV], page.k.add(at(t)), head);
            }
            for query in queries.iter_mut().filter(|q| q.sees(&piece).contains(&t)) {
                let s = dot(&query.q[..padded], head) * shape.scale;
                query.p[t - begin] = match shape.softcap {
                    0.0 => s,
                    cap => cap * (s / cap).tanh(),
                };
            }
        }
        for query in queries.iter_mut() {
            let seen = query.sees(&piece);
            if !seen.is_empty() {
                let scores = &mut query.p[seen.start - begin..seen.end - begin];
                query.partial.soften(scores, padded);
            }
        }
        for t in any {
            // SAFETY: as above.
            unsafe {
                let page = pages.head(slot, t / PAGE_TOKENS, kv_head);
                load_head(KV_TYPES[KV], page.v.add(at(t)), head);
            }
            for query in queries.iter_mut().filter(|q| q.sees(&piece).contains(&t)) {
                let weight = query.p[t - begin];
                for (x, v) in query.partial.sums.iter_mut().zip(head.iter()) {
                    *x += weight * v;
                }
            }
        }
    }
}

/// # Safety
/// The contract of [`CombineFn`].
#[allow(clippy::too_many_arguments)]
unsafe extern "C" fn combine(
    scratch: *const u8,
    out: *mut f32,
    step: *const Step,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    worker: usize,
    workers: usize,
    out_stride: usize,
    scratch_stride: usize,
    cell_stride: usize,
    window: usize,
    sinks: *const f32,
) {
    let shape = Shape {
        heads,
        kv_heads,
        head_dim,
        scale: 0.0,
        window,
        softcap: 0.0,
    };
    let padded = head_dim.next_multiple_of(KV_GROUP);
    let mut number = 0;
    // SAFETY: the step is valid for the whole call; a unit's cells are in its owner's slot, and hold a partial of every
    // query of the unit that sees the cell's split.
    unsafe {
        let step = &*step;
        for Portion {
            unit,
            splits,
            owner,
        } in Units::straddling(step, &shape, workers)
        {
            let slot = scratch.add(owner.unwrap_or(0) * scratch_stride);
            let queries = unit.rows.clone();
            let queries = queries.flat_map(|r| unit.heads.clone().map(move |h| (r, h)));
            for (i, (row, head)) in queries.enumerate() {
                number += 1;
                if number % workers != worker {
                    continue;
                }
                let pos = *step.positions.add(row) as usize;
                let mut running = NOTHING;
                running.begin(padded, sinks, head);
                for split in split_of(shape.first(pos))..split_of(pos) + 1 {
                    let cell = slot
                        .add((split - splits.start) * cell_stride)
                        .add(i * partial_bytes(head_dim))
                        .cast::<f32>();
                    let sums = std::slice::from_raw_parts(cell, padded);
                    running.merge(*cell.add(padded), *cell.add(padded + 1), sums);
                }
                let out = out.byte_add(row * out_stride).add(head * head_dim);
                running.finish(std::slice::from_raw_parts_mut(out, head_dim));
            }
        }
    }
}
