//! The plan: which buckets exist, where every weight and buffer lies, and for each program the launches in order with
//! their variants, arguments, split over workers and barriers. Everything after this is mechanical.
//!
//! `buckets` chooses row counts, `lower` turns graph nodes into launches, `select` picks matmul variants, `memory` places
//! buffers, `schedule` puts barriers, `verify` checks the result without trusting any of them, `report` prints it.

pub mod buckets;
pub mod build;
pub mod lower;
pub mod memory;
pub mod report;
pub mod schedule;
pub mod select;
#[cfg(test)]
pub(crate) mod tests;
pub mod verify;

use crate::error::Error;
use crate::graph::{Activation, Value, WeightId};
use crate::target::Target;
use coldpress_kernels::attention::Shape;
use coldpress_kernels::gpu::{Geometry, Kernel};
use coldpress_runtime::manifest::{CandidatePlan, GridArg, KvPlan, Limits, Stage};
use std::ops::Range;

pub use build::{Options, build};

/// A finished plan for one target.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Machine it is for.
    pub target: Target,
    /// Instruction streams per program.
    pub workers: usize,
    /// Maxima.
    pub limits: Limits,
    /// Placement of every weight in the weights section, in section order.
    pub weights: Vec<Placement>,
    /// Bytes of the weights section.
    pub weight_bytes: u64,
    /// First bytes of the arena that belong to no value.
    pub reserved_bytes: usize,
    /// Of these, the first that are zero between launches.
    pub zeroed_bytes: usize,
    /// Bytes of the activation arena.
    pub arena_bytes: usize,
    /// The rows that every trunk program leaves and every head program reads.
    pub hidden: Access,
    /// The rows that every head program leaves.
    pub logits: Access,
    /// Where head programs leave the largest logits of each row, if they do.
    pub candidates: Option<CandidatePlan>,
    /// KV pool.
    pub kv: KvPlan,
    /// Programs by stage, then rows ascending.
    pub programs: Vec<ProgramPlan>,
}

/// Where a weight lies in the weights section.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// Which weight.
    pub weight: WeightId,
    /// How it is stored.
    pub form: Form,
    /// Byte offset, a multiple of 64.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
}

/// How a weight is stored in the bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Tiles of the weight's `PackedLayout`.
    Tiles,
    /// As `Tiles`, for each of so many equally large matrices that are stacked in the weight: no tile has rows of two.
    Experts(usize),
    /// f32, each row padded with zeros to a multiple of 16 elements.
    Vector,
}

/// One stage for one row count.
#[derive(Clone, Debug)]
pub struct ProgramPlan {
    /// Which half of the step.
    pub stage: Stage,
    /// Bucket.
    pub rows: usize,
    /// Work in order.
    pub launches: Vec<Launch>,
}

impl ProgramPlan {
    /// Sum of the launches' predictions, seconds.
    pub fn predicted_seconds(&self) -> f64 {
        self.launches.iter().map(|l| l.seconds).sum()
    }
}

/// One piece of work that all workers share.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Graph label.
    pub label: String,
    /// What runs.
    pub work: Work,
    /// Whether all workers meet before it.
    pub barrier: bool,
    /// Memory it touches.
    pub accesses: Vec<Access>,
    /// Why this variant was chosen; empty where there was no choice.
    pub reason: String,
    /// Weight bytes streamed.
    pub bytes: u64,
    /// Multiply-accumulates.
    pub macs: u64,
    /// Predicted time, seconds.
    pub seconds: f64,
}

/// What a launch executes.
#[derive(Clone, Debug)]
pub enum Work {
    /// A micro-kernel called once per worker on its share of `units`.
    Call {
        /// Micro-kernel symbol.
        symbol: String,
        /// Arguments in order.
        args: Vec<Arg>,
        /// Units to divide among workers (rows, or rows x heads).
        units: usize,
    },
    /// Matmul parts that share an input; workers divide the tiles of all parts.
    Matmul(Matmul),
    /// Matmuls by expert, called by every worker; they divide the experts that the step uses among themselves.
    Experts(Experts),
    /// A part of attention, called by every worker; they divide the step's live work among themselves.
    Attention(Attention),
    /// A micro-kernel that every worker calls; they divide the channels or heads of the step's slots among themselves, so
    /// that the rows of a slot are computed one after the other.
    Recurrent {
        /// Micro-kernel symbol.
        symbol: String,
        /// Arguments in order.
        args: Vec<Arg>,
    },
    /// Thread blocks of a GPU kernel.
    Grid(Grid),
    /// A loop emitted inline over `rows` rows of `width` elements (rows are divided among workers).
    Elementwise {
        /// What to compute per element.
        op: Elementwise,
        /// Input buffers.
        inputs: Vec<Buffer>,
        /// Output buffer; may be an input.
        output: Buffer,
        /// Elements per row.
        width: usize,
        /// Rows.
        rows: usize,
    },
}

