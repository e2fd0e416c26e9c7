//! Attention on GPUs: what each warp is to do in a step ([`plan`], once per program and window), and all that happens between
//! the q, k and v rows and rows of any activation form ([`attention`]): norms of heads and rotation, storing K and V, the
//! partial results of every split, and their merging.
//!
//! ```text
//! tile    up to QUERIES queries that read the same K and V: rows of one slot that follow each other, times the query heads
//!         of one KV head (in batches of QUERIES where there are more)
//! split   positions s * split .. (s + 1) * split of a slot
//! item    a tile and either one split or all of them; a warp does one at a time
//! cell    the partial results of one row, all its heads: largest score, sum of exponentials, weighted sum of V
//! ```
//!
//! A split's partial result depends on the query and the split alone, and partial results are merged in the order of
//! splits, by the warp that has all of them or by the last that brings one. So bits depend neither on the rows of a tile nor on which
//! tiles [`plan`] cuts up, which it decides by the work of the step and the cells there are. K and V of f16 and q8_0 caches
//! meet tensor cores as f16, as do queries and weights; an f32 cache is computed in f32 throughout.

use std::fmt;

use super::abi::{ActForm, Q8_GROUP};
use super::{Constant, Geometry, Kernel};
use crate::attention::Shape;
use crate::cpu::abi::{KvType, PAGE_TOKENS};

/// Queries that share one read of K and V: rows of a tensor core tile.
pub const QUERIES: usize = 16;
/// Longest head.
pub const MAX_HEAD_DIM: usize = 512;
/// Longest head whose weighted sum one warp's registers hold; of longer ones two warps have a half each.
const WHOLE_HEAD: usize = 256;
/// Shared memory that every GPU grants a thread block without asking.
const SHARED_BYTES: usize = 48 * 1024;

arguments! {
    /// Arguments of [`plan`]. Template: `attention_plan`.
    pub struct PlanArgs {
        /// Address of u32 positions of the rows.
        positions,
        /// Address of u32 slots of the rows.
        slots,
        /// Address of the live rows and live logits rows, two u32.
        live,
        /// Address of [`plan_bytes`], aligned to 16.
        plan,
        /// Rows that `plan` has room for.
        max_rows,
        /// Cells there are, at least `max_rows`.
        cells,
        /// Rows of a tile ([`rows_per_tile`]).
        tile_rows,
        /// Items of one tile and split: KV heads times batches of query heads ([`parts`]).
        parts,
        /// Warps of [`attention`] in the grid ([`warps`]).
        warps,
        /// Tokens of a split, a multiple of 32.
        split,
        /// Positions a row sees, itself included; 0 = all.
        window,
    }
}

arguments! {
    /// Arguments of [`attention`]. Template: `attention` (f16 and q8_0 caches) or `attention_f32`.
    pub struct AttentionArgs {
        /// Address of f32 rows of query heads, neither normalised nor rotated yet if they are to be.
        q,
        /// Address of f32 rows of K to be normalised, rotated and stored; 0: K and V are in the cache.
        k,
        /// Address of f32 rows of V to be stored.
        v,
        /// Address of rows of cosines and sines; anything with `rot_dim` 0.
        table,
        /// Address of f32 `[head_dim]`, or 0: heads of q are not normalised.
        q_norm,
        /// Address of f32 `[head_dim]`, or 0: heads of k are not normalised.
        k_norm,
        /// Address of f32 `[heads]`, or 0: a score of each head that takes part in the softmax and brings no value.
        sinks,
        /// Address of the layer's pages.
        kv,
        /// What [`plan`] left.
        plan,
        /// Address of [`scratch_bytes`], aligned to 16.
        scratch,
        /// Address of [`counter_bytes`], zero before and after.
        counters,
        /// Address of rows in the kernel's form, `[heads][head_dim]` each; those of the live rows are written.
        out,
        /// Address of u32 positions of the rows.
        positions,
        /// Address of u32 slots of the rows.
        slots,
        /// Address of u32 pages of the slots.
        page_table,
        /// Address of the live rows and live logits rows, two u32.
        live,
        /// Rows that `plan` has room for.
        max_rows,
        /// KV heads.
        kv_heads,
        /// Bytes between rows of `q`.
        q_stride,
        /// Bytes between rows of `k`.
        k_stride,
        /// Bytes between rows of `v`.
        v_stride,
        /// Bytes between rows of `table`.
        table_stride,
        /// Bytes between rows of `out`.
        out_stride,
        /// Leading elements of a head that rotate, even.
        rot_dim,
        /// Added to the mean square of heads of q (f32).
        q_eps,
        /// Added to the mean square of heads of k (f32).
        k_eps,
        /// Pages of a slot in `page_table`.
        pages_per_slot,
        /// Tokens of a split, as in `plan`.
        split,
        /// Positions a row sees, itself included; 0 = all.
        window,
        /// Factor of q k (f32).
        scale,
        /// Scores saturate at this magnitude; 0.0 = they do not (f32).
        softcap,
    }
}

