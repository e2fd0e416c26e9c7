//! qwen2moe: Qwen 1.5 and 2 with experts in every layer, and a network beside them that all rows pass, through a gate.
//! Facts: llama.cpp src/models/qwen2moe.cpp.

use super::Architecture;
use super::attention::Attention;
use super::decoder::{Branch, Head};
use super::experts::{self, ExpertShape, ExpertWidth};
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
    shared: true,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let rope = b.plain_rope(RopeStyle::Neox)?;
    let mut x = b.embedding(1.0)?;
    for layer in 0..b.hparams.layers {
        let attention = Attention {
            output_bias: true,
            ..b.plain_attention(layer, rope)
        };
        x = b.attention_branch(layer, x, Branch::PRE_NORM, &attention)?;
        x = b.experts_branch(layer, x, Branch::PRE_NORM, &EXPERTS)?;
    }
    b.head(x, &Head::PLAIN)
}
