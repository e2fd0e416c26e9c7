//! AVX-512 VNNI matmul micro-kernels, weight-stationary: 32 k of 16 outputs are unpacked once into 8 vectors and meet
//! the activations of all N rows while they sit in registers. Per row the operations and their order are the same in
//! every stamp, so a row's bits do not depend on its batch.

use std::arch::x86_64::*;

use crate::cpu::abi::{TILE_N, q8_row};
use crate::cpu::symbols::{Named, matmul_symbols};
use crate::cpu::tile::{
    GROUP_K, group_bytes, planes, scale_codes_bytes, scale_halves_bytes, scale_plane_bytes,
    scale_unit_bytes, tile_bytes,
};
use crate::quant::{FORMATS, Scale, Store};

/// `matmul_<layout>_avx512_n<N>`, of type [`crate::cpu::symbols::MatmulFn`].
pub const SYMBOLS: &[Named] =
    matmul_symbols!("avx512", int_matmul [1 2 3 4 5 6 7 8 12 16], float_matmul [1 2 3 4 5 6 7 8]);

/// Bytes between the weights being used and those being prefetched: a read of memory takes about as long as the
/// arithmetic on this much (measured: without it one row streams at 60 % of the bandwidth).
const PREFETCH: usize = 8192;

/// Runs the body once per row with a constant row number, so that accumulators indexed by it stay in registers.
macro_rules! each_row {
    ($rows:expr, $n:ident => $body:block) => {
        each_row!(@ $rows, $n, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $rows:expr, $n:ident, $body:block, $($i:literal)*) => {
        $(if $i < $rows {
            let $n: usize = $i;
            $body
        })*
    };
}

/// # Safety
/// The contract of [`crate::cpu::symbols::MatmulFn`]: `w` holds `tiles` tiles, `x`, `init` (or null) and `y` hold N rows;
/// and the CPU has the features.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c")]
#[allow(clippy::too_many_arguments)]
unsafe extern "C" fn int_matmul<const L: usize, const N: usize>(
    mut w: *const u8,
    x: *const u8,
    init: *const f32,
    y: *mut f32,
    k: usize,
    tiles: usize,
    x_stride: usize,
    init_stride: usize,
    y_stride: usize,
) {
    let layout = const { &FORMATS[L].layout };
    let unit_k = const { FORMATS[L].layout.k_multiple() };
    let halves = const { GROUP_K / FORMATS[L].layout.group as usize };
    let Some(bytes) = tile_bytes(layout, k) else {
        return;
    };
    let row = q8_row(k);
    let lines = const {
        (group_bytes(&FORMATS[L].layout)
            + scale_unit_bytes(&FORMATS[L].layout) / (FORMATS[L].layout.k_multiple() / GROUP_K))
            .div_ceil(64)
    };
    let ahead_per_group = bytes / (k / GROUP_K);
    for t in 0..tiles {
        let mut acc = [_mm512_setzero_ps(); N];
        // SAFETY: reads stay inside tile t and inside the N int8 rows of x: group g of k / 32 has its quants at 32 g,
        // its d and z16 at 8 g and its s32 at 4 g. Prefetches may point anywhere.
        unsafe {
            let mut unit = w;
            let mut quants = w.add(scale_plane_bytes(layout, k));
            let mut ahead = w.wrapping_add(PREFETCH);
            let mut g = 0;
            for _ in 0..k / unit_k {
                let (d, m) = unit_halves::<L>(unit);
                let mut codes = unit.add(scale_halves_bytes(layout));
                for _ in 0..unit_k / GROUP_K {
                    for line in 0..lines {
                        _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64 * line).cast());
                    }
                    ahead = ahead.wrapping_add(ahead_per_group);
                    let (scale0, min0) = group_scale::<L>(d, m, &mut codes);
                    let (scale1, min1) = match halves {
                        2 => group_scale::<L>(d, m, &mut codes),
                        _ => (scale0, min0),
                    };
                    let q = unpack::<L>(quants);
                    quants = quants.add(group_bytes(layout));
                    each_row!(N, n => {
                        let x = x.add(n * x_stride);
                        let word = |i: usize| _mm512_set1_epi32(x.add(GROUP_K * g + 4 * i).cast::<i32>().read_unaligned());
                        let float = |at: usize| _mm512_set1_ps(x.add(at).cast::<f32>().read_unaligned());
                        let z16 = |half: usize| _mm512_set1_epi32(x.add(row.z16 + 8 * g + 4 * half).cast::<i32>().read_unaligned());
                        let zero = |half: usize| match layout.zero {
                            0 => _mm512_setzero_si512(),
                            _ => z16(half),
                        };
                        let (mut a, mut b) = (zero(0), zero(1));
                        for i in 0..4 {
                            a = _mm512_dpbusd_epi32(a, q[i], word(i));
                            b = _mm512_dpbusd_epi32(b, q[i + 4], word(i + 4));
                        }
                        let (a, b) = (_mm512_cvtepi32_ps(a), _mm512_cvtepi32_ps(b));
                        let (d0, d1) = (float(row.d + 8 * g), float(row.d + 8 * g + 4));
                        if halves == 1 {
                            let sum = _mm512_fmadd_ps(b, d1, _mm512_mul_ps(a, d0));
                            acc[n] = _mm512_fmadd_ps(sum, scale0, acc[n]);
                        } else if layout.min {
                            let (z0, z1) = (_mm512_cvtepi32_ps(z16(0)), _mm512_cvtepi32_ps(z16(1)));
                            let a = _mm512_fmadd_ps(a, scale0, _mm512_mul_ps(min0, z0));
                            let b = _mm512_fmadd_ps(b, scale1, _mm512_mul_ps(min1, z1));
                            acc[n] = _mm512_fmadd_ps(a, d0, acc[n]);
                            acc[n] = _mm512_fmadd_ps(b, d1, acc[n]);
                        } else {
                            acc[n] = _mm512_fmadd_ps(a, _mm512_mul_ps(scale0, d0), acc[n]);
                            acc[n] = _mm512_fmadd_ps(b, _mm512_mul_ps(scale1, d1), acc[n]);
                        }
                        if layout.min && halves == 1 {
                            acc[n] = _mm512_fnmadd_ps(min0, float(row.s32 + 4 * g), acc[n]);
                        }
                    });
                    g += 1;
                }
                unit = unit.add(scale_unit_bytes(layout));
            }
        }
        w = w.wrapping_add(bytes);
        // SAFETY: `init` and `y` hold N rows of 16 * tiles floats.
        unsafe { store(&acc, init, y, t, init_stride, y_stride) };
    }
}

