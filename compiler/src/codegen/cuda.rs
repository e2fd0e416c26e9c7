//! Grid launches to CUDA: `render` writes a kernel's source from its template, `nvrtc` compiles it for an architecture.
//! Which kernels there are, and what a launch of one looks like, is decided before.

mod elf;
pub mod nvrtc;
pub mod render;
