//! AVX-512 quantisation of activation rows to int8; the same bytes as `scalar::quantise`.

use std::arch::x86_64::*;

use crate::cpu::abi::{ACT_GROUP, Q8Row, q8_row};
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
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
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

/// Activations whose 16 groups fill vectors of scales and of sums.
const BLOCK: usize = 16 * ACT_GROUP;

/// Quantises the activations `begin..begin + BLOCK` of a row: what belongs to a group is computed for 16 groups at once.
///
/// # Safety
/// `x` holds [`BLOCK`] floats, `out` an int8 row of layout `row` that has the activations; AVX-512 is there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn quantise_block(x: *const f32, out: *mut u8, row: &Q8Row, begin: usize) {
    // SAFETY: promised by the caller; the planes of a row hold a scale and a z16 per 16, an s32 per 32.
    unsafe {
        let mut magnitudes = [_mm512_setzero_ps(); 16];
        for (g, m) in magnitudes.iter_mut().enumerate() {
            let v = _mm512_loadu_ps(x.add(g * ACT_GROUP));
            // A NaN lane yields the second operand, so NaNs do not count.
            *m = _mm512_max_ps(_mm512_abs_ps(v), _mm512_setzero_ps());
        }
        let amax = largest(magnitudes);
        let some = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(amax, _mm512_set1_ps(AMAX_FLOOR));
        let full = _mm512_set1_ps(127.0);
        let d = _mm512_maskz_div_ps(some, amax, full);
        let inverse = _mm512_maskz_div_ps(some, full, amax);
        let mut sums = [_mm512_setzero_si512(); 4];
        for (quad, sums) in sums.iter_mut().enumerate() {
            let group = |i: usize| {
                let g = 4 * quad + i;
                let inverse = _mm512_permutexvar_ps(_mm512_set1_epi32(g as i32), inverse);
                let scaled = _mm512_mul_ps(_mm512_loadu_ps(x.add(g * ACT_GROUP)), inverse);
                let q = _mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(
                    scaled,
                );
                // Not a number converts to i32::MIN, whose low byte is 0.
                _mm512_cvtepi32_epi8(q)
            };
            let bytes = _mm512_castsi128_si512(group(0));
            let bytes = _mm512_inserti32x4::<1>(bytes, group(1));
            let bytes = _mm512_inserti32x4::<2>(bytes, group(2));
            let bytes = _mm512_inserti32x4::<3>(bytes, group(3));
            _mm512_storeu_si512(out.add(begin + 4 * quad * ACT_GROUP).cast(), bytes);
            *sums = _mm512_dpbusd_epi32(*sums, _mm512_set1_epi8(1), bytes);
        }
        let sum = group_sums(sums);
        let (g16, g32) = (begin / ACT_GROUP, begin / GROUP_K);
        _mm512_storeu_ps(out.add(row.d).cast::<f32>().add(g16), d);
        let z16 = _mm512_slli_epi32::<7>(_mm512_sub_epi32(_mm512_setzero_si512(), sum));
        _mm512_storeu_si512(out.add(row.z16).cast::<i32>().add(g16).cast(), z16);
        let values = _mm512_mul_ps(d, _mm512_cvtepi32_ps(sum));
        let pair = |first: i32| {
            let lanes = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 0, 0, 0, 0, 0, 0, 0);
            let lanes = _mm512_add_epi32(lanes, _mm512_set1_epi32(first));
            _mm512_castps512_ps256(_mm512_permutexvar_ps(lanes, values))
        };
        let s32 = out.add(row.s32).cast::<f32>().add(g32);
        _mm256_storeu_ps(s32, _mm256_add_ps(pair(0), pair(1)));
    }
}

/// Lane i of the result is the largest lane of `v[i]`; no lane is a NaN.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn largest(v: [__m512; 16]) -> __m512 {
    // Each step halves what is left of every vector and puts two vectors' halves into one.
    let halves: [_; 8] = std::array::from_fn(|i| {
        let (a, b) = (v[i], v[i + 8]);
        let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b);
        _mm512_max_ps(low, _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b))
    });
    let quarters: [_; 4] = std::array::from_fn(|i| {
        let (a, b) = (halves[i], halves[i + 4]);
        let even = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
        _mm512_max_ps(even, _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b))
    });
    let pairs: [_; 2] = std::array::from_fn(|i| {
        let (a, b) = (quarters[i], quarters[i + 2]);
        _mm512_max_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b))
    });
    let [a, b] = pairs;
    let low = _mm512_shuffle_ps::<0b01_00_01_00>(a, b);
    let last = _mm512_max_ps(low, _mm512_shuffle_ps::<0b11_10_11_10>(a, b));
    // Runs of four lanes hold vectors from 0, 8, 4 and 12 on, each run its vectors in the order 0, 2, 1, 3.
    let places = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
    _mm512_permutexvar_ps(places, last)
}

/// Lane 4 i + j of the result is the sum of the lanes 4 j.. of `v[i]`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn group_sums(v: [__m512i; 4]) -> __m512i {
    let pairs: [_; 2] = std::array::from_fn(|i| {
        let (a, b) = (v[i], v[i + 2]);
        _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b))
    });
    let [a, b] = pairs;
    let low = _mm512_unpacklo_epi64(a, b);
    let last = _mm512_add_epi32(low, _mm512_unpackhi_epi64(a, b));
    // Run j of four lanes holds sum j of the vectors 0, 2, 1 and 3.
    let places = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 1, 5, 9, 13, 3, 7, 11, 15);
    _mm512_permutexvar_epi32(places, last)
}

/// As [`crate::cpu::scalar::quantise::quantise_row`], which says what is computed.
///
/// # Safety
/// `x` holds `k` floats, `out` an int8 row ([`q8_row`]) of `k` rounded up to 32; AVX-512 is there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn quantise_row(x: *const f32, out: *mut u8, k: usize) {
    let row = q8_row(k.next_multiple_of(GROUP_K));
    let blocks = k / BLOCK * BLOCK;
    for begin in (0..blocks).step_by(BLOCK) {
        // SAFETY: the block is inside both rows.
        unsafe { quantise_block(x.add(begin), out, &row, begin) };
    }
    for begin in (blocks..k).step_by(GROUP_K) {
        let g = begin / GROUP_K;
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
