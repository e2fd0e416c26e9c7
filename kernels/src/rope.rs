//! The RoPE family: a table of cosines and sines per row and step, and the rotation of every head of a row, after an
//! optional per-head RMSNorm (Qwen3). Legality, bytes, symbol names and naive references; the micro-kernels are in
//! `cpu/<isa>/rope.rs`. Frequencies and their scaling (YaRN, Llama 3) are the compiler's: kernels get `inv_freq`.
//!
//! Formula: Su et al., "RoFormer", 2021: `(a, b) -> (a cos - b sin, a sin + b cos)`, angle = position * inv_freq.

#[cfg(test)]
mod conformance;

use std::fmt;

use crate::cpu::Isa;
use crate::cpu::abi::Step;

/// Cosines and sines of each row: `(step, inv_freq, out, half, mscale_bits, row_begin, row_end, out_stride)`; `out` is
/// `[rows][half][2]`, cos then sin, both times mscale. Angles are f64, so long positions stay exact. Rows are clamped to
/// `step.rows`.
pub type RopeTableFn =
    unsafe extern "C" fn(*const Step, *const f32, *mut f32, usize, usize, usize, usize, usize);

/// Rotates every head of each row in place: `(x, w, table, heads, head_dim, rot_dim, neox, row_begin, row_end,
/// x_stride, table_stride, eps_bits, step)`. `w` is `[head_dim]` or null; when given, each head is RMS-normalised with
/// it first. `table` is what [`RopeTableFn`] wrote for half = rot_dim / 2. `neox` 1 pairs (i, i + rot_dim / 2), 0 pairs
/// (2 i, 2 i + 1). Rows are clamped to `step.rows`.
pub type RopeHeadsFn = unsafe extern "C" fn(
    *mut f32,
    *const f32,
    *const f32,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    *const Step,
);

/// Symbol of the [`RopeTableFn`] of an ISA.
pub fn table_symbol(isa: Isa) -> String {
    format!("rope_table_{}", isa.name())
}

/// Symbol of the [`RopeHeadsFn`] of an ISA.
pub fn heads_symbol(isa: Isa) -> String {
    format!("rope_heads_{}", isa.name())
}

/// Heads of one row and how they are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Heads per row, side by side.
    pub heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Leading elements of a head that are rotated.
    pub rot_dim: usize,
    /// Pairs are (i, i + rot_dim / 2) rather than (2 i, 2 i + 1).
    pub neox: bool,
}

/// Why heads cannot be rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Pairs need an even rot_dim.
    Odd(usize),
    /// rot_dim is longer than the head.
    TooLong {
        /// Elements to rotate.
        rot_dim: usize,
        /// Elements there are.
        head_dim: usize,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Odd(rot_dim) => write!(f, "rot_dim {rot_dim} is odd, pairs need it even"),
            Reason::TooLong { rot_dim, head_dim } => {
                write!(f, "rot_dim {rot_dim} is longer than head_dim {head_dim}")
            }
        }
    }
}

impl std::error::Error for Reason {}

/// Whether heads of this shape can be rotated.
pub fn legal(shape: &Shape) -> Result<(), Reason> {
    let &Shape {
        head_dim, rot_dim, ..
    } = shape;
    if !rot_dim.is_multiple_of(2) {
        return Err(Reason::Odd(rot_dim));
    }
    if rot_dim > head_dim {
        return Err(Reason::TooLong { rot_dim, head_dim });
    }
    Ok(())
}

/// Bytes moved by rotating `rows` rows: table and rotated part (the whole heads when normalised), read and written.
pub fn bytes(shape: &Shape, normalised: bool, rows: usize) -> u64 {
    let touched = if normalised {
        shape.head_dim
    } else {
        shape.rot_dim
    };
    (rows * (shape.heads * touched * 8 + shape.rot_dim * 4)) as u64
}

/// Naive table `[positions][half][2]`: the oracle.
pub fn reference_table(positions: &[u32], inv_freq: &[f32], mscale: f32) -> Vec<f32> {
    let angles = positions
        .iter()
        .flat_map(|&p| inv_freq.iter().map(move |&f| f64::from(p) * f64::from(f)));
    angles
        .flat_map(|a| [a.cos(), a.sin()].map(|v| (v * f64::from(mscale)) as f32))
        .collect()
}

/// Naive normalisation and rotation of the heads of one row, in f64: the oracle. `row` is `[heads][head_dim]`, `w`
/// `[head_dim]`, `table` `[rot_dim / 2][2]`.
pub fn reference(
    row: &[f32],
    w: Option<&[f32]>,
    table: &[f32],
    shape: &Shape,
    eps: f32,
) -> Vec<f32> {
    let half = shape.rot_dim / 2;
    let mut out = match w {
        Some(_) => crate::norm::reference(row, w, shape.head_dim, eps),
        None => row.to_vec(),
    };
    for head in out.chunks_exact_mut(shape.head_dim) {
        for i in 0..half {
            let (a, b) = if shape.neox {
                (i, i + half)
            } else {
                (2 * i, 2 * i + 1)
            };
            let (cos, sin) = (f64::from(table[2 * i]), f64::from(table[2 * i + 1]));
            let (x, y) = (f64::from(head[a]), f64::from(head[b]));
            head[a] = (x * cos - y * sin) as f32;
            head[b] = (x * sin + y * cos) as f32;
        }
    }
    out
}
