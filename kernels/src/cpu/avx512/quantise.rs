//! AVX-512 quantisation of activation rows to int8; the same bytes as `scalar::quantise`.

use std::arch::x86_64::*;

use crate::cpu::abi::{ACT_GROUP, LIFT, Q8Block, SCALE_BITS};
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
        unsafe { quantise_row(x.byte_add(r * x_stride), out.add(r * out_stride).cast(), k) };
    }
}

/// Activations whose 16 groups fill vectors of scales and of sums.
const BLOCK: usize = 16 * ACT_GROUP;

/// Quantises [`BLOCK`] activations: what belongs to a group is computed for 16 groups at once.
///
/// # Safety
/// `x` holds [`BLOCK`] floats, `out` as many int8 activations; AVX-512 is there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn quantise_block(x: *const f32, out: *mut Q8Block) {
    // SAFETY: promised by the caller.
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
            let half = _mm512_extracti64x4_epi64::<1>(bytes);
            let block = out.add(2 * quad);
            _mm256_storeu_si256(
                (*block).q.as_mut_ptr().cast(),
                _mm512_castsi512_si256(bytes),
            );
            _mm256_storeu_si256((*block.add(1)).q.as_mut_ptr().cast(), half);
            *sums = _mm512_dpbusd_epi32(*sums, _mm512_set1_epi8(1), bytes);
        }
        let sum = group_sums(sums);
        // What `Q8Block::new` computes, pairs of lanes for each block.
        let bits = _mm512_and_si512(_mm512_castps_si512(d), _mm512_set1_epi32(SCALE_BITS as i32));
        let d = _mm512_castsi512_ps(bits);
        let zeros = _mm512_cvtepi32_ps(_mm512_slli_epi32::<7>(sum));
        let start = _mm512_sub_ps(_mm512_set1_ps(LIFT), zeros);
        let unlift = _mm512_mul_ps(_mm512_set1_ps(-LIFT), d);
        let values = pair_sums(_mm512_mul_ps(d, _mm512_cvtepi32_ps(sum)));
        let both = _mm512_mask_blend_ps(0xaaaa, values, pair_sums(unlift));
        let quads = [
            interleaved(d, start, false),
            interleaved(d, start, true),
            interleaved(both, unlift, false),
            interleaved(both, unlift, true),
        ];
        for (i, block) in (0..8).map(|i| (i, out.add(i))) {
            let lane = |quads: __m512| match i / 2 {
                0 => _mm512_castps512_ps128(quads),
                1 => _mm512_extractf32x4_ps::<1>(quads),
                2 => _mm512_extractf32x4_ps::<2>(quads),
                _ => _mm512_extractf32x4_ps::<3>(quads),
            };
            // d and start are four floats in a row, as are the sum and what is lifted.
            _mm_storeu_ps((&raw mut (*block).d).cast(), lane(quads[i % 2]));
            _mm_storeu_ps(&raw mut (*block).sum, lane(quads[2 + i % 2]));
        }
    }
}

/// Both lanes of a pair become the pair's sum.
#[inline]
#[target_feature(enable = "avx512f")]
fn pair_sums(v: __m512) -> __m512 {
    _mm512_add_ps(v, _mm512_permute_ps::<0b10_11_00_01>(v))
}

/// Pairs of `a` and of `b` in turn: the even pairs of both, or the odd ones.
#[inline]
#[target_feature(enable = "avx512f")]
fn interleaved(a: __m512, b: __m512, odd: bool) -> __m512 {
    let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
    _mm512_castpd_ps(match odd {
        false => _mm512_unpacklo_pd(a, b),
        true => _mm512_unpackhi_pd(a, b),
    })
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
/// `x` holds `k` floats, `out` the blocks of `k` rounded up to 32; AVX-512 is there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn quantise_row(x: *const f32, out: *mut Q8Block, k: usize) {
    let blocks = k / BLOCK * BLOCK;
    for begin in (0..blocks).step_by(BLOCK) {
        // SAFETY: the block is inside both rows.
        unsafe { quantise_block(x.add(begin), out.add(begin / GROUP_K)) };
    }
    for begin in (blocks..k).step_by(GROUP_K) {
        // Lanes past k read as zeros.
        let mask = u32::MAX >> (GROUP_K - GROUP_K.min(k - begin));
        let (mut q, mut d, mut sums) = ([0; GROUP_K], [0.0; 2], [0; 2]);
        // SAFETY: masked lanes are not read; the row has a block for these 32.
        unsafe {
            for h in 0..2 {
                let at = begin + h * ACT_GROUP;
                let v = _mm512_maskz_loadu_ps((mask >> (h * ACT_GROUP)) as u16, x.wrapping_add(at));
                // A NaN lane yields the second operand, so NaNs do not count.
                let magnitudes = _mm512_max_ps(_mm512_abs_ps(v), _mm512_setzero_ps());
                let amax = _mm512_reduce_max_ps(magnitudes);
                let inverse;
                (d[h], inverse) = match amax < AMAX_FLOOR {
                    true => (0.0, 0.0),
                    false => (amax / 127.0, 127.0 / amax),
                };
                let scaled = _mm512_mul_ps(v, _mm512_set1_ps(inverse));
                let ints = _mm512_cvt_roundps_epi32::<
                    { _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC },
                >(scaled);
                // Not a number converts to i32::MIN, whose low byte is 0.
                let bytes = _mm512_cvtepi32_epi8(ints);
                _mm_storeu_si128(q[h * ACT_GROUP..].as_mut_ptr().cast(), bytes);
                sums[h] = _mm512_reduce_add_epi32(_mm512_cvtepi8_epi32(bytes));
            }
            out.add(begin / GROUP_K).write(Q8Block::new(q, d, sums));
        }
    }
}
