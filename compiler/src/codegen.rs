//! Plan to executable code, one backend per module. A backend sees launches with every address and share decided; it
//! knows no graph and no model.

pub mod cpu;
pub mod cuda;

use crate::error::Error;
use crate::plan::Plan;
use crate::target::Target;
use std::path::Path;

/// The code of a plan.
#[derive(Debug)]
pub enum Code {
    /// Machine code that calls micro-kernels.
    Cpu(cpu::CpuCode),
    /// Compiled kernels.
    Cuda(cuda::CudaCode),
}

/// Generates the code of `plan`. Compiled kernels are kept in the folder `cache`, if there is one. `progress` is called
/// after each program, or each kernel.
///
/// # Errors
/// `Toolchain` where a compiler that the target needs is missing, `Internal` for code that does not compile.
pub fn generate(
    plan: &Plan,
    cache: Option<&Path>,
    progress: impl FnMut(),
) -> Result<Code, Error> {
    match &plan.target {
        Target::Cpu(profile) => cpu::generate(plan, profile, progress).map(Code::Cpu),
        Target::Cuda(profile) => cuda::generate(plan, profile, cache, progress).map(Code::Cuda),
    }
}

/// How many times [`generate`] calls `progress`.
pub fn units(plan: &Plan) -> usize {
    match &plan.target {
        Target::Cpu(_) => plan.programs.len(),
        Target::Cuda(_) => cuda::kernels(plan).len(),
    }
}
