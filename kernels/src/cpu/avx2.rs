//! Micro-kernels for AVX2 with FMA and F16C.

pub mod matmul;
pub mod quantise;
