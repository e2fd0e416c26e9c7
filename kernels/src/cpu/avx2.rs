//! Micro-kernels for AVX2 with FMA and F16C.

pub mod attention;
pub mod gated;
pub mod lanes;
pub mod matmul;
pub mod norm;
pub mod quantise;
pub mod recurrent;
pub mod rope;
pub(in crate::cpu) mod weights;
