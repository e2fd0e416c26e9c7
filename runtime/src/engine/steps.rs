//! What the engine needs of the thing that runs rows. One implementation runs bundles (`Executor`); another can stand
//! in for it where scheduling is to be studied without a model.

use crate::device::Candidates;
use crate::error::Error;
use crate::executor::{Executor, Row};
use crate::manifest::Limits;

/// Runs steps of rows over slots.
pub trait Steps: Send {
    /// Slots, tokens per slot, rows per step.
    fn limits(&self) -> Limits;
    /// Token ids are below this; the length of a logits row.
    fn vocab_size(&self) -> u32;
    /// A free slot with an empty cache, if there is one.
    fn acquire_slot(&mut self) -> Option<u32>;
    /// Gives a slot back.
    fn release_slot(&mut self, slot: u32);
    /// Runs 1 to `max_rows` rows; rows of one slot are consecutive and continue its cache.
    ///
    /// # Errors
    /// The device failed; the caches hold what they held before.
    fn step(&mut self, rows: &[Row]) -> Result<(), Error>;
    /// Logits of the i-th row of the last step that wanted them: `[vocab_size]`.
    ///
    /// # Errors
    /// The device failed.
    fn logits(&mut self, i: usize) -> Result<&[f32], Error>;
    /// The largest logits of the i-th row of the last step that wanted them, where they come cheaper than all.
    ///
    /// # Errors
    /// The device failed.
    fn candidates(&mut self, i: usize) -> Result<Option<Candidates<'_>>, Error> {
        let _ = i;
        Ok(None)
    }
    /// Calls `visit(i, logits)` once for each of the first `count` logits rows of the last step, on any thread and in any
    /// order.
    ///
    /// # Errors
    /// The device failed; some rows may have been visited.
    fn visit_logits(
        &mut self,
        count: usize,
        visit: &(dyn Fn(usize, &[f32]) + Sync),
    ) -> Result<(), Error> {
        for i in 0..count {
            visit(i, self.logits(i)?);
        }
        Ok(())
    }
}

impl Steps for Executor {
    fn limits(&self) -> Limits {
        Executor::limits(self)
    }

    fn vocab_size(&self) -> u32 {
        Executor::vocab_size(self)
    }

    fn acquire_slot(&mut self) -> Option<u32> {
        Executor::acquire_slot(self)
    }

    fn release_slot(&mut self, slot: u32) {
        Executor::release_slot(self, slot);
    }

    fn step(&mut self, rows: &[Row]) -> Result<(), Error> {
        Executor::step(self, rows)
    }

    fn logits(&mut self, i: usize) -> Result<&[f32], Error> {
        Executor::logits(self, i)
    }

    fn candidates(&mut self, i: usize) -> Result<Option<Candidates<'_>>, Error> {
        Executor::candidates(self, i)
    }

    fn visit_logits(
        &mut self,
        count: usize,
        visit: &(dyn Fn(usize, &[f32]) + Sync),
    ) -> Result<(), Error> {
        Executor::visit_logits(self, count, visit)
    }
}

/// An engine can be moved to a thread of its own.
const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<super::Engine>();
};
