//! qwen2moe: Qwen 1.5 and 2 with experts in every layer, and a network beside them that all rows pass, through a gate.
//! Facts: llama.cpp src/models/qwen2moe.cpp.

use super::Architecture;
use super::attention::Attention;
use super::decoder::Decoder;
use super::experts::{self, ExpertShape, ExpertWidth, Shared};
use super::parts::Builder;
use crate::error::Error;
use crate::graph::{Activation, Gating, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen2moe",
    reads: experts::READS,
    refuses: experts::REFUSES,
    build,
};

const EXPERTS: ExpertShape = ExpertShape {
    activation: Activation::Silu,
    gating: Gating::Softmax,
    normalise: false,
    width: ExpertWidth::OwnKey,
    biases: false,
    scales: false,
    shared: Shared::Gated,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let rope = b.plain_rope(RopeStyle::Neox)?;
    b.decoder(&Decoder::of_experts(EXPERTS), |b, layer| Attention {
        output_bias: true,
        ..b.plain_attention(layer, rope)
    })
}
