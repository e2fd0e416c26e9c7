//! Packed weights on their way into AVX2 registers: what a layout stores becomes levels, scales and mins. The layout is a
//! constant, so each instance is straight-line code; what is multiplied with what is in `matmul`.

use std::arch::x86_64::*;

use crate::cpu::abi::TILE_N;
use crate::cpu::tile::{GROUP_K, planes, scale_codes_bytes, scale_halves_bytes};
use crate::quant::{FORMATS, Scale, Store};

/// 8 float weights.
///
/// # Safety
/// 8 elements of the layout's float storage are readable at `at`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(in crate::cpu) unsafe fn load_floats<const L: usize>(at: *const u8) -> __m256 {
    let layout = const { &FORMATS[L].layout };
    // SAFETY: by the caller.
    unsafe {
        match layout.store {
            Store::F16 => load_halves(at),
            Store::Bf16 => {
                let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
            }
            _ => _mm256_loadu_ps(at.cast()),
        }
    }
}

/// 8 halves as floats.
///
/// # Safety
/// 8 f16 are readable at `at`.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn load_halves(at: *const u8) -> __m256 {
    // SAFETY: by the caller.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
}

/// Scales and mins of 8 outputs for 32 k: both scale groups (twice the same with groups of 32). Mins per 16 are divided
/// by the 128 in `start`, which they meet instead of a sum.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct HalfScales {
    pub scale: [__m256; 2],
    pub min: [__m256; 2],
}

/// Whether a min is subtracted per scale group: the layout's, or what a zero makes of an f16 per 32. That is one
/// multiply-add, and starting both dot products from the zero's share takes more.
pub(in crate::cpu) const fn takes_min<const L: usize>() -> bool {
    let layout = &FORMATS[L].layout;
    layout.min || (matches!(layout.scale, Scale::F16) && !signed::<L>())
}

/// Scales of outputs `8 h..8 h + 8` for the `group`-th 32 k of a scale unit.
///
/// # Safety
/// `unit` points at a unit of the scale plane.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::cpu) unsafe fn half_scales<const L: usize>(
    unit: *const u8,
    group: usize,
    h: usize,
) -> HalfScales {
    let layout = const { &FORMATS[L].layout };
    let per_32 = GROUP_K / usize::from(layout.group);
    let (halves, width) = (scale_halves_bytes(layout), scale_codes_bytes(layout));
    // SAFETY: 16 scales, then 16 mins where the layout has them, then the codes of each scale group.
    unsafe {
        let (mut d, mut m) = (_mm256_setzero_ps(), _mm256_setzero_ps());
        if halves > 0 {
            d = load_halves(unit.add(16 * h));
        }
        if layout.min {
            m = load_halves(unit.add(2 * TILE_N + 16 * h));
        }
        if layout.min && per_32 == 2 {
            m = _mm256_mul_ps(m, _mm256_set1_ps(1.0 / 128.0));
        }
        let mut scales = HalfScales {
            scale: [d; 2],
            min: [m; 2],
        };
        if takes_min::<L>() && !layout.min {
            let zero = _mm256_set1_ps(f32::from(layout.zero));
            scales.min = [_mm256_mul_ps(d, zero); 2];
        }
        if width == 0 {
            return scales;
        }
        for half in 0..2 {
            if half >= per_32 {
                scales.scale[half] = scales.scale[0];
                scales.min[half] = scales.min[0];
                continue;
            }
            let codes = unit.add(halves + (group * per_32 + half) * width + 8 * h);
            let first = load_codes::<L>(codes);
            let (sc, mn) = match layout.scale {
                Scale::U4F16 => (
                    _mm256_and_si256(first, _mm256_set1_epi32(15)),
                    _mm256_srli_epi32::<4>(first),
                ),
                _ if layout.min => (first, load_codes::<L>(codes.add(TILE_N))),
                _ => (first, _mm256_setzero_si256()),
            };
            scales.scale[half] = match layout.scale {
                Scale::E8 => exponent_scales(sc),
                _ => _mm256_mul_ps(d, _mm256_cvtepi32_ps(sc)),
            };
            if layout.min {
                scales.min[half] = _mm256_mul_ps(m, _mm256_cvtepi32_ps(mn));
            }
        }
        scales
    }
}

