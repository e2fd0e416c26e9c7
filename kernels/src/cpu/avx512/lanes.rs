//! Vectors of f32 for AVX-512 (F, BW, DQ, VL): what `cpu/lanes` needs of the ISA, nothing else.

use std::arch::x86_64::*;

use crate::cpu::abi::Q8Block;
use crate::cpu::avx512::quantise;
use crate::cpu::lanes::{Lanes, lane_functions};

/// 16 floats.
#[derive(Clone, Copy)]
pub struct F32x16(__m512);

impl Lanes for F32x16 {
    const N: usize = 16;
    const SCORE_HEADS: usize = 4;
    const MIX_WIDTH: usize = 4;

    lane_functions! {
        fn splat(x: f32) -> Self { F32x16(_mm512_set1_ps(x)) }
        fn load(p: *const f32) -> Self { F32x16(_mm512_loadu_ps(p)) }
        fn store(p: *mut f32, a: Self) { _mm512_storeu_ps(p, a.0) }
        fn load_part(p: *const f32, n: usize) -> Self {
            F32x16(_mm512_maskz_loadu_ps((1u16 << n).wrapping_sub(1), p))
        }
        fn store_part(p: *mut f32, n: usize, a: Self) {
            _mm512_mask_storeu_ps(p, (1u16 << n).wrapping_sub(1), a.0)
        }
        fn load_pairs(p: *const f32) -> (Self, Self) {
            let (a, b) = (_mm512_loadu_ps(p), _mm512_loadu_ps(p.add(16)));
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
            (
                F32x16(_mm512_permutex2var_ps(a, even, b)),
                F32x16(_mm512_permutex2var_ps(a, odd, b)),
            )
        }
        fn store_pairs(p: *mut f32, even: Self, odd: Self) {
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
            _mm512_storeu_ps(p, _mm512_permutex2var_ps(even.0, low, odd.0));
            _mm512_storeu_ps(p.add(16), _mm512_permutex2var_ps(even.0, high, odd.0));
        }
        fn load_f16(p: *const u16) -> Self {
            // Without "suppress all exceptions", which memory operands do not have.
            let halves = _mm256_loadu_si256(p.cast());
            F32x16(_mm512_cvt_roundph_ps::<_MM_FROUND_CUR_DIRECTION>(halves))
        }
        fn splat_f16(p: *const u16) -> Self {
            F32x16(_mm512_cvtph_ps(_mm256_set1_epi16(*p as i16)))
        }
        fn store_f16(p: *mut u16, a: Self) {
            let halves = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a.0);
            _mm256_storeu_si256(p.cast(), halves);
        }
        fn load_i8(p: *const i8) -> Self {
            F32x16(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))))
        }
        fn store_i8(p: *mut i8, a: Self) {
            _mm_storeu_si128(p.cast(), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a.0)))
        }
        fn add(a: Self, b: Self) -> Self { F32x16(_mm512_add_ps(a.0, b.0)) }
        fn sub(a: Self, b: Self) -> Self { F32x16(_mm512_sub_ps(a.0, b.0)) }
        fn mul(a: Self, b: Self) -> Self { F32x16(_mm512_mul_ps(a.0, b.0)) }
        fn div(a: Self, b: Self) -> Self { F32x16(_mm512_div_ps(a.0, b.0)) }
        fn fma(a: Self, b: Self, c: Self) -> Self { F32x16(_mm512_fmadd_ps(a.0, b.0, c.0)) }
        fn max(a: Self, b: Self) -> Self { F32x16(_mm512_max_ps(a.0, b.0)) }
        fn min(a: Self, b: Self) -> Self { F32x16(_mm512_min_ps(a.0, b.0)) }
        fn abs(a: Self) -> Self { F32x16(_mm512_abs_ps(a.0)) }
        fn round(a: Self) -> Self { F32x16(_mm512_roundscale_ps::<_MM_FROUND_TO_NEAREST_INT>(a.0)) }
        fn exp2_int(n: Self) -> Self {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n.0), _mm512_set1_epi32(127));
            F32x16(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased)))
        }
        fn select_less(a: Self, b: Self, yes: Self, no: Self) -> Self {
            F32x16(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a.0, b.0), no.0, yes.0))
        }
        fn first(a: Self) -> f32 { _mm512_cvtss_f32(a.0) }
        fn sum(a: Self) -> f32 {
            let eight = _mm256_add_ps(_mm512_castps512_ps256(a.0), _mm512_extractf32x8_ps::<1>(a.0));
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
        fn largest(a: Self) -> f32 { _mm512_reduce_max_ps(a.0) }
        fn store_sums(p: *mut f32, a: [Self; 4]) {
            let [a, b, c, d] = a;
            let ab = _mm512_add_ps(_mm512_unpacklo_ps(a.0, b.0), _mm512_unpackhi_ps(a.0, b.0));
            let cd = _mm512_add_ps(_mm512_unpacklo_ps(c.0, d.0), _mm512_unpackhi_ps(c.0, d.0));
            let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
            let (low, high) = (_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd));
            let abcd = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
            let eight = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps::<1>(abcd));
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            _mm_storeu_ps(p, four);
        }
        fn prefetch(p: *const u8) { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
        fn quantise_row(x: *const f32, out: *mut Q8Block, k: usize) { quantise::quantise_row(x, out, k) }
    }
}
