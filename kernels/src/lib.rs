//! What coldpress can stamp: quant formats, kernel families with their variants, legality, cost and naive
//! reference, and the CPU micro-kernels. No IO, no GPU, no knowledge of models or bundles.

pub mod attention;
pub mod cpu;
pub mod matmul;
pub mod norm;
pub mod quant;
pub mod rope;
pub mod tensor_type;
