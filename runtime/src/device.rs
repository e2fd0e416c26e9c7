//! What runs programs. A device owns the memory a plan asks for and executes one program at a time; which program, with
//! which rows, is `executor`'s decision. `cpu` jumps into machine code; `gpu` plays a launch list on an `accelerator`.

pub mod accelerator;
pub mod cpu;
pub mod cuda;
pub mod gpu;
mod limits;
pub mod metal;

pub use cpu::CpuDevice;
pub use gpu::GpuDevice;

use crate::error::Error;
use crate::kv_cache::KvCache;
use coldpress_kernels::gpu::abi::StepLayout;

/// The rows of one step, as every program of the step receives them. `R` live rows, `L` live logits rows.
#[derive(Clone, Copy, Debug)]
pub struct StepInput<'a> {
    /// Token id of each row, `[R]`.
    pub tokens: &'a [u32],
    /// Position of each row in its sequence, `[R]`.
    pub positions: &'a [u32],
    /// Slot of each row, `[R]`.
    pub slots: &'a [u32],
    /// Rows of the trunk step whose logits this program computes, `[L]`; empty for trunk programs.
    pub logit_rows: &'a [u32],
    /// Per row the row of the last head program whose largest logit is its token, or [`GIVEN`]; empty if all tokens are
    /// given. Only of a device that [feeds back](Device::feeds_back).
    pub follows: &'a [u32],
    /// Page table.
    pub kv: &'a KvCache,
}

/// Says that a row's token is in `tokens`.
pub const GIVEN: u32 = StepLayout::GIVEN;

/// The largest logits of a row: by logit descending, then by id ascending; none is NaN or minus infinity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidates<'a> {
    /// Token ids.
    pub ids: &'a [u32],
    /// Their logits.
    pub logits: &'a [f32],
    /// Whether there are no others above minus infinity.
    pub all: bool,
}

/// How long the parts of one program run took; times in seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timeline {
    /// The program, an index into the plan's programs.
    pub program: usize,
    /// From the call until all workers were done.
    pub seconds: f64,
    /// Per worker, the caller first.
    pub workers: Vec<WorkerTimeline>,
    /// Calls nobody kept, over all workers: there were too many since times were last taken.
    pub lost: u64,
}

/// One worker's part in a program run; times in seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorkerTimeline {
    /// From the start of the run until the worker began.
    pub woken: f64,
    /// From then until its part ended.
    pub ran: f64,
    /// Its calls in order: the symbol, an index into the plan's symbols, and how long the call took.
    pub calls: Vec<(u32, f64)>,
}

/// Something that runs the programs of one plan.
pub trait Device: Send {
    /// Runs program `program` of the plan over `step`. It may return before the program is done; programs are done in the
    /// order they were run, and [`Device::finish`] waits for them.
    ///
    /// # Errors
    /// [`Error::Device`] if the input is outside what the program was compiled for, or the device fails.
    fn run(&mut self, program: usize, step: &StepInput<'_>) -> Result<(), Error>;

    /// Has the programs begin that were run, if the device held them back to take a step in one piece.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    fn submit(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// Returns when all programs are done.
    ///
    /// # Errors
    /// [`Error::Device`] if one of them failed.
    fn finish(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// Row `row` of the logits that the last head program left: `[vocab_size]`.
    ///
    /// # Errors
    /// [`Error::Device`] if the device cannot give them.
    ///
    /// # Panics
    /// If the plan has no such row.
    fn logits(&mut self, row: usize) -> Result<&[f32], Error>;

    /// Calls `visit(row, logits)` once for each of the first `rows` logits rows, on any worker, in any order.
    ///
    /// # Errors
    /// As [`Device::logits`]; some rows may have been visited then.
    ///
    /// # Panics
    /// If the plan has no such rows.
    fn visit_logits(
        &mut self,
        rows: usize,
        visit: &(dyn Fn(usize, &[f32]) + Sync),
    ) -> Result<(), Error> {
        for row in 0..rows {
            visit(row, self.logits(row)?);
        }
        Ok(())
    }

    /// The largest logits of row `row` of the last head program, if the device sorts them out: a few of them are a small
    /// part of what [`Device::logits`] would bring from its memory.
    ///
    /// # Errors
    /// As [`Device::logits`].
    ///
    /// # Panics
    /// If the plan has no such row.
    fn candidates(&mut self, row: usize) -> Result<Option<Candidates<'_>>, Error> {
        let _ = row;
        Ok(None)
    }

    /// Whether rows can take the token that the last head program found most likely, without the host's help.
    fn feeds_back(&self) -> bool {
        false
    }

    /// Has the largest logits of the last head program brought to the host while the device goes on; [`Device::collect`]
    /// waits for them.
    ///
    /// # Errors
    /// [`Error::Device`] if the device does not [feed back](Device::feeds_back), or fails.
    fn queue_candidates(&mut self) -> Result<(), Error> {
        Err(Error::Device("this device does not work ahead".into()))
    }

    /// Waits for the oldest largest logits that were queued; [`Device::candidates`] tells them then.
    ///
    /// # Errors
    /// [`Error::Device`] if nothing is queued, or something before failed.
    fn collect(&mut self) -> Result<(), Error> {
        Err(Error::Device("nothing is queued".into()))
    }

    /// Forgets what was queued and not collected.
    fn forget_queued(&mut self) {}

    /// Bytes per second that programs can read of the device's own memory, measured now; none if it has none, or cannot
    /// tell.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    fn read_bandwidth(&mut self) -> Result<Option<f64>, Error> {
        Ok(None)
    }

    /// Starts or stops keeping the times of what runs.
    ///
    /// # Errors
    /// [`Error::Device`] if this device cannot.
    fn set_timing(&mut self, on: bool) -> Result<(), Error> {
        match on {
            true => Err(Error::Device("this device keeps no times".into())),
            false => Ok(()),
        }
    }

    /// The program runs since the last call, if times are kept.
    fn take_timelines(&mut self) -> Vec<Timeline> {
        Vec::new()
    }
}
