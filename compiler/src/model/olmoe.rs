//! olmoe: OLMoE. RMS norms of all of Q and all of K, experts in every layer whose weights are not normalised.
//! Facts: llama.cpp src/models/olmoe.cpp.

use super::Architecture;
use super::attention::{Attention, QkNorm};
use super::decoder::Decoder;
use super::experts::{self, ExpertShape, ExpertWidth, Shared};
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
    scales: false,
    shared: Shared::None,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let rope = b.plain_rope(RopeStyle::Neox)?;
    b.decoder(&Decoder::of_experts(EXPERTS), |b, layer| Attention {
        qk_norm: QkNorm::Row,
        ..b.plain_attention(layer, rope)
    })
}
