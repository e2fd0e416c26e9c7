//! The recurrent family: a short causal convolution of every channel, and the gated delta rule. What a layer remembers of
//! a sequence is a fixed number of floats, its *state*, of which every slot has one. Legality, bytes of a state, symbol
//! names and the naive references; the micro-kernels are in `cpu/<isa>/recurrent.rs`.
//!
//! A row at position 0 begins a sequence: whatever the state holds then counts as zero. Every other row continues from the
//! state that the row before it left, so rows of a slot are computed one after the other, in the order of the step. A row's
//! result depends on no other slot, and not on which rows share a step with it.
//!
//! Formulas: the convolution of Gu and Dao, "Mamba", 2023; the delta rule of Yang, Kautz and Hatamizadeh, "Gated Delta
//! Networks", 2024.

#[cfg(test)]
mod conformance;

use std::fmt;

use crate::cpu::Isa;
use crate::cpu::abi::{Step, TILE_N};

/// SiLU of a causal convolution of every channel with its own taps, for the worker's share of the channels of all live
/// rows: `(x, w, y, state, step, channels, taps, worker, workers, x_stride, y_stride, slot_stride)`, strides in bytes.
///
/// `w` has for each tap a row of `channels` floats (padded to a multiple of 16), the oldest input's first. A slot's state is
/// `[taps - 1][channels]` floats, [`conv_state_floats`] in all: its last inputs, the oldest first.
pub type ShortConvFn = unsafe extern "C" fn(
    *const f32,
    *const f32,
    *mut f32,
    *mut f32,
    *const Step,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
);

/// The gated delta rule for the worker's share of the heads of all slots: `(x, alpha, beta, a, dt, out, state, step,
/// key_heads, heads, dim, grouped, worker, workers, x_stride, alpha_stride, beta_stride, out_stride, slot_stride,
/// eps_bits)`, strides in bytes.
///
/// A row of `x` is the queries of `key_heads` heads of `dim` elements, their keys, and the values of `heads` heads. Rows of
/// `alpha` and `beta` have an element for each of `heads`, as do `a` and `dt`. Head h reads query and key h modulo
/// `key_heads`, or h divided by `heads / key_heads` when `grouped` is 1. A slot's state is [`delta_state_floats`] floats;
/// their order is the kernel's own. See [`delta_reference`] for what is computed.
pub type DeltaRuleFn = unsafe extern "C" fn(
    *const f32,
    *const f32,
    *const f32,
    *const f32,
    *const f32,
    *mut f32,
    *mut f32,
    *const Step,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
    usize,
);

/// Most taps of a convolution.
pub const MAX_TAPS: usize = 8;
/// Most elements of a head.
pub const MAX_DIM: usize = 256;

/// Names one micro-kernel; its Display is the symbol: `delta_rule_avx2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VariantId {
    /// What it computes.
    pub kind: Kind,
    /// Instruction set.
    pub isa: Isa,
}

/// The kernels of this family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// [`ShortConvFn`].
    ShortConv,
    /// [`DeltaRuleFn`].
    DeltaRule,
}

impl Kind {
    /// Name of the kernels without the instruction set.
    pub const fn family(self) -> &'static str {
        match self {
            Kind::ShortConv => "short_conv",
            Kind::DeltaRule => "delta_rule",
        }
    }
}

impl fmt::Display for VariantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.kind.family(), self.isa.name())
    }
}

/// Why there are no kernels for a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Fewer than 2 taps, or more than [`MAX_TAPS`].
    Taps(usize),
    /// Channels that are no multiple of 16, or none.
    Channels(usize),
    /// Heads that are no multiple of 16 elements, or none, or too large.
    Dim {
        /// Elements of a head.
        dim: usize,
        /// Most that there are kernels for.
        most: usize,
    },
    /// Heads that the key heads do not divide, or none.
    Heads {
        /// Heads of queries and keys.
        key_heads: usize,
        /// Heads of values.
        heads: usize,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Taps(taps) => {
                write!(
                    f,
                    "a convolution of {taps} taps (supported: 2 to {MAX_TAPS})"
                )
            }
            Reason::Channels(channels) => {
                write!(f, "{channels} channels are no multiple of {TILE_N}")
            }
            Reason::Dim { dim, most } => write!(
                f,
                "heads of {dim} elements (supported: multiples of {TILE_N} up to {most})"
            ),
            Reason::Heads { key_heads, heads } => {
                write!(f, "{heads} heads of values over {key_heads} of keys")
            }
        }
    }
}

impl std::error::Error for Reason {}

/// Whether there are kernels for a convolution of so many channels.
pub fn conv_legal(channels: usize, taps: usize) -> Result<(), Reason> {
    if !(2..=MAX_TAPS).contains(&taps) {
        return Err(Reason::Taps(taps));
    }
    match channels > 0 && channels.is_multiple_of(TILE_N) {
        true => Ok(()),
        false => Err(Reason::Channels(channels)),
    }
}

