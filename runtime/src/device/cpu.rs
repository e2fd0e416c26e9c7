//! The CPU device: memory for the arena and the KV pool, machine code, and the threads that run it. Steps are checked
//! here against everything the code takes for granted, so that `run` is safe for any input to a well-formed bundle.

mod barrier;
mod code;
#[cfg(target_os = "linux")]
mod pages;
mod team;
#[cfg(target_arch = "x86_64")]
mod timed;

#[cfg(test)]
mod tests;

use super::limits::StepLimits;
use super::{Device, StepInput, Timeline};
use crate::bundle::Bundle;
use crate::error::Error;
use crate::manifest::{Stage, TargetPlan};
use barrier::{Barrier, barrier_symbol};
use code::{Code, Entry};
use coldpress_kernels::cpu::abi::{Step, WorkerContext};
use memmap2::{MmapMut, MmapOptions, MmapRaw};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use team::Team;
#[cfg(target_arch = "x86_64")]
use timed::{Moment, Timed};

/// How long workers wait awake for the next program before they sleep: about as long as sampling takes between two
/// steps, since waking them costs more than a small model's launch.
pub const DEFAULT_SPIN: Duration = Duration::from_millis(1);

/// One plan of a bundle, loaded.
pub struct CpuDevice {
    // Field order is drop order: threads first, then what they use.
    team: Team,
    programs: Vec<LoadedProgram>,
    /// Per worker.
    contexts: Vec<WorkerContext>,
    limits: StepLimits,
    logits: Logits,
    arena: MmapRaw,
    _kv: MmapRaw,
    symbols: Vec<*const u8>,
    #[cfg(target_arch = "x86_64")]
    timed: Option<Box<Timed>>,
    _barrier: Arc<Barrier>,
    _code: Code,
    _bundle: Arc<Bundle>,
}

struct LoadedProgram {
    stage: Stage,
    rows: usize,
    entries: Vec<Entry>,
}

// SAFETY: the raw pointers lead into memory the device owns, and code runs only inside `run`, which takes `&mut self`.
unsafe impl Send for CpuDevice {}

/// Where head programs leave logits.
struct Logits {
    /// Arena offset of row 0.
    offset: usize,
    /// Bytes between rows.
    stride: usize,
    /// Rows of the largest head program.
    rows: usize,
    /// Logits in a row.
    vocab: usize,
}

impl Logits {
    fn row<'a>(&self, arena: &'a MmapRaw, row: usize) -> &'a [f32] {
        assert!(row < self.rows, "logits row {row} of {}", self.rows);
        let offset = self.offset + row * self.stride;
        // SAFETY: opening the bundle checked that the logits of the largest head program are inside the arena and
        // aligned; the arena is initialised (zeros at least), and only a program writes it, for which the device is
        // borrowed mutably while nobody holds a row.
        unsafe {
            let start = arena.as_ptr().add(offset).cast::<f32>();
            std::slice::from_raw_parts(start, self.vocab)
        }
    }
}

/// A program's entries and the workers' contexts, for all workers at once.
struct Parts<'a>(&'a [Entry], &'a [WorkerContext]);

// SAFETY: workers only read entries and contexts, and the code divides the memory that the contexts point to.
unsafe impl Sync for Parts<'_> {}

impl Parts<'_> {
    /// # Safety
    /// The code may be called with the contexts, by all workers at the same time.
    unsafe fn run(&self, worker: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.0[worker](&raw const self.1[worker]) };
    }
}

