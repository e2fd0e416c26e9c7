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
    /// Most rows that want logits in a step that others may follow before its results are known; none if steps cannot be
    /// [queued](Steps::queue).
    fn ahead(&self) -> Option<u32> {
        None
    }
    /// Begins a step and returns. Row r has the token that row `follows[r]` of the logits of the step queued before found
    /// most likely, or its own where that is [`GIVEN`](crate::executor::GIVEN). Up to two steps wait to be collected.
    ///
    /// # Errors
    /// The step cannot run, or the device failed; steps queued before stay so.
    fn queue(&mut self, rows: &[Row], follows: &[u32]) -> Result<(), Error> {
        let _ = (rows, follows);
        Err(Error::Step("steps cannot be queued here".into()))
    }
    /// Waits for the oldest queued step, which is the last step then; its logits are there if none is queued behind it,
    /// its largest logits in any case.
    ///
    /// # Errors
    /// The device failed; the caches hold what they held before that step, and nothing is queued.
    fn collect(&mut self) -> Result<(), Error> {
        Err(Error::Step("nothing is queued".into()))
    }
    /// Undoes steps that are queued and not collected.
    fn abandon(&mut self) {}
    /// Undoes steps that are queued, and the one collected last.
    fn retract(&mut self) {}
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

    fn ahead(&self) -> Option<u32> {
        Executor::ahead(self)
    }

    fn queue(&mut self, rows: &[Row], follows: &[u32]) -> Result<(), Error> {
        Executor::queue(self, rows, follows)
    }

    fn collect(&mut self) -> Result<(), Error> {
        Executor::collect(self)
    }

    fn abandon(&mut self) {
        Executor::abandon(self);
    }

    fn retract(&mut self) {
        Executor::retract(self);
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
