//! AVX-512 VNNI matmul micro-kernels, weight-stationary: 32 k of 16 outputs are unpacked once into 8 vectors and meet
//! the activations of all N rows while they sit in registers. Per row the operations and their order are the same in
//! every stamp, so a row's bits do not depend on its batch.

use std::arch::x86_64::*;

use super::weights::{group_scale, load_floats, unit_halves, unpack};
use crate::cpu::abi::{TILE_N, q8_row};
use crate::cpu::symbols::{Named, matmul_symbols};
use crate::cpu::tile::{
    GROUP_K, group_bytes, scale_halves_bytes, scale_plane_bytes, scale_unit_bytes, tile_bytes,
};
use crate::quant::FORMATS;

/// `matmul_<layout>_avx512_n<N>`, of type [`crate::cpu::symbols::MatmulFn`].
pub const SYMBOLS: &[Named] = matmul_symbols!("avx512", int_matmul [1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16], float_matmul [1 2 3 4 5 6 7 8]);

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
                        _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(64 * line).cast());
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
                _mm_prefetch::<_MM_HINT_T1>(here.wrapping_add(PREFETCH).cast());
                if line == 64 {
                    _mm_prefetch::<_MM_HINT_T1>(here.wrapping_add(PREFETCH + 64).cast());
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
