//! What emitted CPU code, micro-kernels and the runtime agree on: the step description, the worker context, and the
//! byte layouts of quantised activations and of the paged KV cache. No arithmetic.
//!
//! Every micro-kernel is an `unsafe extern "C" fn` whose arguments are pointers or `usize`; f32 parameters travel as
//! their bits in the low half of a `usize`. Strides are in bytes. Kernels that take `step` clamp their row range to the
//! live rows; all others compute every row of the bucket, whatever padding rows hold.

use serde::{Deserialize, Serialize};

/// Columns of a weight tile; activation and output rows are padded to a multiple of it.
pub const TILE_N: usize = 16;
/// Tokens in one KV page.
pub const PAGE_TOKENS: usize = 32;
/// Activations that share one int8 scale. Half of what shares a scale in most weight formats: against 32 the error of
/// rounding activations falls by about a quarter, for one more multiply-add per 32.
pub const ACT_GROUP: usize = 16;

/// One step's rows as the kernels see them. All pointers are valid for the duration of the step.
#[repr(C)]
pub struct Step {
    /// Live rows R.
    pub rows: usize,
    /// Live logits rows L.
    pub logits: usize,
    /// Token id of each row, `[rows]`, each below the vocabulary size.
    pub tokens: *const u32,
    /// Position of each row in its sequence, `[rows]`.
    pub positions: *const u32,
    /// Slot of each row, `[rows]`.
    pub slots: *const u32,
    /// Row index of each logits row, `[logits]`, each below the rows of the trunk step that precedes.
    pub logit_rows: *const u32,
    /// Physical page of (slot, position / PAGE_TOKENS): `[slots][pages_per_slot]`.
    pub page_table: *const u32,
    /// Row length of `page_table`.
    pub pages_per_slot: usize,
}

/// What each worker's instruction stream receives: `extern "C" fn(*const WorkerContext)`.
#[repr(C)]
pub struct WorkerContext {
    /// Activation arena, 64-byte aligned.
    pub arena: *mut u8,
    /// Packed weights section, 64-byte aligned.
    pub weights: *const u8,
    /// KV pool, 64-byte aligned.
    pub kv: *mut u8,
    /// The step being run, once for each page table: what differs is only `page_table`.
    pub step: *const Step,
    /// Resolved symbols, in the order of the program's symbol list.
    pub symbols: *const *const u8,
    /// Opaque argument of the `barrier` symbol: `extern "C" fn(barrier: *const u8)`.
    pub barrier: *const u8,
}

/// What integer dot products start from: a float whose last bit is worth 1, so that an integer added to its bits is added
/// to its value, and the sum is a float without being converted. Sums stay below 2^22 in magnitude.
pub const LIFT: f32 = 12_582_912.0; // 1.5 * 2^23

/// 32 int8 activations and what kernels want to know of them, one cache line. A row of length k, a multiple of 32, is
/// k / 32 blocks in [`q8_row_bytes`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Q8Block {
    /// The activations over their scale.
    pub q: [i8; 32],
    /// Scales of both 16, of at most 16 bits, so that products with [`LIFT`] are exact, and mostly their sum.
    pub d: [f32; 2],
    /// [`LIFT`] minus 128 times the sum of q over 16: a dot product with unsigned weights around 128 that starts there ends
    /// at LIFT plus that with signed ones.
    pub start: [f32; 2],
    /// The sum of d times q over 32.
    pub sum: f32,
    /// What takes the LIFT out of both dot products times their scales: the sum of `unlift`.
    pub unlift_both: f32,
    /// -LIFT times d. Infinite, and products with it are no numbers, from activations of 3.4e33 on.
    pub unlift: [f32; 2],
}

impl Q8Block {
    /// All but the activations follow from the scale before it is cut to 16 bits, and from the sums of q over 16.
    pub fn new(q: [i8; 32], d: [f32; 2], sums: [i32; 2]) -> Q8Block {
        let d = d.map(|d| f32::from_bits(d.to_bits() & SCALE_BITS));
        let unlift = d.map(|d| -LIFT * d);
        Q8Block {
            q,
            d,
            start: sums.map(|sum| LIFT - (128 * sum) as f32),
            sum: d[0] * sums[0] as f32 + d[1] * sums[1] as f32,
            unlift_both: unlift[0] + unlift[1],
            unlift,
        }
    }

    /// The first `k / 32` blocks of the bytes of a row.
    pub fn of_row(row: &[u8], k: usize) -> impl Iterator<Item = Q8Block> {
        let blocks = row.chunks_exact(size_of::<Q8Block>()).take(k / 32);
        // SAFETY: so many bytes, of which any are numbers.
        blocks.map(|bytes| unsafe { bytes.as_ptr().cast::<Q8Block>().read_unaligned() })
    }

    /// What the activations stand for.
    pub fn values(self) -> impl Iterator<Item = f32> {
        let scales = self.d.into_iter().flat_map(|d| [d; ACT_GROUP]);
        self.q
            .into_iter()
            .zip(scales)
            .map(|(q, d)| d * f32::from(q))
    }
}

/// The bits that a scale of activations keeps.
pub const SCALE_BITS: u32 = !0xff;

/// Bytes of an int8 activation row of length `k`: its blocks, and a cache line that keeps the same block of many rows from
/// falling into the same set of L1.
pub const fn q8_row_bytes(k: usize) -> usize {
    (k / 32 + 1) * size_of::<Q8Block>()
}

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum KvType {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// int8 with one f16 scale per 32 elements, scales after the head's integers.
    Q8_0,
}

impl KvType {
    /// Name inside kernel symbols and for people: `f16`.
    pub const fn name(self) -> &'static str {
        match self {
            KvType::F32 => "f32",
            KvType::F16 => "f16",
            KvType::Q8_0 => "q8_0",
        }
    }

    /// Bytes of one token's K (or V) of one head; `head_dim` is padded to a multiple of 32 first.
    pub const fn head_bytes(self, head_dim: usize) -> usize {
        let d = head_dim.next_multiple_of(32);
        match self {
            KvType::F32 => d * 4,
            KvType::F16 => d * 2,
            KvType::Q8_0 => d + d / 32 * 2,
        }
    }

    /// Bytes of one page of one layer: for each KV head its K `[PAGE_TOKENS][head_bytes]`, then its V likewise.
    pub const fn page_bytes(self, kv_heads: usize, head_dim: usize) -> usize {
        kv_heads * 2 * PAGE_TOKENS * self.head_bytes(head_dim)
    }
}
