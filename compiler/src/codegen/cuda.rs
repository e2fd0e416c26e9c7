//! Grid launches to CUDA: `render` writes a kernel's source from its template, `nvrtc` compiles it for an architecture and
//! `cache` keeps the result, `sass` looks into it, and `resources` says what that takes of a target. Which kernels there
//! are, and what a launch of one looks like, is decided before.

pub mod cache;
mod elf;
pub mod nvrtc;
pub mod render;
pub mod resources;
pub mod sass;

use super::gpu::{append, grids, kernels};
use crate::error::Error;
use crate::plan::Plan;
use crate::target::Compiled;
use crate::target::cuda::CudaProfile;
use cache::Cache;
use coldpress_runtime::manifest::GpuKernel;
use nvrtc::{Cubin, Nvrtc};
use resources::{Resources, Use};
use sass::Inspection;
use std::collections::BTreeMap;
use std::path::Path;

/// The compiled kernels of a plan.
#[derive(Debug, Default)]
pub struct CudaCode {
    /// Cubins one after the other, each 64-byte aligned.
    pub bytes: Vec<u8>,
    /// What only kernels themselves say, one after the other: their sources without the intrinsics all of them share.
    pub sources: Vec<u8>,
    /// By name, ascending.
    pub kernels: Vec<GpuKernel>,
    /// What each kernel takes of the target, by name.
    pub resources: BTreeMap<String, Resources>,
}

/// Compiles kernels for one architecture, and keeps what it has compiled.
pub struct Compiler {
    nvrtc: Nvrtc,
    arch: &'static str,
    cache: Option<Cache>,
    cubins: BTreeMap<String, Cubin>,
}

impl Compiler {
    /// NVRTC for `arch`; cubins are kept in the folder `cache` for the next compile, if there is one.
    ///
    /// # Errors
    /// `Toolchain` if NVRTC is not found.
    pub fn new(arch: &'static str, cache: Option<&Path>) -> Result<Compiler, Error> {
        Ok(Compiler {
            nvrtc: Nvrtc::find()?,
            arch,
            cache: cache.map(|folder| Cache::new(folder.to_path_buf())),
            cubins: BTreeMap::new(),
        })
    }

    /// Renders and compiles those kernels of `plan` that were not compiled yet; what the assembler said of each of them.
    /// `progress` is called after each.
    ///
    /// # Errors
    /// `Internal` naming the kernel that does not render or compile.
    pub fn compile(
        &mut self,
        plan: &Plan,
        progress: impl FnMut(),
    ) -> Result<BTreeMap<String, Compiled>, Error> {
        let mut missing = kernels(plan);
        missing.retain(|name, _| !self.cubins.contains_key(*name));
        let rendered: Result<Vec<(String, String)>, Error> = missing
            .values()
            .map(|kernel| Ok((kernel.name.clone(), render::source(kernel)?)))
            .collect();
        let rendered = rendered?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let cubins = match &self.cache {
            Some(cache) => {
                cache.compile_all(&self.nvrtc, &rendered, self.arch, threads, progress)?
            }
            None => self
                .nvrtc
                .compile_all(&rendered, self.arch, threads, progress)?,
        };
        let mut compiled = BTreeMap::new();
        for ((name, _), cubin) in rendered.into_iter().zip(cubins) {
            let facts = Compiled {
                registers: cubin.registers,
                spill_bytes: cubin.spill_bytes,
            };
            compiled.insert(name.clone(), facts);
            self.cubins.insert(name, cubin);
        }
        Ok(compiled)
    }

    /// What each kernel of `plan` takes of `target`, by name.
    ///
    /// # Errors
    /// `Internal` naming a kernel that has not been compiled, or whose code cannot be read.
    pub fn resources(
        &self,
        plan: &Plan,
        target: &CudaProfile,
    ) -> Result<BTreeMap<String, Resources>, Error> {
        let mut all = BTreeMap::new();
        for grid in grids(plan) {
            let name = &grid.kernel.name;
            if all.contains_key(name) {
                continue;
            }
            let cubin = self.cubin(name)?;
            let inspection = Inspection::of(&cubin.bytes, name, self.arch)?;
            let launch = Use {
                threads: grid.kernel.threads,
                dynamic_shared: grid.geometry.shared_bytes,
                weights: grid.main_loop.map_or(0, |l| l.weights),
                kernels: grid.main_loop.map_or(1, |l| l.kernels),
                weight_bytes: grid.main_loop.map_or(0.0, |l| l.weight_bytes),
            };
            let resources = Resources::of(cubin, &inspection, target, launch);
            all.insert(name.clone(), resources);
        }
        Ok(all)
    }

    fn cubin(&self, name: &str) -> Result<&Cubin, Error> {
        let cubin = self.cubins.get(name);
        cubin.ok_or_else(|| Error::Internal(format!("{name} has not been compiled")))
    }

    /// The code of `plan`, all of whose kernels have been compiled.
    ///
    /// # Errors
    /// `Internal` naming a kernel that has not been.
    pub fn code(&self, plan: &Plan, target: &CudaProfile) -> Result<CudaCode, Error> {
        let mut code = CudaCode {
            resources: self.resources(plan, target)?,
            ..CudaCode::default()
        };
        for (name, kernel) in kernels(plan) {
            let cubin = self.cubin(name)?;
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
}
