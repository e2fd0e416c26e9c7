//! qwen3moe: Qwen 3 with experts in every layer: softmax over all experts, weights of the used ones divided by their sum.
//! Facts: llama.cpp src/models/qwen3moe.cpp.

use super::Architecture;
use super::attention::{Attention, QkNorm};
use super::decoder::Decoder;
use super::experts::{self, ExpertShape, ExpertWidth, Shared};
use super::parts::Builder;
use crate::error::Error;
use crate::graph::{Activation, Gating, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen3moe",
    reads: experts::READS,
    refuses: experts::REFUSES,
    build,
};

const EXPERTS: ExpertShape = ExpertShape {
    activation: Activation::Silu,
    gating: Gating::Softmax,
    normalise: true,
    width: ExpertWidth::OwnKey,
    biases: false,
    scales: true,
    shared: Shared::None,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let rope = b.plain_rope(RopeStyle::Neox)?;
    b.decoder(&Decoder::of_experts(EXPERTS), |b, layer| Attention {
        qk_norm: QkNorm::Heads,
        output_bias: true,
        ..b.plain_attention(layer, rope)
    })
}
