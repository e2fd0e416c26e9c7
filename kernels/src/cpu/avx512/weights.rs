//! Packed weights on their way into AVX-512 registers: what a layout stores becomes levels, scales and mins. The layout is
//! a constant, so each instance is straight-line code; what is multiplied with what is in `matmul`.

use std::arch::x86_64::*;

use crate::cpu::abi::TILE_N;
use crate::cpu::tile::{
    GROUP_K, group_bytes, planes, scale_codes_bytes, scale_halves_bytes, scale_plane_bytes,
    scale_unit_bytes,
};
use crate::quant::{FORMATS, Scale, Store};

/// Bytes between the weights being used and those being prefetched: a read of memory takes about as long as the
/// arithmetic on this much (measured: without it one row streams at 60 % of the bandwidth).
pub(super) const PREFETCH: usize = 16384;

/// 32 k of 16 outputs of an integer layout, unpacked.
#[derive(Clone, Copy)]
pub(super) struct Group {
    /// Levels: byte 4 c + j of vector i is k = 4 i + j of output c.
    pub(super) q: [__m512i; 8],
    /// Scales of the two halves; the same where 32 k share one.
    pub(super) scale: [__m512; 2],
    /// Mins of the two halves, likewise.
    pub(super) min: [__m512; 2],
}

impl Group {
    /// Weights of zero.
    pub(super) const ZERO: Group = {
        // SAFETY: vectors of zeros.
        unsafe { std::mem::zeroed() }
    };
}

/// 16 float weights.
///
/// # Safety
/// 16 elements of the layout's float storage are readable at `at`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,f16c")]
pub(super) unsafe fn load_floats<const L: usize>(at: *const u8) -> __m512 {
    let layout = const { &FORMATS[L].layout };
    // SAFETY: by the caller.
    unsafe {
        match layout.store {
            Store::F16 => load_halves(at),
            Store::Bf16 => {
                let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
            }
            _ => _mm512_loadu_ps(at.cast()),
        }
    }
}

/// 16 halves as floats.
///
/// # Safety
/// 16 f16 are readable at `at`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_halves(at: *const u8) -> __m512 {
    // SAFETY: by the caller.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
}

/// What `unpack` multiplies levels with, inverted: scales make up for it.
const fn shrink<const L: usize>() -> f32 {
    1.0 / (1u32 << FORMATS[L].layout.level_shift()) as f32
}

/// The f16 scales and mins of a scale unit. Scales are divided by what `unpack` multiplies levels with; mins per 16 by
/// the 128 in `start`, which they meet instead of a sum.
///
/// # Safety
/// `unit` points at a unit of the scale plane.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn unit_halves<const L: usize>(unit: *const u8) -> (__m512, __m512) {
    let layout = const { &FORMATS[L].layout };
    if scale_halves_bytes(layout) == 0 {
        return (_mm512_setzero_ps(), _mm512_setzero_ps());
    }
    // SAFETY: a unit starts with 16 scales, and 16 mins where the layout has them.
    unsafe {
        let m = match (layout.min, layout.group) {
            (true, 16) => _mm512_mul_ps(
                load_halves(unit.add(2 * TILE_N)),
                _mm512_set1_ps(1.0 / 128.0),
            ),
            (true, _) => load_halves(unit.add(2 * TILE_N)),
            _ => _mm512_setzero_ps(),
        };
        let shrink = _mm512_set1_ps(const { shrink::<L>() });
        (_mm512_mul_ps(load_halves(unit), shrink), m)
    }
}

/// Scale and min of the next scale group. Moves `codes` past the group.
///
/// # Safety
/// `codes` points at the codes of a group, where the layout has codes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn group_scale<const L: usize>(
    d: __m512,
    m: __m512,
    codes: &mut *const u8,
) -> (__m512, __m512) {
    let layout = const { &FORMATS[L].layout };
    if scale_codes_bytes(layout) == 0 {
        return (d, m);
    }
    // SAFETY: 16 codes, then 16 min codes where the layout has mins with codes of their own.
    unsafe {
        let first = load_codes::<L>(*codes);
        let (sc, mn) = match layout.scale {
            Scale::U4F16 => (
                _mm512_and_si512(first, _mm512_set1_epi32(15)),
                _mm512_srli_epi32::<4>(first),
            ),
            _ if layout.min => (first, load_codes::<L>(codes.add(TILE_N))),
            _ => (first, _mm512_setzero_si512()),
        };
        *codes = codes.add(scale_codes_bytes(layout));
        let scale = match layout.scale {
            Scale::E8 => {
                let exponent = _mm512_sub_epi32(sc, _mm512_set1_epi32(128));
                let one = _mm512_set1_ps(const { shrink::<L>() });
                _mm512_scalef_ps(one, _mm512_cvtepi32_ps(exponent))
            }
            _ => _mm512_mul_ps(d, _mm512_cvtepi32_ps(sc)),
        };
        match layout.min {
            true => (scale, _mm512_mul_ps(m, _mm512_cvtepi32_ps(mn))),
            false => (scale, m),
        }
    }
}

/// 16 codes, one per output.
///
/// # Safety
/// 16 codes are readable at `at`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn load_codes<const L: usize>(at: *const u8) -> __m512i {
    let layout = const { &FORMATS[L].layout };
    // SAFETY: by the caller.
    let codes = unsafe { _mm_loadu_si128(at.cast()) };
    match layout.scale {
        Scale::I8F16 => _mm512_cvtepi8_epi32(codes),
        _ => _mm512_cvtepu8_epi32(codes),
    }
}

