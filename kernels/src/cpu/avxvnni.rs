//! Micro-kernels for AVX2 with the byte dot products of AVX-VNNI; all others of such a CPU are those of AVX2.

pub mod matmul;
