//! AVX-VNNI matmul micro-kernels: those of AVX2 with one instruction for four products. Dot products are exact in both, so
//! a row has the same bits in either.

use std::arch::x86_64::*;

use crate::cpu::abi::q8_row;
use crate::cpu::avx2::matmul::{PREFETCH, each, int_kernel, store};
use crate::cpu::avx2::weights::{HalfScales, half_scales, unpack};
use crate::cpu::symbols::{Named, matmul_symbols};
use crate::cpu::tile::{GROUP_K, group_bytes, scale_plane_bytes, scale_unit_bytes, tile_bytes};
use crate::quant::FORMATS;

/// `matmul_<layout>_avxvnni_n<N>`, of type [`crate::cpu::symbols::MatmulFn`]; float weights have the AVX2 kernels.
pub const SYMBOLS: &[Named] = matmul_symbols!("avxvnni", int_matmul [1 2 3 4], int_matmul []);

int_kernel!(int_matmul, "avx2,fma,f16c,avxvnni", dot, false);

/// Dot products of 8 outputs, their zero subtracted, with the activations of the 4 quads from `FROM` on, exact, as
/// floats. `z` is -128 times the sum of these activations.
///
/// # Safety
/// 32 activations are readable at `words`.
#[inline]
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn dot<const L: usize, const FROM: usize>(
    q: &[__m256i; 8],
    words: *const u8,
    z: __m256i,
) -> __m256 {
    let layout = const { &FORMATS[L].layout };
    let mut total = match layout.zero {
        0 => _mm256_setzero_si256(),
        _ => _mm256_sra_epi32(z, _mm_cvtsi32_si128(layout.zero_shift() as i32)),
    };
    for (i, &levels) in q.iter().enumerate().skip(FROM).take(4) {
        // SAFETY: quad i is bytes 4 i..4 i + 4 of the 32.
        let word = unsafe { _mm256_set1_epi32(words.add(4 * i).cast::<i32>().read_unaligned()) };
        total = _mm256_dpbusd_avx_epi32(total, levels, word);
    }
    _mm256_cvtepi32_ps(total)
}
