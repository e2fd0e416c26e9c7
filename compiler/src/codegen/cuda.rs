//! Grid launches to CUDA: `render` writes a kernel's source from its template, `nvrtc` compiles it for an architecture and
//! `cache` keeps the result, `sass` looks into it, and `resources` says what that takes of a target. Which kernels there
//! are, and what a launch of one looks like, is decided before.

pub mod cache;
mod elf;
pub mod nvrtc;
pub mod render;
pub mod resources;
pub mod sass;
