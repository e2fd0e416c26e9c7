//! llama: Llama 1 to 3, Mistral, Mixtral and their kin. Interleaved rotary pairs, optional biases and Llama-3 frequency
//! factors; with experts or without.
//! Facts: llama.cpp src/models/llama.cpp.

use super::experts::{ExpertShape, ExpertWidth};
use super::parts::{Biases, Builder, LayerShape, QkNorm};
use super::rope::FreqFactors;
use crate::error::Error;
use crate::graph::{Activation, Gating, RopeStyle};

const SHAPE: LayerShape = LayerShape {
    activation: Activation::Silu,
    qk_norm: QkNorm::None,
    window: None,
    sinks: false,
    biases: Biases {
        qkv: true,
        attn_output: true,
        ffn: true,
        output: false,
    },
    experts: None,
};

const EXPERTS: ExpertShape = ExpertShape {
    activation: Activation::Silu,
    gating: Gating::Softmax,
    normalise: true,
    width: ExpertWidth::Dense,
    biases: false,
    scales: true,
    shared: false,
};

pub(super) fn build(b: &mut Builder) -> Result<(), Error> {
    let rope = b.rope(RopeStyle::Interleaved, FreqFactors::Optional)?;
    let experts = b.has_experts()?.then_some(EXPERTS);
    let shape = LayerShape { experts, ..SHAPE };
    b.decoder(&shape, &rope)
}
