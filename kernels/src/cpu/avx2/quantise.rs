//! AVX2 quantisation of activation rows to int8; the same bytes as `scalar::quantise`.

use std::arch::x86_64::*;

use crate::cpu::abi::{ACT_GROUP, Q8Block};
use crate::cpu::scalar::quantise::AMAX_FLOOR;
use crate::cpu::symbols::{Named, QuantiseFn, Symbol};
use crate::cpu::tile::GROUP_K;

/// `quantise_avx2`, of type [`QuantiseFn`].
pub const SYMBOLS: &[Named] = &[("quantise_avx2", Symbol(quantise as QuantiseFn as *const ()))];

/// # Safety
/// The contract of [`QuantiseFn`]: `x` holds `rows` rows of k floats, `out` as many int8 rows; AVX2 is there.
#[target_feature(enable = "avx2,fma,f16c")]
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

/// As [`crate::cpu::scalar::quantise::quantise_row`], which says what is computed.
///
/// # Safety
/// `x` holds `k` floats, `out` the blocks of `k` rounded up to 32; AVX2 is there.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn quantise_row(x: *const f32, out: *mut Q8Block, k: usize) {
    let mut tail = [0.0f32; GROUP_K];
    for (g, begin) in (0..k).step_by(GROUP_K).enumerate() {
        // SAFETY: whole groups are read in place, the last partial one from a copy padded with zeros; the row has a block for
        // these 32.
        unsafe {
            let mut from = x.add(begin);
            if k - begin < GROUP_K {
                std::ptr::copy_nonoverlapping(from, tail.as_mut_ptr(), k - begin);
                from = tail.as_ptr();
            }
            let (mut q, mut d, mut sums) = ([0; GROUP_K], [0.0; 2], [0; 2]);
            for h in 0..2 {
                let from = from.add(h * ACT_GROUP);
                let v = [0, 8].map(|i| _mm256_loadu_ps(from.add(i)));
                // A NaN lane yields the second operand, so NaNs do not count.
                let amax = v.iter().fold(_mm256_setzero_ps(), |m, &v| {
                    _mm256_max_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0), v), m)
                });
                let amax = largest(amax);
                let inverse;
                (d[h], inverse) = match amax < AMAX_FLOOR {
                    true => (0.0, 0.0),
                    false => (amax / 127.0, 127.0 / amax),
                };
                let inverse = _mm256_set1_ps(inverse);
                let ints = v.map(|v| {
                    let scaled = _mm256_mul_ps(v, inverse);
                    // Not a number becomes 0 rather than the i32::MIN that packing would saturate to -128.
                    let ordered = _mm256_cmp_ps::<_CMP_ORD_Q>(scaled, scaled);
                    _mm256_cvtps_epi32(_mm256_round_ps::<
                        { _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC },
                    >(_mm256_and_ps(scaled, ordered)))
                });
                // Packing works per 128-bit lane; the permutation puts the four runs of four words back in order.
                let words = _mm256_packs_epi32(ints[0], ints[1]);
                let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
                let bytes = _mm_packs_epi16(
                    _mm256_castsi256_si128(words),
                    _mm256_extracti128_si256::<1>(words),
                );
                _mm_storeu_si128(q[h * ACT_GROUP..].as_mut_ptr().cast(), bytes);
                sums[h] = sum(_mm256_add_epi32(ints[0], ints[1]));
            }
            out.add(g).write(Q8Block::new(q, d, sums));
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn largest(v: __m256) -> f32 {
    let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps::<1>(v, v)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn sum(v: __m256i) -> i32 {
    let v = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
    let v = _mm_add_epi32(v, _mm_shuffle_epi32::<0b1110>(v));
    _mm_cvtsi128_si32(_mm_add_epi32(v, _mm_shuffle_epi32::<1>(v)))
}
