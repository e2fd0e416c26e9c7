//! What head programs leave and the host may want: rows of logits, brought over when asked for, and the largest of each row,
//! a small part of them, brought over once for all rows.

use crate::device::Candidates;
use crate::device::accelerator::Accelerator;
use crate::error::Error;
use crate::manifest::{CandidatePlan, GpuPlan, Manifest, Stage, TargetPlan};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Regions of the arena this near are read in one piece.
const NEAR: u64 = 256 << 10;
/// From so many logits on, starting threads takes less time than they save.
const MANY: usize = 1 << 20;
const MOST_THREADS: usize = 8;

/// Logits rows, and which of them the host holds.
pub(super) struct Logits {
    /// Arena offset of row 0.
    offset: u64,
    /// Bytes between rows.
    stride: usize,
    /// Logits in a row.
    vocab: usize,
    /// `[rows of the largest head program][stride / 4]`.
    values: Vec<f32>,
    /// Per row, whether `values` has what the last head program left.
    held: Vec<bool>,
}

impl Logits {
    pub(super) fn new(manifest: &Manifest, plan: &TargetPlan) -> Result<Self, Error> {
        let rows = head_rows(plan);
        let vocab = u64::from(manifest.model.vocab_size);
        let (stride, offset) = (plan.logits_stride, plan.logits_offset);
        let end = rows.checked_mul(stride);
        let inside = stride.is_multiple_of(4)
            && stride >= 4 * vocab
            && end
                .and_then(|end| end.checked_add(offset))
                .is_some_and(|end| end - stride + 4 * vocab <= plan.arena_bytes);
        if rows > 0 && !inside {
            return Err(Error::Device(format!(
                "{rows} rows of logits are not inside the arena of {} bytes",
                plan.arena_bytes
            )));
        }
        Ok(Self {
            offset,
            stride: stride as usize,
            vocab: vocab as usize,
            values: vec![0.0; rows as usize * stride as usize / 4],
            held: vec![false; rows as usize],
        })
    }

    /// A head program runs: what the host holds is of another.
    pub(super) fn forget(&mut self) {
        self.held.fill(false);
    }

    /// Brings rows to the host, those that it does not hold, in one piece.
    pub(super) fn fetch<A: Accelerator>(
        &mut self,
        accelerator: &mut A,
        arena: &A::Buffer,
        rows: Range<usize>,
    ) -> Result<(), Error> {
        let most = self.held.len();
        assert!(rows.end <= most, "logits row {} of {most}", rows.end - 1);
        let missing = |held: &bool| !held;
        let Some(skip) = self.held[rows.clone()].iter().position(missing) else {
            return Ok(());
        };
        let first = rows.start + skip;
        let width = self.stride / 4;
        let values = &mut self.values[first * width..(rows.end - 1) * width + self.vocab];
        let length = size_of_val(values);
        // SAFETY: the same memory as bytes; any bytes are f32, and the borrow of `values` lasts as long.
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast::<u8>(), length) };
        let offset = self.offset + (first * self.stride) as u64;
        accelerator.read(arena, offset, bytes)?;
        self.held[first..rows.end].fill(true);
        Ok(())
    }

    /// Calls `visit` once for each of the first `rows` rows, which were fetched, on several threads if there is much to see.
    pub(super) fn visit(&self, rows: usize, visit: &(dyn Fn(usize, &[f32]) + Sync)) {
        let threads = match rows * self.vocab < MANY {
            true => 1,
            false => num_cpus::get().min(MOST_THREADS),
        };
        spread(rows, threads, &|row| visit(row, self.row(row)));
    }

    /// A row that was fetched.
    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.values[row * (self.stride / 4)..][..self.vocab]
    }
}

/// The largest logits of every row.
pub(super) struct Largest<A: Accelerator> {
    plan: CandidatePlan,
    vocab: u32,
    /// Rows of the largest head program.
    most: usize,
    /// Live rows of the last head program.
    rows: usize,
    /// Whether the host does not hold them yet.
    due: bool,
    /// Rows that the host holds.
    held: usize,
    /// Of these, `[held][count]`.
    ids: Vec<u32>,
    values: Vec<f32>,
    /// As they were read.
    bytes: Vec<u8>,
    /// On their way, the oldest first: live rows, and the pieces.
    queued: VecDeque<(usize, Vec<A::Pending>)>,
}

impl<A: Accelerator> Largest<A> {
    /// None if the plan has none.
    pub(super) fn new(
        manifest: &Manifest,
        plan: &TargetPlan,
        gpu: &GpuPlan,
    ) -> Result<Option<Self>, Error> {
        let Some(candidates) = gpu.candidates else {
            return Ok(None);
        };
        let rows = head_rows(plan);
        let bytes = rows.saturating_mul(4 * u64::from(candidates.count));
        let inside = |offset: u64| {
            let end = offset.checked_add(bytes);
            end.is_some_and(|end| end <= plan.arena_bytes)
        };
        if !inside(candidates.ids_offset) || !inside(candidates.values_offset) {
            return Err(Error::Device(format!(
                "the candidates of {rows} rows are not inside the arena of {} bytes",
                plan.arena_bytes
            )));
        }
        Ok(Some(Self {
            plan: candidates,
            vocab: manifest.model.vocab_size,
            most: rows as usize,
            rows: 0,
            due: false,
            held: 0,
            ids: Vec::new(),
            values: Vec::new(),
            bytes: Vec::new(),
            queued: VecDeque::new(),
        }))
    }

