//! Portable quantisation of activation rows to int8, 16 per scale. The vector versions give the same bytes.

use crate::cpu::abi::{ACT_GROUP, Q8Block};
use crate::cpu::symbols::{Named, QuantiseFn, Symbol};
use crate::cpu::tile::GROUP_K;

/// `quantise_scalar`, of type [`QuantiseFn`].
pub const SYMBOLS: &[Named] = &[(
    "quantise_scalar",
    Symbol(quantise as QuantiseFn as *const ()),
)];

/// Largest magnitude of a group that is still quantised as zeros: below it `127 / amax` could overflow.
pub const AMAX_FLOOR: f32 = 1e-30;

/// # Safety
/// The contract of [`QuantiseFn`]: `x` holds `rows` rows of k floats, `out` as many int8 rows.
unsafe extern "C" fn quantise(
    x: *const f32,
    out: *mut u8,
    k: usize,
    rows: usize,
    x_stride: usize,
    out_stride: usize,
) {
    for r in 0..rows {
        // SAFETY: row r is inside both buffers.
        unsafe { quantise_row(x.byte_add(r * x_stride), out.add(r * out_stride).cast(), k) };
    }
}

/// Quantises one row of `k` floats: per 16 `d = amax / 127`, `q = round-half-even(x * (127 / amax))`, and what else
/// [`Q8Block`] lists. A group with amax below [`AMAX_FLOOR`] is all zeros; NaN becomes 0.
///
/// # Safety
/// `x` holds `k` floats, `out` the blocks of `k` rounded up to 32, 4-byte aligned.
pub unsafe fn quantise_row(x: *const f32, out: *mut Q8Block, k: usize) {
    for (g, begin) in (0..k).step_by(GROUP_K).enumerate() {
        let mut values = [0.0f32; GROUP_K];
        let len = GROUP_K.min(k - begin);
        // SAFETY: `begin + len <= k` floats are readable.
        values[..len].copy_from_slice(unsafe { std::slice::from_raw_parts(x.add(begin), len) });
        let (mut q, mut d, mut sums) = ([0; GROUP_K], [0.0; 2], [0; 2]);
        for (h, values) in values.as_chunks().0.iter().enumerate() {
            let half;
            (half, d[h], sums[h]) = quantise_group(values);
            q[h * ACT_GROUP..][..ACT_GROUP].copy_from_slice(&half);
        }
        // SAFETY: the row has a block for these 32.
        unsafe { out.add(g).write(Q8Block::new(q, d, sums)) };
    }
}

/// Integers, scale, and the sum of the integers.
fn quantise_group(x: &[f32; ACT_GROUP]) -> ([i8; ACT_GROUP], f32, i32) {
    let amax = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    if amax < AMAX_FLOOR {
        return ([0; ACT_GROUP], 0.0, 0);
    }
    let inverse = 127.0 / amax;
    let q = x.map(|v| (v * inverse).round_ties_even() as i8);
    (q, amax / 127.0, q.iter().map(|&q| i32::from(q)).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::abi::{LIFT, SCALE_BITS};

    #[test]
    fn rows_round_half_to_even_and_pad_with_zeros() {
        let k = 33;
        let mut x = vec![0.0f32; k];
        (x[0], x[1], x[2], x[15]) = (127.0, 0.5, 1.5, -127.0);
        (x[16], x[31], x[32]) = (1.0, -63.5, -2.0);
        let mut out = [Q8Block::new([99; 32], [9.0; 2], [9; 2]); 2];
        // SAFETY: x holds k floats, out a row of 64.
        unsafe { quantise_row(x.as_ptr(), out.as_mut_ptr(), k) };
        let q = [0, 1, 2, 15, 16, 31].map(|i| out[0].q[i]);
        assert_eq!(q, [127, 0, 2, -127, 2, -127]);
        assert_eq!(out[1].q[0], -127);
        assert_eq!(out[1].q[1..], [0; 31]);
        let d = f32::from_bits((2.0f32 / 127.0).to_bits() & SCALE_BITS);
        assert_eq!([out[0].d, out[1].d], [[1.0, 0.5], [d, 0.0]]);
        assert_eq!([out[0].sum, out[1].sum], [2.0 - 62.5, -127.0 * d]);
        let zeros = out.map(|block| block.start.map(|start| start - LIFT));
        assert_eq!(zeros, [[-128.0 * 2.0, 128.0 * 125.0], [128.0 * 127.0, 0.0]]);
        assert_eq!(out[0].unlift, [-LIFT, -LIFT / 2.0]);
        assert_eq!(out[0].unlift_both, -1.5 * LIFT);
    }
}