/// Heads of a gated delta rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Heads {
    /// Heads of queries and keys.
    pub key_heads: usize,
    /// Heads of values, and of the result.
    pub heads: usize,
    /// Elements of a head of either kind.
    pub dim: usize,
    /// Whether heads that share a key follow each other; otherwise all keys take turns.
    pub grouped: bool,
}

impl Heads {
    /// Whether there are kernels for these heads.
    pub fn legal(&self) -> Result<(), Reason> {
        let &Heads {
            key_heads,
            heads,
            dim,
            ..
        } = self;
        if dim == 0 || dim > MAX_DIM || !dim.is_multiple_of(TILE_N) {
            return Err(Reason::Dim { dim, most: MAX_DIM });
        }
        match key_heads > 0 && heads > 0 && heads.is_multiple_of(key_heads) {
            true => Ok(()),
            false => Err(Reason::Heads { key_heads, heads }),
        }
    }

    /// The head of queries and keys that head `head` reads.
    pub fn key_of(&self, head: usize) -> usize {
        match self.grouped {
            true => head / (self.heads / self.key_heads),
            false => head % self.key_heads,
        }
    }

    /// Elements of a row of queries, keys and values.
    pub fn width(&self) -> usize {
        (2 * self.key_heads + self.heads) * self.dim
    }
}

/// Floats of a slot's state of a convolution.
pub const fn conv_state_floats(channels: usize, taps: usize) -> usize {
    channels * (taps - 1)
}

/// Floats of a slot's state of a delta rule: a matrix for each head.
pub const fn delta_state_floats(heads: usize, dim: usize) -> usize {
    heads * dim * dim
}

/// Naive convolution of one row in f64: `history` holds the `taps - 1` inputs before `x`, the oldest first, and moves on by
/// one. `w` is `[taps][channels]`.
pub fn conv_reference(x: &[f64], w: &[f32], history: &mut [Vec<f64>]) -> Vec<f64> {
    let channels = x.len();
    let taps = history.len() + 1;
    let y = (0..channels).map(|c| {
        let input = |tap: usize| history.get(tap).map_or(x[c], |row| row[c]);
        let sum: f64 = (0..taps)
            .map(|tap| f64::from(w[tap * channels + c]) * input(tap))
            .sum();
        sum / (1.0 + (-sum).exp())
    });
    let y = y.collect();
    history.rotate_left(1);
    if let Some(newest) = history.last_mut() {
        newest.copy_from_slice(x);
    }
    y
}

/// What one head of one row reads.
#[derive(Clone, Copy, Debug)]
pub struct DeltaRow<'a> {
    /// Query, before it is scaled to length 1.
    pub q: &'a [f64],
    /// Key, before it is scaled to length 1.
    pub k: &'a [f64],
    /// Value.
    pub v: &'a [f64],
    /// The decay is the exponential of `a` times the softplus of `alpha + dt`.
    pub alpha: f64,
    /// See `alpha`.
    pub a: f32,
    /// See `alpha`.
    pub dt: f32,
    /// The logistic function of this is how far the state moves towards the value.
    pub beta: f64,
    /// Added to the sums of squares of query and key.
    pub eps: f32,
}

/// Naive gated delta rule of one head of one row in f64. `state` is a matrix S, `[dim of keys][dim of values]`: it decays,
/// what it says of the key moves towards the value, and what it then says of the query, over the root of its length, is the
/// result.
pub fn delta_reference(row: &DeltaRow<'_>, state: &mut [f64]) -> Vec<f64> {
    let dim = row.q.len();
    let unit = |x: &[f64]| -> Vec<f64> {
        let squares: f64 = x.iter().map(|x| x * x).sum();
        let scale = 1.0 / (squares + f64::from(row.eps)).sqrt();
        x.iter().map(|x| x * scale).collect()
    };
    let (q, k) = (unit(row.q), unit(row.k));
    let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
    let decay = (f64::from(row.a) * softplus(row.alpha + f64::from(row.dt))).exp();
    let step = 1.0 / (1.0 + (-row.beta).exp());
    state.iter_mut().for_each(|s| *s *= decay);
    let read = |state: &[f64], by: &[f64], j: usize| -> f64 {
        (0..dim).map(|i| state[i * dim + j] * by[i]).sum()
    };
    let moves: Vec<f64> = (0..dim)
        .map(|j| (row.v[j] - read(state, &k, j)) * step)
        .collect();
    for (row, k) in state.chunks_exact_mut(dim).zip(&k) {
        row.iter_mut().zip(&moves).for_each(|(s, m)| *s += k * m);
    }
    let scale = 1.0 / (dim as f64).sqrt();
    (0..dim).map(|j| read(state, &q, j) * scale).collect()
}
