//! The CPU device: memory for the arena and the KV pool, machine code, and the threads that run it. Steps are checked
//! here against everything the code takes for granted, so that `run` is safe for any input to a well-formed bundle.

mod barrier;
mod code;
mod team;

#[cfg(test)]
mod tests;

use super::{Device, StepInput};
use crate::bundle::Bundle;
use crate::error::Error;
use crate::manifest::{Limits, Stage, TargetPlan};
use barrier::{Barrier, barrier_symbol};
use code::{Code, Entry};
use coldpress_kernels::cpu::abi::{PAGE_TOKENS, Step, WorkerContext};
use memmap2::{MmapMut, MmapOptions, MmapRaw};
use std::sync::Arc;
use std::time::Duration;
use team::Team;

/// How long workers wait awake for the next program before they sleep: about as long as sampling takes between two
/// steps, since waking them costs more than a small model's launch.
pub const DEFAULT_SPIN: Duration = Duration::from_millis(1);

/// One plan of a bundle, loaded.
pub struct CpuDevice {
    // Field order is drop order: threads first, then what they use.
    team: Team,
    programs: Vec<LoadedProgram>,
    context: Box<WorkerContext>,
    limits: Limits,
    vocab_size: u32,
    kv_pages: u32,
    logits_offset: usize,
    logits_stride: usize,
    logits_rows: usize,
    arena: MmapRaw,
    _kv: MmapRaw,
    _symbols: Vec<*const u8>,
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

impl CpuDevice {
    /// Loads plan `plan` of `bundle`: maps code, allocates arena and KV pool, starts threads.
    ///
    /// # Errors
    /// [`Error::Memory`] if an allocation fails, [`Error::Mismatch`] if the code calls micro-kernels this runtime lacks
    /// (all are listed), [`Error::Device`] if there is no such plan or the system refuses code or threads.
    pub fn new(bundle: Arc<Bundle>, plan: usize, spin: Duration) -> Result<Self, Error> {
        let manifest = bundle.manifest();
        let Some(plan) = manifest.plans.get(plan) else {
            return Err(Error::Device(format!("the bundle has no plan {plan}")));
        };
        let section = |what: &str, index| {
            let bytes = bundle.section_bytes(index);
            bytes.ok_or_else(|| Error::Device(format!("the bundle has no {what} section {index}")))
        };
        let weights = section("weights", plan.weights_section)?.as_ptr();
        let code = Code::new(section("code", plan.code_section)?)?;
        let programs = load_programs(plan, &code)?;
        let symbols = resolve(plan)?;
        let arena = allocate("activation arena", plan.arena_bytes)?;
        let kv = allocate("KV pool", plan.kv.bytes)?;
        let barrier = Arc::new(Barrier::new(plan.workers));
        let context = Box::new(WorkerContext {
            arena: arena.as_mut_ptr(),
            weights,
            kv: kv.as_mut_ptr(),
            step: std::ptr::null(),
            symbols: symbols.as_ptr(),
            barrier: Arc::as_ptr(&barrier).cast(),
        });
        let head = programs.iter().filter(|p| p.stage == Stage::Head);
        Ok(Self {
            team: Team::new(plan.workers, spin)?,
            logits_rows: head.map(|p| p.rows).max().unwrap_or(0),
            programs,
            context,
            limits: manifest.limits,
            vocab_size: manifest.model.vocab_size,
            kv_pages: plan.kv.pages,
            logits_offset: plan.logits_offset as usize,
            logits_stride: plan.logits_stride as usize,
            arena,
            _kv: kv,
            _symbols: symbols,
            _barrier: barrier,
            _code: code,
            _bundle: bundle.clone(),
        })
    }

    /// Whether `step` is within what the code of the bundle takes for granted; the reason if not.
    fn check(&self, program: &LoadedProgram, step: &StepInput<'_>) -> Result<(), String> {
        let rows = step.tokens.len();
        if step.positions.len() != rows || step.slots.len() != rows {
            return Err("tokens, positions and slots differ in length".into());
        }
        let (live, most) = match program.stage {
            Stage::Trunk => (rows, program.rows),
            Stage::Head => (step.logit_rows.len(), program.rows),
        };
        if live == 0 || live > most || rows > self.limits.max_rows as usize {
            return Err(format!("{live} rows in a program for 1 to {most}"));
        }
        let outside = |values: &[u32], end: u32| values.iter().find(|&&v| v >= end).copied();
        if let Some(token) = outside(step.tokens, self.vocab_size) {
            return Err(format!(
                "token {token}: the vocabulary has {}",
                self.vocab_size
            ));
        }
        if let Some(position) = outside(step.positions, self.limits.max_context) {
            return Err(format!("position {position} is outside the context"));
        }
        let kv = step.kv;
        let per_slot = self.limits.max_context.div_ceil(PAGE_TOKENS as u32);
        if kv.pages() > self.kv_pages || kv.pages_per_slot() < per_slot {
            return Err("the page table is of another plan".into());
        }
        if let Some(slot) = outside(step.slots, kv.slots()) {
            return Err(format!("slot {slot} does not exist"));
        }
        if let Some(row) = outside(step.logit_rows, rows as u32) {
            return Err(format!("logits of row {row} of {rows}"));
        }
        Ok(())
    }
}

impl Device for CpuDevice {
    fn run(&mut self, program: usize, step: &StepInput<'_>) -> Result<(), Error> {
        let Some(loaded) = self.programs.get(program) else {
            return Err(Error::Device(format!("there is no program {program}")));
        };
        self.check(loaded, step)
            .map_err(|why| Error::Device(format!("program {program}: {why}")))?;
        let abi = Step {
            rows: step.tokens.len(),
            logits: step.logit_rows.len(),
            tokens: step.tokens.as_ptr(),
            positions: step.positions.as_ptr(),
            slots: step.slots.as_ptr(),
            logit_rows: step.logit_rows.as_ptr(),
            page_table: step.kv.page_table().as_ptr(),
            pages_per_slot: step.kv.pages_per_slot() as usize,
        };
        self.context.step = &abi;
        // SAFETY: one entry per worker of the barrier; the code was compiled for the memory in `context` (a bundle is
        // trusted like an executable), `step` was checked, and `abi` outlives the run.
        unsafe { self.team.run(&loaded.entries, &raw const *self.context) };
        self.context.step = std::ptr::null();
        Ok(())
    }

    fn logits(&self, row: usize) -> &[f32] {
        assert!(
            row < self.logits_rows,
            "logits row {row} of {}",
            self.logits_rows
        );
        let offset = self.logits_offset + row * self.logits_stride;
        // SAFETY: opening the bundle checked that the logits of the largest head program are inside the arena and
        // aligned; the arena is initialised (zeros at least) and nobody writes it while `self` is borrowed.
        unsafe {
            let start = self.arena.as_ptr().add(offset).cast::<f32>();
            std::slice::from_raw_parts(start, self.vocab_size as usize)
        }
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

/// Zeroed memory, page-aligned.
fn allocate(what: &str, bytes: u64) -> Result<MmapRaw, Error> {
    let failed =
        |why: String| Error::Memory(format!("allocating {bytes} bytes for the {what}: {why}"));
    let length = usize::try_from(bytes).map_err(|e| failed(e.to_string()))?;
    let map: MmapMut = MmapOptions::new()
        .len(length.max(1))
        .map_anon()
        .map_err(|e| failed(e.to_string()))?;
    // Fewer, larger pages where the system has them; without, it is only slower.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    Ok(map.into())
}
