//! The matmul family: `y[m, n] = sum_k x[m, k] * w[n, k]` with packed weights. Variants, legality, cost and the naive
//! reference; the micro-kernels themselves are in `cpu/<isa>/matmul.rs`. Which candidate wins is the plan's decision.
//!
//! `cut` finds the cheapest cut of a bucket's rows into stamps, `measure` times stamps on this machine.

#[cfg(test)]
mod conformance;
mod cut;
pub mod measure;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::cpu::abi::q8_row_bytes;
use crate::quant::{Codebook, PackedLayout, Store};

pub use crate::cpu::features::Isa;
pub use cut::{candidates, cheapest, widest_first};

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

/// Every variant. Rates are measured with 4-bit and f16 weights by `examples/matmul_rates.rs`: the integer rates of
/// AVX-512 on an Emerald Rapids core (at 1, 2, 4, 8, 16 and 32 rows, and in between by interpolation), the others on a Zen 4 core
/// (of AVX-VNNI, the ratio to AVX2 on a Sapphire Rapids core). They order candidates, they promise nothing.
pub const VARIANTS: &[Variant] = &[
    row(Isa::Scalar, 1, 0.6, 0.6),
    row(Isa::Scalar, 4, 0.8, 1.3),
    row(Isa::Avx2, 1, 15.4, 7.5),
    row(Isa::Avx2, 2, 19.7, 12.0),
    row(Isa::Avx2, 3, 22.0, 0.0),
    row(Isa::Avx2, 4, 23.9, 0.0),
    row(Isa::AvxVnni, 1, 17.2, 0.0),
    row(Isa::AvxVnni, 2, 23.0, 0.0),
    row(Isa::AvxVnni, 3, 26.6, 0.0),
    row(Isa::AvxVnni, 4, 30.5, 0.0),
    row(Isa::Avx512Vnni, 1, 24.5, 7.9),
    row(Isa::Avx512Vnni, 2, 35.3, 12.2),
    row(Isa::Avx512Vnni, 3, 41.5, 15.0),
    row(Isa::Avx512Vnni, 4, 47.3, 15.8),
    row(Isa::Avx512Vnni, 5, 49.2, 15.9),
    row(Isa::Avx512Vnni, 6, 51.0, 15.9),
    row(Isa::Avx512Vnni, 7, 52.8, 15.9),
    row(Isa::Avx512Vnni, 8, 54.7, 15.9),
    row(Isa::Avx512Vnni, 9, 56.0, 0.0),
    row(Isa::Avx512Vnni, 10, 57.3, 0.0),
    row(Isa::Avx512Vnni, 11, 58.6, 0.0),
    row(Isa::Avx512Vnni, 12, 59.8, 0.0),
    row(Isa::Avx512Vnni, 13, 60.9, 0.0),
    row(Isa::Avx512Vnni, 14, 61.9, 0.0),
    row(Isa::Avx512Vnni, 15, 62.9, 0.0),
    row(Isa::Avx512Vnni, 16, 63.8, 0.0),
    row(Isa::Avx512Vnni, 17, 63.87, 0.0),
    row(Isa::Avx512Vnni, 18, 63.91, 0.0),
    row(Isa::Avx512Vnni, 19, 63.94, 0.0),
    row(Isa::Avx512Vnni, 20, 63.97, 0.0),
    row(Isa::Avx512Vnni, 21, 64.02, 0.0),
    row(Isa::Avx512Vnni, 22, 64.05, 0.0),
    row(Isa::Avx512Vnni, 23, 64.09, 0.0),
    row(Isa::Avx512Vnni, 24, 64.12, 0.0),
    row(Isa::Avx512Vnni, 25, 64.15, 0.0),
    row(Isa::Avx512Vnni, 26, 64.19, 0.0),
    row(Isa::Avx512Vnni, 27, 64.22, 0.0),
    row(Isa::Avx512Vnni, 28, 64.27, 0.0),
    row(Isa::Avx512Vnni, 29, 64.3, 0.0),
    row(Isa::Avx512Vnni, 30, 64.33, 0.0),
    row(Isa::Avx512Vnni, 31, 64.37, 0.0),
    row(Isa::Avx512Vnni, 32, 64.4, 0.0),
];

