//! AVX2 matmul micro-kernels: the tile's 16 outputs as two halves of 8, `maddubs` with 16-bit sums flushed to 32 bits
//! before they can overflow. Per row the operations and their order are the same in every stamp.

use std::arch::x86_64::*;

use super::weights::{HalfScales, half_scales, load_floats, signed, takes_min, unpack};
use crate::cpu::abi::{LIFT, Q8Block, TILE_N};
use crate::cpu::symbols::{Named, matmul_symbols};
use crate::cpu::tile::{GROUP_K, group_bytes, scale_plane_bytes, scale_unit_bytes, tile_bytes};
use crate::quant::FORMATS;

/// `matmul_<layout>_avx2_n<N>`, of type [`crate::cpu::symbols::MatmulFn`].
pub const SYMBOLS: &[Named] = matmul_symbols!("avx2", int_matmul [1 2 3 4], float_matmul [1 2]);

/// Bytes between the weights being used and those being prefetched.
pub(in crate::cpu) const PREFETCH: usize = 8192;

/// Runs the body for each row and each half of the tile with constant numbers, so that accumulators stay in registers.
macro_rules! each {
    ($rows:expr, $n:ident, $h:ident => $body:block) => {
        each!(@ $rows, $n, $h, $body, (0 0) (1 0) (2 0) (3 0) (0 1) (1 1) (2 1) (3 1))
    };
    (@ $rows:expr, $n:ident, $h:ident, $body:block, $(($i:literal $j:literal))*) => {
        $(if $i < $rows {
            let ($n, $h): (usize, usize) = ($i, $j);
            $body
        })*
    };
}
pub(in crate::cpu) use each;

/// An integer matmul over halves of a tile: `$dot` multiplies, `$signed` says whether it wants levels that need all 8 bits
/// as signed bytes. The rest, and so the bits of a row, is the same for every instruction set of the class.
macro_rules! int_kernel {
    ($name:ident, $features:literal, $dot:ident, $signed:literal) => {
        /// # Safety
        /// The contract of [`crate::cpu::symbols::MatmulFn`]: `w` holds `tiles` tiles, `x`, `init` (or null) and `y` hold N rows;
        /// and the CPU has the features.
        #[target_feature(enable = $features)]
        #[allow(clippy::too_many_arguments)]
        unsafe extern "C" fn $name<const L: usize, const N: usize>(
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
            let groups_of_16 = const { FORMATS[L].layout.group as usize * 2 == GROUP_K };
            let Some(bytes) = tile_bytes(layout, k) else {
                return;
            };
            let ahead_per_group = bytes / (k / GROUP_K);
            for t in 0..tiles {
                let mut acc = [[_mm256_setzero_ps(); 2]; N];
                // SAFETY: reads stay inside tile t and inside the k / 32 blocks of the N rows of x. Prefetches may point
                // anywhere.
                unsafe {
                    let mut quants = w.add(scale_plane_bytes(layout, k));
                    let mut ahead = w.wrapping_add(PREFETCH);
                    for g in 0..k / GROUP_K {
                        let unit = w.add(g * GROUP_K / unit_k * scale_unit_bytes(layout));
                        let group = g % (unit_k / GROUP_K);
                        for line in 0..ahead_per_group.div_ceil(64) {
                            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64 * line).cast());
                        }
                        ahead = ahead.wrapping_add(ahead_per_group);
                        let scales = [
                            half_scales::<L>(unit, group, 0),
                            half_scales::<L>(unit, group, 1),
                        ];
                        let q = [unpack::<L, $signed>(quants), unpack::<L, $signed>(quants.add(32))];
                        quants = quants.add(group_bytes(layout));
                        each!(N, n, h => {
                            let x = x.add(n * x_stride).cast::<Q8Block>().add(g);
                            let HalfScales { scale, min } = scales[h];
                            let a = $dot::<L, 0>(&q[h], x);
                            let b = $dot::<L, 1>(&q[h], x);
                            let (d0, d1) = (_mm256_set1_ps((*x).d[0]), _mm256_set1_ps((*x).d[1]));
                            if groups_of_16 && layout.min {
                                let z = |half: usize| {
                                    _mm256_sub_ps(_mm256_set1_ps((*x).start[half]), _mm256_set1_ps(LIFT))
                                };
                                let a = _mm256_fmadd_ps(a, scale[0], _mm256_mul_ps(min[0], z(0)));
                                let b = _mm256_fmadd_ps(b, scale[1], _mm256_mul_ps(min[1], z(1)));
                                acc[n][h] = _mm256_fmadd_ps(a, d0, acc[n][h]);
                                acc[n][h] = _mm256_fmadd_ps(b, d1, acc[n][h]);
                            } else if groups_of_16 {
                                acc[n][h] = _mm256_fmadd_ps(a, _mm256_mul_ps(scale[0], d0), acc[n][h]);
                                acc[n][h] = _mm256_fmadd_ps(b, _mm256_mul_ps(scale[1], d1), acc[n][h]);
                            } else {
                                let sum = _mm256_fmadd_ps(b, d1, _mm256_mul_ps(a, d0));
                                acc[n][h] = _mm256_fmadd_ps(sum, scale[0], acc[n][h]);
                            }
                            if takes_min::<L>() && !groups_of_16 {
                                acc[n][h] = _mm256_fnmadd_ps(min[0], _mm256_set1_ps((*x).sum), acc[n][h]);
                            }
                        });
                    }
                }
                w = w.wrapping_add(bytes);
                // SAFETY: `init` and `y` hold N rows of 16 * tiles floats.
                unsafe { store(&acc, init, y, t, init_stride, y_stride) };
            }
        }
    };
}
pub(in crate::cpu) use int_kernel;