impl CpuDevice {
    /// Loads plan `plan` of `bundle`: maps code, allocates arena and KV pool (and with `touch` takes them from the system at
    /// once), starts threads that wait awake for `spin`.
    ///
    /// # Errors
    /// [`Error::Memory`] if an allocation fails, [`Error::Mismatch`] if the code calls micro-kernels this runtime lacks
    /// (all are listed), [`Error::Device`] if there is no such plan or the system refuses code or threads.
    pub fn new(
        bundle: Arc<Bundle>,
        plan: usize,
        spin: Duration,
        touch: bool,
    ) -> Result<Self, Error> {
        let manifest = bundle.manifest();
        let Some(plan) = manifest.plans.get(plan) else {
            return Err(Error::Device(format!("the bundle has no plan {plan}")));
        };
        let weights = bundle.needed_section("weights", plan.weights_section)?;
        #[cfg(target_os = "linux")]
        pages::enlarge(bundle.path(), weights);
        let code = Code::new(bundle.needed_section("code", plan.code_section)?)?;
        let programs = load_programs(plan, &code)?;
        let symbols = resolve(plan)?;
        let arena = allocate("activation arena", plan.arena_bytes, touch)?;
        let kv = allocate("KV pool", plan.kv.bytes, touch)?;
        let barrier = Arc::new(Barrier::new(plan.workers));
        let context = || WorkerContext {
            arena: arena.as_mut_ptr(),
            weights: weights.as_ptr(),
            kv: kv.as_mut_ptr(),
            step: std::ptr::null(),
            symbols: symbols.as_ptr(),
            barrier: Arc::as_ptr(&barrier).cast(),
        };
        let contexts = (0..plan.workers).map(|_| context()).collect();
        let head = programs.iter().filter(|p| p.stage == Stage::Head);
        Ok(Self {
            team: Team::new(plan.workers, spin)?,
            logits: Logits {
                offset: plan.logits_offset as usize,
                stride: plan.logits_stride as usize,
                rows: head.map(|p| p.rows).max().unwrap_or(0),
                vocab: manifest.model.vocab_size as usize,
            },
            programs,
            contexts,
            limits: StepLimits::new(manifest, plan),
            arena,
            _kv: kv,
            symbols,
            #[cfg(target_arch = "x86_64")]
            timed: None,
            _barrier: barrier,
            _code: code,
            _bundle: bundle.clone(),
        })
    }
}

impl Device for CpuDevice {
    fn run(&mut self, program: usize, step: &StepInput<'_>) -> Result<(), Error> {
        let Some(loaded) = self.programs.get(program) else {
            return Err(Error::Device(format!("there is no program {program}")));
        };
        self.limits
            .check(loaded.stage, loaded.rows, 0, step)
            .map_err(|why| Error::Device(format!("program {program}: {why}")))?;
        let entries = (step.kv.slots() * step.kv.pages_per_slot()) as usize;
        let tables = step.kv.page_table().chunks(entries.max(1));
        let of_table = |table: &[u32]| Step {
            rows: step.tokens.len(),
            logits: step.logit_rows.len(),
            tokens: step.tokens.as_ptr(),
            positions: step.positions.as_ptr(),
            slots: step.slots.as_ptr(),
            logit_rows: step.logit_rows.as_ptr(),
            page_table: table.as_ptr(),
            pages_per_slot: step.kv.pages_per_slot() as usize,
        };
        let steps: Vec<Step> = tables.map(of_table).collect();
        for context in &mut self.contexts {
            context.step = steps.as_ptr();
        }
        let parts = Parts(&loaded.entries, &self.contexts);
        // SAFETY: there is one entry and one context per worker of the barrier; the code was compiled for the memory in
        // the contexts (a bundle is trusted like an executable), `step` was checked, and `steps` outlives the run.
        let part = |worker: usize| unsafe { parts.run(worker) };
        #[cfg(target_arch = "x86_64")]
        if let Some(timed) = &mut self.timed {
            let (started, around) = (Moment::now(), &**timed);
            self.team
                .run(&|worker| around.around(worker, || part(worker)));
            timed.finish(program, started);
            return Ok(());
        }
        self.team.run(&part);
        Ok(())
    }

    fn logits(&mut self, row: usize) -> Result<&[f32], Error> {
        Ok(self.logits.row(&self.arena, row))
    }

