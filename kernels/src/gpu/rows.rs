//! Kernels that work on each row by itself: RMSNorm, element-wise functions, both of which leave any activation form, and
//! the gathering of rows that want logits. Quantising alone is the element-wise function that changes nothing.
//!
//! Widths and strides are multiples of 4 elements, so every thread moves 16 bytes. Sums run over a tree that depends on the
//! width alone.

use std::fmt;

use super::abi::{ActForm, Q8_GROUP, TILE_K};
use super::{Constant, Geometry, Kernel};

/// Elements of a row that one thread takes at a time.
pub(super) const VECTOR: usize = 4;
/// Threads of an element-wise thread block.
const THREADS: u32 = 128;

arguments! {
    /// Arguments of [`norm`]. Template: `norm`.
    pub struct NormArgs {
        /// Address of f32 rows.
        x,
        /// Address of f32 `[width]`.
        weight,
        /// Address of rows in the kernel's form; may be `x` when that is f32.
        out,
        /// Address of the same as f32 rows, or 0: nobody wants them.
        plain,
        /// Elements of a row.
        width,
        /// Rows.
        rows,
        /// Bytes between rows of `x`.
        x_stride,
        /// Bytes between rows of `out`.
        out_stride,
        /// Bytes between rows of `plain`.
        plain_stride,
        /// Added to the mean square (f32).
        eps,
    }
}

arguments! {
    /// Arguments of [`elementwise`]. Template: `elementwise`.
    pub struct ElementwiseArgs {
        /// Address of f32 rows.
        x,
        /// Address of f32 rows, the second operand; 0 where the function has one.
        y,
        /// Address of rows in the kernel's form; may be `x` or `y` when that is f32.
        out,
        /// Elements of a row.
        width,
        /// Rows.
        rows,
        /// Bytes between rows of `x`.
        x_stride,
        /// Bytes between rows of `y`.
        y_stride,
        /// Bytes between rows of `out`.
        out_stride,
        /// Factor or cap (f32); 0 where the function has none.
        factor,
    }
}

arguments! {
    /// Arguments of [`gather_rows`]: `out[i] = from[logit_rows[i]]` for the live logits rows. Template: `gather_rows`.
    pub struct GatherArgs {
        /// Address of f32 rows.
        from,
        /// Address of u32 row numbers.
        logit_rows,
        /// Address of the live rows and live logits rows, two u32.
        live,
        /// Address of f32 rows.
        out,
        /// Elements of a row.
        width,
        /// Bytes between rows of `from`.
        from_stride,
        /// Bytes between rows of `out`.
        out_stride,
    }
}

/// An element-wise function of one or two rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// x: changes the form alone.
    Copy,
    /// x + y.
    Add,
    /// x * y.
    Mul,
    /// x * sigmoid(x).
    Silu,
    /// sigmoid(x).
    Sigmoid,
    /// tanh approximation of GELU.
    GeluTanh,
    /// silu(x) * y.
    SiluMul,
    /// sigmoid(x) * y.
    SigmoidMul,
    /// gelu_tanh(x) * y.
    GeluTanhMul,
    /// x * factor.
    Scale,
    /// factor * tanh(x / factor).
    Softcap,
    /// x * sigmoid(1.702 x) of an x of at most 7, times 1 plus the y within -7..7.
    ClampedMul,
}

impl Op {
    /// Every function.
    pub const ALL: [Op; 12] = [
        Op::Copy,
        Op::Add,
        Op::Mul,
        Op::Silu,
        Op::Sigmoid,
        Op::GeluTanh,
        Op::SiluMul,
        Op::SigmoidMul,
        Op::GeluTanhMul,
        Op::Scale,
        Op::Softcap,
        Op::ClampedMul,
    ];

    /// Name inside kernel names and template constants.
    pub const fn name(self) -> &'static str {
        match self {
            Op::Copy => "copy",
            Op::Add => "add",
            Op::Mul => "mul",
            Op::Silu => "silu",
            Op::Sigmoid => "sigmoid",
            Op::GeluTanh => "gelu_tanh",
            Op::SiluMul => "silu_mul",
            Op::SigmoidMul => "sigmoid_mul",
            Op::GeluTanhMul => "gelu_tanh_mul",
            Op::Scale => "scale",
            Op::Softcap => "softcap",
            Op::ClampedMul => "clamped_mul",
        }
    }

    /// Operands: 1 or 2.
    pub const fn arity(self) -> usize {
        match self {
            Op::Add | Op::Mul | Op::SiluMul | Op::SigmoidMul | Op::GeluTanhMul | Op::ClampedMul => {
                2
            }
            _ => 1,
        }
    }

    /// The function in f64: the oracle.
    pub fn reference(self, x: f64, y: f64, factor: f64) -> f64 {
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let gelu = |x: f64| {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        };
        match self {
            Op::Copy => x,
            Op::Add => x + y,
            Op::Mul => x * y,
            Op::Silu => silu(x),
            Op::Sigmoid => sigmoid(x),
            Op::GeluTanh => gelu(x),
            Op::SiluMul => silu(x) * y,
            Op::SigmoidMul => sigmoid(x) * y,
            Op::GeluTanhMul => gelu(x) * y,
            Op::Scale => x * factor,
            Op::Softcap => factor * (x / factor).tanh(),
            Op::ClampedMul => {
                let x = x.min(7.0);
                x / (1.0 + (-1.702 * x).exp()) * (1.0 + y.clamp(-7.0, 7.0))
            }
        }
    }
}