int_kernel!(int_matmul, "avx2,fma,f16c", dot, true);

/// # Safety
/// As `int_matmul`, with f32 rows in `x`.
#[target_feature(enable = "avx2,fma,f16c")]
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
    let element = const { FORMATS[L].ty.block_bytes() as usize };
    let line = element * TILE_N;
    let Some(bytes) = tile_bytes(layout, k) else {
        return;
    };
    for t in 0..tiles {
        let mut chains = [[[_mm256_setzero_ps(); 2]; N]; 2];
        // SAFETY: reads stay inside tile t and inside the N rows of k floats. Prefetches may point anywhere.
        unsafe {
            let float = |n: usize, at: usize| {
                _mm256_set1_ps(x.add(n * x_stride + 4 * at).cast::<f32>().read_unaligned())
            };
            let load =
                |at: usize| [0, 1].map(|h| load_floats::<L>(w.add(at * line + h * 8 * element)));
            for pair in 0..k / 2 {
                let at = 2 * pair;
                let ahead = w.wrapping_add(at * line + PREFETCH);
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                if line == 64 {
                    _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64).cast());
                }
                let (w0, w1) = (load(at), load(at + 1));
                each!(N, n, h => {
                    chains[0][n][h] = _mm256_fmadd_ps(w0[h], float(n, at), chains[0][n][h]);
                    chains[1][n][h] = _mm256_fmadd_ps(w1[h], float(n, at + 1), chains[1][n][h]);
                });
            }
            if k % 2 == 1 {
                let last = load(k - 1);
                each!(N, n, h => {
                    chains[0][n][h] = _mm256_fmadd_ps(last[h], float(n, k - 1), chains[0][n][h]);
                });
            }
        }
        let [mut acc, odd] = chains;
        each!(N, n, h => {
            acc[n][h] = _mm256_add_ps(acc[n][h], odd[n][h]);
        });
        w = w.wrapping_add(bytes);
        // SAFETY: `init` and `y` hold N rows of 16 * tiles floats.
        unsafe { store(&acc, init, y, t, init_stride, y_stride) };
    }
}

