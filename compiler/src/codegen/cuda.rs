//! Grid launches to CUDA: `render` writes a kernel's source from its template. Which kernels there are, and what a launch
//! of one looks like, is decided before.

pub mod render;