    /// A head program of `rows` live rows runs.
    pub(super) fn expect(&mut self, rows: usize) {
        self.rows = rows.min(self.most);
        self.due = true;
    }

    /// Whether a head program ran since the last fetch.
    pub(super) fn is_due(&self) -> bool {
        self.due
    }

    /// Brings those of all live rows to the host.
    pub(super) fn fetch(&mut self, accelerator: &mut A, arena: &A::Buffer) -> Result<(), Error> {
        let pieces = self.pieces(self.rows);
        self.bytes
            .resize(pieces.iter().map(|piece| piece.1).sum(), 0);
        let mut rest = &mut self.bytes[..];
        for (offset, length) in pieces {
            let (piece, behind) = rest.split_at_mut(length);
            accelerator.read(arena, offset, piece)?;
            rest = behind;
        }
        self.take_over(self.rows);
        Ok(())
    }

    /// Live rows of the last head program.
    pub(super) fn rows(&self) -> u32 {
        self.rows as u32
    }

    /// Begins to bring those of all live rows to the host.
    pub(super) fn queue(&mut self, accelerator: &mut A, arena: &A::Buffer) -> Result<(), Error> {
        let pieces = self.pieces(self.rows).into_iter();
        let pieces = pieces.map(|(offset, length)| accelerator.read_later(arena, offset, length));
        let pieces: Result<Vec<_>, Error> = pieces.collect();
        self.queued.push_back((self.rows, pieces?));
        self.due = false;
        Ok(())
    }

    /// Waits for the oldest that are on their way.
    pub(super) fn collect(&mut self, accelerator: &mut A) -> Result<(), Error> {
        let Some((rows, pieces)) = self.queued.pop_front() else {
            return Err(Error::Device("no candidates are queued".into()));
        };
        self.bytes.clear();
        for piece in pieces {
            self.bytes.extend(accelerator.arrived(piece)?);
        }
        self.take_over(rows);
        Ok(())
    }

    /// Those that are on their way are not wanted any more.
    pub(super) fn forget_queued(&mut self) {
        self.queued.clear();
    }

    /// What has to be read for `rows` rows: offset and bytes; one piece if ids and values are near.
    fn pieces(&self, rows: usize) -> Vec<(u64, usize)> {
        let CandidatePlan {
            count,
            ids_offset: ids,
            values_offset: values,
        } = self.plan;
        let length = rows * 4 * count as usize;
        let span = ids.abs_diff(values) + length as u64;
        match span <= NEAR {
            true => vec![(ids.min(values), span as usize)],
            false => vec![(ids, length), (values, length)],
        }
    }

    /// Makes ids and values of `rows` rows of the pieces in `bytes`.
    fn take_over(&mut self, rows: usize) {
        let CandidatePlan {
            count,
            ids_offset: ids,
            values_offset: values,
        } = self.plan;
        let length = rows * 4 * count as usize;
        let first = ids.min(values);
        let one_piece = self.pieces(rows).len() == 1;
        let part = |offset: u64, at: usize| match one_piece {
            true => &self.bytes[(offset - first) as usize..][..length],
            false => &self.bytes[at..][..length],
        };
        let words = |bytes: &[u8], to: &mut dyn FnMut(u32)| {
            let words = bytes.as_chunks::<4>().0.iter();
            words.for_each(|word| to(u32::from_le_bytes(*word)));
        };
        self.ids.clear();
        words(part(ids, 0), &mut |id| self.ids.push(id));
        self.values.clear();
        words(part(values, length), &mut |bits| {
            self.values.push(f32::from_bits(bits))
        });
        self.held = rows;
        self.due = false;
    }

    /// Those of a row, after [`Largest::fetch`] or [`Largest::collect`].
    pub(super) fn row(&self, row: usize) -> Candidates<'_> {
        assert!(row < self.held, "candidates of row {row} of {}", self.held);
        let count = self.plan.count as usize;
        let ids = &self.ids[row * count..][..count];
        let values = &self.values[row * count..][..count];
        let real = |(&id, &logit): (&u32, &f32)| id < self.vocab && logit > f32::NEG_INFINITY;
        let length = ids
            .iter()
            .zip(values)
            .take_while(|&pair| real(pair))
            .count();
        Candidates {
            ids: &ids[..length],
            logits: &values[..length],
            all: length < count,
        }
    }
}

/// Calls `work` once for each number below `count`, on up to `threads` threads, the caller's among them.
fn spread(count: usize, threads: usize, work: &(dyn Fn(usize) + Sync)) {
    let next = AtomicUsize::new(0);
    let worker = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            work(index);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(count) {
            scope.spawn(worker);
        }
        worker();
    });
}

fn head_rows(plan: &TargetPlan) -> u64 {
    let head = plan.programs.iter().filter(|p| p.stage == Stage::Head);
    head.map(|p| p.rows.into()).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn work_is_spread_without_loss_or_repetition() {
        for (count, threads) in [(0, 4), (1, 4), (3, 1), (50, 4)] {
            let seen = Mutex::new(Vec::new());
            spread(count, threads, &|index| {
                seen.lock().expect("no panic").push(index);
            });
            let mut seen = seen.into_inner().expect("no panic");
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..count), "{count} on {threads}");
        }
    }
}
