//! Attention and KV append stamped for AVX-512 (F, BW, DQ, VL) and each cache type; the bodies are in `cpu/lanes`.

use crate::cpu::avx512::lanes::F32x16;

crate::cpu::lanes::stamp::stamp_attention!("avx512", F32x16, "avx512f,avx512bw,avx512dq,avx512vl");
