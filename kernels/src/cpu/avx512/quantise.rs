//! AVX-512 quantisation of activation rows to int8; the same bytes as `scalar::quantise`.

use std::arch::x86_64::*;

use crate::cpu::abi::{ACT_GROUP, q8_row};
use crate::cpu::scalar::quantise::AMAX_FLOOR;
use crate::cpu::symbols::{Named, QuantiseFn, Symbol};
use crate::cpu::tile::GROUP_K;

/// `quantise_avx512`, of type [`QuantiseFn`].
pub const SYMBOLS: &[Named] = &[(
    "quantise_avx512",
    Symbol(quantise as QuantiseFn as *const ()),
)];

/// # Safety
/// The contract of [`QuantiseFn`]: `x` holds `rows` rows of k floats, `out` as many int8 rows; AVX-512 is there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
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

/// As [`crate::cpu::scalar::quantise::quantise_row`], which says what is computed.
///
/// # Safety
/// `x` holds `k` floats, `out` an int8 row ([`q8_row`]) of `k` rounded up to 32; AVX-512 is there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn quantise_row(x: *const f32, out: *mut u8, k: usize) {
    let row = q8_row(k.next_multiple_of(GROUP_K));
    for (g, begin) in (0..k).step_by(GROUP_K).enumerate() {
        // Lanes past k read as zeros.
        let mask = u32::MAX >> (GROUP_K - GROUP_K.min(k - begin));
        let mut values = [0.0; 2];
        // SAFETY: masked lanes are not read; q, d, s32 and z16 of these 32 lie inside the row by `q8_row`.
        unsafe {
            for (h, value) in values.iter_mut().enumerate() {
                let at = begin + h * ACT_GROUP;
                let v = _mm512_maskz_loadu_ps((mask >> (h * ACT_GROUP)) as u16, x.wrapping_add(at));
                // A NaN lane yields the second operand, so NaNs do not count.
                let magnitudes = _mm512_max_ps(_mm512_abs_ps(v), _mm512_setzero_ps());
                let amax = _mm512_reduce_max_ps(magnitudes);
                let (d, inverse) = match amax < AMAX_FLOOR {
                    true => (0.0, 0.0),
                    false => (amax / 127.0, 127.0 / amax),
                };
                let scaled = _mm512_mul_ps(v, _mm512_set1_ps(inverse));
                let q = _mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(
                    scaled,
                );
                // Not a number converts to i32::MIN, whose low byte is 0.
                let bytes = _mm512_cvtepi32_epi8(q);
                _mm_storeu_si128(out.add(at).cast(), bytes);
                let sum = _mm512_reduce_add_epi32(_mm512_cvtepi8_epi32(bytes));
                *value = d * sum as f32;
                out.add(row.d).cast::<f32>().add(2 * g + h).write(d);
                let z16 = out.add(row.z16).cast::<i32>();
                z16.add(2 * g + h).write(-128 * sum);
            }
            let s32 = out.add(row.s32).cast::<f32>();
            s32.add(g).write(values[0] + values[1]);
        }
    }
}
