//! How the workers of one launch divide a step's attention among themselves. What a row costs depends on its position,
//! which only the step knows, so every worker computes the same division and takes its own share of it.
//!
//! ```text
//! run     rows of one slot that follow each other
//! unit    up to HEAD_BATCH queries of one run and one KV head: a tile of rows, or one row and part of a large group
//! item    a unit and one split of the positions its rows see (`attention::split_range`)
//! ```
//!
//! Items in the order of run, KV head, unit, split have costs; worker w takes those that begin in its w-th part of the
//! total. A unit whose items all belong to one worker is finished there. One that *straddles* workers leaves its partial
//! results in the scratch slot of the worker that has its first item, its *owner*, for the combining launch. No worker
//! owns two of those, for one that continues elsewhere is the last of its owner's share.

#[cfg(test)]
mod tests;

use std::ops::Range;

use super::abi::{PAGE_TOKENS, Step};
use super::pages::HEAD_BATCH;
use crate::attention::{Shape, split_of, split_range};

/// Cost of one page of K and V read and converted, in queries that attend to it.
const PAGE_COST: u64 = 12;

/// Queries that read the same pages together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Slot of its rows.
    pub slot: usize,
    /// Its rows, all live.
    pub rows: Range<usize>,
    /// KV head.
    pub kv_head: usize,
    /// Query heads of each row, at most [`HEAD_BATCH`] over all rows.
    pub heads: Range<usize>,
    /// From the first position that some row sees to one past the last.
    pub seen: Range<usize>,
    /// Cost of everything before it.
    start: u64,
    /// Cost of one page.
    page_cost: u64,
}

impl Unit {
    /// The splits that its positions are in.
    pub fn splits(&self) -> Range<usize> {
        split_of(self.seen.start)..split_of(self.seen.end - 1) + 1
    }

    fn pages(&self) -> Range<usize> {
        pages(&self.seen)
    }

    /// Cost of everything before one of its items.
    fn start_of(&self, split: usize) -> u64 {
        let first = self.pages().start;
        let page = (split_range(split).start / PAGE_TOKENS).max(first);
        self.start + (page - first) as u64 * self.page_cost
    }

    fn end(&self) -> u64 {
        self.start + self.pages().len() as u64 * self.page_cost
    }
}

/// The items of one unit that one worker computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Portion {
    /// The unit.
    pub unit: Unit,
    /// Those of its splits that are the worker's.
    pub splits: Range<usize>,
    /// The worker that has the unit's first item, where the unit straddles workers.
    pub owner: Option<usize>,
}

/// Positions to pages.
fn pages(seen: &Range<usize>) -> Range<usize> {
    seen.start / PAGE_TOKENS..(seen.end - 1) / PAGE_TOKENS + 1
}

/// Rows of one slot and what they cost for one KV head.
#[derive(Clone, Debug)]
struct Run {
    slot: usize,
    rows: Range<usize>,
    /// Sum over its tiles of pages, and of pages times rows.
    pages: u64,
    row_pages: u64,
}

/// Which units an iteration is after.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    /// Those of which this worker has some.
    Worker(usize),
    /// Those that straddle workers.
    Straddling,
}

/// The units of a step in order, only the wanted ones.
pub struct Units<'a> {
    step: &'a Step,
    shape: Shape,
    workers: usize,
    wanted: Wanted,
    total: u64,
    /// Cost of all units before the next one.
    at: u64,
    /// Rows before the next run.
    row: usize,
    run: Option<Run>,
    /// Of the run: KV head and batch of its query heads, and the next row.
    batch: usize,
    tile: usize,
}

impl<'a> Units<'a> {
    /// What `worker` of `workers` computes.
    ///
    /// # Safety
    /// The step's arrays hold its rows.
    pub unsafe fn of_worker(step: &'a Step, shape: &Shape, worker: usize, workers: usize) -> Self {
        // SAFETY: promised by the caller.
        unsafe { Units::new(step, shape, workers, Wanted::Worker(worker)) }
    }

    /// The units that straddle workers.
    ///
    /// # Safety
    /// The step's arrays hold its rows.
    pub unsafe fn straddling(step: &'a Step, shape: &Shape, workers: usize) -> Self {
        // SAFETY: promised by the caller.
        unsafe { Units::new(step, shape, workers, Wanted::Straddling) }
    }

    unsafe fn new(step: &'a Step, shape: &Shape, workers: usize, wanted: Wanted) -> Self {
        let mut units = Units {
            step,
            shape: *shape,
            workers,
            wanted,
            total: 0,
            at: 0,
            row: 0,
            run: None,
            batch: 0,
            tile: 0,
        };
        while let Some(run) = units.next_run() {
            units.total += units.run_cost(&run);
            units.row = run.rows.end;
        }
        units.row = 0;
        units
    }

    /// The worker that an item belongs to which begins at this cost: the last one whose part begins no later.
    fn worker_at(&self, start: u64) -> usize {
        let workers = self.workers as u64;
        (((start + 1) * workers).div_ceil(self.total) - 1) as usize
    }

