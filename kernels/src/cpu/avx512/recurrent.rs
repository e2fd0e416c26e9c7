//! Short convolution and gated delta rule stamped for AVX-512 (F, BW, DQ, VL); the bodies are in `cpu/lanes/recurrent.rs`.

use crate::cpu::avx512::lanes::F32x16;

crate::cpu::lanes::stamp::stamp_recurrent!("avx512", F32x16, "avx512f,avx512bw,avx512dq,avx512vl");
