//! Portable quantisation of activation rows to int8, 32 per scale. The vector versions give the same bytes.

use crate::cpu::abi::{ACT_GROUP, q8_row};
use crate::cpu::symbols::{Named, QuantiseFn, Symbol};

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

/// Quantises one row of `k` floats: per 32 `d = amax / 127`, `q = round-half-even(x * (127 / amax))`, and the sums
/// that [`q8_row`] lists. A group with amax below [`AMAX_FLOOR`] is all zeros; NaN becomes 0.
///
/// # Safety
/// `x` holds `k` floats, `out` an int8 row ([`q8_row`]) of `k` rounded up to 32, 4-byte aligned.
pub unsafe fn quantise_row(x: *const f32, out: *mut u8, k: usize) {
    let row = q8_row(k.next_multiple_of(ACT_GROUP));
    for (g, begin) in (0..k).step_by(ACT_GROUP).enumerate() {
        let mut group = [0.0f32; ACT_GROUP];
        let len = ACT_GROUP.min(k - begin);
        // SAFETY: `begin + len <= k` floats are readable.
        group[..len].copy_from_slice(unsafe { std::slice::from_raw_parts(x.add(begin), len) });
        let (q, d, sums) = quantise_group(&group);
        // SAFETY: q, d, s32 and z16 of group g lie inside the row by `q8_row`.
        unsafe {
            out.add(begin).cast::<[i8; ACT_GROUP]>().write(q);
            out.add(row.d).cast::<f32>().add(g).write(d);
            out.add(row.s32)
                .cast::<f32>()
                .add(g)
                .write(d * (sums[0] + sums[1]) as f32);
            out.add(row.z16)
                .cast::<i32>()
                .add(2 * g)
                .write(-128 * sums[0]);
            out.add(row.z16)
                .cast::<i32>()
                .add(2 * g + 1)
                .write(-128 * sums[1]);
        }
    }
}

/// Integers, scale, and the integer sums of the two halves.
pub(crate) fn quantise_group(x: &[f32; ACT_GROUP]) -> ([i8; ACT_GROUP], f32, [i32; 2]) {
    let amax = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    if amax < AMAX_FLOOR {
        return ([0; ACT_GROUP], 0.0, [0; 2]);
    }
    let inverse = 127.0 / amax;
    let q = x.map(|v| (v * inverse).round_ties_even() as i8);
    let sum = |half: &[i8]| half.iter().map(|&q| i32::from(q)).sum();
    (
        q,
        amax / 127.0,
        [sum(&q[..ACT_GROUP / 2]), sum(&q[ACT_GROUP / 2..])],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_round_half_to_even_and_pad_with_zeros() {
        let k = 33;
        let mut x = vec![0.0f32; k];
        (x[0], x[1], x[2], x[31], x[32]) = (127.0, 0.5, 1.5, -127.0, -2.0);
        let row = q8_row(64);
        let mut out = vec![0u64; row.bytes / 8];
        let out: &mut [u8] = {
            // SAFETY: the bytes of a live u64 buffer.
            unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast(), row.bytes) }
        };
        out.fill(0xaa);
        // SAFETY: x holds k floats, out a row of 64.
        unsafe { quantise_row(x.as_ptr(), out.as_mut_ptr(), k) };
        let float =
            |at: usize| f32::from_le_bytes([out[at], out[at + 1], out[at + 2], out[at + 3]]);
        assert_eq!(
            [out[0] as i8, out[1] as i8, out[2] as i8, out[31] as i8],
            [127, 0, 2, -127]
        );
        assert_eq!(out[32] as i8, -127);
        assert_eq!(out[33..64], [0; 31]);
        assert_eq!([float(row.d), float(row.d + 4)], [1.0, 2.0 / 127.0]);
        assert_eq!(float(row.s32), 2.0);
        let int = |at: usize| i32::from_le_bytes([out[at], out[at + 1], out[at + 2], out[at + 3]]);
        let z16 = [0, 4, 8, 12].map(|i| int(row.z16 + i));
        assert_eq!(z16, [-128 * 129, 128 * 127, 128 * 127, 0]);
    }
}