    /// Whether any item that begins in this range of costs may be of a wanted unit.
    fn wants(&self, start: u64, end: u64) -> bool {
        match self.wanted {
            Wanted::Worker(w) => self.worker_at(start) <= w && w <= self.worker_at(end - 1),
            Wanted::Straddling => self.worker_at(start) != self.worker_at(end - 1),
        }
    }

    /// The run that begins at `row`.
    fn next_run(&self) -> Option<Run> {
        let (first, step) = (self.row, self.step);
        if first >= step.rows {
            return None;
        }
        // SAFETY: rows below `step.rows` are in the step's arrays, as promised to `new`.
        let slot = |row: usize| unsafe { *step.slots.add(row) } as usize;
        let mut end = first + 1;
        while end < step.rows && slot(end) == slot(first) {
            end += 1;
        }
        let mut run = Run {
            slot: slot(first),
            rows: first..end,
            pages: 0,
            row_pages: 0,
        };
        let mut row = first;
        while row < end {
            let (rows, seen) = self.tile(row, end);
            let count = pages(&seen).len() as u64;
            run.pages += count;
            run.row_pages += count * rows.len() as u64;
            row = rows.end;
        }
        Some(run)
    }

    /// Rows of the tile that begins at `row` in a run that ends at `end`, and what they see.
    fn tile(&self, row: usize, end: usize) -> (Range<usize>, Range<usize>) {
        let rows = row..end.min(row + self.shape.rows_per_unit());
        let (mut begin, mut past) = (usize::MAX, 0);
        for r in rows.clone() {
            // SAFETY: as for the slots.
            let pos = unsafe { *self.step.positions.add(r) } as usize;
            begin = begin.min(self.shape.first(pos));
            past = past.max(pos + 1);
        }
        (rows, begin..past)
    }

    fn run_cost(&self, run: &Run) -> u64 {
        let kv_heads = self.shape.kv_heads as u64;
        let batches = self.shape.group().div_ceil(HEAD_BATCH) as u64;
        kv_heads * (run.row_pages * self.shape.group() as u64 + run.pages * batches * PAGE_COST)
    }
}

impl Iterator for Units<'_> {
    type Item = Portion;

    fn next(&mut self) -> Option<Portion> {
        let group = self.shape.group();
        let batches = group.div_ceil(HEAD_BATCH);
        loop {
            let Some(run) = self.run.clone() else {
                let run = self.next_run()?;
                let end = self.at + self.run_cost(&run);
                if self.wants(self.at, end) {
                    (self.batch, self.tile) = (0, run.rows.start);
                    self.run = Some(run);
                } else {
                    (self.at, self.row) = (end, run.rows.end);
                }
                continue;
            };
            if self.batch == self.shape.kv_heads * batches {
                (self.run, self.row) = (None, run.rows.end);
                continue;
            }
            let (kv_head, batch) = (self.batch / batches, self.batch % batches);
            let heads = batch * HEAD_BATCH..group.min((batch + 1) * HEAD_BATCH);
            if self.tile == run.rows.start {
                let cost = run.row_pages * heads.len() as u64 + run.pages * PAGE_COST;
                if !self.wants(self.at, self.at + cost) {
                    self.at += cost;
                    self.batch += 1;
                    continue;
                }
            }
            let (rows, seen) = self.tile(self.tile, run.rows.end);
            self.tile = rows.end;
            if self.tile == run.rows.end {
                (self.batch, self.tile) = (self.batch + 1, run.rows.start);
            }
            let unit = Unit {
                slot: run.slot,
                page_cost: (rows.len() * heads.len()) as u64 + PAGE_COST,
                rows,
                kv_head,
                heads: kv_head * group + heads.start..kv_head * group + heads.end,
                seen,
                start: self.at,
            };
            self.at = unit.end();
            if let Some(portion) = self.portion(unit) {
                return Some(portion);
            }
        }
    }
}

impl Units<'_> {
    /// What is wanted of this unit, or nothing.
    fn portion(&self, unit: Unit) -> Option<Portion> {
        if !self.wants(unit.start, unit.end()) {
            return None;
        }
        let all = unit.splits();
        let worker = |split: usize| self.worker_at(unit.start_of(split));
        let owner = worker(all.start);
        let straddles = worker(all.end - 1) != owner;
        let splits = match self.wanted {
            Wanted::Straddling if straddles => all,
            Wanted::Straddling => return None,
            Wanted::Worker(w) => {
                let (mut begin, mut end) = (all.start, all.end);
                while begin < end && worker(begin) < w {
                    begin += 1;
                }
                while begin < end && worker(end - 1) > w {
                    end -= 1;
                }
                begin..end
            }
        };
        (!splits.is_empty()).then_some(Portion {
            unit,
            splits,
            owner: straddles.then_some(owner),
        })
    }
}
