//! olmoe: OLMoE. RMS norms of all of Q and all of K, experts in every layer whose weights are not normalised.
//! Facts: llama.cpp src/models/olmoe.cpp.

use super::experts::{ExpertShape, ExpertWidth};
use super::parts::{Biases, Builder, LayerShape, QkNorm};
use super::rope::FreqFactors;
use crate::error::Error;
use crate::graph::{Activation, Gating, RopeStyle};

const SHAPE: LayerShape = LayerShape {
    activation: Activation::Silu,
    qk_norm: QkNorm::Row,
    window: None,
    sinks: false,
    biases: Biases {
        qkv: true,
        attn_output: false,
        ffn: false,
        output: false,
    },
    experts: Some(ExpertShape {
        activation: Activation::Silu,
        gating: Gating::Softmax,
        normalise: false,
        width: ExpertWidth::Dense,
        biases: false,
        scales: false,
        shared: false,
    }),
};

pub(super) fn build(b: &mut Builder) -> Result<(), Error> {
    let rope = b.rope(RopeStyle::Neox, FreqFactors::None)?;
    b.decoder(&SHAPE, &rope)
}
