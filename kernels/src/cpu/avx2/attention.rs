//! Attention and KV append stamped for AVX2 with FMA and F16C and each cache type; the bodies are in `cpu/lanes`.

use crate::cpu::avx2::lanes::F32x8;

crate::cpu::lanes::stamp::stamp_attention!("avx2", F32x8, "avx2,fma,f16c");
