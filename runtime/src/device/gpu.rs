//! Runs a GPU plan on an [`Accelerator`]: maps or uploads weights, loads kernels, gives every launch its addresses, and plays a
//! program's launches over the rows of a step. What hardware it is, is the accelerator's business; which program runs, the
//! executor's. Every number of the manifest is checked before it becomes an address.

mod bind;
mod readback;
mod step;

#[cfg(test)]
mod tests;

use super::accelerator::Accelerator;
use super::limits::StepLimits;
use super::{Candidates, Device, StepInput, Timeline, WorkerTimeline};
use crate::bundle::{Bundle, MappedSection};
use crate::error::Error;
use crate::manifest::{GpuPlan, Manifest, Stage, TargetPlan};
use bind::{Memory, images};
use readback::{Largest, Logits};
use std::sync::Arc;
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

impl<'a> Sections<'a> {
    fn of(bundle: &'a Bundle, plan: usize) -> Result<Self, Error> {
        let (target, gpu) = gpu_plan(bundle.manifest(), plan)?;
        Ok(Self {
            weights: bundle.needed_section("weights", target.weights_section)?,
            code: bundle.needed_section("code", target.code_section)?,
            source: bundle.needed_section("source", gpu.source_section)?,
        })
    }
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
    largest: Option<Largest<A>>,
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

impl<A: Accelerator> GpuDevice<A> {
    /// Loads plan `plan` of `bundle` on `accelerator`; the bundle is not needed afterwards.
    ///
    /// # Errors
    /// [`Error::Memory`] if memory is short, [`Error::Device`] if there is no such plan, it is no GPU plan, contradicts
    /// itself, or the accelerator refuses.
    pub fn new(bundle: &Bundle, plan: usize, accelerator: A) -> Result<Self, Error> {
        let sections = Sections::of(bundle, plan)?;
        Self::load(bundle.manifest(), plan, sections, None, accelerator)
    }

    /// As [`GpuDevice::new`]; kernels that read the host's memory read the weights where they are mapped, and `bundle` stays
    /// so.
    ///
    /// # Errors
    /// As [`GpuDevice::new`].
    pub fn in_place(bundle: &Arc<Bundle>, plan: usize, accelerator: A) -> Result<Self, Error> {
        let manifest = bundle.manifest();
        let (target, _) = gpu_plan(manifest, plan)?;
        let sections = Sections::of(bundle, plan)?;
        let weights = MappedSection::new(bundle, target.weights_section);
        Self::load(manifest, plan, sections, weights.as_ref(), accelerator)
    }

    /// Loads plan `plan` of `manifest` with sections from anywhere, as tests do.
    ///
    /// # Errors
    /// As [`GpuDevice::new`].
    pub fn from_sections(
        manifest: &Manifest,
        plan: usize,
        sections: Sections<'_>,
        accelerator: A,
    ) -> Result<Self, Error> {
        Self::load(manifest, plan, sections, None, accelerator)
    }

    /// `mapped`: the weights once more, where they are mapped.
    fn load(
        manifest: &Manifest,
        plan: usize,
        sections: Sections<'_>,
        mapped: Option<&MappedSection>,
        mut accelerator: A,
    ) -> Result<Self, Error> {
        let (target, gpu) = gpu_plan(manifest, plan)?;
        let block = StepBlock::new(gpu.step, &target.kv.windows)?;
        if target.kv.page_tokens == 0 || gpu.zeroed_bytes > target.arena_bytes {
            return Err(Error::Device("the plan's memory contradicts itself".into()));
        }
        let weight_bytes = sections.weights.len() as u64;
        let in_place = match mapped {
            Some(section) => accelerator.map("weights", section)?,
            None => None,
        };
        let upload = in_place.is_none();
        let mut weights = match in_place {
            Some(weights) => weights,
            None => accelerator.allocate("weights", weight_bytes)?,
        };
        let mut arena = accelerator.allocate("activation arena", target.arena_bytes)?;
        let mut kv = accelerator.allocate("KV pool", target.kv.bytes)?;
        let step = accelerator.allocate("step block", gpu.step.bytes())?;
        if upload {
            for (index, chunk) in sections.weights.chunks(CHUNK).enumerate() {
                accelerator.write(&mut weights, (index * CHUNK) as u64, chunk)?;
            }
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
            largest: Largest::new(manifest, target, gpu)?,
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
        let followed = self.largest.as_ref().map_or(0, |l| l.rows());
        self.limits
            .check(program.stage, program.rows, followed, step)
            .and_then(|()| self.block.fill(step, self.page_tokens))
            .map_err(|why| Error::Device(format!("program {index}: {why}")))?;
        if program.stage == Stage::Head {
            self.logits.forget();
            if let Some(largest) = &mut self.largest {
                largest.expect(step.logit_rows.len());
            }
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

    fn fetch(&mut self, first: usize, end: usize) -> Result<(), Error> {
        let (accelerator, arena) = (&mut self.accelerator, &self.buffers.arena);
        let fetched = self.logits.fetch(accelerator, arena, first..end);
        self.unknown |= fetched.is_err();
        fetched
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
}

impl<A: Accelerator> Device for GpuDevice<A> {
    fn run(&mut self, program: usize, step: &StepInput<'_>) -> Result<(), Error> {
        self.start(program, step)
    }

    fn submit(&mut self) -> Result<(), Error> {
        let submitted = self.accelerator.submit();
        self.unknown |= submitted.is_err();
        submitted
    }

    fn finish(&mut self) -> Result<(), Error> {
        // Reading waits as well, and almost every step is followed by it.
        let finished = match &mut self.largest {
            Some(largest) if largest.is_due() => {
                largest.fetch(&mut self.accelerator, &self.buffers.arena)
            }
            _ => self.accelerator.synchronise(),
        };
        self.unknown |= finished.is_err();
        finished
    }

    fn logits(&mut self, row: usize) -> Result<&[f32], Error> {
        self.fetch(row, row + 1)?;
        Ok(self.logits.row(row))
    }

    fn candidates(&mut self, row: usize) -> Result<Option<Candidates<'_>>, Error> {
        let Some(largest) = &mut self.largest else {
            return Ok(None);
        };
        if largest.is_due() {
            let read = largest.fetch(&mut self.accelerator, &self.buffers.arena);
            self.unknown |= read.is_err();
            read?;
        }
        Ok(Some(largest.row(row)))
    }

    fn feeds_back(&self) -> bool {
        self.largest.is_some() && !self.timing
    }

    fn queue_candidates(&mut self) -> Result<(), Error> {
        let Some(largest) = &mut self.largest else {
            return Err(Error::Device("the plan sorts no logits out".into()));
        };
        let queued = largest.queue(&mut self.accelerator, &self.buffers.arena);
        let queued = queued.and_then(|()| self.accelerator.submit());
        self.unknown |= queued.is_err();
        queued
    }

    fn collect(&mut self) -> Result<(), Error> {
        let Some(largest) = &mut self.largest else {
            return Err(Error::Device("the plan sorts no logits out".into()));
        };
        let collected = largest.collect(&mut self.accelerator);
        self.unknown |= collected.is_err();
        collected
    }

    fn forget_queued(&mut self) {
        if let Some(largest) = &mut self.largest {
            largest.forget_queued();
        }
    }

    fn visit_logits(
        &mut self,
        rows: usize,
        visit: &(dyn Fn(usize, &[f32]) + Sync),
    ) -> Result<(), Error> {
        self.fetch(0, rows)?;
        self.logits.visit(rows, visit);
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
