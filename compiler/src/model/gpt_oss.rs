//! gpt-oss: a window in every other layer, attention sinks, biases everywhere, experts with a clamped gate whose weights
//! are the softmax over those that are used.
//! Facts: llama.cpp src/models/openai-moe.cpp.

use super::Architecture;
use super::attention::Attention;
use super::decoder::{Branch, Head};
use super::experts::{self, ExpertShape, ExpertWidth, Shared};
use super::parts::Builder;
use super::window;
use crate::error::Error;
use crate::graph::{Activation, Gating, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "gpt-oss",
    reads: experts::READS,
    refuses: experts::REFUSES,
    build,
};

const EXPERTS: ExpertShape = ExpertShape {
    activation: Activation::ClampedSwish,
    gating: Gating::SoftmaxOfUsed,
    normalise: false,
    width: ExpertWidth::OwnKey,
    biases: true,
    scales: false,
    shared: Shared::None,
};

/// Rotary bases of all layers, and of those with a window.
const BASE: &str = "rope.freq_base";
const WINDOWED: &str = "rope.freq_base_swa";

fn build(b: &mut Builder) -> Result<(), Error> {
    let rope = b.plain_rope(RopeStyle::Neox)?;
    let base = b.metadata.f32(BASE)?;
    if let Some(windowed) = b.metadata.f32(WINDOWED)?.filter(|&own| base != Some(own)) {
        return Err(Error::Unsupported {
            what: b.metadata.key(WINDOWED),
            why: format!("{windowed} differs from {BASE}; only equal bases are implemented"),
        });
    }
    let window = b.metadata.size(window::WINDOW)?;
    let windowed = window::layers(b.metadata, b.hparams.layers, Some(2))?;
    let mut x = b.embedding(1.0)?;
    for (layer, windowed) in windowed.into_iter().enumerate() {
        let attention = Attention {
            window: windowed.then_some(window),
            output_bias: true,
            sinks: true,
            ..b.plain_attention(layer, rope)
        };
        x = b.attention_branch(layer, x, Branch::PRE_NORM, &attention)?;
        let norms = ["post_attention_norm", ""];
        let names = (norms, "ffn_residual");
        x = b.branch(layer, x, Branch::PRE_NORM, names, |b, x| {
            b.experts(layer, x, &EXPERTS)
        })?;
    }
    b.head(x, &Head::PLAIN)
}
