//! Grid launches to CUDA: `render` writes a kernel's source from its template, `nvrtc` compiles it for an architecture and
//! `cache` keeps the result, `sass` looks into it, and `resources` says what that takes of a target. Which kernels there
//! are, and what a launch of one looks like, is decided before.

pub mod cache;
mod elf;
pub mod nvrtc;
pub mod render;
pub mod resources;
pub mod sass;

use crate::error::Error;
use crate::plan::{Launch, Plan, Work};
use crate::target::cuda::CudaProfile;
use coldpress_kernels::gpu::Kernel;
use coldpress_runtime::manifest::GpuKernel;
use cache::Cache;
use nvrtc::Nvrtc;
use std::collections::BTreeMap;
use std::path::Path;

/// The compiled kernels of a plan.
#[derive(Debug)]
pub struct CudaCode {
    /// Cubins one after the other, each 64-byte aligned.
    pub bytes: Vec<u8>,
    /// What only kernels themselves say, one after the other: their sources without the intrinsics all of them share.
    pub sources: Vec<u8>,
    /// By name, ascending.
    pub kernels: Vec<GpuKernel>,
}

impl CudaCode {
    /// Index of the kernel `name`, which some launch of the plan runs.
    pub fn index(&self, name: &str) -> u32 {
        let found = self.kernels.binary_search_by(|k| k.name.as_str().cmp(name));
        found.unwrap_or_default() as u32
    }

    /// Where the source of a launch's kernel is: (start, end).
    pub fn source_of(&self, launch: &Launch) -> (u64, u64) {
        let Work::Grid(grid) = &launch.work else {
            return (0, 0);
        };
        let (offset, bytes) = self.kernels[self.index(&grid.kernel.name) as usize].source;
        (offset, offset + bytes)
    }
}

/// The distinct kernels that a plan's launches run, by name.
pub fn kernels(plan: &Plan) -> BTreeMap<&str, &Kernel> {
    let launches = plan.programs.iter().flat_map(|p| &p.launches);
    launches
        .filter_map(|l| match &l.work {
            Work::Grid(grid) => Some((grid.kernel.name.as_str(), &grid.kernel)),
            _ => None,
        })
        .collect()
}

/// Renders and compiles every kernel of `plan`, or takes it from the folder `cache`. `progress` is called after each.
///
/// # Errors
/// `Toolchain` if NVRTC is not found, `Internal` naming the kernel that does not render or compile.
pub fn generate(
    plan: &Plan,
    target: &CudaProfile,
    cache: Option<&Path>,
    progress: impl FnMut(),
) -> Result<CudaCode, Error> {
    let kernels = kernels(plan);
    let rendered: Result<Vec<(String, String)>, Error> = kernels
        .values()
        .map(|kernel| Ok((kernel.name.clone(), render::source(kernel)?)))
        .collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (nvrtc, rendered) = (Nvrtc::find()?, rendered?);
    let cubins = match cache {
        Some(folder) => {
            let cache = Cache::new(folder.to_path_buf());
            cache.compile_all(&nvrtc, &rendered, target.arch, threads, progress)?
        }
        None => nvrtc.compile_all(&rendered, target.arch, threads, progress)?,
    };
    let mut code = CudaCode {
        bytes: Vec::new(),
        sources: Vec::new(),
        kernels: Vec::with_capacity(kernels.len()),
    };
    for (kernel, cubin) in kernels.values().zip(cubins) {
        let source = render::body(kernel)?;
        code.kernels.push(GpuKernel {
            name: kernel.name.clone(),
            code: append(&mut code.bytes, &cubin.bytes),
            source: append(&mut code.sources, source.as_bytes()),
            threads: kernel.threads,
            registers: cubin.registers,
            spill_bytes: cubin.spill_bytes,
        });
    }
    Ok(code)
}

/// Puts `bytes` at the next multiple of 64: (offset, bytes).
fn append(section: &mut Vec<u8>, bytes: &[u8]) -> (u64, u64) {
    section.resize(section.len().next_multiple_of(64), b'\n');
    let place = (section.len() as u64, bytes.len() as u64);
    section.extend_from_slice(bytes);
    place
}
