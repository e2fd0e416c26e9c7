//! CPU micro-kernels: the symbols that emitted step programs call. `abi` is the contract; each ISA is a folder with the
//! same file names. Selection happens at compile time (`matmul::candidates`), never here.

pub mod abi;