/// Why an attention shape has no kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// `heads` is no multiple of `kv_heads`, or there are none.
    Heads {
        /// Query heads.
        heads: usize,
        /// KV heads.
        kv_heads: usize,
    },
    /// head_dim is no multiple of 4, 0, or above [`MAX_HEAD_DIM`]; or above 256 and no multiple of 64.
    HeadDim(usize),
    /// Heads of more than 256 elements over an f32 cache.
    LongF32(usize),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Heads { heads, kv_heads } => {
                write!(
                    f,
                    "{heads} query heads do not divide among {kv_heads} KV heads"
                )
            }
            Reason::HeadDim(head_dim) => write!(
                f,
                "head_dim {head_dim} is not a multiple of 4 in 4..={WHOLE_HEAD} or of 64 up to {MAX_HEAD_DIM}"
            ),
            Reason::LongF32(head_dim) => write!(
                f,
                "head_dim {head_dim} over an f32 KV cache is above {WHOLE_HEAD} (give --kv-type f16 or q8_0)"
            ),
        }
    }
}

impl std::error::Error for Reason {}

/// Whether there are kernels for this shape over this cache.
pub fn legal(shape: &Shape, kv: KvType) -> Result<(), Reason> {
    let &Shape {
        heads,
        kv_heads,
        head_dim,
        ..
    } = shape;
    if kv_heads == 0 || heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(Reason::Heads { heads, kv_heads });
    }
    if !(1..=MAX_HEAD_DIM).contains(&head_dim) || !head_dim.is_multiple_of(4) {
        return Err(Reason::HeadDim(head_dim));
    }
    if head_dim > WHOLE_HEAD {
        if !head_dim.is_multiple_of(64) {
            return Err(Reason::HeadDim(head_dim));
        }
        if kv == KvType::F32 {
            return Err(Reason::LongF32(head_dim));
        }
    }
    Ok(())
}

/// Rows of one slot that share a tile, of a model with `group` query heads per KV head.
pub const fn rows_per_tile(group: usize) -> usize {
    match QUERIES / group {
        0 => 1,
        rows => rows,
    }
}

/// Items of one tile and split.
pub const fn parts(kv_heads: usize, group: usize) -> usize {
    kv_heads * group.div_ceil(QUERIES)
}

/// A split long enough that partial results are few against K and V, and short enough that a single sequence of
/// `max_context` tokens keeps the GPU's `processors` busy: 64 to 512 tokens.
pub fn split(shape: &Shape, max_context: usize, processors: usize) -> usize {
    let items = parts(shape.kv_heads, shape.group());
    let wanted = max_context * items / (processors * 8).max(1);
    wanted.next_power_of_two().clamp(64, 512)
}

/// Cells for a step of `rows` rows in which every row is of a slot of its own and `max_context` tokens long: with so many,
/// [`plan`] can always cut up decode rows. It needs no more than `rows`.
pub fn cells(rows: usize, max_context: usize, split: usize) -> usize {
    rows * max_context.div_ceil(split).max(1)
}

/// Bytes that [`plan`] writes: the number of items, each row's cells, and the items.
pub const fn plan_bytes(max_rows: usize, cells: usize) -> usize {
    16 + (max_rows * 8).next_multiple_of(16) + cells * 16
}

/// Bytes of `cells` cells.
pub const fn scratch_bytes(heads: usize, head_dim: usize, cells: usize) -> usize {
    cells * heads * partial_floats(head_dim) * 4
}

