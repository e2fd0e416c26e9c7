//! The experts family: each row of a step uses some of a layer's experts, which a router chooses. Routing, matmuls by
//! expert, and the weighted sum of what the experts made of a row. Legality, expected work, symbol names and the naive
//! reference; the micro-kernels are in `cpu/scalar/experts.rs`, matmuls by expert run the stamps of [`crate::matmul`].
//!
//! A row that uses U experts is U *routed rows*. They lie in memory by expert, those of one expert in the order of the
//! step's rows, so that all of them meet an expert's weights while these are read once. Where a routed row lies depends
//! on its company; what it holds does not. `cpu/groups.rs` says which routed row lies where, and which worker computes it.

#[cfg(test)]
mod tests;

use std::fmt;

use crate::cpu::Isa;
use crate::cpu::abi::Step;
use crate::quant::PackedLayout;

/// Chooses each row's experts: `(logits, routes, step, experts, used, of_used, normalise, row_begin, row_end,
/// logits_stride, routes_stride)`. A row of `routes` is `used` u32 experts, largest logit first, of equal ones the first,
/// then `used` f32 weights: the softmax over all logits, or over those of the experts used when `of_used` is 1; divided
/// by their sum when `normalise` is 1. Whatever the logits, the experts of a row are distinct and below `experts`. Rows
/// are clamped to `step.rows`.
pub type RouteFn = unsafe extern "C" fn(
    *const f32,
    *mut u8,
    *const Step,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
);

/// Copies rows to their routed rows: `(x, routes, step, out, experts, used, row_bytes, row_begin, row_end, x_stride,
/// routes_stride, out_stride)`. `out` has `used` rows for every row of the bucket. Rows are clamped to `step.rows`.
pub type GatherFn = unsafe extern "C" fn(
    *const u8,
    *const u8,
    *const Step,
    *mut u8,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
);

/// One worker's share of `y[p][c] = bias[e][c] + sum_k x[p][k] * w[e][c][k]` over all routed rows p, e being p's expert:
/// `(w, x, bias, y, routes, step, k, experts, used, tiles, span, read_cost, worker, workers, x_stride, routes_stride,
/// y_stride)`. `w` has `tiles` tiles for each expert, `bias` (or null) 16 times `tiles` floats for each. Where several
/// stamps meet an expert's tiles, they take turns on `span` tiles. Reading a tile costs as much as `read_cost` rows.
pub type ExpertMatmulFn = unsafe extern "C" fn(
    *const u8,
    *const u8,
    *const f32,
    *mut f32,
    *const u8,
    *const Step,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
);

/// Multiplies routed rows in place by their expert's factor: `(x, routes, step, factors, width, experts, used, row_begin,
/// row_end, x_stride, routes_stride)`. Rows are clamped to `step.rows`.
pub type ScaleFn = unsafe extern "C" fn(
    *mut f32,
    *const u8,
    *const Step,
    *const f32,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
);

/// Sums each row's routed rows, times their weights, by rank: `(x, routes, step, out, width, experts, used, row_begin,
/// row_end, x_stride, routes_stride, out_stride)`. Rows are clamped to `step.rows`.
pub type SumFn = unsafe extern "C" fn(
    *const f32,
    *const u8,
    *const Step,
    *mut f32,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
);

/// Multiplies each row in place by the logistic function of its gate: `(x, gate, width, rows, x_stride, gate_stride)`;
/// `gate` has one float in a row.
pub type GateRowsFn = unsafe extern "C" fn(*mut f32, *const f32, usize, usize, usize, usize);

/// Most experts of a layer.
pub const MAX_EXPERTS: usize = 1024;
/// Most experts that a row uses.
pub const MAX_USED: usize = 64;

/// Why there are no kernels for a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There are none, or more than [`MAX_EXPERTS`].
    Experts(usize),
    /// A row uses none, more than there are, or more than [`MAX_USED`].
    Used {
        /// Experts that a row uses.
        used: usize,
        /// Experts.
        experts: usize,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Experts(experts) => {
                write!(f, "{experts} experts (supported: 1 to {MAX_EXPERTS})")
            }
            Reason::Used { used, experts } => {
                let most = experts.min(&MAX_USED);
                write!(
                    f,
                    "{used} of {experts} experts for a row (supported: 1 to {most})"
                )
            }
        }
    }
}

impl std::error::Error for Reason {}

/// Whether there are kernels for rows that use `used` of `experts` experts.
pub fn legal(experts: usize, used: usize) -> Result<(), Reason> {
    if !(1..=MAX_EXPERTS).contains(&experts) {
        return Err(Reason::Experts(experts));
    }
    match (1..=experts.min(MAX_USED)).contains(&used) {
        true => Ok(()),
        false => Err(Reason::Used { used, experts }),
    }
}

/// Bytes of one row of routes, a multiple of 64.
pub const fn route_bytes(used: usize) -> usize {
    (used * 8).next_multiple_of(64)
}

/// Symbol of the [`ExpertMatmulFn`] of a layout: `expert_matmul_i4u8m_avx512`.
pub fn symbol(layout: &PackedLayout, isa: Isa) -> String {
    format!("expert_matmul_{}_{}", layout.name(), isa.name())
}

/// Probability that 0, 1, 2... of `rows` rows use one expert, if routers choose `used` of `experts` without preference:
/// the binomial distribution.
pub fn rows_of_expert(rows: usize, experts: usize, used: usize) -> Vec<f64> {
    let chance = used as f64 / experts as f64;
    let mut found = vec![0.0; rows + 1];
    found[0] = 1.0;
    for row in 0..rows {
        for n in (0..=row).rev() {
            found[n + 1] += found[n] * chance;
            found[n] *= 1.0 - chance;
        }
    }
    found
}

/// Naive routing of one row, in f64: experts by rank, and their weights.
pub fn reference(logits: &[f32], used: usize, of_used: bool, normalise: bool) -> Vec<(usize, f64)> {
    let mut ranked: Vec<usize> = (0..logits.len()).collect();
    ranked.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let largest = f64::from(logits[ranked[0]]);
    let exp = |&e: &usize| (f64::from(logits[e]) - largest).exp();
    let chosen = &ranked[..used];
    let total: f64 = match of_used {
        true => chosen.iter().map(exp).sum(),
        false => ranked.iter().map(exp).sum(),
    };
    let share: f64 = match normalise {
        true => chosen.iter().map(|e| exp(e) / total).sum(),
        false => 1.0,
    };
    chosen
        .iter()
        .map(|e| (*e, exp(e) / total / share.max(LEAST_SUM)))
        .collect()
}

/// Least sum that weights are divided by: the smallest normal number of half precision, as in llama.cpp.
pub const LEAST_SUM: f64 = 6.103_515_625e-5;
