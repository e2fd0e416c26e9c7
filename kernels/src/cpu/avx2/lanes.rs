//! Vectors of f32 for AVX2 with FMA and F16C: what `cpu/lanes` needs of the ISA, nothing else.

use std::arch::x86_64::*;

use crate::cpu::abi::Q8Block;
use crate::cpu::avx2::quantise;
use crate::cpu::lanes::{Lanes, lane_functions};

/// 8 floats.
#[derive(Clone, Copy)]
pub struct F32x8(__m256);

/// All ones in the first `n` lanes.
///
/// # Safety
/// AVX2 is there.
#[inline(always)]
unsafe fn first_lanes(n: usize) -> __m256i {
    // SAFETY: promised by the caller.
    unsafe {
        let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), lane)
    }
}

impl Lanes for F32x8 {
    const N: usize = 8;
    const SCORE_HEADS: usize = 2;
    const MIX_WIDTH: usize = 2;

    lane_functions! {
        fn splat(x: f32) -> Self { F32x8(_mm256_set1_ps(x)) }
        fn load(p: *const f32) -> Self { F32x8(_mm256_loadu_ps(p)) }
        fn store(p: *mut f32, a: Self) { _mm256_storeu_ps(p, a.0) }
        fn load_part(p: *const f32, n: usize) -> Self {
            F32x8(_mm256_maskload_ps(p, first_lanes(n)))
        }
        fn store_part(p: *mut f32, n: usize, a: Self) {
            _mm256_maskstore_ps(p, first_lanes(n), a.0)
        }
        fn load_pairs(p: *const f32) -> (Self, Self) {
            let (a, b) = (_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8)));
            let even = _mm256_castps_pd(_mm256_shuffle_ps::<0x88>(a, b));
            let odd = _mm256_castps_pd(_mm256_shuffle_ps::<0xdd>(a, b));
            (
                F32x8(_mm256_castpd_ps(_mm256_permute4x64_pd::<0xd8>(even))),
                F32x8(_mm256_castpd_ps(_mm256_permute4x64_pd::<0xd8>(odd))),
            )
        }
        fn store_pairs(p: *mut f32, even: Self, odd: Self) {
            let low = _mm256_unpacklo_ps(even.0, odd.0);
            let high = _mm256_unpackhi_ps(even.0, odd.0);
            _mm256_storeu_ps(p, _mm256_permute2f128_ps::<0x20>(low, high));
            _mm256_storeu_ps(p.add(8), _mm256_permute2f128_ps::<0x31>(low, high));
        }
        fn load_f16(p: *const u16) -> Self {
            F32x8(_mm256_cvtph_ps(_mm_loadu_si128(p.cast())))
        }
        fn splat_f16(p: *const u16) -> Self {
            F32x8(_mm256_cvtph_ps(_mm_set1_epi16(*p as i16)))
        }
        fn store_f16(p: *mut u16, a: Self) {
            _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a.0));
        }
        fn load_i8(p: *const i8) -> Self {
            F32x8(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))))
        }
        fn store_i8(p: *mut i8, a: Self) {
            let words = _mm256_cvtps_epi32(a.0);
            let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            let halves = _mm_packs_epi32(low, high);
            _mm_storel_epi64(p.cast(), _mm_packs_epi16(halves, halves));
        }
        fn add(a: Self, b: Self) -> Self { F32x8(_mm256_add_ps(a.0, b.0)) }
        fn sub(a: Self, b: Self) -> Self { F32x8(_mm256_sub_ps(a.0, b.0)) }
        fn mul(a: Self, b: Self) -> Self { F32x8(_mm256_mul_ps(a.0, b.0)) }
        fn div(a: Self, b: Self) -> Self { F32x8(_mm256_div_ps(a.0, b.0)) }
        fn fma(a: Self, b: Self, c: Self) -> Self { F32x8(_mm256_fmadd_ps(a.0, b.0, c.0)) }
        fn max(a: Self, b: Self) -> Self { F32x8(_mm256_max_ps(a.0, b.0)) }
        fn min(a: Self, b: Self) -> Self { F32x8(_mm256_min_ps(a.0, b.0)) }
        fn abs(a: Self) -> Self { F32x8(_mm256_andnot_ps(_mm256_set1_ps(-0.0), a.0)) }
        fn round(a: Self) -> Self {
            F32x8(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a.0))
        }
        fn exp2_int(n: Self) -> Self {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n.0), _mm256_set1_epi32(127));
            F32x8(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased)))
        }
        fn select_less(a: Self, b: Self, yes: Self, no: Self) -> Self {
            F32x8(_mm256_blendv_ps(no.0, yes.0, _mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0)))
        }
        fn first(a: Self) -> f32 { _mm256_cvtss_f32(a.0) }
        fn sum(a: Self) -> f32 {
            let four = _mm_add_ps(_mm256_castps256_ps128(a.0), _mm256_extractf128_ps::<1>(a.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
        fn largest(a: Self) -> f32 {
            let four = _mm_max_ps(_mm256_castps256_ps128(a.0), _mm256_extractf128_ps::<1>(a.0));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
        fn store_sums(p: *mut f32, a: [Self; 4]) {
            let [a, b, c, d] = a;
            let ab = _mm256_add_ps(_mm256_unpacklo_ps(a.0, b.0), _mm256_unpackhi_ps(a.0, b.0));
            let cd = _mm256_add_ps(_mm256_unpacklo_ps(c.0, d.0), _mm256_unpackhi_ps(c.0, d.0));
            let (ab, cd) = (_mm256_castps_pd(ab), _mm256_castps_pd(cd));
            let (low, high) = (_mm256_unpacklo_pd(ab, cd), _mm256_unpackhi_pd(ab, cd));
            let abcd = _mm256_add_ps(_mm256_castpd_ps(low), _mm256_castpd_ps(high));
            let four = _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps::<1>(abcd));
            _mm_storeu_ps(p, four);
        }
        fn prefetch(p: *const u8) { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
        fn quantise_row(x: *const f32, out: *mut Q8Block, k: usize) { quantise::quantise_row(x, out, k) }
    }
}
