//! The first half of attention, over vectors of any ISA: dot products of queries with K in register tiles, and softmax of
//! one query's scores. A dot product runs in the order of elements whatever the tile.

use std::ops::Range;

use super::cache::Cache;
use super::partial::Partial;
use super::{Lanes, exp, tanh};
use crate::attention::{PIECE_TOKENS, Shape};

/// Dot products of `H` queries with 4 tokens; returns `H`.
///
/// # Safety
/// The CPU has the ISA; `q` holds `H` queries, `k` 4 tokens, and `p` 4 floats in each of `H` rows of a piece.
#[inline(always)]
pub unsafe fn score_tile<V: Lanes, C: Cache, const H: usize>(
    q: *const f32,
    padded: usize,
    k: *const u8,
    head_bytes: usize,
    p: *mut f32,
) -> usize {
    // SAFETY: `i + 2 N <= padded`, a multiple of 32.
    unsafe {
        let mut sums = [[V::splat(0.0); 4]; H];
        for i in (0..padded).step_by(2 * V::N) {
            let mut queries = [[V::splat(0.0); 2]; H];
            for (h, query) in queries.iter_mut().enumerate() {
                let q = q.add(h * padded + i);
                *query = [V::load(q), V::load(q.add(V::N))];
            }
            for t in 0..4 {
                let k = C::load::<V>(k.add(t * head_bytes), i, padded);
                for (sums, q) in sums.iter_mut().zip(&queries) {
                    sums[t] = V::fma(q[0], k[0], sums[t]);
                    sums[t] = V::fma(q[1], k[1], sums[t]);
                }
            }
        }
        for (h, sums) in sums.into_iter().enumerate() {
            V::store_sums(p.add(h * PIECE_TOKENS), sums);
        }
    }
    H
}

/// Turns a query's dot products with the tokens of one piece that it sees into `exp(score - max)`. Updates the partial's
/// max and sum, and returns what its weighted sums must be multiplied by.
///
/// # Safety
/// The CPU has the ISA; `p` holds a piece, `seen` is inside it and not empty.
#[inline(always)]
pub unsafe fn soften<V: Lanes>(
    p: *mut f32,
    seen: Range<usize>,
    shape: &Shape,
    partial: &mut Partial,
) -> f32 {
    // Whole vectors; what is not seen counts as a score of minus infinity, a weight of 0.
    let whole = seen.start / V::N * V::N..seen.end.next_multiple_of(V::N);
    // SAFETY: indices are inside the piece, a multiple of N.
    unsafe {
        let scale = V::splat(shape.scale);
        let cap = V::splat(shape.softcap);
        for i in whole.clone().step_by(V::N) {
            let mut s = V::mul(V::load(p.add(i)), scale);
            if shape.softcap != 0.0 {
                s = V::mul(cap, tanh::<V>(V::div(s, cap)));
            }
            V::store(p.add(i), s);
        }
        for t in (whole.start..seen.start).chain(seen.end..whole.end) {
            *p.add(t) = f32::NEG_INFINITY;
        }
        let mut largest = V::splat(partial.max);
        for i in whole.clone().step_by(V::N) {
            largest = V::max(V::load(p.add(i)), largest);
        }
        let largest = V::largest(largest);
        let keep = V::first(exp::<V>(V::splat(partial.max - largest)));
        let mut total = V::splat(0.0);
        for i in whole.step_by(V::N) {
            let weight = exp::<V>(V::sub(V::load(p.add(i)), V::splat(largest)));
            V::store(p.add(i), weight);
            total = V::add(total, weight);
        }
        partial.max = largest;
        partial.sum = partial.sum * keep + V::sum(total);
        keep
    }
}
