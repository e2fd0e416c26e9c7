//! Gated activations stamped for AVX2 with FMA and F16C; the body is in `cpu/lanes/gated.rs`.

use crate::cpu::avx2::lanes::F32x8;

crate::cpu::lanes::stamp::stamp_gated!("avx2", F32x8, "avx2,fma,f16c");
