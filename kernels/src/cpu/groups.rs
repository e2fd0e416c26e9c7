//! Routed rows in memory: by expert, those of one expert in the order of the step's rows; and how the workers of a launch
//! divide the experts' weights among themselves. Which experts a step uses only the step knows, so every worker counts
//! them and takes its own share.
//!
//! ```text
//! routes   row 0: experts 2 0    row 1: experts 0 3
//! order    expert 0: row 0, row 1 | expert 2: row 0 | expert 3: row 1
//! ```

use std::ops::Range;

use super::abi::{Step, TILE_N};
use super::symbols::MatmulFn;
use super::tile::tile_bytes;
use crate::experts::MAX_EXPERTS;
use crate::quant::FORMATS;

/// The routes of a step's live rows.
#[derive(Clone, Copy, Debug)]
pub struct Routes {
    at: *const u8,
    stride: usize,
    rows: usize,
    used: usize,
    experts: usize,
}

impl Routes {
    /// Routes of the live rows of `step`.
    ///
    /// # Safety
    /// `at` holds a row of routes ([`crate::experts::RouteFn`]) for each, `stride` bytes apart, and outlives the result.
    pub unsafe fn new(
        at: *const u8,
        stride: usize,
        step: &Step,
        used: usize,
        experts: usize,
    ) -> Routes {
        Routes {
            at,
            stride,
            rows: step.rows,
            used,
            experts,
        }
    }

    /// The experts of a row by rank.
    pub fn experts(&self, row: usize) -> &[u32] {
        assert!(row < self.rows);
        // SAFETY: promised to `new`.
        unsafe { std::slice::from_raw_parts(self.at.add(row * self.stride).cast(), self.used) }
    }

    /// Their weights.
    pub fn weights(&self, row: usize) -> &[f32] {
        assert!(row < self.rows);
        // SAFETY: promised to `new`; weights follow the experts.
        unsafe {
            let experts = self.at.add(row * self.stride).cast::<f32>();
            std::slice::from_raw_parts(experts.add(self.used), self.used)
        }
    }

    /// For each expert its first routed row; then the number of routed rows.
    fn starts(&self) -> [u32; MAX_EXPERTS + 1] {
        let mut starts = [0; MAX_EXPERTS + 1];
        for row in 0..self.rows {
            for &expert in self.experts(row) {
                starts[expert as usize + 1] += 1;
            }
        }
        for expert in 0..self.experts {
            starts[expert + 1] += starts[expert];
        }
        starts
    }

    /// Calls `visit(row, places)` for the live rows among `rows`, in order: where the row's routed rows lie, by rank.
    pub fn places(&self, rows: Range<usize>, mut visit: impl FnMut(usize, &[u32])) {
        let mut next = self.starts();
        let mut places = [0; crate::experts::MAX_USED];
        for row in 0..rows.end.min(self.rows) {
            for (place, &expert) in places.iter_mut().zip(self.experts(row)) {
                *place = next[expert as usize];
                next[expert as usize] += 1;
            }
            if row >= rows.start {
                visit(row, &places[..self.used]);
            }
        }
    }

    /// Calls `visit(expert, rows, tiles)` for what `worker` of `workers` computes: tiles of an expert, against all of its
    /// routed rows. Every expert has `tiles` tiles, of which one costs `read_cost` and one for each row.
    pub fn shares(
        &self,
        tiles: usize,
        read_cost: usize,
        (worker, workers): (usize, usize),
        mut visit: impl FnMut(usize, Range<usize>, Range<usize>),
    ) {
        let starts = self.starts();
        let experts = || {
            (0..self.experts).filter_map(|e| {
                let rows = starts[e] as usize..starts[e + 1] as usize;
                let cost = read_cost + rows.len();
                (!rows.is_empty()).then_some((e, rows, cost))
            })
        };
        let total: usize = experts().map(|(_, _, cost)| tiles * cost).sum();
        let cut = |w: usize| total / workers * w + total % workers * w / workers;
        let (begin, end) = (cut(worker), cut(worker + 1));
        let mut before = 0;
        for (expert, rows, cost) in experts() {
            // A tile belongs to the worker in whose part it begins.
            let tile_at = |at: usize| at.saturating_sub(before).div_ceil(cost).min(tiles);
            let own = tile_at(begin)..tile_at(end);
            before += tiles * cost;
            if !own.is_empty() {
                visit(expert, rows, own);
            }
        }
    }
}

/// The stamps of one layout and ISA.
pub(crate) trait Stamps {
    /// The layout's place in `quant::FORMATS`.
    const LAYOUT: usize;
    /// Rows and kernel of each stamp, ascending from 1.
    const STAMPS: &'static [(usize, MatmulFn)];
}

/// [`crate::experts::ExpertMatmulFn`] by the stamps `S`: the rows of an expert are cut into stamps, widest first. All
/// stamps give a row the same bits, so the cut, and with it a row's company, does not matter.
///
/// # Safety
/// The contract of [`crate::experts::ExpertMatmulFn`]: `w` and `bias` hold all experts, `x` and `y` `used` rows for every
/// live row of `step`, `routes` the live rows' experts, each below `experts`; and the CPU executes the stamps.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe extern "C" fn expert_matmul<S: Stamps>(
    w: *const u8,
    x: *const u8,
    bias: *const f32,
    y: *mut f32,
    routes: *const u8,
    step: *const Step,
    k: usize,
    experts: usize,
    used: usize,
    tiles: usize,
    span: usize,
    read_cost: usize,
    worker: usize,
    workers: usize,
    x_stride: usize,
    routes_stride: usize,
    y_stride: usize,
) {
    let Some(bytes) = tile_bytes(&FORMATS[S::LAYOUT].layout, k) else {
        return;
    };
    // SAFETY: promised by the caller.
    let routes = unsafe { Routes::new(routes, routes_stride, &*step, used, experts) };
    routes.shares(tiles, read_cost, (worker, workers), |expert, rows, own| {
        let one_stamp = S::STAMPS.iter().any(|&(stamp, _)| stamp == rows.len());
        let span = if one_stamp { own.len() } else { span.max(1) };
        let mut tile = own.start;
        while tile < own.end {
            let count = span.min(own.end - tile);
            let at = (expert * tiles + tile) * TILE_N;
            let mut row = rows.start;
            while let Some(&(stamp, kernel)) = widest(S::STAMPS, rows.end - row) {
                // SAFETY: `at` is an output of the expert's tile `tile`, of which it has `count` from there on; the
                // stamp's rows are routed rows of live rows. A null bias stays null.
                unsafe {
                    let init = match bias.is_null() {
                        true => bias,
                        false => bias.add(at),
                    };
                    kernel(
                        w.add(at / TILE_N * bytes),
                        x.add(row * x_stride),
                        init,
                        y.byte_add(row * y_stride).add(tile * TILE_N),
                        k,
                        count,
                        x_stride,
                        0,
                        y_stride,
                    );
                }
                row += stamp;
            }
            tile += count;
        }
    });
}

/// The widest stamp of at most `rows` rows; none when there are no rows.
fn widest(stamps: &[(usize, MatmulFn)], rows: usize) -> Option<&(usize, MatmulFn)> {
    stamps.iter().rev().find(|(stamp, _)| *stamp <= rows)
}
