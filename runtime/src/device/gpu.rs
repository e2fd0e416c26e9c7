//! Runs a GPU plan on an [`Accelerator`]: uploads weights and kernels, gives every launch its addresses, and plays a
//! program's launches over the rows of a step. What hardware it is, is the accelerator's business; which program runs, the
//! executor's. Every number of the manifest is checked before it becomes an address.

mod step;

#[cfg(test)]
mod tests;

use super::accelerator::{Accelerator, BoundLaunch, KernelImage};
use super::limits::StepLimits;
use super::{Device, StepInput, Timeline, WorkerTimeline};
use crate::bundle::Bundle;
use crate::error::Error;
use crate::manifest::{GpuPlan, Grid, GridArg, Launch, Manifest, Program, Stage, TargetPlan};
use step::StepBlock;

/// Weights travel in pieces of this many bytes, so that the host holds no second copy of them.
const CHUNK: usize = 64 << 20;
/// Program runs whose times are kept.
const MOST_TIMELINES: usize = 4096;

/// The sections of a bundle that a GPU plan refers to.
#[derive(Clone, Copy, Debug)]
pub struct Sections<'a> {
    /// Packed weights.
    pub weights: &'a [u8],
    /// Modules of all kernels.
    pub code: &'a [u8],
    /// Sources of all kernels.
    pub source: &'a [u8],
}

/// One plan of a bundle, loaded.
pub struct GpuDevice<A: Accelerator> {
    accelerator: A,
    buffers: Buffers<A>,
    programs: Vec<Loaded<A>>,
    limits: StepLimits,
    page_tokens: u32,
    block: StepBlock,
    logits: Logits,
    zeroed_bytes: u64,
    /// Whether something failed since the device's memory was last known.
    unknown: bool,
    timing: bool,
    timelines: Vec<Timeline>,
    lost: u64,
}

struct Buffers<A: Accelerator> {
    _weights: A::Buffer,
    arena: A::Buffer,
    _kv: A::Buffer,
    step: A::Buffer,
}

struct Loaded<A: Accelerator> {
    stage: Stage,
    rows: usize,
    recorded: A::Recorded,
    /// Kernel of each launch.
    kernels: Vec<u32>,
}

/// Logits rows, and which of them the host holds.
struct Logits {
    /// Arena offset of row 0.
    offset: u64,
    /// Bytes between rows.
    stride: usize,
    /// Logits in a row.
    vocab: usize,
    /// `[rows of the largest head program][stride / 4]`.
    values: Vec<f32>,
    /// Per row, whether `values` has what the last head program left.
    held: Vec<bool>,
}

impl<A: Accelerator> GpuDevice<A> {
    /// Loads plan `plan` of `bundle` on `accelerator`; the bundle is not needed afterwards.
    ///
    /// # Errors
    /// [`Error::Memory`] if memory is short, [`Error::Device`] if there is no such plan, it is no GPU plan, contradicts
    /// itself, or the accelerator refuses.
    pub fn new(bundle: &Bundle, plan: usize, accelerator: A) -> Result<Self, Error> {
        let manifest = bundle.manifest();
        let (target, gpu) = gpu_plan(manifest, plan)?;
        let section = |what: &str, index| {
            let bytes = bundle.section_bytes(index);
            bytes.ok_or_else(|| Error::Device(format!("the bundle has no {what} section {index}")))
        };
        let sections = Sections {
            weights: section("weights", target.weights_section)?,
            code: section("code", target.code_section)?,
            source: section("source", gpu.source_section)?,
        };
        Self::from_sections(manifest, plan, sections, accelerator)
    }

