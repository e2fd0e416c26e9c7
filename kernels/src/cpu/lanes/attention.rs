//! Attention over vectors of any ISA: the loops, the scores and the softmax. Weighted sums of V are in `mix`, reading of
//! heads in `cache`.
//!
//! ```text
//! for each KV head, for each run of rows of one slot (up to 8 queries = rows x query heads):
//!   for each page that some query sees:
//!     scores[query][32] = K . q       tiles of 4 tokens x SCORE_HEADS queries, one load of K per tile
//!     per query: scale, softcap, mask, running max, p = exp(s - max), running sum
//!     sums[query] = sums * keep + p . V    tiles of 4, 2 or 1 queries that see the same tokens, one load of V per tile
//! ```
//!
//! What a query computes depends on its position alone: each of its dot products and weighted sums runs in the order of
//! elements and of tokens, whatever shares the tile.

use std::mem::MaybeUninit;

use super::cache::Cache;
use super::mix::Mix;
use super::{Lanes, exp, prefetch, tanh};
use crate::attention::{MAX_HEAD_DIM, Shape};
use crate::cpu::abi::{PAGE_TOKENS, Step};
use crate::cpu::pages::{HEAD_BATCH, HeadPage, KV_GROUP, Pages};

/// Body of a [`crate::attention::AttentionFn`].
///
/// # Safety
/// The CPU has the ISA; the contract of [`crate::attention::AttentionFn`].
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub unsafe fn attention<V: Lanes, C: Cache>(
    q: *const f32,
    kv: *const u8,
    out: *mut f32,
    step: *const Step,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    unit_begin: usize,
    unit_end: usize,
    q_stride: usize,
    out_stride: usize,
    scale_bits: usize,
    window: usize,
    softcap_bits: usize,
) {
    let shape = Shape {
        heads,
        kv_heads,
        head_dim,
        scale: f32::from_bits(scale_bits as u32),
        window,
        softcap: f32::from_bits(softcap_bits as u32),
    };
    // SAFETY: the step is valid for the whole call.
    let step = unsafe { &*step };
    let pages = Pages::new(kv.cast_mut(), step, C::TYPE, kv_heads, head_dim);
    let group = heads / kv_heads;
    let unit_end = unit_end.min(step.rows * kv_heads);
    let rows_per_run = (HEAD_BATCH / group).max(1);
    let mut storage = MaybeUninit::<Storage>::uninit();
    let storage = storage.as_mut_ptr();
    for kv_head in 0..kv_heads {
        // Rows r with unit_begin <= r * kv_heads + kv_head < unit_end.
        let row = |unit: usize| (unit + kv_heads - 1 - kv_head) / kv_heads;
        let (mut r, end) = (row(unit_begin), row(unit_end));
        while r < end {
            // SAFETY: rows below `end` are live, their heads are inside q and out, and the positions they see have
            // pages.
            unsafe {
                let slot = *step.slots.add(r);
                let mut rows = 1;
                while rows < rows_per_run && r + rows < end && *step.slots.add(r + rows) == slot {
                    rows += 1;
                }
                for begin in (0..group).step_by(HEAD_BATCH) {
                    let count = HEAD_BATCH.min(group - begin);
                    let first = (kv_head * group + begin) * head_dim;
                    let mut queries = Queries::new(head_dim, slot as usize, kv_head);
                    for r in r..r + rows {
                        let q = q.byte_add(r * q_stride).add(first);
                        let out = out.byte_add(r * out_stride).add(first);
                        let pos = *step.positions.add(r) as usize;
                        for h in 0..count {
                            queries.push(
                                storage,
                                q.add(h * head_dim),
                                out.add(h * head_dim),
                                shape.first(pos)..pos + 1,
                            );
                        }
                    }
                    run::<V, C>(&queries, storage, &pages, &shape);
                }
                r += rows;
            }
        }
    }
}

/// Stack memory of one pass; only what `count` queries use is ever initialised.
#[repr(C, align(64))]
struct Storage {
    q: [f32; HEAD_BATCH * MAX_HEAD_DIM],
    sums: [f32; HEAD_BATCH * MAX_HEAD_DIM],
    p: [f32; HEAD_BATCH * PAGE_TOKENS],
}

/// Up to [`HEAD_BATCH`] query heads that read the same KV head of the same slot.
struct Queries {
    slot: usize,
    kv_head: usize,
    head_dim: usize,
    padded: usize,
    count: usize,
    seen: [(usize, usize); HEAD_BATCH],
    out: [*mut f32; HEAD_BATCH],
}

