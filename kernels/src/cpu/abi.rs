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

/// Byte offsets inside one row of int8 activations of length k (a multiple of 32):
/// `q: i8[k]`, then f32 `d[k/16]` (scale), f32 `s32[k/32]` (d times the sum of q over 16, both halves added), i32
/// `z16[k/16]` (-128 times the sum of q over 16: what a dot product with unsigned weights around 128 starts from).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Q8Row {
    /// Offset of `d`.
    pub d: usize,
    /// Offset of `s32`.
    pub s32: usize,
    /// Offset of `z16`.
    pub z16: usize,
    /// Bytes of the row, a multiple of 64.
    pub bytes: usize,
}

/// Layout of an int8 activation row of length `k`.
pub const fn q8_row(k: usize) -> Q8Row {
    let d = k.next_multiple_of(64);
    let s32 = d + k / ACT_GROUP * 4;
    let z16 = s32 + k / 32 * 4;
    Q8Row {
        d,
        s32,
        z16,
        bytes: (z16 + k / ACT_GROUP * 4).next_multiple_of(64),
    }
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