/// Why rows have no kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A row has no elements.
    Empty,
    /// Threads take 4 elements at a time.
    Width(usize),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Empty => write!(f, "a row of width 0"),
            Reason::Width(width) => {
                write!(f, "width {width} is not a multiple of {VECTOR}")
            }
        }
    }
}

impl std::error::Error for Reason {}

/// Whether there are kernels for rows of `width`.
pub fn legal(width: usize) -> Result<(), Reason> {
    match width {
        0 => Err(Reason::Empty),
        _ if !width.is_multiple_of(VECTOR) => Err(Reason::Width(width)),
        _ => Ok(()),
    }
}

/// RMSNorm of rows of `width`, left in `form`; a thread block has a row.
pub fn norm(form: ActForm, width: usize) -> Kernel {
    let threads = (width / VECTOR).next_power_of_two().clamp(64, 1024) as u32;
    Kernel {
        name: format!("norm_{}_t{threads}", form.name()),
        template: "norm",
        constants: vec![("form", Constant::Word(form.name().into()))],
        threads,
    }
}

/// Thread blocks of [`norm`].
pub fn norm_geometry(rows: usize) -> Geometry {
    Geometry {
        grid: [rows as u32, 1, 1],
        shared_bytes: 128,
    }
}

/// Bytes that [`norm`] moves: input and output rows, and the weight once.
pub fn norm_bytes(form: ActForm, width: usize, rows: usize) -> u64 {
    (rows * (width * 4 + form.stride(width)) + width * 4) as u64
}

/// An element-wise function, its result left in `form`.
pub fn elementwise(op: Op, form: ActForm) -> Kernel {
    Kernel {
        name: format!("elementwise_{}_{}", op.name(), form.name()),
        template: "elementwise",
        constants: vec![
            ("op", Constant::Word(op.name().into())),
            ("form", Constant::Word(form.name().into())),
        ],
        threads: THREADS,
    }
}

/// Thread blocks of [`elementwise`].
pub fn elementwise_geometry(width: usize, rows: usize) -> Geometry {
    Geometry {
        grid: [columns(width.next_multiple_of(TILE_K)), rows as u32, 1],
        shared_bytes: 0,
    }
}

/// Bytes that [`elementwise`] moves.
pub fn elementwise_bytes(op: Op, form: ActForm, width: usize, rows: usize) -> u64 {
    (rows * (op.arity() * width * 4 + form.stride(width))) as u64
}

/// The kernel that gathers rows.
pub fn gather_rows() -> Kernel {
    Kernel {
        name: "gather_rows".into(),
        template: "gather_rows",
        constants: vec![],
        threads: THREADS,
    }
}

/// Thread blocks of [`gather_rows`] for a bucket of `rows` logits rows.
pub fn gather_geometry(width: usize, rows: usize) -> Geometry {
    Geometry {
        grid: [columns(width), rows as u32, 1],
        shared_bytes: 0,
    }
}

/// Bytes that [`gather_rows`] moves.
pub fn gather_bytes(width: usize, rows: usize) -> u64 {
    (rows * width * 8) as u64
}

/// Thread blocks of [`THREADS`] that cover a row.
pub(super) fn columns(width: usize) -> u32 {
    width.div_ceil(THREADS as usize * VECTOR) as u32
}

const _: () = assert!(TILE_K.is_multiple_of(Q8_GROUP) && Q8_GROUP == 8 * VECTOR);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_checked() {
        assert_eq!(legal(0), Err(Reason::Empty));
        assert_eq!(legal(4098), Err(Reason::Width(4098)));
        assert_eq!(legal(96), Ok(()));
    }

    #[test]
    fn wide_rows_have_more_threads_and_names_say_so() {
        let names = [32, 1024, 4096, 4128, 16384].map(|w| norm(ActForm::Q8, w).name);
        assert_eq!(
            names,
            [64, 256, 1024, 1024, 1024].map(|t| format!("norm_q8_t{t}"))
        );
        assert_eq!(elementwise_geometry(516, 3).grid, [2, 3, 1]);
        assert_eq!(gather_geometry(512, 2).grid, [1, 2, 1]);
    }
}
