//! Attention and KV append stamped for AVX2 with FMA and F16C and each cache type; the bodies are in `cpu/lanes`.

use crate::attention::{AttentionFn, KvAppendFn};
use crate::cpu::abi::Step;
use crate::cpu::avx2::lanes::F32x8;
use crate::cpu::lanes::attention::attention as body;
use crate::cpu::lanes::cache::{self, Cache, CacheF16, CacheF32, CacheQ8};
use crate::cpu::symbols::{Named, Symbol};

macro_rules! symbols {
    ($($name:literal $cache:ident),*) => {
        &[$(
            (concat!("attention_", $name, "_avx2"), Symbol(attention::<$cache> as AttentionFn as *const ())),
            (concat!("kv_append_", $name, "_avx2"), Symbol(kv_append::<$cache> as KvAppendFn as *const ())),
        )*]
    };
}

/// `attention_<kv>_avx2` of type [`AttentionFn`] and `kv_append_<kv>_avx2` of type [`KvAppendFn`].
pub const SYMBOLS: &[Named] = symbols!("f32" CacheF32, "f16" CacheF16, "q8_0" CacheQ8);

/// # Safety
/// The contract of [`AttentionFn`]; AVX2 is there.
#[allow(clippy::too_many_arguments)]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe extern "C" fn attention<C: Cache>(
    q: *const f32,
    kv: *const u8,
    out: *mut f32,
    step: *const Step,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    unit_begin: usize,
    unit_end: usize,
    q_stride: usize,
    out_stride: usize,
    scale_bits: usize,
    window: usize,
    softcap_bits: usize,
) {
    // SAFETY: promised by the caller.
    unsafe {
        body::<F32x8, C>(
            q,
            kv,
            out,
            step,
            heads,
            kv_heads,
            head_dim,
            unit_begin,
            unit_end,
            q_stride,
            out_stride,
            scale_bits,
            window,
            softcap_bits,
        )
    }
}

/// # Safety
/// The contract of [`KvAppendFn`]; AVX2 is there.
#[allow(clippy::too_many_arguments)]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe extern "C" fn kv_append<C: Cache>(
    k: *const f32,
    v: *const f32,
    kv: *mut u8,
    step: *const Step,
    kv_heads: usize,
    head_dim: usize,
    row_begin: usize,
    row_end: usize,
    k_stride: usize,
    v_stride: usize,
) {
    // SAFETY: promised by the caller.
    unsafe {
        cache::kv_append::<F32x8, C>(
            k, v, kv, step, kv_heads, head_dim, row_begin, row_end, k_stride, v_stride,
        )
    }
}
