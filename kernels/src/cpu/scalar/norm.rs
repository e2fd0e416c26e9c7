//! Portable RMSNorm, to f32 rows and to int8 rows. Squares are summed in f64; everything else is f32.

use crate::cpu::abi::Q8Block;
use crate::cpu::scalar::quantise::quantise_row;
use crate::cpu::symbols::{Named, Symbol};
use crate::cpu::tile::GROUP_K;
use crate::norm::{NormFn, NormQ8Fn};

/// `rmsnorm_scalar` of type [`NormFn`] and `rmsnorm_q8_scalar` of type [`NormQ8Fn`].
pub const SYMBOLS: &[Named] = &[
    ("rmsnorm_scalar", Symbol(rmsnorm as NormFn as *const ())),
    (
        "rmsnorm_q8_scalar",
        Symbol(rmsnorm_q8 as NormQ8Fn as *const ()),
    ),
];

/// `1 / sqrt(mean(x^2) + eps)` of one row.
///
/// # Safety
/// `x` holds `width` floats.
pub unsafe fn inverse_rms(x: *const f32, width: usize, eps: f32) -> f32 {
    let mut squares = 0.0f64;
    for i in 0..width {
        // SAFETY: i < width.
        let v = f64::from(unsafe { *x.add(i) });
        squares += v * v;
    }
    (1.0 / (squares / width as f64 + f64::from(eps)).sqrt()) as f32
}

/// # Safety
/// `x` and `y` hold `width` floats, as does `w` unless it is null; `y` may be `x`.
pub unsafe fn scale_row(x: *const f32, w: *const f32, y: *mut f32, width: usize, inverse: f32) {
    for i in 0..width {
        // SAFETY: i < width.
        unsafe {
            let v = *x.add(i) * inverse;
            *y.add(i) = if w.is_null() { v } else { v * *w.add(i) };
        }
    }
}

/// # Safety
/// The contract of [`NormFn`].
#[allow(clippy::too_many_arguments)]
unsafe extern "C" fn rmsnorm(
    x: *const f32,
    w: *const f32,
    y: *mut f32,
    width: usize,
    rows: usize,
    x_stride: usize,
    y_stride: usize,
    eps_bits: usize,
) {
    let eps = f32::from_bits(eps_bits as u32);
    for r in 0..rows {
        // SAFETY: row r is inside both buffers.
        unsafe {
            let x = x.byte_add(r * x_stride);
            let inverse = inverse_rms(x, width, eps);
            scale_row(x, w, y.byte_add(r * y_stride), width, inverse);
        }
    }
}

/// Floats normalised on the stack before they are quantised, whole blocks of [`Q8Block`].
pub const PART: usize = 256;

/// # Safety
/// The contract of [`NormQ8Fn`].
#[allow(clippy::too_many_arguments)]
unsafe extern "C" fn rmsnorm_q8(
    x: *const f32,
    w: *const f32,
    out: *mut u8,
    width: usize,
    rows: usize,
    x_stride: usize,
    out_stride: usize,
    eps_bits: usize,
) {
    let eps = f32::from_bits(eps_bits as u32);
    for r in 0..rows {
        // SAFETY: row r is inside both buffers, and each part is inside the row.
        unsafe {
            let x = x.byte_add(r * x_stride);
            let inverse = inverse_rms(x, width, eps);
            for begin in (0..width).step_by(PART) {
                let len = PART.min(width - begin);
                let mut floats = [0.0f32; PART];
                let w = if w.is_null() { w } else { w.add(begin) };
                scale_row(x.add(begin), w, floats.as_mut_ptr(), len, inverse);
                let to = out
                    .add(r * out_stride)
                    .cast::<Q8Block>()
                    .add(begin / GROUP_K);
                quantise_row(floats.as_ptr(), to, len);
            }
        }
    }
}
