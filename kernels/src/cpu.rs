//! CPU micro-kernels: the symbols that emitted step programs call. `abi` is the contract; each ISA is a folder with the
//! same file names. Selection happens at compile time (`matmul::candidates`), never here.

pub mod abi;
#[cfg(target_arch = "x86_64")]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
pub mod avx512;
#[cfg(target_arch = "x86_64")]
pub mod avxvnni;
pub mod features;
pub mod groups;
#[cfg(target_arch = "x86_64")]
mod lanes;
pub mod live;
pub mod pages;
pub mod scalar;
pub mod symbols;
pub mod tile;

pub use features::{CpuFeatures, Isa, detect};
pub use symbols::{Symbol, lookup};

// How fast memory can be read: the yardstick of whoever streams weights.
pub use crate::matmul::measure::sum as read_all;
