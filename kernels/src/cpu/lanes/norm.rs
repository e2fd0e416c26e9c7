//! RMSNorm over vectors of any ISA. Squares are summed in four vectors in a fixed order, so a row's result does not
//! depend on the rows around it.

use super::Lanes;
use crate::cpu::abi::Q8Block;
use crate::cpu::scalar::norm::PART;
use crate::cpu::tile::GROUP_K;

/// `1 / sqrt(mean(x^2) + eps)` of one row.
///
/// # Safety
/// The CPU has the ISA; `x` holds `width` floats.
#[inline(always)]
pub unsafe fn inverse_rms<V: Lanes>(x: *const f32, width: usize, eps: f32) -> f32 {
    // SAFETY: every load is below `width`.
    unsafe {
        let mut sums = [V::splat(0.0); 4];
        let mut i = 0;
        while i + 4 * V::N <= width {
            for (j, sum) in sums.iter_mut().enumerate() {
                let v = V::load(x.add(i + j * V::N));
                *sum = V::fma(v, v, *sum);
            }
            i += 4 * V::N;
        }
        while i + V::N <= width {
            let v = V::load(x.add(i));
            sums[0] = V::fma(v, v, sums[0]);
            i += V::N;
        }
        if i < width {
            let v = V::load_part(x.add(i), width - i);
            sums[1] = V::fma(v, v, sums[1]);
        }
        let sum = V::sum(V::add(V::add(sums[0], sums[2]), V::add(sums[1], sums[3])));
        1.0 / (sum / width as f32 + eps).sqrt()
    }
}

/// `y = x * inverse * w` over one row.
///
/// # Safety
/// The CPU has the ISA; `x` and `y` hold `width` floats, as does `w` unless it is null; `y` may be `x`.
#[inline(always)]
pub unsafe fn scale_row<V: Lanes>(
    x: *const f32,
    w: *const f32,
    y: *mut f32,
    width: usize,
    inverse: f32,
) {
    // SAFETY: every access is below `width`.
    unsafe {
        let inverse = V::splat(inverse);
        let mut i = 0;
        while i + V::N <= width {
            let mut v = V::mul(V::load(x.add(i)), inverse);
            if !w.is_null() {
                v = V::mul(v, V::load(w.add(i)));
            }
            V::store(y.add(i), v);
            i += V::N;
        }
        if i < width {
            let n = width - i;
            let mut v = V::mul(V::load_part(x.add(i), n), inverse);
            if !w.is_null() {
                v = V::mul(v, V::load_part(w.add(i), n));
            }
            V::store_part(y.add(i), n, v);
        }
    }
}

/// Body of a [`crate::norm::NormFn`].
///
/// # Safety
/// The CPU has the ISA; the contract of [`crate::norm::NormFn`].
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub unsafe fn rmsnorm<V: Lanes>(
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
            let inverse = inverse_rms::<V>(x, width, eps);
            scale_row::<V>(x, w, y.byte_add(r * y_stride), width, inverse);
        }
    }
}

/// Body of a [`crate::norm::NormQ8Fn`].
///
/// # Safety
/// The CPU has the ISA; the contract of [`crate::norm::NormQ8Fn`].
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub unsafe fn rmsnorm_q8<V: Lanes>(
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
    let mut floats = [0.0f32; PART];
    for r in 0..rows {
        // SAFETY: row r is inside both buffers, and each part is inside the row.
        unsafe {
            let x = x.byte_add(r * x_stride);
            let inverse = inverse_rms::<V>(x, width, eps);
            for begin in (0..width).step_by(PART) {
                let len = PART.min(width - begin);
                let w = if w.is_null() { w } else { w.add(begin) };
                scale_row::<V>(x.add(begin), w, floats.as_mut_ptr(), len, inverse);
                let to = out
                    .add(r * out_stride)
                    .cast::<Q8Block>()
                    .add(begin / GROUP_K);
                V::quantise_row(floats.as_ptr(), to, len);
            }
        }
    }
}
