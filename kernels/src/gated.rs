//! The gated activation family: `act(gate) * up`, quantised to int8 rows for the matmul that reads it. Activations and their
//! formulas, symbol names and the naive reference; the micro-kernels are in `cpu/<isa>/gated.rs`. Element-wise work that
//! nothing quantises has no micro-kernel: emitted code does it in place.

#[cfg(test)]
mod conformance;

use std::fmt;

use crate::cpu::Isa;

/// Gates and quantises every row: `(gate, up, out, width, rows, gate_stride, up_stride, out_stride)`, strides in bytes.
/// `width` is a multiple of 32, as of every int8 row, and `out` rows are [`crate::cpu::abi::Q8Block`]s.
pub type GatedQ8Fn =
    unsafe extern "C" fn(*const f32, *const f32, *mut u8, usize, usize, usize, usize, usize);

/// Element-wise activation of a feed-forward gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x * sigmoid(x).
    Silu,
    /// 1 / (1 + exp(-x)).
    Sigmoid,
    /// tanh approximation of GELU (Hendrycks and Gimpel, arXiv 1606.08415).
    GeluTanh,
    /// Only as a gate: x * sigmoid(1.702 x) of a gate of at most 7, times 1 plus the value within -7..7 (gpt-oss, Agarwal
    /// et al. 2025).
    ClampedSwish,
}

impl Activation {
    /// All of them.
    pub const ALL: [Activation; 4] = [
        Activation::Silu,
        Activation::Sigmoid,
        Activation::GeluTanh,
        Activation::ClampedSwish,
    ];

    /// Name inside kernel symbols: `silu`.
    pub const fn name(self) -> &'static str {
        match self {
            Activation::Silu => "silu",
            Activation::Sigmoid => "sigmoid",
            Activation::GeluTanh => "gelu_tanh",
            Activation::ClampedSwish => "clamped_swish",
        }
    }
}

/// Names one micro-kernel; its Display is the symbol: `gated_silu_q8_avx2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VariantId {
    /// What becomes of the gate.
    pub activation: Activation,
    /// Instruction set.
    pub isa: Isa,
}

impl fmt::Display for VariantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", family(self.activation), self.isa.name())
    }
}

/// The symbol of an activation's micro-kernels without the instruction set.
pub fn family(activation: Activation) -> String {
    format!("gated_{}_q8", activation.name())
}

/// One gated value in f64: the oracle of what is quantised.
pub fn reference(activation: Activation, gate: f64, up: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match activation {
        Activation::Silu => gate * sigmoid(gate) * up,
        Activation::Sigmoid => sigmoid(gate) * up,
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044_715 * gate.powi(3));
            0.5 * gate * (1.0 + inner.tanh()) * up
        }
        Activation::ClampedSwish => {
            let gate = gate.min(7.0);
            gate * sigmoid(1.702 * gate) * (up.clamp(-7.0, 7.0) + 1.0)
        }
    }
}
