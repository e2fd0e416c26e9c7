//! The step block as the device holds it: filled from a step's rows, and which of its bytes have to be sent. Of the page
//! table only what live rows look at.

use crate::device::StepInput;
use crate::error::Error;
use crate::manifest::KvWindow;
use coldpress_kernels::gpu::abi::StepLayout;
use std::ops::Range;

/// Bytes between two changes that are sent along, since another copy costs more.
const GAP: usize = 8 << 10;

/// The host's copy of the step block.
pub(super) struct StepBlock {
    layout: StepLayout,
    bytes: Vec<u8>,
    /// As many times [`StepLayout::GIVEN`] as a step has rows.
    given: Vec<u32>,
    /// Byte ranges that the device does not hold yet.
    changed: Vec<Range<usize>>,
}

impl StepBlock {
    /// An empty block, none of it sent; the page tables of `windows` never change and are in it already. `layout` comes
    /// from a bundle: its size is bounded here.
    pub(super) fn new(layout: StepLayout, windows: &[KvWindow]) -> Result<Self, Error> {
        const MOST: u64 = 1 << 32;
        let table = u64::from(layout.slots) * u64::from(layout.pages_per_slot);
        let table = table.saturating_mul(layout.tables.into());
        if table > MOST || layout.max_rows == 0 || layout.tables as usize != 1 + windows.len() {
            return Err(Error::Device(format!(
                "a step block of {} rows and {table} pages is not possible",
                layout.max_rows
            )));
        }
        let bytes = vec![0; layout.bytes() as usize];
        let mut block = Self {
            layout,
            bytes,
            given: Vec::new(),
            changed: Vec::new(),
        };
        block.put(
            layout.follows(),
            &vec![StepLayout::GIVEN; layout.max_rows as usize],
        );
        for (table, window) in (1..).zip(windows) {
            for slot in 0..layout.slots {
                let pages = 0..layout.pages_per_slot;
                let pages: Vec<u32> = pages.map(|page| window.page(slot, page)).collect();
                let at = u64::from(slot) * u64::from(layout.pages_per_slot) * 4;
                block.put(layout.page_table(table) + at, &pages);
            }
        }
        block.forget();
        Ok(block)
    }

    /// The device's copy is unknown: all of it has to be sent.
    pub(super) fn forget(&mut self) {
        self.changed.clear();
        self.changed.push(0..self.bytes.len());
    }

    /// Takes over a step that is within the plan's limits.
    pub(super) fn fill(&mut self, step: &StepInput<'_>, page_tokens: u32) -> Result<(), String> {
        let layout = self.layout;
        let rows = step.tokens.len();
        if rows.max(step.logit_rows.len()) > layout.max_rows as usize {
            return Err(format!(
                "{rows} rows, the step block has {}",
                layout.max_rows
            ));
        }
        let logits = step.logit_rows.len() as u32;
        // A trunk has none and asks for none: with those of the last step kept, the same step again changes nothing.
        let live = [rows as u32, logits];
        self.put(StepLayout::LIVE, &live[..1 + usize::from(logits > 0)]);
        self.put(layout.tokens(), step.tokens);
        self.put(layout.positions(), step.positions);
        self.put(layout.slot_of_row(), step.slots);
        self.put(layout.logit_rows(), step.logit_rows);
        if step.follows.is_empty() {
            self.given.resize(rows, StepLayout::GIVEN);
            let given = std::mem::take(&mut self.given);
            self.put(layout.follows(), &given);
            self.given = given;
        } else {
            self.put(layout.follows(), step.follows);
        }
        let held = step.kv.pages_per_slot().min(layout.pages_per_slot);
        let mut start = 0;
        for run in step.slots.chunk_by(|a, b| a == b) {
            let positions = &step.positions[start..start + run.len()];
            start += run.len();
            let last = positions.iter().max().copied().unwrap_or(0);
            let pages = last / page_tokens + 1;
            if run[0] >= layout.slots || pages > held {
                return Err(format!(
                    "position {last} of slot {}: the step block has {} slots of {held} pages",
                    run[0], layout.slots
                ));
            }
            let row = run[0] as usize * step.kv.pages_per_slot() as usize;
            let entries = &step.kv.page_table()[row..row + pages as usize];
            let at = u64::from(run[0]) * u64::from(layout.pages_per_slot) * 4;
            self.put(layout.page_table(0) + at, entries);
        }
        Ok(())
    }

    /// Sends what changed, in as few pieces as make sense.
    pub(super) fn send(
        &mut self,
        mut write: impl FnMut(u64, &[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.changed.sort_unstable_by_key(|range| range.start);
        let mut ranges = self.changed.drain(..).peekable();
        while let Some(mut range) = ranges.next() {
            while let Some(next) = ranges.next_if(|next| next.start <= range.end + GAP) {
                range.end = range.end.max(next.end);
            }
            write(range.start as u64, &self.bytes[range])?;
        }
        Ok(())
    }

    /// Writes `values` at byte `offset` and notes the span between the first and the last that differ.
    fn put(&mut self, offset: u64, values: &[u32]) {
        let offset = offset as usize;
        let held = &mut self.bytes[offset..offset + 4 * values.len()];
        let (words, _) = held.as_chunks_mut::<4>();
        let differs = |(word, value): (&[u8; 4], &u32)| *word != value.to_le_bytes();
        let Some(first) = words.iter().zip(values).position(differs) else {
            return;
        };
        let last = words.iter().zip(values).rposition(differs);
        let last = last.unwrap_or(first);
        for (word, value) in words[first..=last].iter_mut().zip(&values[first..=last]) {
            *word = value.to_le_bytes();
        }
        self.changed
            .push(offset + 4 * first..offset + 4 * (last + 1));
    }
}
