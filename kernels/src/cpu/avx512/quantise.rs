//! AVX-512 quantisation of activation rows to int8; the same bytes as `scalar::quantise`.

use std::arch::x86_64::*;

use crate::cpu::abi::{ACT_GROUP, q8_row};
use crate::cpu::scalar::quantise::AMAX_FLOOR;
use crate::cpu::symbols::{Named, QuantiseFn, Symbol};

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
    let row = q8_row(k.next_multiple_of(ACT_GROUP));
    for (g, begin) in (0..k).step_by(ACT_GROUP).enumerate() {
        // Lanes past k read as zeros.
        let mask = u32::MAX >> (ACT_GROUP - ACT_GROUP.min(k - begin));
        // SAFETY: masked lanes are not read; q, d, s32 and z16 of group g lie inside the row by `q8_row`.
        unsafe {
            let v0 = _mm512_maskz_loadu_ps(mask as u16, x.add(begin));
            let v1 = _mm512_maskz_loadu_ps((mask >> 16) as u16, x.add(begin).wrapping_add(16));
            // A NaN lane yields the second operand, so NaNs do not count.
            let m = _mm512_max_ps(_mm512_abs_ps(v0), _mm512_setzero_ps());
            let amax = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(v1), m));
            let (d, inverse) = match amax < AMAX_FLOOR {
                true => (0.0, 0.0),
                false => (amax / 127.0, 127.0 / amax),
            };
            let inverse = _mm512_set1_ps(inverse);
            let round = |v| {
                _mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(
                    _mm512_mul_ps(v, inverse),
                )
            };
            let (q0, q1) = (round(v0), round(v1));
            // Not a number converts to i32::MIN, whose low byte is 0.
            let (b0, b1) = (_mm512_cvtepi32_epi8(q0), _mm512_cvtepi32_epi8(q1));
            _mm_storeu_si128(out.add(begin).cast(), b0);
            _mm_storeu_si128(out.add(begin + 16).cast(), b1);
            let (sum0, sum1) = (sum_bytes(b0), sum_bytes(b1));
            out.add(row.d).cast::<f32>().add(g).write(d);
            out.add(row.s32)
                .cast::<f32>()
                .add(g)
                .write(d * (sum0 + sum1) as f32);
            out.add(row.z16).cast::<i32>().add(2 * g).write(-128 * sum0);
            out.add(row.z16)
                .cast::<i32>()
                .add(2 * g + 1)
                .write(-128 * sum1);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn sum_bytes(bytes: __m128i) -> i32 {
    _mm512_reduce_add_epi32(_mm512_cvtepi8_epi32(bytes))
}