/// Bytes of the counters of `rows` rows: one for each KV head and batch of query heads, and three of the launch.
pub const fn counter_bytes(rows: usize, kv_heads: usize, group: usize) -> usize {
    (rows * parts(kv_heads, group) + 3) * 4
}

/// Seconds that queries, keys and values of the step take before the first score: they are read, summed over a warp, meet in
/// shared memory and are stored.
pub const PREPARE: f64 = 0.5e-6;

/// Whether the attention kernel can rotate and store heads on the way: of the longest, queries do not fit beside what else a
/// warp keeps.
pub const fn prepares(head_dim: usize) -> bool {
    head_dim <= WHOLE_HEAD
}

/// Whether rows can be left in any form: heads that share a scale with others can only be left as f32.
pub const fn leaves_any_form(head_dim: usize) -> bool {
    head_dim.is_multiple_of(Q8_GROUP)
}

/// Floats of the partial result of one query: the padded weighted sum, the largest score, the sum of exponentials.
const fn partial_floats(head_dim: usize) -> usize {
    head_dim.next_multiple_of(32) + 4
}

/// The division of a step's attention. One thread block.
pub fn plan() -> Kernel {
    Kernel {
        name: "attention_plan".into(),
        template: "attention_plan",
        constants: vec![],
        threads: 256,
    }
}

/// Thread blocks of [`plan`].
pub fn plan_geometry() -> Geometry {
    Geometry {
        grid: [1, 1, 1],
        shared_bytes: 128,
    }
}

/// Name of a cache type in template constants.
pub(crate) const fn kv_word(kv: KvType) -> &'static str {
    match kv {
        KvType::F32 => "F32",
        KvType::F16 => "F16",
        KvType::Q8_0 => "Q8",
    }
}

/// Shared memory of one warp: its queries, what it has of all splits so far, and for f32 the weights of a page.
const fn warp_bytes(kv: KvType, head_dim: usize) -> usize {
    let head = head_dim.next_multiple_of(32);
    let (queries, sums) = (QUERIES * head, QUERIES * summed(head) * 4);
    match kv {
        KvType::F32 => 4 * queries + sums + QUERIES * (PAGE_TOKENS + 1 + 4) * 4 + QUERIES * 8,
        KvType::F16 | KvType::Q8_0 => 2 * queries + sums + 32 * 16,
    }
}

/// Elements of a head's weighted sum that one warp has.
const fn summed(head: usize) -> usize {
    if head > WHOLE_HEAD { head / 2 } else { head }
}

/// Warps of a thread block.
const fn block_warps(kv: KvType, head_dim: usize) -> usize {
    let warps = SHARED_BYTES / warp_bytes(kv, head_dim);
    if warps < 4 { warps } else { 4 }
}

/// Thread blocks of a multiprocessor that a kernel leaves registers for. More of them would be worth less than what a warp
/// holds in its registers.
const fn min_blocks(kv: KvType) -> i64 {
    match kv {
        KvType::F32 => 1,
        KvType::F16 | KvType::Q8_0 => 2,
    }
}

/// Attention of `group` query heads per KV head, its rows left in `form`; heads rotate in pairs `(i, i + rot_dim / 2)` when
/// `neox`, else `(2 i, 2 i + 1)`.
pub fn attention(kv: KvType, head_dim: usize, group: usize, neox: bool, form: ActForm) -> Kernel {
    let (cache, rows) = (kv.name(), form.name());
    let style = super::rope::style(neox);
    Kernel {
        name: format!("attention_{cache}_d{head_dim}_g{group}_{style}_{rows}"),
        template: match kv {
            KvType::F32 => "attention_f32",
            KvType::F16 | KvType::Q8_0 => "attention",
        },
        constants: vec![
            ("kv", Constant::Word(kv_word(kv).into())),
            ("head_dim", Constant::Int(head_dim as i64)),
            ("group", Constant::Int(group as i64)),
            ("blocks", Constant::Int(min_blocks(kv))),
            ("neox", Constant::Flag(neox)),
            ("form", Constant::Word(form.name().into())),
        ],
        threads: 32 * block_warps(kv, head_dim) as u32,
    }
}

