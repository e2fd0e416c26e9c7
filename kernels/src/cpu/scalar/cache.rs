//! Portable reading and writing of heads in the paged KV cache, and the appending of K and V.

use half::f16;

use crate::cpu::abi::{KvType, PAGE_TOKENS, Step};
use crate::cpu::pages::{KV_GROUP, Pages, q8_scale};

/// The cache type that a const argument stands for.
pub const KV_TYPES: [KvType; 3] = [KvType::F32, KvType::F16, KvType::Q8_0];

/// Converts one token's K or V of one head; `out` is as long as the padded head.
///
/// # Safety
/// `head` holds `ty.head_bytes(out.len())` bytes.
pub unsafe fn load_head(ty: KvType, head: *const u8, out: &mut [f32]) {
    let scales = out.len();
    for (i, x) in out.iter_mut().enumerate() {
        // SAFETY: element i and the scale of its group are inside the head.
        *x = unsafe {
            match ty {
                KvType::F32 => head.cast::<f32>().add(i).read(),
                KvType::F16 => f16::from_bits(head.cast::<u16>().add(i).read()).to_f32(),
                KvType::Q8_0 => {
                    let d = head.add(scales).cast::<u16>().add(i / KV_GROUP).read();
                    f16::from_bits(d).to_f32() * f32::from(*head.add(i) as i8)
                }
            }
        };
    }
}

/// Stores one token's K or V of one head, `padded` elements of which those from `x.len()` on are zeros.
///
/// # Safety
/// `head` holds `ty.head_bytes(padded)` bytes, aligned to 2 (4 for F32).
unsafe fn store_head(ty: KvType, x: &[f32], padded: usize, head: *mut u8) {
    let at = |i: usize| x.get(i).copied().unwrap_or(0.0);
    for begin in (0..padded).step_by(KV_GROUP) {
        let group: [f32; KV_GROUP] = std::array::from_fn(|i| at(begin + i));
        let amax = group.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let (d, inverse) = q8_scale(amax);
        for (i, &x) in group.iter().enumerate() {
            let i = begin + i;
            // SAFETY: i < padded.
            unsafe {
                match ty {
                    KvType::F32 => head.cast::<f32>().add(i).write(x),
                    KvType::F16 => head.cast::<u16>().add(i).write(f16::from_f32(x).to_bits()),
                    KvType::Q8_0 => {
                        let q = (x * inverse).round_ties_even().clamp(-127.0, 127.0);
                        head.cast::<i8>().add(i).write(q as i8);
                    }
                }
            }
        }
        if ty == KvType::Q8_0 {
            // SAFETY: the scales follow the head's integers.
            unsafe {
                head.add(padded)
                    .cast::<u16>()
                    .add(begin / KV_GROUP)
                    .write(d)
            };
        }
    }
}

/// # Safety
/// The contract of [`KvAppendFn`].
#[allow(clippy::too_many_arguments)]
pub unsafe extern "C" fn kv_append<const KV: usize>(
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
    let ty = KV_TYPES[KV];
    let padded = head_dim.next_multiple_of(KV_GROUP);
    // SAFETY: the step is valid for the whole call.
    let step = unsafe { &*step };
    let pages = Pages::new(kv, step, ty, kv_heads, head_dim);
    for r in row_begin..row_end.min(step.rows) {
        for h in 0..kv_heads {
            // SAFETY: r < rows; the row's position has a page, and head h of row r is inside k and v.
            unsafe {
                let (slot, pos) = (*step.slots.add(r) as usize, *step.positions.add(r) as usize);
                let page = pages.head(slot, pos / PAGE_TOKENS, h);
                let at = pos % PAGE_TOKENS * pages.head_bytes;
                let k = k.byte_add(r * k_stride).add(h * head_dim);
                let v = v.byte_add(r * v_stride).add(h * head_dim);
                store_head(
                    ty,
                    std::slice::from_raw_parts(k, head_dim),
                    padded,
                    page.k.add(at),
                );
                store_head(
                    ty,
                    std::slice::from_raw_parts(v, head_dim),
                    padded,
                    page.v.add(at),
                );
            }
        }
    }
}
