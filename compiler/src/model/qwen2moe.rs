//! qwen2moe: Qwen 1.5 and 2 with experts in every layer, and a network beside them that all rows pass, through a gate.
//! Facts: llama.cpp src/models/qwen2moe.cpp.

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
        ffn: false,
        output: false,
    },
    experts: Some(ExpertShape {
        activation: Activation::Silu,
        gating: Gating::Softmax,
        normalise: false,
        width: ExpertWidth::OwnKey,
        biases: false,
        scales: false,
        shared: true,
    }),
};

pub(super) fn build(b: &mut Builder) -> Result<(), Error> {
    let rope = b.rope(RopeStyle::Neox, FreqFactors::None)?;
    b.decoder(&SHAPE, &rope)
}