    fn visit_logits(
        &mut self,
        rows: usize,
        visit: &(dyn Fn(usize, &[f32]) + Sync),
    ) -> Result<(), Error> {
        let place = &self.logits;
        assert!(rows <= place.rows, "{rows} logits rows of {}", place.rows);
        if rows < 2 {
            (0..rows).for_each(|row| visit(row, place.row(&self.arena, row)));
            return Ok(());
        }
        let (next, arena) = (AtomicUsize::new(0), &self.arena);
        self.team.run(&|_| {
            loop {
                let row = next.fetch_add(1, Ordering::Relaxed);
                if row >= rows {
                    return;
                }
                visit(row, place.row(arena, row));
            }
        });
        Ok(())
    }

    #[cfg(target_arch = "x86_64")]
    fn set_timing(&mut self, on: bool) -> Result<(), Error> {
        self.timed = match on {
            true => Some(Box::new(Timed::new(&self.symbols, self.contexts.len())?)),
            false => None,
        };
        for (worker, context) in self.contexts.iter_mut().enumerate() {
            let timed = self.timed.as_ref();
            context.symbols = timed.map_or(self.symbols.as_ptr(), |t| t.table(worker));
        }
        Ok(())
    }

    #[cfg(target_arch = "x86_64")]
    fn take_timelines(&mut self) -> Vec<Timeline> {
        self.timed.as_mut().map(|t| t.take()).unwrap_or_default()
    }
}

fn load_programs(plan: &TargetPlan, code: &Code) -> Result<Vec<LoadedProgram>, Error> {
    let load = |(index, program): (usize, &crate::manifest::Program)| {
        let entries = program.entries.iter().map(|&offset| code.entry(offset));
        let entries: Option<Vec<Entry>> = entries.collect();
        match entries {
            Some(entries) if entries.len() == plan.workers as usize => Ok(LoadedProgram {
                stage: program.stage,
                rows: program.rows as usize,
                entries,
            }),
            _ => Err(Error::Device(format!(
                "program {index} lacks an entry point inside the code for each of {} workers",
                plan.workers
            ))),
        }
    };
    plan.programs.iter().enumerate().map(load).collect()
}

/// Addresses of the plan's symbols, in order.
fn resolve(plan: &TargetPlan) -> Result<Vec<*const u8>, Error> {
    let mut missing = Vec::new();
    let mut addresses = Vec::with_capacity(plan.symbols.len());
    for name in &plan.symbols {
        if name == "barrier" {
            addresses.push(barrier_symbol as *const u8);
        } else if let Some(symbol) = coldpress_kernels::cpu::lookup(name) {
            addresses.push(symbol.0.cast());
        } else {
            missing.push(name.as_str());
        }
    }
    if missing.is_empty() {
        return Ok(addresses);
    }
    Err(Error::Mismatch(vec![format!(
        "the code calls micro-kernels this runtime lacks ({}); recompile with the coldpress of this runtime",
        missing.join(", ")
    )]))
}

/// Zeroed memory, page-aligned; with `touch`, all of it present.
fn allocate(what: &str, bytes: u64, touch: bool) -> Result<MmapRaw, Error> {
    let failed =
        |why: String| Error::Memory(format!("allocating {bytes} bytes for the {what}: {why}"));
    let length = usize::try_from(bytes).map_err(|e| failed(e.to_string()))?;
    let map: MmapMut = MmapOptions::new()
        .len(length.max(1))
        .map_anon()
        .map_err(|e| failed(e.to_string()))?;
    // Fewer, larger pages where the system has them; without, it is only slower.
    #[cfg(target_os = "linux")]
    {
        let _ = map.advise(memmap2::Advice::HugePage);
        if touch {
            let _ = map.advise(memmap2::Advice::PopulateWrite);
        }
    }
    Ok(map.into())
}
