//! Attention over vectors of any ISA: a worker's share. Its loops over tokens are in `queries`, dot products and softmax in
//! `score`, weighted sums of V in `mix`, merging of partial results in `partial`, reading of heads in `cache`, and who
//! computes what in `cpu/live.rs`.
//!
//! ```text
//! for each unit of the worker (up to 16 queries = rows x query heads of one KV head and slot):
//!   for each of its splits:
//!     for each piece of 256 tokens that some query sees:
//!       per page: scores[query][32] = K . q     tiles of 4 tokens x SCORE_HEADS queries, one load of K per tile
//!       per query: scale, softcap, mask, running max, p = exp(s - max), running sum
//!       per page: sums[query] = sums * keep + p . V     tiles of up to 4 queries that see the same tokens
//!     merge the split into what the unit has so far, or leave it in the scratch
//! ```
//!
//! With more queries than a tile has, K and V are converted to f32 once for all tiles. What a query computes depends on its
//! position alone: each of its dot products and weighted sums runs in the order of elements and of tokens, whatever
//! shares the tile.

use std::mem::MaybeUninit;

use super::Lanes;
use super::cache::Cache;
use super::queries::{Queries, Storage};
use crate::attention::{Shape, partial_bytes, split_range};
use crate::cpu::abi::{PAGE_TOKENS, Step};
use crate::cpu::live::{Portion, Units};
use crate::cpu::pages::Pages;

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
    // SAFETY: the step is valid for the whole call.
    let step = unsafe { &*step };
    let pages = Pages::new(kv.cast_mut(), step, C::TYPE, kv_heads, head_dim);
    let mut storage = MaybeUninit::<Storage>::uninit();
    let storage = storage.as_mut_ptr();
    // SAFETY: rows of the units are live, so their heads are inside q and out and the positions they see have pages; the
    // scratch has a cell for every split of a unit that straddles workers.
    unsafe {
        let mut portions = Units::of_worker(step, &shape, worker, workers);
        let mut next = portions.next();
        while let Some(Portion {
            unit,
            splits,
            owner,
        }) = next
        {
            next = portions.next();
            let mut queries = Queries::new(head_dim, unit.slot, unit.kv_head);
            for row in unit.rows.clone() {
                let pos = *step.positions.add(row) as usize;
                for head in unit.heads.clone() {
                    let q = q.byte_add(row * q_stride).add(head * head_dim);
                    let out = out.byte_add(row * out_stride).add(head * head_dim);
                    queries.push(storage, q, out, shape.first(pos)..pos + 1);
                    queries.running[queries.count - 1].begin(queries.padded, sinks, head);
                }
            }
            let first_split = unit.splits().start;
            for split in splits.clone() {
                let tokens = split_range(split);
                // What is read after this split, to be fetched before its end.
                let after = match (&next, split + 1 < splits.end) {
                    (_, true) => {
                        pages
                            .head(unit.slot, tokens.end / PAGE_TOKENS, unit.kv_head)
                            .k
                    }
                    (Some(p), false) => {
                        let begin = p.unit.seen.start.max(split_range(p.splits.start).start);
                        let page = begin / PAGE_TOKENS;
                        pages.head(p.unit.slot, page, p.unit.kv_head).k
                    }
                    (None, false) => std::ptr::null_mut(),
                };
                let partials = queries.split::<V, C>(storage, &pages, &shape, &tokens, after);
                for (i, partial) in partials.iter().enumerate().take(queries.count) {
                    let seen = queries.seen_of(i, &tokens);
                    if seen.is_empty() {
                        continue;
                    }
                    match owner {
                        None => queries.running[i].merge::<V>(partial, queries.padded),
                        Some(owner) => {
                            let cell = scratch
                                .add(owner * scratch_stride)
                                .add((split - first_split) * cell_stride)
                                .add(i * partial_bytes(head_dim));
                            partial.write::<V>(cell.cast(), queries.padded);
                        }
                    }
                }
            }
            if owner.is_none() {
                for i in 0..queries.count {
                    queries.running[i].finish::<V>(queries.out[i], head_dim);
                }
            }
        }
    }
    debug_assert!(cell_stride == 0 || partial_bytes(head_dim) <= cell_stride);
}
