//! The matmul family: `y[m, n] = sum_k x[m, k] * w[n, k]` with packed weights. Variants, legality, cost and the naive
//! reference; the micro-kernels themselves are in `cpu/<isa>/matmul.rs`. Which candidate wins is the plan's decision.

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::cpu::abi::{TILE_N, q8_row};
use crate::cpu::tile::tile_bytes;
use crate::quant::{Codebook, FORMATS, PackedLayout, Store};

pub use crate::cpu::features::Isa;

/// One stamped row count of one ISA.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Variant {
    /// Instruction set.
    pub isa: Isa,
    /// Activation rows that one call computes.
    pub stamp: usize,
    /// Multiply-adds per cycle of one core with integer weights, weights in cache.
    pub int_macs: f64,
    /// The same with float weights; 0 where the stamp does not exist for them.
    pub float_macs: f64,
}

const fn row(isa: Isa, stamp: usize, int_macs: f64, float_macs: f64) -> Variant {
    Variant {
        isa,
        stamp,
        int_macs,
        float_macs,
    }
}

/// Every variant. Rates are measured with 4-bit and f16 weights on a Zen 4 core by `examples/matmul_rates.rs`; they order
/// candidates, they promise nothing.
pub const VARIANTS: &[Variant] = &[
    row(Isa::Scalar, 1, 0.6, 0.6),
    row(Isa::Scalar, 4, 0.8, 1.3),
    row(Isa::Avx2, 1, 15.4, 7.5),
    row(Isa::Avx2, 2, 19.7, 12.0),
    row(Isa::Avx2, 3, 22.0, 0.0),
    row(Isa::Avx2, 4, 23.9, 0.0),
    row(Isa::Avx512Vnni, 1, 27.4, 7.9),
    row(Isa::Avx512Vnni, 2, 37.5, 12.2),
    row(Isa::Avx512Vnni, 3, 39.8, 15.0),
    row(Isa::Avx512Vnni, 4, 40.3, 15.8),
    row(Isa::Avx512Vnni, 5, 40.7, 15.9),
    row(Isa::Avx512Vnni, 6, 40.8, 15.9),
    row(Isa::Avx512Vnni, 7, 41.2, 15.9),
    row(Isa::Avx512Vnni, 8, 41.2, 15.9),
    row(Isa::Avx512Vnni, 12, 41.0, 0.0),
    row(Isa::Avx512Vnni, 16, 41.4, 0.0),
];

/// Rate of integer kernels by what they store, relative to 4-bit integers: what unpacking, table lookups, scales and mins
/// per 16 and 16-bit sums cost.
fn store_factor(isa: Isa, store: Store) -> f64 {
    match (isa, store) {
        (Isa::Avx512Vnni, Store::Int(2)) => 0.8,
        (Isa::Avx512Vnni, Store::Int(3)) => 0.9,
        (Isa::Avx512Vnni, Store::Int(5)) => 0.96,
        (Isa::Avx512Vnni, Store::Int(6)) => 0.95,
        (Isa::Avx2, Store::Int(2)) => 0.85,
        (Isa::Avx2, Store::Int(3)) => 0.75,
        (Isa::Avx2, Store::Int(5)) => 0.8,
        (Isa::Avx2, Store::Int(6)) => 0.7,
        (Isa::Avx2, Store::Int(8)) => 0.65,
        (Isa::Avx2, Store::Code(Codebook::Nl4)) => 0.7,
        (Isa::Avx2, Store::Code(Codebook::Fp4)) => 0.85,
        (Isa::Scalar, Store::Int(2)) => 0.7,
        (Isa::Scalar, Store::Code(_)) => 0.65,
        _ => 1.0,
    }
}

impl Variant {
    /// Multiply-adds per cycle for this layout; `None` when there is no such stamp.
    fn macs_per_cycle(&self, layout: &PackedLayout) -> Option<f64> {
        let rate = match layout.int_bits() {
            Some(_) => self.int_macs * store_factor(self.isa, layout.store),
            None => self.float_macs,
        };
        (rate > 0.0).then_some(rate)
    }
}

