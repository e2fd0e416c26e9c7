//! Portable quantisation of activation rows to int8, 16 per scale. The vector versions give the same bytes.

use crate::cpu::abi::{ACT_GROUP, q8_row};
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
        unsafe { quantise_row(x.byte_add(r * x_stride), out.add(r * out_stride), k) };
    }
}

/// Quantises one row of `k` floats: per 16 `d = amax / 127`, `q = round-half-even(x * (127 / amax))`, and the sums
/// that [`q8_row`] lists. A group with amax below [`AMAX_FLOOR`] is all zeros; NaN becomes 0.
///
/// # Safety
/// `x` holds `k` floats, `out` an int8 row ([`q8_row`]) of `k` rounded up to 32, 4-byte aligned.
pub unsafe fn quantise_row(x: *const f32, out: *mut u8, k: usize) {
    let row = q8_row(k.next_multiple_of(GROUP_K));
    for (g, begin) in (0..k).step_by(GROUP_K).enumerate() {
        let mut values = [0.0f32; GROUP_K];
        let len = GROUP_K.min(k - begin);
        // SAFETY: `begin + len <= k` floats are readable.
        values[..len].copy_from_slice(unsafe { std::slice::from_raw_parts(x.add(begin), len) });
        let mut value_sum = 0.0;
        for (h, values) in values.as_chunks().0.iter().enumerate() {
            let (q, d, sum) = quantise_group(values);
            value_sum += d * sum as f32;
            // SAFETY: q, d and z16 of group 2 g + h lie inside the row by `q8_row`.
            unsafe {
                let at = begin + h * ACT_GROUP;
                out.add(at).cast::<[i8; ACT_GROUP]>().write(q);
                out.add(row.d).cast::<f32>().add(2 * g + h).write(d);
                let z16 = out.add(row.z16).cast::<i32>();
                z16.add(2 * g + h).write(-128 * sum);
            }
        }
        // SAFETY: s32 of 32 activations lies inside the row by `q8_row`.
        unsafe { out.add(row.s32).cast::<f32>().add(g).write(value_sum) };
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

    #[test]
    fn rows_round_half_to_even_and_pad_with_zeros() {
        let k = 33;
        let mut x = vec![0.0f32; k];
        (x[0], x[1], x[2], x[15]) = (127.0, 0.5, 1.5, -127.0);
        (x[16], x[31], x[32]) = (1.0, -63.5, -2.0);
        let row = q8_row(64);
        let mut out = vec![0u64; row.bytes / 8];
        let out: &mut [u8] = {
            // SAFETY: the bytes of a live u64 buffer.
            unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast(), row.bytes) }
        };
        out.fill(0xaa);
        // SAFETY: x holds k floats, out a row of 64.
        unsafe { quantise_row(x.as_ptr(), out.as_mut_ptr(), k) };
        let word = |at: usize| [out[at], out[at + 1], out[at + 2], out[at + 3]];
        let float = |at: usize| f32::from_le_bytes(word(at));
        let int = |at: usize| i32::from_le_bytes(word(at));
        let q = [0, 1, 2, 15, 16, 31, 32].map(|i| out[i] as i8);
        assert_eq!(q, [127, 0, 2, -127, 2, -127, -127]);
        assert_eq!(out[33..64], [0; 31]);
        let d = [0, 4, 8, 12].map(|i| float(row.d + i));
        assert_eq!(d, [1.0, 0.5, 2.0 / 127.0, 0.0]);
        let s32 = [0, 4].map(|i| float(row.s32 + i));
        assert_eq!(s32, [2.0 - 62.5, -2.0]);
        let z16 = [0, 4, 8, 12].map(|i| int(row.z16 + i));
        assert_eq!(z16, [-128 * 2, 128 * 125, 128 * 127, 0]);
    }
}
