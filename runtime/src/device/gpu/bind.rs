//! From the manifest to what an accelerator takes: kernels cut out of their sections, launches with addresses. Nothing of a
//! bundle is believed that would become an address.

use super::Sections;
use crate::device::accelerator::{BoundLaunch, KernelImage};
use crate::error::Error;
use crate::manifest::{GpuPlan, Grid, GridArg, Launch, Program, TargetPlan};

/// All kernels, with the most shared memory that any of their launches asks for.
pub(super) fn images<'a>(
    plan: &TargetPlan,
    gpu: &'a GpuPlan,
    sections: Sections<'a>,
) -> Result<Vec<KernelImage<'a>>, Error> {
    let mut shared = vec![0; gpu.kernels.len()];
    for launch in plan.programs.iter().flat_map(|p| &p.launches) {
        let Some(grid) = &launch.grid else { continue };
        if let Some(most) = shared.get_mut(grid.kernel as usize) {
            *most = grid.shared_bytes.max(*most);
        }
    }
    let kernels = gpu.kernels.iter().zip(shared);
    let images = kernels.map(|(kernel, shared_bytes)| {
        let part = |section: &'a [u8], what: &str, (offset, bytes): (u64, u64)| {
            let end = offset
                .checked_add(bytes)
                .filter(|&e| e <= section.len() as u64);
            let range = end.map(|end| offset as usize..end as usize);
            range.map(|range| &section[range]).ok_or_else(|| {
                Error::Device(format!(
                    "kernel {}: its {what} is outside the section: the bundle is damaged",
                    kernel.name
                ))
            })
        };
        Ok(KernelImage {
            name: &kernel.name,
            code: part(sections.code, "code", kernel.code)?,
            source: part(sections.source, "source", kernel.source)?,
            threads: kernel.threads,
            shared_bytes,
        })
    });
    images.collect()
}

/// Address and bytes of every buffer.
pub(super) struct Memory {
    pub(super) arena: (u64, u64),
    pub(super) weights: (u64, u64),
    pub(super) kv: (u64, u64),
    pub(super) step: (u64, u64),
}

impl Memory {
    /// A program's launches with their addresses, and the kernel of each.
    pub(super) fn bind(
        &self,
        program: &Program,
        gpu: &GpuPlan,
    ) -> Result<(Vec<BoundLaunch>, Vec<u32>), String> {
        let bind = |launch: &Launch| {
            let at = |why: String| format!("launch {}: {why}", launch.label);
            let Some(grid) = &launch.grid else {
                return Err(at("it names no kernel".into()));
            };
            let bound = self.launch(launch, grid, gpu).map_err(at)?;
            Ok((bound, grid.kernel))
        };
        program.launches.iter().map(bind).collect()
    }

    fn launch(&self, launch: &Launch, grid: &Grid, gpu: &GpuPlan) -> Result<BoundLaunch, String> {
        let Some(kernel) = gpu.kernels.get(grid.kernel as usize) else {
            return Err(format!("there is no kernel {}", grid.kernel));
        };
        if grid.grid.contains(&0) || kernel.threads == 0 {
            return Err(format!("{} would run on nothing", kernel.name));
        }
        let args = grid.args.iter().enumerate();
        let args = args.map(|(index, &arg)| {
            self.address(arg)
                .map_err(|why| format!("argument {index} of {}: {why}", kernel.name))
        });
        Ok(BoundLaunch {
            label: launch.label.clone(),
            kernel: grid.kernel as usize,
            grid: grid.grid,
            threads: kernel.threads,
            shared_bytes: grid.shared_bytes,
            args: args.collect::<Result<_, _>>()?,
            overlaps: grid.overlaps,
        })
    }

    fn address(&self, arg: GridArg) -> Result<u64, String> {
        let inside = |what: &str, (address, bytes): (u64, u64), offset: u64| {
            (offset < bytes)
                .then(|| address.wrapping_add(offset))
                .ok_or_else(|| format!("byte {offset} of {bytes} bytes of {what}"))
        };
        match arg {
            GridArg::Const(value) => Ok(value),
            GridArg::Arena(offset) => inside("arena", self.arena, offset),
            GridArg::Weights(offset) => inside("weights", self.weights, offset),
            GridArg::Kv(offset) => inside("KV pool", self.kv, offset),
            GridArg::Step(offset) => inside("step block", self.step, offset),
        }
    }
}