/// # Safety
/// As `int_matmul`, with f32 rows in `x`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c")]
#[allow(clippy::too_many_arguments)]
unsafe extern "C" fn float_matmul<const L: usize, const N: usize>(
    mut w: *const u8,
    x: *const u8,
    init: *const f32,
    y: *mut f32,
    k: usize,
    tiles: usize,
    x_stride: usize,
    init_stride: usize,
    y_stride: usize,
) {
    let layout = const { &FORMATS[L].layout };
    let line = const { FORMATS[L].ty.block_bytes() as usize * TILE_N };
    let Some(bytes) = tile_bytes(layout, k) else {
        return;
    };
    for t in 0..tiles {
        let (mut even, mut odd) = ([_mm512_setzero_ps(); N], [_mm512_setzero_ps(); N]);
        // SAFETY: reads stay inside tile t and inside the N rows of k floats. Prefetches may point anywhere.
        unsafe {
            let float = |n: usize, at: usize| {
                _mm512_set1_ps(x.add(n * x_stride + 4 * at).cast::<f32>().read_unaligned())
            };
            for pair in 0..k / 2 {
                let at = 2 * pair;
                let here = w.add(at * line);
                _mm_prefetch::<_MM_HINT_T0>(here.wrapping_add(PREFETCH).cast());
                if line == 64 {
                    _mm_prefetch::<_MM_HINT_T0>(here.wrapping_add(PREFETCH + 64).cast());
                }
                let (w0, w1) = (load_floats::<L>(here), load_floats::<L>(here.add(line)));
                each_row!(N, n => {
                    even[n] = _mm512_fmadd_ps(w0, float(n, at), even[n]);
                    odd[n] = _mm512_fmadd_ps(w1, float(n, at + 1), odd[n]);
                });
            }
            if k % 2 == 1 {
                let last = load_floats::<L>(w.add((k - 1) * line));
                each_row!(N, n => {
                    even[n] = _mm512_fmadd_ps(last, float(n, k - 1), even[n]);
                });
            }
        }
        each_row!(N, n => {
            even[n] = _mm512_add_ps(even[n], odd[n]);
        });
        w = w.wrapping_add(bytes);
        // SAFETY: `init` and `y` hold N rows of 16 * tiles floats.
        unsafe { store(&even, init, y, t, init_stride, y_stride) };
    }
}

