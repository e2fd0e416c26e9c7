//! Runs steps: checks rows, keeps the KV page table, chooses buckets and reads logits. What a row means (prompt, decode,
//! speculation) is the caller's business; how a program runs is the device's.

mod buckets;
mod queue;

#[cfg(test)]
mod tests;

use crate::bundle::Bundle;
pub use crate::device::GIVEN;
use crate::device::cpu::{CpuDevice, DEFAULT_SPIN};
use crate::device::cuda::Cuda;
use crate::device::{Candidates, Device, GpuDevice, StepInput, Timeline};
use crate::error::Error;
use crate::kv_cache::KvCache;
use crate::manifest::{Limits, Manifest, Stage};
use buckets::Buckets;
pub use queue::MOST_QUEUED;
use queue::Queued;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One token of one slot in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Token id.
    pub token: u32,
    /// Slot, from [`Executor::acquire_slot`].
    pub slot: u32,
    /// Position in the slot's sequence: the number of tokens before it.
    pub position: u32,
    /// Whether the logits that follow this token are wanted.
    pub wants_logits: bool,
}

/// How to run a bundle.
#[derive(Clone, Copy, Debug)]
pub struct ExecutorOptions {
    /// How long idle workers wait awake for the next step before they sleep.
    pub spin: Duration,
    /// Whether all memory is taken from the system when loading. Otherwise a page of the cache is when it is first used,
    /// which starts sooner, and makes that step slower.
    pub touch_memory: bool,
}

impl Default for ExecutorOptions {
    fn default() -> Self {
        Self {
            spin: DEFAULT_SPIN,
            touch_memory: false,
        }
    }
}

/// What the last step did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepStats {
    /// Live rows.
    pub rows: u32,
    /// Rows whose logits were computed.
    pub logits_rows: u32,
    /// Rows the trunk program was compiled for.
    pub bucket: u32,
    /// The trunk program, an index into the plan's programs.
    pub trunk_program: usize,
    /// The (last) head program, if a head ran.
    pub head_program: Option<usize>,
    /// Head programs run; more than one if more logits were wanted than the largest computes.
    pub head_runs: u32,
    /// Seconds until the trunk program was done or, where the device works on its own, given to it.
    pub trunk_seconds: f64,
    /// Seconds from then until the device had done everything.
    pub head_seconds: f64,
}

impl StepStats {
    /// Seconds in the device.
    pub fn device_seconds(&self) -> f64 {
        self.trunk_seconds + self.head_seconds
    }
}

/// Runs steps of rows over the slots of one plan.
pub struct Executor {
    device: Box<dyn Device>,
    kv: KvCache,
    limits: Limits,
    vocab_size: u32,
    plan: usize,
    trunk: Buckets,
    head: Buckets,
    stats: StepStats,
    // The step as arrays, `[rows]` each and `[logits]`.
    tokens: Vec<u32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    logit_rows: Vec<u32>,
    /// Per slot the tokens it will hold after the step; kept to allocate once.
    lengths: Vec<u32>,
    /// Logits of all wanted rows, `[logits][vocab_size]`, if one head run could not hold them; else empty.
    gathered: Vec<f32>,
    /// Steps the device was given and whose results nobody has collected, the oldest first.
    queued: VecDeque<Queued>,
    /// The step collected last, until another begins: what `retract` undoes beside those queued.
    collected: Option<Queued>,
}

