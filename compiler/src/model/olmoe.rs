//! olmoe: OLMoE. RMS norms of all of Q and all of K, experts in every layer whose weights are not normalised.
//! Facts: llama.cpp src/models/olmoe.cpp.

use super::Architecture;
use super::attention::{Attention, QkNorm};
use super::decoder::{Branch, Head};
use super::experts::{self, ExpertShape, ExpertWidth};
use super::parts::Builder;
use crate::error::Error;
use crate::graph::{Activation, Gating, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "olmoe",
    reads: experts::READS,
    refuses: experts::REFUSES,
    build,
};

const EXPERTS: ExpertShape = ExpertShape {
    activation: Activation::Silu,
    gating: Gating::Softmax,
    normalise: false,
    width: ExpertWidth::Dense,
    biases: false,
    shared: false,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let rope = b.plain_rope(RopeStyle::Neox)?;
    let mut x = b.embedding(1.0)?;
    for layer in 0..b.hparams.layers {
        let attention = Attention {
            qk_norm: QkNorm::Row,
            ..b.plain_attention(layer, rope)
        };
        x = b.attention_branch(layer, x, Branch::PRE_NORM, &attention)?;
        x = b.experts_branch(layer, x, Branch::PRE_NORM, &EXPERTS)?;
    }
    b.head(x, &Head::PLAIN)
}
