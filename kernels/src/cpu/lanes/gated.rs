//! Gated activations over vectors of any ISA, quantised part by part while they are in L1.

use super::{Lanes, exp};
use crate::cpu::abi::Q8Block;
use crate::cpu::scalar::norm::PART;
use crate::cpu::tile::GROUP_K;
use crate::gated::Activation;

/// `x / (1 + e^exponent)`: `x` times the sigmoid of what `exponent` is the negative of.
///
/// # Safety
/// The CPU has the ISA.
#[inline(always)]
unsafe fn over_sigmoid<V: Lanes>(x: V, exponent: V) -> V {
    // SAFETY: promised by the caller.
    unsafe { V::div(x, V::add(exp::<V>(exponent), V::splat(1.0))) }
}

/// `act(gate) * up` of the activation with the number `A`.
///
/// # Safety
/// The CPU has the ISA.
#[inline(always)]
unsafe fn gated<V: Lanes, const A: usize>(gate: V, up: V) -> V {
    // SAFETY: promised by the caller.
    unsafe {
        let zero = V::splat(0.0);
        match const { Activation::ALL[A] } {
            Activation::Silu => V::mul(over_sigmoid(gate, V::sub(zero, gate)), up),
            Activation::Sigmoid => V::mul(over_sigmoid(V::splat(1.0), V::sub(zero, gate)), up),
            // 0.5 (1 + tanh(y)) is the sigmoid of 2 y.
            Activation::GeluTanh => {
                let square = V::mul(gate, gate);
                let factor = V::fma(square, V::splat(0.044_715), V::splat(1.0));
                let inner = V::mul(V::mul(gate, V::splat(-2.0 * 0.797_884_6)), factor);
                V::mul(over_sigmoid(gate, inner), up)
            }
            Activation::ClampedSwish => {
                let seven = V::splat(7.0);
                let gate = V::min(gate, seven);
                let gate = over_sigmoid(gate, V::mul(gate, V::splat(-1.702)));
                let up = V::max(V::min(up, seven), V::splat(-7.0));
                V::fma(gate, up, gate)
            }
        }
    }
}

/// Body of a [`crate::gated::GatedQ8Fn`] of the activation with the number `A`.
///
/// # Safety
/// The CPU has the ISA; the contract of [`crate::gated::GatedQ8Fn`].
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub unsafe fn gated_q8<V: Lanes, const A: usize>(
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
        // SAFETY: row r is inside the buffers, and each part, a multiple of 32 long, inside the row.
        unsafe {
            let (gate, up) = (gate.byte_add(r * gate_stride), up.byte_add(r * up_stride));
            for begin in (0..width).step_by(PART) {
                let len = PART.min(width - begin);
                for i in (0..len).step_by(V::N) {
                    let (g, u) = (V::load(gate.add(begin + i)), V::load(up.add(begin + i)));
                    V::store(floats.as_mut_ptr().add(i), gated::<V, A>(g, u));
                }
                let to = out
                    .add(r * out_stride)
                    .cast::<Q8Block>()
                    .add(begin / GROUP_K);
                V::quantise_row(floats.as_ptr(), to, len);
            }
        }
    }
}