impl Queries {
    #[inline(always)]
    fn new(head_dim: usize, slot: usize, kv_head: usize) -> Queries {
        Queries {
            slot,
            kv_head,
            head_dim,
            padded: head_dim.next_multiple_of(KV_GROUP),
            count: 0,
            seen: [(0, 0); HEAD_BATCH],
            out: [std::ptr::null_mut(); HEAD_BATCH],
        }
    }

    /// Adds a query that sees these positions; its elements are padded with zeros and its sums cleared.
    ///
    /// # Safety
    /// Fewer than [`HEAD_BATCH`] have been added; `q` and `out` hold `head_dim` floats.
    #[inline(always)]
    unsafe fn push(
        &mut self,
        storage: *mut Storage,
        q: *const f32,
        out: *mut f32,
        seen: std::ops::Range<usize>,
    ) {
        let at = self.count * self.padded;
        // SAFETY: query `count` of `padded` floats is inside both arrays of the storage.
        unsafe {
            let to = (&raw mut (*storage).q).cast::<f32>().add(at);
            to.copy_from_nonoverlapping(q, self.head_dim);
            to.add(self.head_dim)
                .write_bytes(0, self.padded - self.head_dim);
            let sums = (&raw mut (*storage).sums).cast::<f32>().add(at);
            sums.write_bytes(0, self.padded);
        }
        self.seen[self.count] = (seen.start, seen.end);
        self.out[self.count] = out;
        self.count += 1;
    }

    /// Tokens of `page` that query `i` sees; empty as `begin >= end`.
    #[inline(always)]
    fn seen_of_page(&self, i: usize, page: usize) -> (usize, usize) {
        let (first, end) = self.seen[i];
        let base = page * PAGE_TOKENS;
        (
            first.saturating_sub(base),
            PAGE_TOKENS.min(end.saturating_sub(base)),
        )
    }
}

/// All pages for one batch of queries.
///
/// # Safety
/// The CPU has the ISA; the positions that queries see have pages, and their outputs are writable.
#[inline(always)]
unsafe fn run<V: Lanes, C: Cache>(
    queries: &Queries,
    storage: *mut Storage,
    pages: &Pages,
    shape: &Shape,
) {
    let (count, padded) = (queries.count, queries.padded);
    let mut max = [f32::NEG_INFINITY; HEAD_BATCH];
    let mut sum = [0.0f32; HEAD_BATCH];
    let mut keep = [1.0f32; HEAD_BATCH];
    let (mut first, mut end) = (usize::MAX, 0);
    for &(a, b) in &queries.seen[..count] {
        (first, end) = (first.min(a), end.max(b));
    }
    // SAFETY: indices below `count` are initialised queries; tokens are below 32.
    unsafe {
        let q = (&raw const (*storage).q).cast::<f32>();
        let sums = (&raw mut (*storage).sums).cast::<f32>();
        let p = (&raw mut (*storage).p).cast::<f32>();
        p.write_bytes(0, count * PAGE_TOKENS);
        let last = (end - 1) / PAGE_TOKENS;
        for page in first / PAGE_TOKENS..=last {
            let mut seen = [(0, 0); HEAD_BATCH];
            let (mut first, mut end) = (PAGE_TOKENS, 0);
            for (i, seen) in seen.iter_mut().enumerate().take(count) {
                *seen = queries.seen_of_page(i, page);
                if seen.0 < seen.1 {
                    (first, end) = (first.min(seen.0), end.max(seen.1));
                }
            }
            if first >= end {
                continue;
            }
            let base = pages.head(queries.slot, page, queries.kv_head);
            scores::<V, C>(q, count, padded, &base, pages.head_bytes, (first, end), p);
            for i in 0..count {
                if seen[i].0 < seen[i].1 {
                    let p = p.add(i * PAGE_TOKENS);
                    keep[i] = soften::<V>(p, seen[i], shape, &mut max[i], &mut sum[i]);
                }
            }
            let mut next = match page < last {
                true => pages.head(queries.slot, page + 1, queries.kv_head).k,
                false => std::ptr::null_mut(),
            };
            let mut i = 0;
            while i < count {
                let mut same = 1;
                while same < 4 && i + same < count && seen[i + same] == seen[i] {
                    same += 1;
                }
                let tile = Mix {
                    p: p.add(i * PAGE_TOKENS),
                    keep: keep.as_ptr().add(i),
                    v: base.v,
                    head_bytes: pages.head_bytes,
                    seen: seen[i],
                    sums: sums.add(i * padded),
                    padded,
                    next,
                };
                next = std::ptr::null_mut();
                i += match same {
                    _ if seen[i].0 >= seen[i].1 => 1,
                    4 => tile.four::<V, C>(),
                    2 | 3 => tile.two::<V, C>(),
                    _ => tile.one::<V, C>(),
                };
            }
        }
        for (i, sum) in sum.iter().enumerate().take(count) {
            let (from, to) = (sums.add(i * padded), queries.out[i]);
            super::norm::scale_row::<V>(from, std::ptr::null(), to, queries.head_dim, 1.0 / sum);
        }
    }
}