/// A GPU kernel and what it runs on.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// What is rendered and compiled.
    pub kernel: Kernel,
    /// Thread blocks.
    pub geometry: Geometry,
    /// Arguments in order.
    pub args: Vec<GridArg>,
    /// Whether it waits for the launch before it itself, and may so start early.
    pub overlaps: bool,
    /// Graph labels of the matrices it multiplies.
    pub weights: Vec<String>,
    /// What its main loop is there for, if it streams weights.
    pub main_loop: Option<MainLoop>,
    /// What its predicted time is spent on, by name: `memory`, `issue` and others of a matmul's cost; else `launch`.
    pub bound_by: &'static str,
}

/// What a thread block does in one pass of a kernel's main loop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MainLoop {
    /// Weights it multiplies.
    pub weights: u32,
    /// Kernels that are side by side in this one, each with a loop of its own: then the pass is one of each.
    pub kernels: u32,
    /// Bytes of memory that a weight takes, its share of scales included.
    pub weight_bytes: f64,
}

/// An element-wise function that codegen emits inline.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Elementwise {
    /// a + b.
    Add,
    /// a * b.
    Mul,
    /// activation(a).
    Act(Activation),
    /// activation(a) * b.
    GatedAct(Activation),
    /// a * factor.
    Scale(f32),
    /// cap * tanh(a / cap).
    Softcap(f32),
}

impl Elementwise {
    /// Inputs it takes.
    pub fn arity(self) -> usize {
        match self {
            Elementwise::Add | Elementwise::Mul | Elementwise::GatedAct(_) => 2,
            Elementwise::Act(_) | Elementwise::Scale(_) | Elementwise::Softcap(_) => 1,
        }
    }
}

/// An argument of a micro-kernel call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// Null pointer.
    Null,
    /// The step, with the page table of that number.
    Step(u32),
    /// An immediate.
    Const(usize),
    /// Address in the weights section.
    Weights(u64),
    /// Address in the KV pool.
    Kv(u64),
    /// Address in the arena.
    Arena(usize),
    /// Address in the arena of the worker's first unit: offset + begin * stride.
    ArenaAt {
        /// Offset of unit 0.
        offset: usize,
        /// Bytes between units.
        stride: usize,
    },
    /// First unit of the worker's share.
    Begin,
    /// One past the last unit of the worker's share.
    End,
    /// Number of units in the worker's share.
    Count,
    /// Number of the worker.
    Worker,
    /// How many workers there are.
    Workers,
}

/// Rows of a value in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Offset of row 0, a multiple of 64.
    pub offset: usize,
    /// Bytes between rows, a multiple of 64.
    pub stride: usize,
}

/// A launch of attention.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Micro-kernel symbol.
    pub symbol: String,
    /// Arguments in order.
    pub args: Vec<Arg>,
    /// What is computed for a row.
    pub shape: Shape,
    /// Where workers that share queries leave their results; none where they never share any.
    pub scratch: Option<Scratch>,
}

/// Partial results of attention: a slot for every worker but the last, in it a cell for every split of a sequence. Which
/// cells are used, and by whom, only the step decides; a cell is written by one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scratch {
    /// The slots; a slot is `cells * cell` bytes.
    pub buffer: Buffer,
    /// How many slots.
    pub slots: usize,
    /// Cells of a slot.
    pub cells: usize,
    /// Bytes of a cell: a partial result of each query that shares a pass over the cache.
    pub cell: usize,
}

impl Scratch {
    /// One piece of `bytes` bytes, a multiple of 64.
    pub fn piece(bytes: usize) -> Scratch {
        Scratch {
            buffer: Buffer {
                offset: 0,
                stride: bytes,
            },
            slots: 1,
            cells: 1,
            cell: bytes,
        }
    }
}

/// A launch of matmuls by expert.
#[derive(Clone, Debug)]
pub struct Experts {
    /// The experts of each row.
    pub routes: Buffer,
    /// Experts.
    pub experts: usize,
    /// Experts that a row uses.
    pub used: usize,
    /// Routed rows, by expert (int8 rows or f32 rows, as the layout reads them).
    pub input: Buffer,
    /// Row length.
    pub k: usize,
    /// Rows of the bucket; as many routed rows for each as it uses experts.
    pub rows: usize,
    /// The matrices.
    pub parts: Vec<ExpertPart>,
}

/// The matrices of all experts that make one output.
#[derive(Clone, Debug)]
pub struct ExpertPart {
    /// Graph label of the weight.
    pub label: String,
    /// Micro-kernel symbol.
    pub symbol: String,
    /// Offset of the first expert's tile 0 in the weights section.
    pub weights: u64,
    /// Bytes of one tile.
    pub tile_bytes: usize,
    /// Tiles of 16 outputs of each expert.
    pub tiles: usize,
    /// What reading a tile costs, in rows that meet it.
    pub read_cost: usize,
    /// Biases of the first expert in the weights section, those of the others after it.
    pub bias: Option<u64>,
    /// Routed output rows, by expert.
    pub output: Buffer,
}

