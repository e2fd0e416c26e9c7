//! Grid launches to Metal: `render` writes a kernel's text from its template, and all kernels of a plan become one library,
//! which the driver of the machine that runs it compiles. There is no compiler here.

pub mod render;

use super::gpu;
use crate::error::Error;
use crate::plan::Plan;
use coldpress_runtime::manifest::GpuKernel;

/// The kernels of a plan.
#[derive(Debug, Default)]
pub struct MetalCode {
    /// The library's text.
    pub library: String,
    /// What only kernels themselves say, one after the other.
    pub sources: Vec<u8>,
    /// By name, ascending; the code of each is the whole library.
    pub kernels: Vec<GpuKernel>,
}

impl MetalCode {
    /// The kernels that `plan` launches.
    ///
    /// # Errors
    /// `Internal` naming the kernel that does not render.
    pub fn of(plan: &Plan) -> Result<MetalCode, Error> {
        let mut code = MetalCode::default();
        let kernels = gpu::kernels(plan);
        code.library = render::library(kernels.values().copied())?;
        for kernel in kernels.into_values() {
            let source = render::body(kernel)?;
            code.kernels.push(GpuKernel {
                name: kernel.name.clone(),
                code: (0, code.library.len() as u64),
                source: gpu::append(&mut code.sources, source.as_bytes()),
                threads: kernel.threads,
                registers: 0,
                spill_bytes: 0,
            });
        }
        Ok(code)
    }
}
