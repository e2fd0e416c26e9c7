//! Partial results of attention, one per query and split, over vectors of any ISA: merging them in order, and the
//! launch that does so for units that several workers share.

use super::{Lanes, exp};
use crate::attention::{MAX_HEAD_DIM, Shape, partial_bytes, partial_floats, split_of};
use crate::cpu::abi::Step;
use crate::cpu::live::{Portion, Units};
use crate::cpu::pages::KV_GROUP;

/// Softmax state of one query over some tokens: `sum` of the exponentials below `max`, and the weighted `sums` of V.
#[derive(Clone, Copy)]
pub struct Partial {
    /// Largest score.
    pub max: f32,
    /// Sum of exponentials.
    pub sum: f32,
    /// Weighted sum of V, `[padded]`.
    pub sums: *mut f32,
}

impl Partial {
    /// No tokens.
    ///
    /// # Safety
    /// `sums` holds `padded` floats.
    #[inline(always)]
    pub unsafe fn clear(&mut self, padded: usize) {
        (self.max, self.sum) = (f32::NEG_INFINITY, 0.0);
        // SAFETY: promised by the caller.
        unsafe { self.sums.write_bytes(0, padded) };
    }

    /// No tokens, but the score of the head's sink if there are sinks: a token whose V is zero.
    ///
    /// # Safety
    /// `sums` holds `padded` floats, `sinks` is null or has the head.
    #[inline(always)]
    pub unsafe fn begin(&mut self, padded: usize, sinks: *const f32, head: usize) {
        // SAFETY: promised by the caller.
        unsafe {
            self.clear(padded);
            if !sinks.is_null() {
                (self.max, self.sum) = (*sinks.add(head), 1.0);
            }
        }
    }

    /// Adds the tokens of `later`, of which there are some.
    ///
    /// # Safety
    /// The CPU has the ISA; both sums hold `padded` floats, a multiple of 32.
    #[inline(always)]
    pub unsafe fn merge<V: Lanes>(&mut self, later: &Partial, padded: usize) {
        let max = self.max.max(later.max);
        // SAFETY: promised by the caller.
        unsafe {
            let keep = exp::<V>(V::splat(self.max - max));
            let weight = exp::<V>(V::splat(later.max - max));
            self.max = max;
            self.sum = self.sum * V::first(keep) + later.sum * V::first(weight);
            for i in (0..padded).step_by(V::N) {
                let added = V::mul(V::load(later.sums.add(i)), weight);
                let sums = self.sums.add(i);
                V::store(sums, V::fma(V::load(sums), keep, added));
            }
        }
    }

    /// The partial at `p`.
    ///
    /// # Safety
    /// `p` holds [`partial_floats`] floats.
    #[inline(always)]
    pub unsafe fn read(p: *const f32, padded: usize) -> Partial {
        // SAFETY: promised by the caller.
        unsafe {
            Partial {
                max: *p.add(padded),
                sum: *p.add(padded + 1),
                sums: p.cast_mut(),
            }
        }
    }

    /// Stores it at `p`.
    ///
    /// # Safety
    /// The CPU has the ISA; `p` holds [`partial_floats`] floats.
    #[inline(always)]
    pub unsafe fn write<V: Lanes>(&self, p: *mut f32, padded: usize) {
        // SAFETY: promised by the caller.
        unsafe {
            for i in (0..padded).step_by(V::N) {
                V::store(p.add(i), V::load(self.sums.add(i)));
            }
            p.add(padded).write(self.max);
            p.add(padded + 1).write(self.sum);
        }
    }

    /// The attention of its tokens: `head_dim` floats.
    ///
    /// # Safety
    /// The CPU has the ISA; `out` holds `head_dim` floats.
    #[inline(always)]
    pub unsafe fn finish<V: Lanes>(&self, out: *mut f32, head_dim: usize) {
        // SAFETY: promised by the caller.
        unsafe {
            super::norm::scale_row::<V>(self.sums, std::ptr::null(), out, head_dim, 1.0 / self.sum);
        }
    }
}

/// Body of a [`crate::attention::CombineFn`].
///
/// # Safety
/// The CPU has the ISA; the contract of [`crate::attention::CombineFn`].
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub unsafe fn combine<V: Lanes>(
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
    let mut sums = [0.0f32; MAX_HEAD_DIM];
    let mut number = 0;
    // SAFETY: the step is valid for the whole call; a unit's cells are in its owner's slot, a cell has one partial for
    // every query of its unit, and was written by the worker whose split it is.
    unsafe {
        let step = &*step;
        for Portion {
            unit,
            splits,
            owner,
        } in Units::straddling(step, &shape, workers)
        {
            let slot = scratch.add(owner.unwrap_or(0) * scratch_stride);
            for (i, row) in unit.rows.clone().enumerate() {
                let pos = *step.positions.add(row) as usize;
                let seen = split_of(shape.first(pos))..split_of(pos) + 1;
                for (j, head) in unit.heads.clone().enumerate() {
                    number += 1;
                    if number % workers != worker {
                        continue;
                    }
                    let query = (i * unit.heads.len() + j) * partial_bytes(head_dim);
                    let mut running = Partial {
                        max: 0.0,
                        sum: 0.0,
                        sums: sums.as_mut_ptr(),
                    };
                    running.begin(padded, sinks, head);
                    for split in seen.clone() {
                        let cell = slot.add((split - splits.start) * cell_stride + query);
                        running.merge::<V>(&Partial::read(cell.cast(), padded), padded);
                    }
                    running.finish::<V>(
                        out.byte_add(row * out_stride).add(head * head_dim),
                        head_dim,
                    );
                }
            }
        }
    }
    debug_assert!(partial_floats(head_dim) >= padded + 2);
}
