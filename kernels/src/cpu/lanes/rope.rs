//! Rotation of heads over vectors of any ISA. Whole vectors of pairs first, the rest pair by pair.

use super::Lanes;
use super::norm::{inverse_rms, scale_row};
use crate::cpu::abi::Step;
use crate::cpu::scalar;

/// Body of a [`crate::rope::RopeHeadsFn`].
///
/// # Safety
/// The CPU has the ISA; the contract of [`crate::rope::RopeHeadsFn`].
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub unsafe fn rope_heads<V: Lanes>(
    x: *mut f32,
    w: *const f32,
    table: *const f32,
    heads: usize,
    head_dim: usize,
    rot_dim: usize,
    neox: usize,
    row_begin: usize,
    row_end: usize,
    x_stride: usize,
    table_stride: usize,
    eps_bits: usize,
    step: *const Step,
) {
    let eps = f32::from_bits(eps_bits as u32);
    // SAFETY: the step is valid for the whole call.
    let rows = unsafe { (*step).rows };
    for r in row_begin..row_end.min(rows) {
        for h in 0..heads {
            // SAFETY: head h of row r is inside x, row r inside the table.
            unsafe {
                let head = x.byte_add(r * x_stride).add(h * head_dim);
                if !w.is_null() {
                    let inverse = inverse_rms::<V>(head, head_dim, eps);
                    scale_row::<V>(head, w, head, head_dim, inverse);
                }
                rotate::<V>(
                    head,
                    table.byte_add(r * table_stride),
                    rot_dim / 2,
                    neox != 0,
                );
            }
        }
    }
}

/// Rotates all `half` pairs of one head.
///
/// # Safety
/// The CPU has the ISA; `head` and `table` hold `2 * half` floats.
#[inline(always)]
unsafe fn rotate<V: Lanes>(head: *mut f32, table: *const f32, half: usize, neox: bool) {
    let whole = half / V::N * V::N;
    // SAFETY: pairs `i .. i + N` are below `half`, their elements below `2 * half`.
    unsafe {
        for i in (0..whole).step_by(V::N) {
            let (cos, sin) = V::load_pairs(table.add(2 * i));
            let (a, b) = match neox {
                true => (V::load(head.add(i)), V::load(head.add(i + half))),
                false => V::load_pairs(head.add(2 * i)),
            };
            let x = V::sub(V::mul(a, cos), V::mul(b, sin));
            let y = V::fma(a, sin, V::mul(b, cos));
            if neox {
                V::store(head.add(i), x);
                V::store(head.add(i + half), y);
            } else {
                V::store_pairs(head.add(2 * i), x, y);
            }
        }
        scalar::rope::rotate(head, table, whole, half, neox);
    }
}
