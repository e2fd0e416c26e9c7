//! The GPU half of a plan: kernels inside their sections, launches inside what hardware can launch, addresses inside their
//! buffers.

use super::{MAX_BYTES, bounded};
use crate::manifest::{
    CandidatePlan, GpuKernel, GpuPlan, Grid, GridArg, Limits, Stage, TargetPlan,
};

const MAX_KERNELS: usize = 1 << 16;
const MAX_LAUNCHES: usize = 1 << 20;
const MAX_NAME: usize = 1 << 10;
const MAX_CANDIDATES: u64 = 1 << 16;
/// What any CUDA device can launch: threads of a thread block, thread blocks along x and along y and z, bytes of
/// parameters, and of shared memory (the largest there is).
const MAX_THREADS: u32 = 1024;
const MAX_GRID: [u32; 3] = [(1 << 31) - 1, 65535, 65535];
const MAX_ARGS: usize = 4096 / 8;
const MAX_SHARED: u32 = 228 << 10;

/// Bytes of the sections that a GPU plan refers to.
pub(super) struct SectionBytes {
    pub(super) weights: u64,
    pub(super) code: u64,
    pub(super) source: u64,
}

/// The first thing that is wrong, in words. Everything but the GPU's own part of `plan` has been checked.
pub(super) fn plan(
    plan: &TargetPlan,
    gpu: &GpuPlan,
    limits: &Limits,
    sections: &SectionBytes,
) -> Result<(), String> {
    let step = gpu.step;
    let agrees = step.max_rows >= limits.max_rows
        && step.max_rows <= u32::from(u16::MAX) + 1
        && step.slots == limits.max_batch
        && step.tables as usize == 1 + plan.kv.windows.len()
        && step.pages_per_slot == plan.kv.pages_per_slot;
    if !agrees {
        return Err(format!(
            "a step block of {} rows and {} tables of {} slots of {} pages is not the plan's",
            step.max_rows, step.tables, step.slots, step.pages_per_slot
        ));
    }
    bounded("zeroed bytes", gpu.zeroed_bytes, 0, plan.arena_bytes)?;
    if let Some(candidates) = &gpu.candidates {
        check_candidates(candidates, plan)?;
    }
    if !plan.symbols.is_empty() || plan.workers != 1 {
        return Err("a GPU plan has one worker and no symbols".into());
    }
    let count = gpu.kernels.len() as u64;
    bounded("kernels", count, 1, MAX_KERNELS as u64)?;
    for (index, kernel) in gpu.kernels.iter().enumerate() {
        check_kernel(kernel, sections).map_err(|why| format!("kernel {index}: {why}"))?;
    }
    let spaces = Spaces {
        arena: plan.arena_bytes,
        weights: sections.weights,
        kv: plan.kv.bytes,
        step: step.bytes(),
    };
    for (index, program) in plan.programs.iter().enumerate() {
        let launches = program.launches.len() as u64;
        let what = format!("launches of program {index}");
        bounded(&what, launches, 1, MAX_LAUNCHES as u64)?;
        for (at, launch) in program.launches.iter().enumerate() {
            let grid = launch.grid.as_ref();
            grid.ok_or_else(|| "names no kernel".to_owned())
                .and_then(|grid| check_grid(grid, gpu, &spaces))
                .map_err(|why| format!("program {index}, launch {at}: {why}"))?;
        }
    }
    Ok(())
}

fn check_candidates(candidates: &CandidatePlan, plan: &TargetPlan) -> Result<(), String> {
    let count = candidates.count.into();
    bounded("candidates of a row", count, 1, MAX_CANDIDATES)?;
    let head = plan.programs.iter().filter(|p| p.stage == Stage::Head);
    let rows = u64::from(head.map(|p| p.rows).max().unwrap_or(0));
    for offset in [candidates.ids_offset, candidates.values_offset] {
        let end = offset.checked_add(rows * 4 * count);
        if end.is_none_or(|end| end > plan.arena_bytes) || !offset.is_multiple_of(4) {
            return Err(format!(
                "candidates of {rows} rows at {offset} do not fit in the arena of {} bytes",
                plan.arena_bytes
            ));
        }
    }
    Ok(())
}

/// Bytes a GPU plan allocates, all below [`MAX_BYTES`].
pub(super) fn allocated(plan: &TargetPlan, gpu: &GpuPlan, weights: u64) -> u64 {
    let step = gpu.step.bytes().min(MAX_BYTES);
    plan.arena_bytes + plan.kv.bytes + weights.min(MAX_BYTES) + step
}

fn check_kernel(kernel: &GpuKernel, sections: &SectionBytes) -> Result<(), String> {
    let name = &kernel.name;
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(word) {
        return Err("its name is no symbol".into());
    }
    let ranges = [
        ("code", kernel.code, 1, sections.code),
        ("source", kernel.source, 0, sections.source),
    ];
    for (what, (offset, bytes), least, section) in ranges {
        let end = offset.checked_add(bytes);
        if bytes < least || end.is_none_or(|end| end > section) {
            return Err(format!(
                "{bytes} bytes of {what} at {offset} of {section} bytes"
            ));
        }
    }
    let threads = u64::from(kernel.threads);
    bounded("threads", threads, 1, MAX_THREADS.into())
}

/// Bytes of what arguments point into.
struct Spaces {
    arena: u64,
    weights: u64,
    kv: u64,
    step: u64,
}

fn check_grid(grid: &Grid, gpu: &GpuPlan, spaces: &Spaces) -> Result<(), String> {
    let kernels = gpu.kernels.len() as u64;
    bounded("kernel", grid.kernel.into(), 0, kernels - 1)?;
    for (axis, (blocks, most)) in ["x", "y", "z"].iter().zip(grid.grid.iter().zip(MAX_GRID)) {
        let what = format!("thread blocks along {axis}");
        bounded(&what, u64::from(*blocks), 1, most.into())?;
    }
    let shared = grid.shared_bytes.into();
    bounded("shared memory", shared, 0, MAX_SHARED.into())?;
    bounded("arguments", grid.args.len() as u64, 0, MAX_ARGS as u64)?;
    for (index, arg) in grid.args.iter().enumerate() {
        let (what, offset, bytes) = match *arg {
            GridArg::Const(_) => continue,
            GridArg::Arena(offset) => ("the arena", offset, spaces.arena),
            GridArg::Weights(offset) => ("the weights", offset, spaces.weights),
            GridArg::Kv(offset) => ("the KV pool", offset, spaces.kv),
            GridArg::Step(offset) => ("the step block", offset, spaces.step),
        };
        if offset >= bytes {
            return Err(format!(
                "argument {index} is byte {offset} of {what}, which has {bytes}"
            ));
        }
    }
    Ok(())
}
