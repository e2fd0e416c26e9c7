//! Portable micro-kernels: what runs where no vector ISA below fits, and the plainest statement of each kernel's
//! arithmetic. Integer sums are those of the vector kernels; f32 results differ from them in fused rounding only.

pub mod attention;
pub mod cache;
pub mod embed;
pub mod experts;
pub mod gated;
pub mod matmul;
pub mod norm;
pub mod quantise;
pub mod recurrent;
pub mod rope;