    /// Loads plan `plan` of `manifest` with sections from anywhere, as tests do.
    ///
    /// # Errors
    /// As [`GpuDevice::new`].
    pub fn from_sections(
        manifest: &Manifest,
        plan: usize,
        sections: Sections<'_>,
        mut accelerator: A,
    ) -> Result<Self, Error> {
        let (target, gpu) = gpu_plan(manifest, plan)?;
        let block = StepBlock::new(gpu.step)?;
        if target.kv.page_tokens == 0 || gpu.zeroed_bytes > target.arena_bytes {
            return Err(Error::Device("the plan's memory contradicts itself".into()));
        }
        let weight_bytes = sections.weights.len() as u64;
        let mut weights = accelerator.allocate("weights", weight_bytes)?;
        let mut arena = accelerator.allocate("activation arena", target.arena_bytes)?;
        let mut kv = accelerator.allocate("KV pool", target.kv.bytes)?;
        let step = accelerator.allocate("step block", gpu.step.bytes())?;
        for (index, chunk) in sections.weights.chunks(CHUNK).enumerate() {
            accelerator.write(&mut weights, (index * CHUNK) as u64, chunk)?;
        }
        accelerator.zero(&mut arena, 0, gpu.zeroed_bytes)?;
        // Attention loads whole pages: what lies behind a sequence's end must be numbers.
        accelerator.zero(&mut kv, 0, target.kv.bytes)?;
        accelerator.load_kernels(&images(target, gpu, sections)?)?;
        let region = |buffer: &A::Buffer, bytes| (accelerator.address(buffer), bytes);
        let memory = Memory {
            arena: region(&arena, target.arena_bytes),
            weights: region(&weights, weight_bytes),
            kv: region(&kv, target.kv.bytes),
            step: region(&step, gpu.step.bytes()),
        };
        let programs = target.programs.iter().enumerate();
        let programs = programs.map(|(index, program)| {
            let (launches, kernels) = memory
                .bind(program, gpu)
                .map_err(|why| Error::Device(format!("program {index}: {why}")))?;
            Ok(Loaded {
                stage: program.stage,
                rows: program.rows as usize,
                recorded: accelerator.prepare(launches)?,
                kernels,
            })
        });
        let programs = programs.collect::<Result<_, Error>>()?;
        accelerator.synchronise()?;
        Ok(Self {
            accelerator,
            buffers: Buffers {
                _weights: weights,
                arena,
                _kv: kv,
                step,
            },
            logits: Logits::new(manifest, target)?,
            programs,
            limits: StepLimits::new(manifest, target),
            page_tokens: target.kv.page_tokens,
            block,
            zeroed_bytes: gpu.zeroed_bytes,
            unknown: false,
            timing: false,
            timelines: Vec::new(),
            lost: 0,
        })
    }

    fn start(&mut self, index: usize, step: &StepInput<'_>) -> Result<(), Error> {
        let Some(program) = self.programs.get_mut(index) else {
            return Err(Error::Device(format!("there is no program {index}")));
        };
        self.limits
            .check(program.stage, program.rows, step)
            .and_then(|()| self.block.fill(step, self.page_tokens))
            .map_err(|why| Error::Device(format!("program {index}: {why}")))?;
        if program.stage == Stage::Head {
            self.logits.held.fill(false);
        }
        let (accelerator, buffers) = (&mut self.accelerator, &mut self.buffers);
        if self.unknown {
            self.block.forget();
            accelerator.zero(&mut buffers.arena, 0, self.zeroed_bytes)?;
        }
        // Until the run is accepted; `finish` sets it again if it fails later.
        self.unknown = true;
        self.block
            .send(|offset, bytes| accelerator.write(&mut buffers.step, offset, bytes))?;
        if self.timing {
            let times = accelerator.run_timed(&mut program.recorded)?;
            let seconds = times.iter().sum();
            let calls = program.kernels.iter().copied().zip(times).collect();
            self.keep(index, seconds, calls);
        } else {
            accelerator.run(&mut program.recorded)?;
        }
        self.unknown = false;
        Ok(())
    }

    fn keep(&mut self, program: usize, seconds: f64, calls: Vec<(u32, f64)>) {
        if self.timelines.len() == MOST_TIMELINES {
            self.lost += calls.len() as u64;
            return;
        }
        self.timelines.push(Timeline {
            program,
            seconds,
            workers: vec![WorkerTimeline {
                woken: 0.0,
                ran: seconds,
                calls,
            }],
            lost: std::mem::take(&mut self.lost),
        });
    }

