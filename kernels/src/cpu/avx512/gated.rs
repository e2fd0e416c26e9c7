//! Gated activations stamped for AVX-512 (F, BW, DQ, VL); the body is in `cpu/lanes/gated.rs`.

use crate::cpu::avx512::lanes::F32x16;

crate::cpu::lanes::stamp::stamp_gated!("avx512", F32x16, "avx512f,avx512bw,avx512dq,avx512vl");