/// A matmul launch.
#[derive(Clone, Debug)]
pub struct Matmul {
    /// Input rows (int8 rows or f32 rows, as the layout reads them).
    pub input: Buffer,
    /// Row length.
    pub k: usize,
    /// Rows of the bucket.
    pub rows: usize,
    /// The matrices.
    pub parts: Vec<MatmulPart>,
}

/// One matrix of a matmul launch.
#[derive(Clone, Debug)]
pub struct MatmulPart {
    /// Graph label of the weight.
    pub label: String,
    /// Offset of tile 0 in the weights section.
    pub weights: u64,
    /// Bytes of one tile.
    pub tile_bytes: usize,
    /// Tiles of 16 outputs.
    pub tiles: usize,
    /// What the accumulators start from.
    pub init: Init,
    /// Output rows.
    pub output: Buffer,
    /// Rows cut into stamps: (first row, rows, symbol).
    pub stamps: Vec<Stamp>,
}

/// One stamped kernel over some rows of the bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// First row.
    pub first: usize,
    /// Rows the stamp computes.
    pub rows: usize,
    /// Micro-kernel symbol, also the variant's id.
    pub symbol: String,
}

/// Start value of a matmul's accumulators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// Zero.
    Zero,
    /// One bias row at this offset of the weights section.
    Bias(u64),
    /// Rows of the arena (a residual; may be the output itself).
    Rows(Buffer),
}

/// Memory one launch reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Where.
    pub space: Space,
    /// Whose bytes they are: a read needs what was written for this value, a write leaves it. A value that an op makes of
    /// an input in place, between two launches of its own, has the port after the op's last. None in a KV cache.
    pub value: Option<Value>,
    /// Offset of row 0.
    pub offset: usize,
    /// Bytes between rows.
    pub stride: usize,
    /// Rows touched (0..rows).
    pub rows: usize,
    /// Bytes touched in each row.
    pub width: usize,
    /// Whether it is written.
    pub write: bool,
    /// How workers divide it.
    pub split: Split,
}

/// Memory a launch may touch besides weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Space {
    /// Activation arena.
    Arena,
    /// KV pages of a layer: rows are positions unknown at compile time, so any two accesses may meet.
    Kv(usize),
    /// A recurrent state of all slots: which a step changes is unknown at compile time.
    State(usize),
}

/// How a launch's workers share an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Worker w touches the rows of its share of `rows` units.
    Rows,
    /// Every worker may touch all of it.
    Whole,
    /// Workers touch disjoint column ranges of every row: the tiles of matmul part `.0`.
    Tiles(usize),
    /// Worker w touches the cells of its share of rows x `per_row` units, `bytes` each, side by side in a row.
    Cells {
        /// Units in a row.
        per_row: usize,
        /// Bytes of one unit.
        bytes: usize,
    },
    /// Each cell of rows x `per_row`, `bytes` each, side by side in a row, is touched by at most one worker; by which, only
    /// the step decides.
    Live {
        /// Cells in a row.
        per_row: usize,
        /// Bytes of one cell.
        bytes: usize,
    },
}

/// Largest `--max-batch`: what the buckets of one bundle are laid out for.
pub const MAX_BATCH: usize = 1024;
/// Largest `--ctx-size`, tokens.
pub const MAX_CONTEXT: usize = 1 << 24;
/// Most `--threads`: each has machine code of its own in every program.
pub const MAX_WORKERS: usize = 256;

/// Fails unless `value` is in 1..=`most`.
pub fn in_range(flag: &str, value: usize, most: usize) -> Result<(), Error> {
    if (1..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "{flag} {value} is out of range: 1 to {most}"
    )))
}

/// Worker w's share of `units`, contiguous and balanced to one unit.
pub fn share(units: usize, workers: usize, w: usize) -> Range<usize> {
    units * w / workers..units * (w + 1) / workers
}

impl Matmul {
    /// Each part's tile range for worker `w`: the tiles of all parts in order, divided by weight bytes.
    pub fn tile_shares(&self, workers: usize, w: usize) -> Vec<Range<usize>> {
        let total: usize = self.parts.iter().map(|p| p.tiles * p.tile_bytes).sum();
        let cut = |w: usize| total / workers * w + total % workers * w / workers;
        let (lo, hi) = (cut(w), cut(w + 1));
        let mut start = 0;
        self.parts
            .iter()
            .map(|p| {
                let tile_at = |byte: usize| {
                    byte.saturating_sub(start)
                        .div_ceil(p.tile_bytes)
                        .min(p.tiles)
                };
                let range = tile_at(lo)..tile_at(hi);
                start += p.tiles * p.tile_bytes;
                range
            })
            .collect()
    }
}
