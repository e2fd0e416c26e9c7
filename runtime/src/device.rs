//! What runs programs. A device owns the memory a plan asks for and executes one program at a time; which program, with
//! which rows, is `executor`'s decision. `cpu` jumps into machine code; a GPU would replay a launch list.

pub mod cpu;

pub use cpu::CpuDevice;

use crate::error::Error;
use crate::kv_cache::KvCache;

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
    /// Page table.
    pub kv: &'a KvCache,
}

/// Something that runs the programs of one plan.
pub trait Device: Send {
    /// Runs program `program` of the plan over `step` and returns when it is done.
    ///
    /// # Errors
    /// [`Error::Device`] if the input is outside what the program was compiled for, or the device fails.
    fn run(&mut self, program: usize, step: &StepInput<'_>) -> Result<(), Error>;

    /// Row `row` of the logits that the last head program left: `[vocab_size]`.
    ///
    /// # Panics
    /// If the plan has no such row.
    fn logits(&self, row: usize) -> &[f32];
}
