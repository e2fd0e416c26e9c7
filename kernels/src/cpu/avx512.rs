//! Micro-kernels for AVX-512 F, BW, DQ, VL and VNNI.

pub mod attention;
pub mod gated;
pub mod lanes;
pub mod matmul;
pub mod norm;
pub mod quantise;
pub mod recurrent;
pub mod rope;
mod weights;
