//! Heads in the KV cache as vectors of any ISA: one `Cache` per cache type, and the appending of K and V.

use std::ops::Range;

use super::Lanes;
use crate::cpu::abi::{KvType, PAGE_TOKENS, Step};
use crate::cpu::pages::{KV_GROUP, Pages, q8_scale};

/// How one type of cache is read and written; heads are `padded` elements long.
pub trait Cache {
    /// The type.
    const TYPE: KvType;
    /// Whether reading costs enough to be done once where several tiles need the same elements.
    const CONVERTS: bool;
    /// Elements `i .. i + 2 N` of a head, `i` a multiple of `2 N`.
    ///
    /// # Safety
    /// The CPU has the ISA; `head` holds a head of `padded` elements, of which `i + 2 N` is in range.
    unsafe fn load<V: Lanes>(head: *const u8, i: usize, padded: usize) -> [V; 2];
    /// Stores 32 elements from `i` on.
    ///
    /// # Safety
    /// As for [`Cache::load`]; `x` holds 32 floats.
    unsafe fn store<V: Lanes>(head: *mut u8, i: usize, padded: usize, x: *const f32);
}

/// A cache of [`KvType::F32`].
pub struct CacheF32;
/// A cache of [`KvType::F16`].
pub struct CacheF16;
/// A cache of [`KvType::Q8_0`].
pub struct CacheQ8;

impl Cache for CacheF32 {
    const TYPE: KvType = KvType::F32;
    const CONVERTS: bool = false;

    #[inline(always)]
    unsafe fn load<V: Lanes>(head: *const u8, i: usize, _: usize) -> [V; 2] {
        let at = head.cast::<f32>().wrapping_add(i);
        // SAFETY: promised by the caller.
        unsafe { [V::load(at), V::load(at.add(V::N))] }
    }

    #[inline(always)]
    unsafe fn store<V: Lanes>(head: *mut u8, i: usize, _: usize, x: *const f32) {
        for j in (0..KV_GROUP).step_by(V::N) {
            // SAFETY: promised by the caller.
            unsafe { V::store(head.cast::<f32>().add(i + j), V::load(x.add(j))) };
        }
    }
}

impl Cache for CacheF16 {
    const TYPE: KvType = KvType::F16;
    const CONVERTS: bool = true;

    #[inline(always)]
    unsafe fn load<V: Lanes>(head: *const u8, i: usize, _: usize) -> [V; 2] {
        let at = head.cast::<u16>().wrapping_add(i);
        // SAFETY: promised by the caller.
        unsafe { [V::load_f16(at), V::load_f16(at.add(V::N))] }
    }

    #[inline(always)]
    unsafe fn store<V: Lanes>(head: *mut u8, i: usize, _: usize, x: *const f32) {
        for j in (0..KV_GROUP).step_by(V::N) {
            // SAFETY: promised by the caller.
            unsafe { V::store_f16(head.cast::<u16>().add(i + j), V::load(x.add(j))) };
        }
    }
}

impl Cache for CacheQ8 {
    const TYPE: KvType = KvType::Q8_0;
    const CONVERTS: bool = true;

    #[inline(always)]
    unsafe fn load<V: Lanes>(head: *const u8, i: usize, padded: usize) -> [V; 2] {
        let at = head.cast::<i8>().wrapping_add(i);
        // SAFETY: promised by the caller; the scales follow the integers, and 2 N elements share one.
        unsafe {
            let d = V::splat_f16(head.add(padded).cast::<u16>().add(i / KV_GROUP));
            [
                V::mul(V::load_i8(at), d),
                V::mul(V::load_i8(at.add(V::N)), d),
            ]
        }
    }

    #[inline(always)]
    unsafe fn store<V: Lanes>(head: *mut u8, i: usize, padded: usize, x: *const f32) {
        // SAFETY: promised by the caller; the scales follow the integers.
        unsafe {
            let mut amax = V::splat(0.0);
            for j in (0..KV_GROUP).step_by(V::N) {
                amax = V::max(V::abs(V::load(x.add(j))), amax);
            }
            let (d, inverse) = q8_scale(V::largest(amax));
            let (inverse, limit) = (V::splat(inverse), V::splat(127.0));
            for j in (0..KV_GROUP).step_by(V::N) {
                let q = V::min(V::mul(V::load(x.add(j)), inverse), limit);
                let q = V::max(q, V::splat(-127.0));
                V::store_i8(head.cast::<i8>().add(i + j), q);
            }
            head.add(padded).cast::<u16>().add(i / KV_GROUP).write(d);
        }
    }
}

/// Converts elements `columns` of a head to f32.
///
/// # Safety
/// The CPU has the ISA; `head` holds `padded` elements, `to` as many floats as there are columns, multiples of 32.
#[inline(always)]
pub unsafe fn convert<V: Lanes, C: Cache>(
    head: *const u8,
    columns: Range<usize>,
    padded: usize,
    to: *mut f32,
) {
    for i in columns.clone().step_by(2 * V::N) {
        // SAFETY: promised by the caller.
        unsafe {
            let [a, b] = C::load::<V>(head, i, padded);
            V::store(to.add(i - columns.start), a);
            V::store(to.add(i - columns.start + V::N), b);
        }
    }
}

/// Body of a [`crate::attention::KvAppendFn`].
///
/// # Safety
/// The CPU has the ISA; the contract of [`crate::attention::KvAppendFn`].
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub unsafe fn kv_append<V: Lanes, C: Cache>(
    k: *const f32,
    v: *const f32,
    kv: *mut u8,
    step: *const Step,
    kv_heads: usize,
    head_dim: usize,
    row_begin: usize,
    row_end: usize,
    k_stride: usize,
    v_stride: usize,
) {
    // SAFETY: the step is valid for the whole call.
    let step = unsafe { &*step };
    let pages = Pages::new(kv, step, C::TYPE, kv_heads, head_dim);
    for r in row_begin..row_end.min(step.rows) {
        for h in 0..kv_heads {
            // SAFETY: r < rows; the row's position has a page, and head h of row r is inside k and v.
            unsafe {
                let (slot, pos) = (*step.slots.add(r) as usize, *step.positions.add(r) as usize);
                let page = pages.head(slot, pos / PAGE_TOKENS, h);
                let at = pos % PAGE_TOKENS * pages.head_bytes;
                let k = k.byte_add(r * k_stride).add(h * head_dim);
                let v = v.byte_add(r * v_stride).add(h * head_dim);
                store_head::<V, C>(k, head_dim, page.k.add(at));
                store_head::<V, C>(v, head_dim, page.v.add(at));
            }
        }
    }
}

/// # Safety
/// The CPU has the ISA; `x` holds `head_dim` floats and `head` a head of that length.
#[inline(always)]
unsafe fn store_head<V: Lanes, C: Cache>(x: *const f32, head_dim: usize, head: *mut u8) {
    let padded = head_dim.next_multiple_of(KV_GROUP);
    let whole = head_dim / KV_GROUP * KV_GROUP;
    // SAFETY: whole groups are read in place, the last partial one from a copy padded with zeros.
    unsafe {
        for i in (0..whole).step_by(KV_GROUP) {
            C::store::<V>(head, i, padded, x.add(i));
        }
        if whole < head_dim {
            let mut tail = [0.0f32; KV_GROUP];
            std::ptr::copy_nonoverlapping(x.add(whole), tail.as_mut_ptr(), head_dim - whole);
            C::store::<V>(head, whole, padded, tail.as_ptr());
        }
    }
}