/// Adds `init` to the sums of tile `t` and writes them.
///
/// # Safety
/// `init` (unless null) and `y` hold N rows of at least 16 * (t + 1) floats at their strides.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::cpu) unsafe fn store<const N: usize>(
    acc: &[[__m256; 2]; N],
    init: *const f32,
    y: *mut f32,
    t: usize,
    init_stride: usize,
    y_stride: usize,
) {
    each!(N, n, h => {
        let column = t * TILE_N + 8 * h;
        let mut sum = acc[n][h];
        // SAFETY: row n and the 8 columns are inside both buffers; they may alias, and init is read before the write.
        unsafe {
            if !init.is_null() {
                sum = _mm256_add_ps(sum, _mm256_loadu_ps(init.byte_add(n * init_stride).add(column)));
            }
            _mm256_storeu_ps(y.byte_add(n * y_stride).add(column), sum);
        }
    });
}

/// What takes the zero of unsigned levels out of their dot product with half `HALF` of a block.
///
/// # Safety
/// `x` points at a block.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::cpu) unsafe fn zero<const L: usize, const HALF: usize>(x: *const Q8Block) -> __m256i {
    let layout = const { &FORMATS[L].layout };
    if layout.zero == 0 || takes_min::<L>() {
        return _mm256_setzero_si256();
    }
    let lift = _mm256_castps_si256(_mm256_set1_ps(LIFT));
    // SAFETY: by the caller.
    let start = unsafe { _mm256_set1_ps((*x).start[HALF]) };
    let z = _mm256_sub_epi32(_mm256_castps_si256(start), lift);
    _mm256_sra_epi32(z, _mm_cvtsi32_si128(layout.zero_shift() as i32))
}

/// Quad `i` of the activations of a block, for every output.
///
/// # Safety
/// `x` points at a block, and `i` is below 8.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::cpu) unsafe fn word(x: *const Q8Block, i: usize) -> __m256i {
    // SAFETY: by the caller.
    _mm256_set1_epi32(unsafe { x.cast::<i32>().add(i).read_unaligned() })
}

/// Dot products of 8 outputs, their zero subtracted, with the activations of half `HALF` of a block, exact, as floats.
///
/// # Safety
/// `x` points at a block.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn dot<const L: usize, const HALF: usize>(q: &[__m256i; 8], x: *const Q8Block) -> __m256 {
    let ones = _mm256_set1_epi16(1);
    // SAFETY: quad i is one of 8.
    let word = |i: usize| unsafe { word(x, i) };
    let mut total = match signed::<L>() {
        true => _mm256_setzero_si256(),
        // SAFETY: by the caller.
        false => unsafe { zero::<L, HALF>(x) },
    };
    // A 16-bit lane gains at most 2 * 127 times the largest level per quad: so many quads stay below 2^15. Signed levels
    // multiply the activation with their sign by their magnitude, 2 * 127 * 128 < 2^15.
    let flush = const {
        match 0x7fff / (2 * 127 * FORMATS[L].layout.max_level() as usize) {
            0 | 1 => 1,
            2 | 3 => 2,
            _ => 4,
        }
    };
    let product = |i: usize| match signed::<L>() {
        true => _mm256_maddubs_epi16(_mm256_abs_epi8(q[i]), _mm256_sign_epi8(word(i), q[i])),
        false => _mm256_maddubs_epi16(q[i], word(i)),
    };
    let mut i = 4 * HALF;
    while i < 4 * HALF + 4 {
        let mut sum = product(i);
        let mut j = 1;
        while j < flush {
            sum = _mm256_add_epi16(sum, product(i + j));
            j += 1;
        }
        total = _mm256_add_epi32(total, _mm256_madd_epi16(sum, ones));
        i += j;
    }
    _mm256_cvtepi32_ps(total)
}