/// Names one micro-kernel; its Display is the symbol: `matmul_i4u8m_avx512_n8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VariantId {
    /// Layout of the packed weights.
    pub layout: PackedLayout,
    /// Instruction set.
    pub isa: Isa,
    /// Rows of one call.
    pub stamp: usize,
}

impl fmt::Display for VariantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "matmul_{}_{}_n{}",
            self.layout,
            self.isa.name(),
            self.stamp
        )
    }
}

/// What the target's cores and memory can do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CpuRates {
    /// Worker cores.
    pub cores: usize,
    /// Sustained clock under vector load, cycles per second.
    pub hz: f64,
    /// Memory read bandwidth of one core, bytes per second.
    pub bytes_per_s_per_core: f64,
    /// Memory read bandwidth of all cores together, bytes per second.
    pub bytes_per_s: f64,
}

/// One matmul to find kernels for.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// Layout of the packed weights.
    pub layout: PackedLayout,
    /// Outputs.
    pub n: usize,
    /// Reduction length.
    pub k: usize,
    /// Activation rows of the bucket.
    pub rows: usize,
    /// What the target executes.
    pub isas: &'a [Isa],
    /// What the target sustains.
    pub rates: &'a CpuRates,
}

/// Rows of one call, in row order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubBatch {
    /// Rows; equal to the stamp of `kernel`.
    pub rows: usize,
    /// The micro-kernel.
    pub kernel: VariantId,
}

/// A way to compute a [`Query`], or why it is none.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The row of the table.
    pub variant: &'static Variant,
    /// Calls per weight tile that cover all rows; empty when illegal.
    pub batches: Vec<SubBatch>,
    /// Predicted cost, or why the variant is not legal here.
    pub verdict: Result<Cost, Reason>,
}

/// Prediction for one matmul on all cores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// The larger of memory time and arithmetic time.
    pub seconds: f64,
    /// Time to stream the weights, seconds.
    pub memory_seconds: f64,
    /// Time of the arithmetic, seconds.
    pub arithmetic_seconds: f64,
    /// Bytes of weights read, once for all sub-batches: the step program loops tiles outermost.
    pub bytes: u64,
    /// Multiply-adds, padding columns included.
    pub macs: u64,
}

impl fmt::Display for Cost {
    /// Which wall binds, for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wall = if self.memory_seconds >= self.arithmetic_seconds {
            "memory"
        } else {
            "arithmetic"
        };
        let (memory, arithmetic) = (self.memory_seconds * 1e6, self.arithmetic_seconds * 1e6);
        write!(
            f,
            "{wall}: {memory:.1} us of bytes, {arithmetic:.1} us of arithmetic"
        )
    }
}

/// Why a variant cannot compute a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The target lacks the ISA.
    Isa(Isa),
    /// k does not fit the layout.
    KMultiple {
        /// Reduction length asked for.
        k: usize,
        /// What it must be a multiple of.
        multiple: usize,
    },
    /// One call computes more rows than there are.
    Rows {
        /// Rows of one call.
        stamp: usize,
        /// Rows asked for.
        rows: usize,
    },
    /// The ISA has no kernel of this stamp for the layout.
    NoStamp(VariantId),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Isa(isa) => write!(f, "needs {}", isa.needs().join("+")),
            Reason::KMultiple { k, multiple } => write!(f, "k={k} is not a multiple of {multiple}"),
            Reason::Rows { stamp, rows } => {
                write!(f, "computes {stamp} rows at once, the bucket has {rows}")
            }
            Reason::NoStamp(id) => write!(f, "there is no {id}"),
        }
    }
}

/// Every variant with its verdict, in table order.
pub fn candidates(query: &Query) -> Vec<Candidate> {
    VARIANTS
        .iter()
        .map(|variant| candidate(variant, query))
        .collect()
}

