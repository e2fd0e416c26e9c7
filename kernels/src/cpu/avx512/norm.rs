//! RMSNorm stamped for AVX-512 (F, BW, DQ, VL); the body is in `cpu/lanes/norm.rs`.

use crate::cpu::avx512::lanes::F32x16;
use crate::cpu::lanes::norm as lanes;
use crate::cpu::symbols::{Named, Symbol};
use crate::norm::{NormFn, NormQ8Fn};

/// `rmsnorm_avx512` of type [`NormFn`] and `rmsnorm_q8_avx512` of type [`NormQ8Fn`].
pub const SYMBOLS: &[Named] = &[
    ("rmsnorm_avx512", Symbol(rmsnorm as NormFn as *const ())),
    (
        "rmsnorm_q8_avx512",
        Symbol(rmsnorm_q8 as NormQ8Fn as *const ()),
    ),
];

/// # Safety
/// The contract of [`NormFn`]; AVX-512 is there.
#[allow(clippy::too_many_arguments)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe extern "C" fn rmsnorm(
    x: *const f32,
    w: *const f32,
    y: *mut f32,
    width: usize,
    rows: usize,
    x_stride: usize,
    y_stride: usize,
    eps_bits: usize,
) {
    // SAFETY: promised by the caller.
    unsafe { lanes::rmsnorm::<F32x16>(x, w, y, width, rows, x_stride, y_stride, eps_bits) }
}

/// # Safety
/// The contract of [`NormQ8Fn`]; AVX-512 is there.
#[allow(clippy::too_many_arguments)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe extern "C" fn rmsnorm_q8(
    x: *const f32,
    w: *const f32,
    out: *mut u8,
    width: usize,
    rows: usize,
    x_stride: usize,
    out_stride: usize,
    eps_bits: usize,
) {
    // SAFETY: promised by the caller.
    unsafe { lanes::rmsnorm_q8::<F32x16>(x, w, out, width, rows, x_stride, out_stride, eps_bits) }
}
