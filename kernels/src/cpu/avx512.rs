//! Micro-kernels for AVX-512 F, BW, DQ, VL and VNNI.

pub mod matmul;
pub mod quantise;
