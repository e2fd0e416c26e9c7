//! The RMSNorm family: `y = x / sqrt(mean(x^2) + eps) * w`, to f32 rows or straight to int8 rows. Legality, bytes,
//! symbol names and the naive reference; the micro-kernels are in `cpu/<isa>/norm.rs`.
//!
//! Formula: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, with eps inside the root as in Llama.

#[cfg(test)]
mod conformance;

use std::fmt;

use crate::cpu::Isa;
use crate::cpu::abi::q8_row_bytes;
use crate::cpu::tile::GROUP_K;

/// Normalises every row: `(x, w, y, width, rows, x_stride, y_stride, eps_bits)`, strides in bytes. `w` is `[width]` or
/// null (no weight); `y` may be `x`. Exactly `width` floats of a row are written.
pub type NormFn =
    unsafe extern "C" fn(*const f32, *const f32, *mut f32, usize, usize, usize, usize, usize);

/// Normalises every row and quantises it: `(x, w, out, width, rows, x_stride, out_stride, eps_bits)`. `width` is a
/// multiple of 32; `out` rows are [`crate::cpu::abi::Q8Block`]s, bit-equal to [`NormFn`] followed by `quantise`.
pub type NormQ8Fn =
    unsafe extern "C" fn(*const f32, *const f32, *mut u8, usize, usize, usize, usize, usize);

/// What a norm kernel writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    /// f32 rows.
    F32,
    /// int8 rows.
    Q8,
}

/// Names one micro-kernel; its Display is the symbol: `rmsnorm_q8_avx2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VariantId {
    /// What it writes.
    pub output: Output,
    /// Instruction set.
    pub isa: Isa,
}

impl fmt::Display for VariantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.output {
            Output::F32 => "rmsnorm",
            Output::Q8 => "rmsnorm_q8",
        };
        write!(f, "{family}_{}", self.isa.name())
    }
}

/// Why a norm cannot be computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A row has no elements.
    Empty,
    /// int8 rows have whole groups of 32.
    Width(usize),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Empty => write!(f, "a row of width 0 has no mean"),
            Reason::Width(width) => {
                write!(
                    f,
                    "int8 rows need width {width} to be a multiple of {GROUP_K}"
                )
            }
        }
    }
}

impl std::error::Error for Reason {}

/// Whether rows of `width` can be normalised to `output`.
pub fn legal(output: Output, width: usize) -> Result<(), Reason> {
    match output {
        _ if width == 0 => Err(Reason::Empty),
        Output::Q8 if !width.is_multiple_of(GROUP_K) => Err(Reason::Width(width)),
        _ => Ok(()),
    }
}

/// Bytes moved for `rows` rows: input and output rows, and the weight once.
pub fn bytes(output: Output, width: usize, rows: usize) -> u64 {
    let out = match output {
        Output::F32 => width * 4,
        Output::Q8 => q8_row_bytes(width),
    };
    (rows * (width * 4 + out) + width * 4) as u64
}

/// Naive RMSNorm, accumulated in f64: the oracle. `x` is `[rows][width]`, `w` `[width]`.
pub fn reference(x: &[f32], w: Option<&[f32]>, width: usize, eps: f32) -> Vec<f32> {
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(width) {
        let squares: f64 = row.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        let inverse = 1.0 / (squares / width as f64 + f64::from(eps)).sqrt();
        y.extend(row.iter().enumerate().map(|(i, &v)| {
            let w = w.map_or(1.0, |w| f64::from(w[i]));
            (f64::from(v) * inverse * w) as f32
        }));
    }
    y
}
