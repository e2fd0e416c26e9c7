//! Portable gated activations, quantised to int8 rows. Everything is f32.

use crate::cpu::abi::Q8Block;
use crate::cpu::scalar::norm::PART;
use crate::cpu::scalar::quantise::quantise_row;
use crate::cpu::symbols::{Named, Symbol};
use crate::cpu::tile::GROUP_K;
use crate::gated::{Activation, GatedQ8Fn};

/// `gated_<activation>_q8_scalar`, of type [`GatedQ8Fn`].
pub const SYMBOLS: &[Named] = &[
    (
        "gated_silu_q8_scalar",
        Symbol(gated_q8::<0> as GatedQ8Fn as *const ()),
    ),
    (
        "gated_sigmoid_q8_scalar",
        Symbol(gated_q8::<1> as GatedQ8Fn as *const ()),
    ),
    (
        "gated_gelu_tanh_q8_scalar",
        Symbol(gated_q8::<2> as GatedQ8Fn as *const ()),
    ),
    (
        "gated_clamped_swish_q8_scalar",
        Symbol(gated_q8::<3> as GatedQ8Fn as *const ()),
    ),
];

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn gated(activation: Activation, gate: f32, up: f32) -> f32 {
    match activation {
        Activation::Silu => gate * sigmoid(gate) * up,
        Activation::Sigmoid => sigmoid(gate) * up,
        // 0.5 (1 + tanh(y)) is the sigmoid of 2 y.
        Activation::GeluTanh => {
            let inner = 2.0 * 0.797_884_6 * gate * (0.044_715 * gate * gate + 1.0);
            gate * sigmoid(inner) * up
        }
        Activation::ClampedSwish => {
            let gate = gate.min(7.0);
            gate * sigmoid(1.702 * gate) * (up.clamp(-7.0, 7.0) + 1.0)
        }
    }
}

/// # Safety
/// The contract of [`GatedQ8Fn`].
#[allow(clippy::too_many_arguments)]
unsafe extern "C" fn gated_q8<const A: usize>(
    gate: *const f32,
    up: *const f32,
    out: *mut u8,
    width: usize,
    rows: usize,
    gate_stride: usize,
    up_stride: usize,
    out_stride: usize,
) {
    let mut floats = [0.0f32; PART];
    for r in 0..rows {
        // SAFETY: row r is inside the buffers, and each part inside the row.
        unsafe {
            let (gate, up) = (gate.byte_add(r * gate_stride), up.byte_add(r * up_stride));
            for begin in (0..width).step_by(PART) {
                let len = PART.min(width - begin);
                for (i, value) in floats.iter_mut().enumerate().take(len) {
                    let (gate, up) = (*gate.add(begin + i), *up.add(begin + i));
                    *value = gated(const { Activation::ALL[A] }, gate, up);
                }
                let to = out
                    .add(r * out_stride)
                    .cast::<Q8Block>()
                    .add(begin / GROUP_K);
                quantise_row(floats.as_ptr(), to, len);
            }
        }
    }
}
