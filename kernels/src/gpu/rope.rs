//! RoPE on GPUs: the table of cosines and sines of a step, and one kernel that normalises and rotates the heads of q and k
//! and stores K and V in the cache. With no query heads, no KV heads, no rotation or no norm it does the rest alone.

use std::fmt;

use super::{Constant, Geometry, Kernel};
use crate::cpu::abi::KvType;

/// Threads of [`append`]; a warp has a head.
const THREADS: u32 = 128;
const WARPS: usize = THREADS as usize / 32;
/// Longest head.
pub const MAX_HEAD_DIM: usize = 512;

arguments! {
    /// Arguments of [`table`]: `out[r][i] = mscale * (cos, sin)(positions[r] * inv_freq[i])` for the live rows, the angle in
    /// f64. Template: `rope_table`.
    pub struct TableArgs {
        /// Address of u32 positions of the rows, each below 2^24.
        positions,
        /// Address of f32 `[half]`, at least 0, at most 1.
        inv_freq,
        /// Address of f32 rows `[half][2]`.
        out,
        /// Pairs of a head.
        half,
        /// Factor of both (f32).
        mscale,
        /// Address of the live rows and live logits rows, two u32.
        live,
        /// Bytes between rows of `out`.
        out_stride,
    }
}

arguments! {
    /// Arguments of [`append`], for the live rows. Template: `rope_append`.
    pub struct AppendArgs {
        /// Address of f32 rows of query heads, changed in place; anything with `heads` 0.
        q,
        /// Address of f32 rows of K; anything with `kv_heads` 0, as are `v` and `kv`.
        k,
        /// Address of f32 rows of V.
        v,
        /// Address of rows of cosines and sines; anything with `rot_dim` 0.
        table,
        /// Address of f32 `[head_dim]`, or 0: heads of q are not normalised.
        q_norm,
        /// Address of f32 `[head_dim]`, or 0: heads of k are not normalised.
        k_norm,
        /// Address of the layer's pages.
        kv,
        /// Address of u32 positions of the rows.
        positions,
        /// Address of u32 slots of the rows.
        slots,
        /// Address of u32 pages of the slots.
        page_table,
        /// Address of the live rows and live logits rows, two u32.
        live,
        /// Query heads.
        heads,
        /// KV heads.
        kv_heads,
        /// Leading elements of a head that rotate, even.
        rot_dim,
        /// Bytes between rows of `q`.
        q_stride,
        /// Bytes between rows of `k`.
        k_stride,
        /// Bytes between rows of `v`.
        v_stride,
        /// Bytes between rows of `table`.
        table_stride,
        /// Added to the mean square of heads of q (f32).
        q_eps,
        /// Added to the mean square of heads of k (f32).
        k_eps,
        /// Pages of a slot in `page_table`.
        pages_per_slot,
    }
}

/// Why heads have no kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// head_dim is no multiple of 4, 0, or above [`MAX_HEAD_DIM`].
    HeadDim(usize),
    /// rot_dim is odd or longer than the head.
    RotDim {
        /// Elements to rotate.
        rot_dim: usize,
        /// Elements there are.
        head_dim: usize,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::HeadDim(head_dim) => write!(
                f,
                "head_dim {head_dim} is not a multiple of 4 in 4..={MAX_HEAD_DIM}"
            ),
            Reason::RotDim { rot_dim, head_dim } => write!(
                f,
                "rot_dim {rot_dim} is odd or longer than head_dim {head_dim}"
            ),
        }
    }
}

impl std::error::Error for Reason {}

/// Whether there are kernels for heads of this shape.
pub fn legal(head_dim: usize, rot_dim: usize) -> Result<(), Reason> {
    if !(1..=MAX_HEAD_DIM).contains(&head_dim) || !head_dim.is_multiple_of(4) {
        return Err(Reason::HeadDim(head_dim));
    }
    if !rot_dim.is_multiple_of(2) || rot_dim > head_dim {
        return Err(Reason::RotDim { rot_dim, head_dim });
    }
    Ok(())
}

/// The table of a step; a thread block has a row.
pub fn table() -> Kernel {
    Kernel {
        name: "rope_table".into(),
        template: "rope_table",
        constants: vec![],
        threads: 64,
    }
}

/// Thread blocks of [`table`].
pub fn table_geometry(rows: usize) -> Geometry {
    Geometry {
        grid: [rows as u32, 1, 1],
        shared_bytes: 0,
    }
}

/// Name of a pairing inside kernel names.
pub(super) const fn style(neox: bool) -> &'static str {
    if neox { "neox" } else { "adjacent" }
}

/// Heads of `head_dim`, pairs `(i, i + rot_dim / 2)` when `neox`, else `(2 i, 2 i + 1)`; a cache of type `kv`.
pub fn append(kv: KvType, head_dim: usize, neox: bool) -> Kernel {
    let style = style(neox);
    Kernel {
        name: format!("rope_append_{}_d{head_dim}_{style}", kv.name()),
        template: "rope_append",
        constants: vec![
            ("kv", Constant::Word(super::attention::kv_word(kv).into())),
            ("head_dim", Constant::Int(head_dim as i64)),
            ("neox", Constant::Flag(neox)),
        ],
        threads: THREADS,
    }
}

/// Thread blocks of [`append`].
pub fn append_geometry(heads: usize, kv_heads: usize, rows: usize, head_dim: usize) -> Geometry {
    Geometry {
        grid: [
            (heads + 2 * kv_heads).div_ceil(WARPS) as u32,
            rows as u32,
            1,
        ],
        shared_bytes: (WARPS * head_dim.next_multiple_of(32) * 4) as u32,
    }
}

/// Bytes that [`append`] moves for `rows` rows: heads of q read and written, K and V read and stored.
pub fn append_bytes(
    kv: KvType,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rows: usize,
) -> u64 {
    let stored = head_dim * 4 + kv.head_bytes(head_dim);
    (rows * (heads * head_dim * 8 + 2 * kv_heads * stored)) as u64
}
