//! Short convolution and gated delta rule stamped for AVX2 with FMA and F16C; the bodies are in `cpu/lanes/recurrent.rs`.

use crate::cpu::avx2::lanes::F32x8;

crate::cpu::lanes::stamp::stamp_recurrent!("avx2", F32x8, "avx2,fma,f16c");