/// The levels of the 8 quads of 32 k, one byte each, shifted left to fill it: a zero in the middle of their range is then
/// 128, and dot products of every width start from the same `start`.
///
/// # Safety
/// `quants` points at the quants of 32 k.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn unpack<const L: usize>(quants: *const u8) -> [__m512i; 8] {
    let layout = const { &FORMATS[L].layout };
    let (low, top) = const { planes(&FORMATS[L].layout) };
    let coded = matches!(layout.store, Store::Code(_));
    let level_shift = layout.level_shift() as i32;
    let shift = if coded { 0 } else { level_shift };
    // SAFETY: vectors 0..bits of the group are inside it.
    let vector = |i: usize| unsafe { _mm512_loadu_si512(quants.add(64 * i).cast()) };
    let mask = |bits: usize, at: i32| _mm512_set1_epi8((((1 << bits) - 1) << at) as i8);
    let mut q = [_mm512_setzero_si512(); 8];
    for (i, q) in q.iter_mut().enumerate() {
        let from = |bits: usize| (i * bits % 8) as i32;
        let plane = moved(vector(i * low / 8), shift - from(low));
        *q = _mm512_and_si512(plane, mask(low, shift));
        if top > 0 {
            let to = shift + low as i32;
            let plane = moved(vector(low + i * top / 8), to - from(top));
            // 0xF8: a | (b & c).
            *q = _mm512_ternarylogic_epi32::<0xF8>(*q, plane, mask(top, to));
        }
        if coded {
            let levels = const { &FORMATS[L].layout.levels() };
            // SAFETY: 16 levels.
            let levels = unsafe { _mm_loadu_si128(levels.as_ptr().cast()) };
            let levels = moved(_mm512_broadcast_i32x4(levels), level_shift);
            *q = _mm512_shuffle_epi8(levels, *q);
        }
    }
    q
}

/// Bits moved towards the high end; towards the low end when `by` is negative. Bits that cross bytes are for the caller
/// to mask. A constant `by` becomes an immediate.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn moved(v: __m512i, by: i32) -> __m512i {
    match by {
        0 => v,
        1.. => _mm512_sll_epi16(v, _mm_cvtsi32_si128(by)),
        _ => _mm512_srl_epi16(v, _mm_cvtsi32_si128(-by)),
    }
}

/// Walks a tile, 32 k at a time.
pub(super) struct TileReader<const L: usize> {
    /// The next unit of the scale plane.
    unit: *const u8,
    /// Codes of the next scale group, in the unit being read.
    codes: *const u8,
    /// Steps of 32 k left in that unit.
    left: usize,
    d: __m512,
    m: __m512,
    quants: *const u8,
    /// What is prefetched in this step, and how far that moves from step to step.
    ahead: *const u8,
    stride: usize,
    /// Where `ahead` leaves the tile, and what it jumps over then.
    end: *const u8,
    skip: usize,
}

impl<const L: usize> TileReader<L> {
    /// At the beginning of the tile `w` of reduction length `k` and `bytes` bytes, one of `abreast` tiles that are read together.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn new(w: *const u8, k: usize, bytes: usize, abreast: usize) -> TileReader<L> {
        let layout = const { &FORMATS[L].layout };
        let stride = bytes / (k / GROUP_K);
        TileReader {
            unit: w,
            codes: w,
            left: 0,
            d: _mm512_setzero_ps(),
            m: _mm512_setzero_ps(),
            quants: w.wrapping_add(scale_plane_bytes(layout, k)),
            ahead: w.wrapping_add(PREFETCH / abreast).wrapping_sub(stride),
            stride,
            end: w.wrapping_add(bytes),
            skip: bytes * (abreast - 1),
        }
    }

    /// Prefetches one of `PARTS` parts of what belongs to this step.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn prefetch<const PARTS: usize>(&self, part: usize) {
        let lines = const {
            let layout = &FORMATS[L].layout;
            let scales = scale_unit_bytes(layout) / (layout.k_multiple() / GROUP_K);
            (group_bytes(layout) + scales).div_ceil(64)
        };
        for line in lines * part / PARTS..lines * (part + 1) / PARTS {
            _mm_prefetch::<_MM_HINT_T1>(self.ahead.wrapping_add(64 * line).cast());
        }
    }

    /// The next 32 k, unpacked.
    ///
    /// # Safety
    /// The tile has 32 k more.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) unsafe fn next(&mut self) -> Group {
        let layout = const { &FORMATS[L].layout };
        self.ahead = self.ahead.wrapping_add(self.stride);
        if self.ahead >= self.end {
            self.ahead = self.ahead.wrapping_add(self.skip);
            self.skip = 0;
        }
        // SAFETY: the unit and the quants are inside the tile.
        unsafe {
            if self.left == 0 {
                (self.d, self.m) = unit_halves::<L>(self.unit);
                self.codes = self.unit.add(scale_halves_bytes(layout));
                self.unit = self.unit.add(scale_unit_bytes(layout));
                self.left = layout.k_multiple() / GROUP_K;
            }
            self.left -= 1;
            let first = group_scale::<L>(self.d, self.m, &mut self.codes);
            let second = match layout.group {
                16 => group_scale::<L>(self.d, self.m, &mut self.codes),
                _ => first,
            };
            let q = unpack::<L>(self.quants);
            self.quants = self.quants.add(group_bytes(layout));
            Group {
                q,
                scale: [first.0, second.0],
                min: [first.1, second.1],
            }
        }
    }
}