/// The legal candidate with the least predicted time; of equals, the one with the larger stamp.
pub fn cheapest(candidates: &[Candidate]) -> Option<&Candidate> {
    let seconds = |c: &Candidate| {
        c.verdict
            .as_ref()
            .map_or(f64::INFINITY, |cost| cost.seconds)
    };
    let legal = candidates.iter().rev().filter(|c| c.verdict.is_ok());
    legal.min_by(|a, b| seconds(a).total_cmp(&seconds(b)))
}

fn candidate(variant: &'static Variant, query: &Query) -> Candidate {
    match plan(variant, query) {
        Ok((batches, cost)) => Candidate {
            variant,
            batches,
            verdict: Ok(cost),
        },
        Err(reason) => Candidate {
            variant,
            batches: Vec::new(),
            verdict: Err(reason),
        },
    }
}

fn plan(variant: &Variant, query: &Query) -> Result<(Vec<SubBatch>, Cost), Reason> {
    let &Query {
        layout, n, k, rows, ..
    } = query;
    let id = |stamp| VariantId {
        layout,
        isa: variant.isa,
        stamp,
    };
    if !query.isas.contains(&variant.isa) {
        return Err(Reason::Isa(variant.isa));
    }
    let multiple = layout.k_multiple();
    let tile = tile_bytes(&layout, k).ok_or(Reason::KMultiple { k, multiple })?;
    let known = FORMATS.iter().any(|fmt| fmt.layout == layout);
    if !known || variant.macs_per_cycle(&layout).is_none() {
        return Err(Reason::NoStamp(id(variant.stamp)));
    }
    if variant.stamp > rows {
        return Err(Reason::Rows {
            stamp: variant.stamp,
            rows,
        });
    }
    let tiles = n.div_ceil(TILE_N);
    let macs_per_row = (tiles * TILE_N * k) as f64;
    let (mut batches, mut cycles, mut left) = (Vec::new(), 0.0, rows);
    while left > 0 {
        let fits = |v: &&Variant| v.isa == variant.isa && v.stamp <= left.min(variant.stamp);
        let widest = VARIANTS
            .iter()
            .filter(fits)
            .max_by_key(|v| v.stamp)
            .unwrap_or(variant);
        let rate = widest
            .macs_per_cycle(&layout)
            .ok_or(Reason::NoStamp(id(widest.stamp)))?;
        cycles += macs_per_row * widest.stamp as f64 / rate;
        left = left.saturating_sub(widest.stamp);
        batches.push(SubBatch {
            rows: widest.stamp,
            kernel: id(widest.stamp),
        });
    }
    let rates = query.rates;
    let bytes = tiles * tile;
    let bandwidth = rates
        .bytes_per_s
        .min(rates.bytes_per_s_per_core * rates.cores as f64);
    let (memory, arithmetic) = (
        bytes as f64 / bandwidth,
        cycles / (rates.hz * rates.cores as f64),
    );
    let cost = Cost {
        seconds: memory.max(arithmetic),
        bytes: bytes as u64,
        macs: macs_per_row as u64 * rows as u64,
        memory_seconds: memory,
        arithmetic_seconds: arithmetic,
    };
    Ok((batches, cost))
}

/// Bytes of one activation row as the kernels for `layout` read it: int8 rows for integer layouts, f32 otherwise.
pub fn activation_row_bytes(layout: &PackedLayout, k: usize) -> usize {
    match layout.int_bits() {
        Some(_) => q8_row(k).bytes,
        None => k * 4,
    }
}

/// Naive matmul over dequantised weights, accumulated in f64: the oracle. `x` is `[rows][k]`, `w` `[n][k]`, the result
/// `[rows][n]`.
pub fn reference(x: &[f32], w: &[f32], k: usize) -> Vec<f32> {
    let dot = |x: &[f32], w: &[f32]| -> f64 {
        x.iter()
            .zip(w)
            .map(|(&x, &w)| f64::from(x) * f64::from(w))
            .sum()
    };
    let rows = x.chunks_exact(k);
    rows.flat_map(|x| w.chunks_exact(k).map(move |w| dot(x, w) as f32))
        .collect()
}