/// Dot products of every query with the tokens of one page, rounded out to fours.
///
/// # Safety
/// The CPU has the ISA; `q` holds `count` queries, `p` `count` times 32 floats, `page` 32 tokens.
#[inline(always)]
unsafe fn scores<V: Lanes, C: Cache>(
    q: *const f32,
    count: usize,
    padded: usize,
    page: &HeadPage,
    head_bytes: usize,
    tokens: (usize, usize),
    p: *mut f32,
) {
    for t in (tokens.0 / 4 * 4..tokens.1).step_by(4) {
        // SAFETY: tokens t..t + 4 are in the page, queries below `count` in q and p.
        unsafe {
            let k = page.k.add(t * head_bytes);
            prefetch::<V>(page.v.add(t * head_bytes), 4 * head_bytes);
            let mut i = 0;
            while i < count {
                let (q, p) = (q.add(i * padded), p.add(i * PAGE_TOKENS + t));
                i += match count - i {
                    left if left >= 4 && V::SCORE_HEADS >= 4 => {
                        score_tile::<V, C, 4>(q, padded, k, head_bytes, p)
                    }
                    left if left >= 2 => score_tile::<V, C, 2>(q, padded, k, head_bytes, p),
                    _ => score_tile::<V, C, 1>(q, padded, k, head_bytes, p),
                };
            }
        }
    }
}

/// Dot products of `H` queries with 4 tokens; returns `H`.
///
/// # Safety
/// The CPU has the ISA; `q` holds `H` queries, `k` 4 tokens, and `p` 4 floats in each of `H` rows of 32.
#[inline(always)]
unsafe fn score_tile<V: Lanes, C: Cache, const H: usize>(
    q: *const f32,
    padded: usize,
    k: *const u8,
    head_bytes: usize,
    p: *mut f32,
) -> usize {
    // SAFETY: `i + N <= padded`, a multiple of 32.
    unsafe {
        let mut sums = [[V::splat(0.0); 4]; H];
        for i in (0..padded).step_by(V::N) {
            let k = [
                C::load::<V>(k, i, padded),
                C::load::<V>(k.add(head_bytes), i, padded),
                C::load::<V>(k.add(2 * head_bytes), i, padded),
                C::load::<V>(k.add(3 * head_bytes), i, padded),
            ];
            for (h, sums) in sums.iter_mut().enumerate() {
                let q = V::load(q.add(h * padded + i));
                for (sum, k) in sums.iter_mut().zip(k) {
                    *sum = V::fma(q, k, *sum);
                }
            }
        }
        for (h, sums) in sums.into_iter().enumerate() {
            V::store_sums(p.add(h * PAGE_TOKENS), sums);
        }
    }
    H
}

/// Turns a query's dot products with one page into `exp(score - max)`, 0 for tokens it does not see. Updates its running
/// max and sum, and returns what its earlier weights must be multiplied by.
///
/// # Safety
/// The CPU has the ISA; `p` holds 32 floats.
#[inline(always)]
unsafe fn soften<V: Lanes>(
    p: *mut f32,
    seen: (usize, usize),
    shape: &Shape,
    max: &mut f32,
    sum: &mut f32,
) -> f32 {
    // SAFETY: indices are below 32.
    unsafe {
        let scale = V::splat(shape.scale);
        let cap = V::splat(shape.softcap);
        for i in (0..PAGE_TOKENS).step_by(V::N) {
            let mut s = V::mul(V::load(p.add(i)), scale);
            if shape.softcap != 0.0 {
                s = V::mul(cap, tanh::<V>(V::div(s, cap)));
            }
            V::store(p.add(i), s);
        }
        for t in (0..seen.0).chain(seen.1..PAGE_TOKENS) {
            *p.add(t) = f32::NEG_INFINITY;
        }
        let mut largest = V::splat(*max);
        for i in (0..PAGE_TOKENS).step_by(V::N) {
            largest = V::max(V::load(p.add(i)), largest);
        }
        let largest = V::largest(largest);
        let keep = V::first(exp::<V>(V::splat(*max - largest)));
        let mut total = V::splat(0.0);
        for i in (0..PAGE_TOKENS).step_by(V::N) {
            let weight = exp::<V>(V::sub(V::load(p.add(i)), V::splat(largest)));
            V::store(p.add(i), weight);
            total = V::add(total, weight);
        }
        *max = largest;
        *sum = *sum * keep + V::sum(total);
        keep
    }
}
