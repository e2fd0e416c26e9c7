//! Steps that are given to the device before the results of the step before them are known: the device takes the tokens it
//! found most likely, and the host looks at them later. What they mean for requests is the engine's business.

use super::{Executor, Row, StepStats};
use crate::error::Error;
use std::time::Instant;

/// Steps the device may have before it, the one it works on included.
pub const MOST_QUEUED: usize = 2;

/// A step whose results nobody has collected.
pub(super) struct Queued {
    pub(super) rows: Vec<Row>,
    pub(super) stats: StepStats,
}

impl Executor {
    /// Most rows that want logits in a step that others may follow before its results are known; none if the device does
    /// not [feed back](Device::feeds_back) what it found, or slots have recurrent states: a step that turns out wrong could
    /// not be undone.
    pub fn ahead(&self) -> Option<u32> {
        let undone = !self.kv.is_recurrent();
        (undone && self.device.feeds_back()).then(|| self.head.largest())
    }

    /// Gives a step to the device and returns. Row r of it has the token that row `follows[r]` of the logits of the step
    /// queued before found most likely, whatever `rows[r].token` says, or its own where that is [`GIVEN`](super::GIVEN). Otherwise as
    /// [`Executor::step`]. At most [`MOST_QUEUED`] steps wait for [`Executor::collect`].
    ///
    /// # Errors
    /// As [`Executor::step`]; queued steps stay so.
    pub fn queue(&mut self, rows: &[Row], follows: &[u32]) -> Result<(), Error> {
        let wanted = rows.iter().filter(|row| row.wants_logits).count();
        let most = self.ahead().unwrap_or(0) as usize;
        if wanted > most || self.queued.len() == MOST_QUEUED || rows.len() != follows.len() {
            return Err(Error::Step(format!(
                "{} rows, {wanted} with logits, cannot be queued behind {} steps: at most {most} and {MOST_QUEUED}",
                rows.len(),
                self.queued.len()
            )));
        }
        self.begin();
        if rows.is_empty() {
            return Err(Error::Step("a step of no rows".into()));
        }
        self.check(rows)?;
        let result = self.extend(rows).and_then(|()| self.run(rows, follows));
        let result = result.and_then(|()| match wanted {
            0 => self.device.submit(),
            _ => self.device.queue_candidates(),
        });
        if result.is_err() {
            self.restore(rows);
            return result;
        }
        self.queued.push_back(Queued {
            rows: rows.to_vec(),
            stats: self.stats,
        });
        Ok(())
    }

    /// Waits for the oldest queued step; [`Executor::candidates`] and [`Executor::stats`] are of it then.
    ///
    /// # Errors
    /// [`Error::Step`] if none is queued. [`Error::Device`] if the device failed; the slots then hold what they held before
    /// the step, and nothing is queued.
    pub fn collect(&mut self) -> Result<(), Error> {
        let Some(mut oldest) = self.queued.pop_front() else {
            return Err(Error::Step("no step is queued".into()));
        };
        let start = Instant::now();
        let result = match oldest.stats.logits_rows {
            0 => Ok(()),
            _ => self.device.collect(),
        };
        oldest.stats.head_seconds += start.elapsed().as_secs_f64();
        self.stats = oldest.stats;
        self.collected = Some(oldest);
        if result.is_err() {
            self.retract();
        }
        result
    }

    /// Undoes what was queued and not collected: the slots hold what they held before.
    pub fn abandon(&mut self) {
        self.device.forget_queued();
        while let Some(newest) = self.queued.pop_back() {
            self.restore(&newest.rows);
        }
    }

    /// Undoes what was queued, and the step collected last.
    pub fn retract(&mut self) {
        self.abandon();
        if let Some(collected) = self.collected.take() {
            self.restore(&collected.rows);
        }
        self.stats.logits_rows = 0;
    }
}
