//! What code for all kinds of GPU has in common: the distinct kernels of a plan, and the list of them that a bundle has. How
//! a kernel is written or compiled is not known here.

use crate::plan::{Grid, Launch, Plan, Work};
use coldpress_kernels::gpu::Kernel;
use coldpress_runtime::manifest::GpuKernel;
use std::collections::BTreeMap;

/// The distinct kernels that a plan's launches run, by name.
pub fn kernels(plan: &Plan) -> BTreeMap<&str, &Kernel> {
    grids(plan)
        .map(|grid| (grid.kernel.name.as_str(), &grid.kernel))
        .collect()
}

pub(super) fn grids(plan: &Plan) -> impl Iterator<Item = &Grid> {
    let launches = plan.programs.iter().flat_map(|p| &p.launches);
    launches.filter_map(|l| match &l.work {
        Work::Grid(grid) => Some(grid),
        _ => None,
    })
}

/// Index in `kernels`, which are ascending, of the one called `name`, which some launch of their plan runs.
pub fn index(kernels: &[GpuKernel], name: &str) -> u32 {
    let found = kernels.binary_search_by(|k| k.name.as_str().cmp(name));
    found.unwrap_or_default() as u32
}

/// Where the source of a launch's kernel, one of `kernels`, is: (start, end).
pub fn source_of(kernels: &[GpuKernel], launch: &Launch) -> (u64, u64) {
    let Work::Grid(grid) = &launch.work else {
        return (0, 0);
    };
    let (offset, bytes) = kernels[index(kernels, &grid.kernel.name) as usize].source;
    (offset, offset + bytes)
}

/// Puts `bytes` at the next multiple of 64: (offset, bytes).
pub(super) fn append(section: &mut Vec<u8>, bytes: &[u8]) -> (u64, u64) {
    section.resize(section.len().next_multiple_of(64), b'\n');
    let place = (section.len() as u64, bytes.len() as u64);
    section.extend_from_slice(bytes);
    place
}