/// 8 codes, one per output.
///
/// # Safety
/// 8 codes are readable at `at`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_codes<const L: usize>(at: *const u8) -> __m256i {
    let layout = const { &FORMATS[L].layout };
    // SAFETY: by the caller.
    let codes = unsafe { _mm_loadl_epi64(at.cast()) };
    match layout.scale {
        Scale::I8F16 => _mm256_cvtepi8_epi32(codes),
        _ => _mm256_cvtepu8_epi32(codes),
    }
}

/// [`crate::quant::exponent_scale`] of 8 exponents: the bits of the subnormal, or of the normal number where it is larger.
#[inline]
#[target_feature(enable = "avx2")]
fn exponent_scales(e: __m256i) -> __m256 {
    let up_to_2 = _mm256_min_epi32(e, _mm256_set1_epi32(2));
    let subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(1 << 21), up_to_2);
    let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(e, _mm256_set1_epi32(1)));
    _mm256_castsi256_ps(_mm256_max_epi32(subnormal, normal))
}

/// Whether levels leave `unpack` with their zero subtracted: those that need all 8 bits.
pub(in crate::cpu) const fn signed<const L: usize>() -> bool {
    FORMATS[L].layout.zero == 128
}

/// The levels of the 8 quads of 32 k for 8 outputs, one byte each; with `SIGNED`, those that [`signed`] names have 128
/// subtracted.
///
/// # Safety
/// `quants` points at the lower or upper half of the first vector of the quants of 32 k.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::cpu) unsafe fn unpack<const L: usize, const SIGNED: bool>(
    quants: *const u8,
) -> [__m256i; 8] {
    let layout = const { &FORMATS[L].layout };
    let (low, top) = const { planes(&FORMATS[L].layout) };
    let sign = _mm256_set1_epi8(if SIGNED && signed::<L>() { -128 } else { 0 });
    // SAFETY: vectors 0..bits of the group are inside it.
    let vector = |i: usize| unsafe { _mm256_loadu_si256(quants.add(64 * i).cast()) };
    let mut q = [_mm256_setzero_si256(); 8];
    for (i, q) in q.iter_mut().enumerate() {
        // The plane of `bits` bits whose first vector is `first`, at bit `to`.
        let plane = |first: usize, bits: usize, to: usize| {
            let mask = _mm256_set1_epi8((((1 << bits) - 1) << to) as i8);
            let by = to as i32 - (i * bits % 8) as i32;
            _mm256_and_si256(moved(vector(first + i * bits / 8), by), mask)
        };
        *q = plane(0, low, 0);
        if top > 0 {
            *q = _mm256_or_si256(*q, plane(low, top, low));
        }
        if let Store::Code(_) = layout.store {
            let levels = const { &FORMATS[L].layout.levels() };
            // SAFETY: 16 levels.
            let levels = unsafe { _mm_loadu_si128(levels.as_ptr().cast()) };
            let levels = _mm256_xor_si256(_mm256_broadcastsi128_si256(levels), sign);
            *q = _mm256_shuffle_epi8(levels, *q);
        } else {
            *q = _mm256_xor_si256(*q, sign);
        }
    }
    q
}

/// Bits moved towards the high end; towards the low end when `by` is negative. Bits that cross bytes are for the caller
/// to mask. A constant `by` becomes an immediate.
#[inline]
#[target_feature(enable = "avx2")]
fn moved(v: __m256i, by: i32) -> __m256i {
    match by {
        0 => v,
        1.. => _mm256_sll_epi16(v, _mm_cvtsi32_si128(by)),
        _ => _mm256_srl_epi16(v, _mm_cvtsi32_si128(-by)),
    }
}