/// Adds `init` to the sums of tile `t` and writes them.
///
/// # Safety
/// `init` (unless null) and `y` hold N rows of at least 16 * (t + 1) floats at their strides.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store<const N: usize>(
    acc: &[__m512; N],
    init: *const f32,
    y: *mut f32,
    t: usize,
    init_stride: usize,
    y_stride: usize,
) {
    each_row!(N, n => {
        let mut sum = acc[n];
        // SAFETY: row n and the 16 columns are inside both buffers; they may alias, and init is read before the write.
        unsafe {
            if !init.is_null() {
                sum = _mm512_add_ps(sum, _mm512_loadu_ps(init.byte_add(n * init_stride).add(t * TILE_N)));
            }
            _mm512_storeu_ps(y.byte_add(n * y_stride).add(t * TILE_N), sum);
        }
    });
}

/// # Safety
/// 16 elements of the layout's float storage are readable at `at`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,f16c")]
unsafe fn load_floats<const L: usize>(at: *const u8) -> __m512 {
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
    1.0 / (1u32 << FORMATS[L].layout.zero_shift()) as f32
}

/// The f16 scales and mins of a scale unit. Scales are divided by what `unpack` multiplies levels with; mins per 16 by
/// the 128 in `z16`, which they meet instead of a sum.
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

/// Levels of a codebook by code, shifted as `unpack` says, in every 16 bytes of a vector; zeros without a codebook.
const fn level_table<const L: usize>() -> [u8; 16] {
    let layout = &FORMATS[L].layout;
    let (mut table, mut code) = ([0; 16], 0);
    while code < table.len() {
        if let Store::Code(_) = layout.store {
            table[code] = layout.level(code as u8) << layout.zero_shift();
        }
        code += 1;
    }
    table
}

/// The levels of the 8 quads of 32 k, one byte each, shifted left so that a zero in the middle of their range is 128: then
/// dot products of every width start from the same `z16`.
///
/// # Safety
/// `quants` points at the quants of 32 k.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn unpack<const L: usize>(quants: *const u8) -> [__m512i; 8] {
    let layout = const { &FORMATS[L].layout };
    let (low, top) = const { plane_bits::<L>() };
    let table = const { level_table::<L>() };
    let coded = matches!(layout.store, Store::Code(_));
    let shift = if coded { 0 } else { layout.zero_shift() as i32 };
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
            // SAFETY: the table has 16 bytes.
            let table = unsafe { _mm_loadu_si128(table.as_ptr().cast()) };
            *q = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), *q);
        }
    }
    q
}

/// Bits of the two planes that hold the layout's integers.
const fn plane_bits<const L: usize>() -> (usize, usize) {
    match FORMATS[L].layout.int_bits() {
        Some(bits) => {
            let (low, top) = planes(bits);
            (low as usize, top as usize)
        }
        None => (8, 0),
    }
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