impl Executor {
    /// Loads the plan of `bundle` that fits this machine best.
    ///
    /// # Errors
    /// [`Error::Mismatch`] and [`Error::Memory`] from [`Bundle::pick_plan`]; whatever loading reports.
    pub fn new(bundle: impl Into<Arc<Bundle>>, options: ExecutorOptions) -> Result<Self, Error> {
        let bundle = bundle.into();
        let machine = bundle.machine();
        let picked = bundle.pick_plan(&machine)?;
        let plans = &bundle.manifest().plans;
        let plan = plans
            .iter()
            .position(|p| std::ptr::eq(p, picked))
            .unwrap_or(0);
        let device: Box<dyn Device> = match &picked.gpu {
            #[cfg(target_vendor = "apple")]
            Some(_) if picked.requires.arch == "metal" => {
                let metal = crate::device::metal::Metal::open()?;
                Box::new(GpuDevice::in_place(&bundle, plan, metal)?)
            }
            Some(_) => {
                let ordinal = machine.gpu_for(&picked.requires).unwrap_or(0);
                Box::new(GpuDevice::new(&bundle, plan, Cuda::open(ordinal)?)?)
            }
            None => {
                let (spin, touch) = (options.spin, options.touch_memory);
                Box::new(CpuDevice::new(bundle.clone(), plan, spin, touch)?)
            }
        };
        Self::with_plan(bundle.manifest(), plan, device)
    }

    /// Runs the first plan of `manifest` on any device, as tests do.
    ///
    /// # Errors
    /// [`Error::Device`] if the manifest has no plan, or the plan lacks trunk or head programs.
    pub fn with_device(manifest: &Manifest, device: Box<dyn Device>) -> Result<Self, Error> {
        Self::with_plan(manifest, 0, device)
    }

    fn with_plan(
        manifest: &Manifest,
        index: usize,
        device: Box<dyn Device>,
    ) -> Result<Self, Error> {
        let Some(plan) = manifest.plans.get(index) else {
            return Err(Error::Device(format!("the bundle has no plan {index}")));
        };
        let buckets = |stage| {
            Buckets::new(&plan.programs, stage)
                .ok_or_else(|| Error::Device(format!("the plan has no {stage:?} program")))
        };
        let (trunk, head) = (buckets(Stage::Trunk)?, buckets(Stage::Head)?);
        let limits = Limits {
            max_rows: manifest.limits.max_rows.min(trunk.largest()),
            ..manifest.limits
        };
        Ok(Self {
            device,
            kv: KvCache::new(&plan.kv, limits.max_batch),
            limits,
            vocab_size: manifest.model.vocab_size,
            plan: index,
            trunk,
            head,
            stats: StepStats::default(),
            tokens: Vec::new(),
            positions: Vec::new(),
            slots: Vec::new(),
            logit_rows: Vec::new(),
            lengths: vec![0; limits.max_batch as usize],
            gathered: Vec::new(),
            queued: VecDeque::new(),
            collected: None,
        })
    }

    /// Slots, tokens per slot, rows per step.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Token ids are below this; the length of a logits row.
    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    /// Index of the plan that runs, among the manifest's.
    pub fn plan(&self) -> usize {
        self.plan
    }

    /// Logits rows one head run can compute; a step may want more.
    pub fn max_head_rows(&self) -> u32 {
        self.head.largest()
    }

    /// A free slot with an empty cache, if there is one.
    pub fn acquire_slot(&mut self) -> Option<u32> {
        self.kv.acquire_slot()
    }

    /// Gives a slot back; nothing happens if nobody has it.
    pub fn release_slot(&mut self, slot: u32) {
        self.kv.release(slot);
    }

    /// Forgets all but the first `tokens` tokens of `slot`.
    ///
    /// # Errors
    /// [`Error::Step`] if a layer that sees a window no longer holds what would follow them, or one keeps a recurrent state,
    /// which goes back to nothing but the beginning; nothing has changed then.
    pub fn truncate(&mut self, slot: u32, tokens: u32) -> Result<(), Error> {
        if tokens < self.kv.tokens(slot) {
            self.kv.remembers(slot, tokens)?;
        }
        self.kv.truncate(slot, tokens);
        Ok(())
    }

    /// The page bookkeeping: slots, tokens held, free pages.
    pub fn kv(&self) -> &KvCache {
        &self.kv
    }

    /// What the last step did.
    pub fn stats(&self) -> &StepStats {
        &self.stats
    }

