//! What coldpress can stamp: quant formats, kernel families with their variants, legality, cost and naive
//! reference, and the CPU micro-kernels. No IO, no GPU, no knowledge of models or bundles.

pub mod cpu;
pub mod matmul;
pub mod quant;
pub mod tensor_type;
