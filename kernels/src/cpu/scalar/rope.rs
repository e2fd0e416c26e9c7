//! Portable RoPE: the table of cosines and sines, which every ISA uses, and the rotation of heads.

use crate::cpu::abi::Step;
use crate::cpu::scalar::norm::{inverse_rms, scale_row};
use crate::cpu::symbols::{Named, Symbol};
use crate::rope::{RopeHeadsFn, RopeTableFn};

/// `rope_table_scalar` of type [`RopeTableFn`] and `rope_heads_scalar` of type [`RopeHeadsFn`].
pub const SYMBOLS: &[Named] = &[
    (
        "rope_table_scalar",
        Symbol(rope_table as RopeTableFn as *const ()),
    ),
    (
        "rope_heads_scalar",
        Symbol(rope_heads as RopeHeadsFn as *const ()),
    ),
];

/// # Safety
/// The contract of [`RopeTableFn`].
#[allow(clippy::too_many_arguments)]
pub unsafe extern "C" fn rope_table(
    step: *const Step,
    inv_freq: *const f32,
    out: *mut f32,
    half: usize,
    mscale_bits: usize,
    row_begin: usize,
    row_end: usize,
    out_stride: usize,
) {
    let mscale = f64::from(f32::from_bits(mscale_bits as u32));
    // SAFETY: the step is valid for the whole call.
    let step = unsafe { &*step };
    for r in row_begin..row_end.min(step.rows) {
        for i in 0..half {
            // SAFETY: r < rows, i < half; row r of the table holds 2 * half floats.
            unsafe {
                let angle = f64::from(*step.positions.add(r)) * f64::from(*inv_freq.add(i));
                let (sin, cos) = angle.sin_cos();
                let pair = out.byte_add(r * out_stride).add(2 * i);
                pair.write((cos * mscale) as f32);
                pair.add(1).write((sin * mscale) as f32);
            }
        }
    }
}

/// Rotates pairs `begin..half` of one head.
///
/// # Safety
/// `head` holds `2 * half` floats and so does `table`.
pub unsafe fn rotate(head: *mut f32, table: *const f32, begin: usize, half: usize, neox: bool) {
    for i in begin..half {
        let (a, b) = if neox {
            (i, i + half)
        } else {
            (2 * i, 2 * i + 1)
        };
        // SAFETY: both elements are below 2 * half.
        unsafe {
            let (cos, sin) = (*table.add(2 * i), *table.add(2 * i + 1));
            let (x, y) = (*head.add(a), *head.add(b));
            *head.add(a) = x * cos - y * sin;
            *head.add(b) = x * sin + y * cos;
        }
    }
}

/// # Safety
/// The contract of [`RopeHeadsFn`].
#[allow(clippy::too_many_arguments)]
unsafe extern "C" fn rope_heads(
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
                    let inverse = inverse_rms(head, head_dim, eps);
                    scale_row(head, w, head, head_dim, inverse);
                }
                rotate(
                    head,
                    table.byte_add(r * table_stride),
                    0,
                    rot_dim / 2,
                    neox != 0,
                );
            }
        }
    }
}