    /// Runs up to `max_rows` rows. Each continues its slot: its position is the number of tokens the slot holds, rows
    /// before it in the step included. No rows do nothing.
    ///
    /// # Errors
    /// [`Error::Step`] if a row cannot run, [`Error::Device`] if the device fails; the slots then hold what they held
    /// before, and there are no logits. Only recurrent states cannot be undone: a slot that has some and was in a step that
    /// failed in the device takes no more rows until it is truncated to 0 or released.
    pub fn step(&mut self, rows: &[Row]) -> Result<(), Error> {
        if !self.queued.is_empty() {
            return Err(Error::Step("steps are queued and not collected".into()));
        }
        self.begin();
        if rows.is_empty() {
            return Ok(());
        }
        self.check(rows)?;
        let result = self.extend(rows).and_then(|()| self.run(rows, &[]));
        let result = result.and_then(|()| {
            let start = Instant::now();
            self.device.finish()?;
            self.stats.head_seconds += start.elapsed().as_secs_f64();
            Ok(())
        });
        if result.is_err() {
            self.stats.logits_rows = 0;
            self.restore(rows);
        }
        result
    }

    fn begin(&mut self) {
        self.stats = StepStats::default();
        self.gathered.clear();
        self.logit_rows.clear();
        self.collected = None;
    }

    /// Logits of the i-th row of the last step that wanted them: `[vocab_size]`.
    ///
    /// # Errors
    /// [`Error::Device`] if the device cannot give them; [`Error::Step`] if a step queued behind it has others.
    ///
    /// # Panics
    /// If the last step had no such row.
    pub fn logits(&mut self, i: usize) -> Result<&[f32], Error> {
        let count = self.stats.logits_rows as usize;
        assert!(i < count, "logits row {i} of {count}");
        self.logits_are_there()?;
        if self.gathered.is_empty() {
            return self.device.logits(i);
        }
        let width = self.vocab_size as usize;
        Ok(&self.gathered[i * width..][..width])
    }

    /// Calls `visit(i, logits)` once for each of the first `count` logits rows of the last step, on all workers, in any
    /// order. A panic in it aborts the process.
    ///
    /// # Errors
    /// [`Error::Device`] if the device cannot give them; some rows may have been visited then.
    ///
    /// # Panics
    /// If the last step had fewer such rows.
    pub fn visit_logits(
        &mut self,
        count: usize,
        visit: &(dyn Fn(usize, &[f32]) + Sync),
    ) -> Result<(), Error> {
        let rows = self.stats.logits_rows as usize;
        assert!(count <= rows, "{count} logits rows of {rows}");
        self.logits_are_there()?;
        if self.gathered.is_empty() {
            return self.device.visit_logits(count, visit);
        }
        let rows = self.gathered.chunks_exact(self.vocab_size as usize);
        let rows = rows.take(count).enumerate();
        rows.for_each(|(i, logits)| visit(i, logits));
        Ok(())
    }

    fn logits_are_there(&self) -> Result<(), Error> {
        match self.queued.is_empty() {
            true => Ok(()),
            false => Err(Error::Step(
                "the logits are overwritten by the step that follows".into(),
            )),
        }
    }