/// Thread blocks of [`attention`] on a GPU with `processors` multiprocessors: as many as run at once, whatever the step.
pub fn geometry(kv: KvType, head_dim: usize, processors: usize) -> Geometry {
    let warps = block_warps(kv, head_dim);
    let at_once = REGISTERS / (registers(kv, head_dim).next_multiple_of(8) * 32 * warps);
    Geometry {
        grid: [(processors * at_once.max(1)) as u32, 1, 1],
        shared_bytes: (warps * warp_bytes(kv, head_dim)) as u32,
    }
}

/// Registers of a multiprocessor.
const REGISTERS: usize = 64 * 1024;

/// Registers of a thread, about: the sums of its queries, what it reads ahead, and the rest.
fn registers(kv: KvType, head_dim: usize) -> usize {
    match kv {
        KvType::F32 => 255,
        KvType::F16 | KvType::Q8_0 => {
            (80 + summed(head_dim.next_multiple_of(32)) * 17 / 16).min(255)
        }
    }
}

/// Warps of a grid of [`geometry`].
pub fn warps(kv: KvType, head_dim: usize, geometry: &Geometry) -> usize {
    geometry.grid[0] as usize * block_warps(kv, head_dim)
}

/// Bytes that [`attention`] moves for one row at `pos` in a step without company: K and V, the query, the row it leaves,
/// and the cells written and read if there is more than one split.
pub fn bytes(shape: &Shape, kv: KvType, form: ActForm, pos: usize, split: usize) -> u64 {
    let splits = pos / split - shape.first(pos) / split + 1;
    let cells = match splits {
        1 => 0,
        _ => 2 * scratch_bytes(shape.heads, shape.head_dim, splits),
    };
    let row = form.stride(shape.heads * shape.head_dim);
    shape.bytes(kv, pos) + (cells + row) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(heads: usize, kv_heads: usize, head_dim: usize) -> Shape {
        Shape {
            heads,
            kv_heads,
            head_dim,
            scale: 1.0,
            window: 0,
            softcap: 0.0,
        }
    }

    #[test]
    fn shapes_are_checked() {
        assert_eq!(legal(&shape(32, 8, 80), KvType::F32), Ok(()));
        for head_dim in [82, 288, 516, 576] {
            let found = legal(&shape(32, 8, head_dim), KvType::F16);
            assert_eq!(found, Err(Reason::HeadDim(head_dim)));
        }
        assert_eq!(legal(&shape(8, 1, 512), KvType::Q8_0), Ok(()));
        let long = legal(&shape(8, 1, 512), KvType::F32);
        assert_eq!(long, Err(Reason::LongF32(512)));
        let heads = Reason::Heads {
            heads: 9,
            kv_heads: 2,
        };
        assert_eq!(legal(&shape(9, 2, 64), KvType::F16), Err(heads));
    }

    #[test]
    fn no_block_asks_for_more_shared_memory_than_every_gpu_grants() {
        for kv in [KvType::F32, KvType::F16, KvType::Q8_0] {
            let all = (4..=MAX_HEAD_DIM).step_by(4);
            for head_dim in all.filter(|&d| legal(&shape(4, 1, d), kv).is_ok()) {
                let geometry = geometry(kv, head_dim, 132);
                let kernel = attention(kv, head_dim, 4, true, ActForm::F32);
                assert!(
                    geometry.shared_bytes as usize <= SHARED_BYTES,
                    "{}",
                    kernel.name
                );
                let warps = warps(kv, head_dim, &geometry);
                assert_eq!(warps, (geometry.grid[0] * kernel.threads / 32) as usize);
            }
        }
    }

    #[test]
    fn grids_are_what_runs_at_once() {
        let warps = [32, 64, 128, 256].map(|head_dim| {
            let geometry = geometry(KvType::F16, head_dim, 1);
            warps(KvType::F16, head_dim, &geometry)
        });
        assert_eq!(warps, [16, 12, 9, 8]);
    }

    #[test]
    fn splits_grow_with_context_and_heads() {
        let shape = shape(32, 8, 128);
        let splits = [512, 4096, 131_072].map(|context| split(&shape, context, 132));
        assert_eq!(splits, [64, 64, 512]);
        assert_eq!((rows_per_tile(4), rows_per_tile(24)), (4, 1));
        assert_eq!(parts(2, 24), 4);
    }
}
