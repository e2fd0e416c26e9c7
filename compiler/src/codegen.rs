//! Plan to executable code, one backend per module. A backend sees launches with every address and share decided; it
//! knows no graph and no model.

pub mod cpu;
pub mod cuda;
pub mod gpu;
pub mod metal;

use coldpress_runtime::manifest::GpuKernel;

/// The code of a plan.
#[derive(Debug)]
pub enum Code {
    /// Machine code that calls micro-kernels.
    Cpu(cpu::CpuCode),
    /// Compiled kernels.
    Cuda(cuda::CudaCode),
    /// Sources, compiled by the driver that runs them.
    Metal(metal::MetalCode),
}

impl Code {
    /// The kernels of a GPU's code, by name.
    pub fn gpu_kernels(&self) -> Option<&[GpuKernel]> {
        match self {
            Code::Cpu(_) => None,
            Code::Cuda(code) => Some(&code.kernels),
            Code::Metal(code) => Some(&code.kernels),
        }
    }
}