    /// The largest logits of the i-th row of the last step that wanted them, if the device sorts them out.
    ///
    /// # Errors
    /// As [`Executor::logits`].
    ///
    /// # Panics
    /// If the last step had no such row.
    pub fn candidates(&mut self, i: usize) -> Result<Option<Candidates<'_>>, Error> {
        let count = self.stats.logits_rows as usize;
        assert!(i < count, "logits row {i} of {count}");
        match self.gathered.is_empty() {
            true => self.device.candidates(i),
            false => Ok(None),
        }
    }

    /// Bytes per second that programs can read of the device's own memory; none where that is this machine's memory.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    pub fn read_bandwidth(&mut self) -> Result<Option<f64>, Error> {
        self.device.read_bandwidth()
    }

    /// Starts or stops keeping the times of every kernel call; a step then takes a little longer.
    ///
    /// # Errors
    /// [`Error::Device`] if the device cannot.
    pub fn set_timing(&mut self, on: bool) -> Result<(), Error> {
        self.device.set_timing(on)
    }

    /// The program runs since the last call, if times are kept.
    pub fn take_timelines(&mut self) -> Vec<Timeline> {
        self.device.take_timelines()
    }

    fn check(&mut self, rows: &[Row]) -> Result<(), Error> {
        if rows.len() > self.limits.max_rows as usize {
            return Err(Error::Step(format!(
                "{} rows in a step, the bundle was compiled for {}",
                rows.len(),
                self.limits.max_rows
            )));
        }
        for (slot, length) in self.lengths.iter_mut().enumerate() {
            *length = self.kv.tokens(slot as u32);
        }
        for (index, row) in rows.iter().enumerate() {
            self.check_row(row)
                .map_err(|why| Error::Step(format!("row {index}: {why}")))?;
        }
        Ok(())
    }

    fn check_row(&mut self, row: &Row) -> Result<(), String> {
        if row.token >= self.vocab_size {
            return Err(format!(
                "token {}: the vocabulary has {} tokens",
                row.token, self.vocab_size
            ));
        }
        if !self.kv.is_acquired(row.slot) {
            return Err(format!("slot {} is not acquired", row.slot));
        }
        if row.position >= self.limits.max_context {
            return Err(format!(
                "position {}: the bundle was compiled for a context of {}",
                row.position, self.limits.max_context
            ));
        }
        let length = &mut self.lengths[row.slot as usize];
        if *length == self.kv.tokens(row.slot) {
            let remembered = self.kv.remembers(row.slot, *length);
            remembered.map_err(|error| match error {
                Error::Step(why) => why,
                other => other.to_string(),
            })?;
        }
        if row.position != *length {
            return Err(format!(
                "position {} of slot {}, which holds {length} tokens",
                row.position, row.slot
            ));
        }
        *length += 1;
        Ok(())
    }

    fn extend(&mut self, rows: &[Row]) -> Result<(), Error> {
        for row in rows {
            self.kv.ensure(row.slot, row.position + 1)?;
        }
        Ok(())
    }

    /// Undoes `extend`: the first row of a slot stands where the slot ended before.
    fn restore(&mut self, rows: &[Row]) {
        for row in rows.iter().rev() {
            self.kv.truncate(row.slot, row.position);
        }
    }

    fn run(&mut self, rows: &[Row], follows: &[u32]) -> Result<(), Error> {
        self.tokens.clear();
        self.positions.clear();
        self.slots.clear();
        for row in rows {
            self.kv.mark_written(row.slot);
        }
        for (index, row) in rows.iter().enumerate() {
            self.tokens.push(row.token);
            self.positions.push(row.position);
            self.slots.push(row.slot);
            if row.wants_logits {
                self.logit_rows.push(index as u32);
            }
        }
        let step = StepInput {
            tokens: &self.tokens,
            positions: &self.positions,
            slots: &self.slots,
            logit_rows: &[],
            follows,
            kv: &self.kv,
        };
        let bucket = self.trunk.cheapest(rows.len() as u32);
        self.stats.rows = rows.len() as u32;
        self.stats.bucket = bucket.rows;
        self.stats.trunk_program = bucket.program;
        let start = Instant::now();
        self.device.run(bucket.program, &step)?;
        self.stats.trunk_seconds = start.elapsed().as_secs_f64();

        let start = Instant::now();
        let most = self.head.largest() as usize;
        let several = self.logit_rows.len() > most;
        for logit_rows in self.logit_rows.chunks(most) {
            let bucket = self.head.cheapest(logit_rows.len() as u32);
            self.device
                .run(bucket.program, &StepInput { logit_rows, ..step })?;
            self.stats.head_program = Some(bucket.program);
            self.stats.head_runs += 1;
            if several {
                for row in 0..logit_rows.len() {
                    self.gathered.extend_from_slice(self.device.logits(row)?);
                }
            }
        }
        self.stats.logits_rows = self.logit_rows.len() as u32;
        self.stats.head_seconds = start.elapsed().as_secs_f64();
        Ok(())
    }
}