/// Rate of integer kernels by what they store, relative to 4-bit integers: what unpacking, table lookups, scales and mins
/// per 16 and 16-bit sums cost.
fn store_factor(isa: Isa, store: Store) -> f64 {
    match (isa, store) {
        (Isa::Avx512Vnni, Store::Int(2)) => 0.8,
        (Isa::Avx512Vnni, Store::Int(3)) => 0.9,
        (Isa::Avx512Vnni, Store::Int(5)) => 0.96,
        (Isa::Avx512Vnni, Store::Int(6)) => 0.95,
        (Isa::Avx512Vnni, Store::Int(8)) => 0.95,
        (Isa::AvxVnni, Store::Int(2 | 5)) => 0.7,
        (Isa::AvxVnni, Store::Int(3 | 6)) => 0.75,
        (Isa::AvxVnni, Store::Int(8)) => 0.8,
        (Isa::AvxVnni, Store::Code(Codebook::Nl4)) => 0.65,
        (Isa::AvxVnni, Store::Code(Codebook::Fp4)) => 0.85,
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
    /// Times measured for this layout, n and k with as many cores; they replace what the table predicts.
    pub measured: &'a [Timing],
}

/// Measured time of one stamp over all tiles of a matrix, all cores together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// Instruction set.
    pub isa: Isa,
    /// Rows of the stamp.
    pub stamp: usize,
    /// Seconds when the weights come from memory.
    pub cold_seconds: f64,
    /// Seconds when another stamp has just read the same weights.
    pub warm_seconds: f64,
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
    /// The row of the table: the widest stamp of the cut.
    pub variant: &'static Variant,
    /// The cheapest cut of the rows that uses the variant and nothing wider; empty when illegal.
    pub batches: Vec<SubBatch>,
    /// Predicted cost, or why the variant is not legal here.
    pub verdict: Result<Cost, Reason>,
}

/// Prediction for one matmul on all cores.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Predicted time, seconds.
    pub seconds: f64,
    /// Time to stream the weights at full bandwidth, seconds.
    pub memory_seconds: f64,
    /// Time of the arithmetic with weights in cache, by the table, seconds.
    pub arithmetic_seconds: f64,
    /// Bytes of weights read, once for all sub-batches: the step program loops tiles outermost.
    pub bytes: u64,
    /// Multiply-adds, padding columns included.
    pub macs: u64,
    /// Whether `seconds` was measured on the target; else it follows from the table.
    pub measured: bool,
}

impl std::iter::Sum for Cost {
    /// One after the other; measured if all are.
    fn sum<I: Iterator<Item = Cost>>(costs: I) -> Cost {
        let add = |a: Cost, b: Cost| Cost {
            seconds: a.seconds + b.seconds,
            memory_seconds: a.memory_seconds + b.memory_seconds,
            arithmetic_seconds: a.arithmetic_seconds + b.arithmetic_seconds,
            bytes: a.bytes + b.bytes,
            macs: a.macs + b.macs,
            measured: a.measured && b.measured,
        };
        costs.reduce(add).unwrap_or_default()
    }
}

impl fmt::Display for Cost {
    /// Where the number comes from and which wall binds, for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wall = if self.memory_seconds >= self.arithmetic_seconds {
            "memory"
        } else {
            "arithmetic"
        };
        let (memory, arithmetic) = (self.memory_seconds * 1e6, self.arithmetic_seconds * 1e6);
        if self.measured {
            return write!(
                f,
                "measured: {:.1} us, {:.1} GB/s",
                self.seconds * 1e6,
                self.bytes as f64 / self.seconds / 1e9
            );
        }
        write!(
            f,
            "model: {wall}, {memory:.1} us of bytes, {arithmetic:.1} us of arithmetic"
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
    /// The target's stamps do not add up to the rows.
    Uncovered {
        /// Rows asked for.
        rows: usize,
    },
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
            Reason::Uncovered { rows } => write!(f, "no stamps add up to {rows} rows"),
        }
    }
}

/// Bytes of one activation row as the kernels for `layout` read it: int8 rows for integer layouts, f32 otherwise.
pub fn activation_row_bytes(layout: &PackedLayout, k: usize) -> usize {
    match layout.int_bits() {
        Some(_) => q8_row_bytes(k),
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
