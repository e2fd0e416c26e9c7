//! AVX-VNNI matmul micro-kernels: those of AVX2 with one instruction for four products. Dot products are exact in both, so
//! a row has the same bits in either.

use std::arch::x86_64::*;

use crate::cpu::abi::{LIFT, Q8Block};
use crate::cpu::avx2::matmul::{PREFETCH, each, int_kernel, store, word, zero};
use crate::cpu::avx2::weights::{HalfScales, half_scales, takes_min, unpack};
use crate::cpu::symbols::{Named, matmul_symbols};
use crate::cpu::tile::{GROUP_K, group_bytes, scale_plane_bytes, scale_unit_bytes, tile_bytes};
use crate::quant::FORMATS;

/// `matmul_<layout>_avxvnni_n<N>`, of type [`crate::cpu::symbols::MatmulFn`]; float weights have the AVX2 kernels.
pub const SYMBOLS: &[Named] = matmul_symbols!("avxvnni", int_matmul [1 2 3 4], int_matmul []);

int_kernel!(int_matmul, "avx2,fma,f16c,avxvnni", dot, false);

/// Dot products of 8 outputs, their zero subtracted, with the activations of half `HALF` of a block, exact, as floats.
///
/// # Safety
/// `x` points at a block.
#[inline]
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn dot<const L: usize, const HALF: usize>(q: &[__m256i; 8], x: *const Q8Block) -> __m256 {
    // SAFETY: by the caller; quad i is one of 8.
    unsafe {
        let mut total = zero::<L, HALF>(x);
        for (i, &levels) in q.iter().enumerate().skip(4 * HALF).take(4) {
            total = _mm256_dpbusd_avx_epi32(total, levels, word(x, i));
        }
        _mm256_cvtepi32_ps(total)
    }
}