    /// Brings rows `first..end` to the host, those that it does not hold.
    fn fetch(&mut self, first: usize, end: usize) -> Result<(), Error> {
        let logits = &mut self.logits;
        assert!(
            end <= logits.held.len(),
            "logits row {} of {}",
            end - 1,
            logits.held.len()
        );
        let missing = |held: &bool| !held;
        let Some(skip) = logits.held[first..end].iter().position(missing) else {
            return Ok(());
        };
        let first = first + skip;
        let width = logits.stride / 4;
        let last = first * width..(end - 1) * width + logits.vocab;
        let values = &mut logits.values[last];
        let bytes = size_of_val(values);
        // SAFETY: the same memory as bytes; any bytes are f32, and the borrow of `values` lasts as long.
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast::<u8>(), bytes) };
        let offset = logits.offset + (first * logits.stride) as u64;
        let read = self.accelerator.read(&self.buffers.arena, offset, bytes);
        self.unknown |= read.is_err();
        read?;
        self.logits.held[first..end].fill(true);
        Ok(())
    }
}

impl<A: Accelerator> Device for GpuDevice<A> {
    fn run(&mut self, program: usize, step: &StepInput<'_>) -> Result<(), Error> {
        self.start(program, step)
    }

    fn finish(&mut self) -> Result<(), Error> {
        let finished = self.accelerator.synchronise();
        self.unknown |= finished.is_err();
        finished
    }

    fn logits(&mut self, row: usize) -> Result<&[f32], Error> {
        self.fetch(row, row + 1)?;
        Ok(self.logits.row(row))
    }

    fn visit_logits(
        &mut self,
        rows: usize,
        visit: &(dyn Fn(usize, &[f32]) + Sync),
    ) -> Result<(), Error> {
        if rows > 0 {
            self.fetch(0, rows)?;
        }
        (0..rows).for_each(|row| visit(row, self.logits.row(row)));
        Ok(())
    }

    fn read_bandwidth(&mut self) -> Result<Option<f64>, Error> {
        self.accelerator.read_bandwidth()
    }

    fn set_timing(&mut self, on: bool) -> Result<(), Error> {
        self.timing = on;
        self.timelines.clear();
        self.lost = 0;
        Ok(())
    }

    /// One worker per run; its calls are the program's launches in order, by index into the plan's kernels.
    fn take_timelines(&mut self) -> Vec<Timeline> {
        std::mem::take(&mut self.timelines)
    }
}

impl Logits {
    fn new(manifest: &Manifest, plan: &TargetPlan) -> Result<Self, Error> {
        let head = plan.programs.iter().filter(|p| p.stage == Stage::Head);
        let rows = head.map(|p| p.rows).max().unwrap_or(0);
        let vocab = u64::from(manifest.model.vocab_size);
        let (stride, offset) = (plan.logits_stride, plan.logits_offset);
        let end = u64::from(rows).checked_mul(stride);
        let inside = stride.is_multiple_of(4)
            && stride >= 4 * vocab
            && end
                .and_then(|end| end.checked_add(offset))
                .is_some_and(|end| end - stride + 4 * vocab <= plan.arena_bytes);
        if rows > 0 && !inside {
            return Err(Error::Device(format!(
                "{rows} rows of logits are not inside the arena of {} bytes",
                plan.arena_bytes
            )));
        }
        Ok(Self {
            offset,
            stride: stride as usize,
            vocab: vocab as usize,
            values: vec![0.0; rows as usize * stride as usize / 4],
            held: vec![false; rows as usize],
        })
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * (self.stride / 4)..][..self.vocab]
    }
}

fn gpu_plan(manifest: &Manifest, plan: usize) -> Result<(&TargetPlan, &GpuPlan), Error> {
    let Some(target) = manifest.plans.get(plan) else {
        return Err(Error::Device(format!("the bundle has no plan {plan}")));
    };
    match &target.gpu {
        Some(gpu) => Ok((target, gpu)),
        None => Err(Error::Device(format!(
            "plan {plan} ({}) is for no GPU",
            target.requires.target
        ))),
    }
}

/// All kernels, with the most shared memory that any of their launches asks for.
fn images<'a>(
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
struct Memory {
    arena: (u64, u64),
    weights: (u64, u64),
    kv: (u64, u64),
    step: (u64, u64),
}

impl Memory {
    /// A program's launches with their addresses, and the kernel of each.
    fn bind(
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
