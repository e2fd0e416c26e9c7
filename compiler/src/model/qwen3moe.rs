//! qwen3moe: Qwen 3 with experts in every layer: softmax over all experts, weights of the used ones divided by their sum.
//! Facts: llama.cpp src/models/qwen3moe.cpp.

use super::experts::{ExpertShape, ExpertWidth};
use super::parts::{Biases, Builder, LayerShape, QkNorm};
use super::rope::FreqFactors;
use crate::error::Error;
use crate::graph::{Activation, Gating, RopeStyle};

const SHAPE: LayerShape = LayerShape {
    activation: Activation::Silu,
    qk_norm: QkNorm::Heads,
    window: None,
    sinks: false,
    biases: Biases {
        qkv: true,
        attn_output: true,
        ffn: false,
        output: false,
    },
    experts: Some(ExpertShape {
        activation: Activation::Silu,
        gating: Gating::Softmax,
        normalise: true,
        width: ExpertWidth::OwnKey,
        biases: false,
        scales: true,
        shared: false,
    }),
};

pub(super) fn build(b: &mut Builder) -> Result<(), Error> {
    let rope = b.rope(RopeStyle::Neox, FreqFactors::None)?;
    b.decoder(&SHAPE, &rope)
}
