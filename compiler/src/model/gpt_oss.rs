//! gpt-oss: a window in every other layer, attention sinks, biases everywhere, experts with a clamped gate whose weights
//! are the softmax over those that are used.
//! Facts: llama.cpp src/models/openai-moe.cpp.

use super::experts::{ExpertShape, ExpertWidth};
use super::parts::{Biases, Builder, LayerShape, QkNorm};
use super::rope::FreqFactors;
use crate::error::Error;
use crate::graph::{Activation, Gating, RopeStyle};

const EXPERTS: ExpertShape = ExpertShape {
    activation: Activation::ClampedSwish,
    gating: Gating::SoftmaxOfUsed,
    normalise: false,
    width: ExpertWidth::OwnKey,
    biases: true,
    scales: false,
    shared: false,
};

const SHAPE: LayerShape = LayerShape {
    activation: Activation::ClampedSwish,
    qk_norm: QkNorm::None,
    window: None,
    sinks: true,
    biases: Biases {
        qkv: true,
        attn_output: true,
        ffn: true,
        output: false,
    },
    experts: Some(EXPERTS),
};

/// Rotary bases of all layers, and of those with a window.
const BASE: &str = "rope.freq_base";
const WINDOWED: &str = "rope.freq_base_swa";
/// Of so many layers that follow each other, all but the last have the window.
const PATTERN: &str = "attention.sliding_window_pattern";

pub(super) fn build(b: &mut Builder) -> Result<(), Error> {
    let rope = b.rope(RopeStyle::Neox, FreqFactors::None)?;
    let window = b.metadata.size("attention.sliding_window")?;
    let base = b.metadata.f32(BASE)?;
    if let Some(windowed) = b.metadata.f32(WINDOWED)?.filter(|&own| base != Some(own)) {
        return Err(Error::Unsupported {
            what: b.metadata.key(WINDOWED),
            why: format!("{windowed} differs from {BASE}; only equal bases are implemented"),
        });
    }
    let pattern = b.metadata.optional_size(PATTERN)?.unwrap_or(2);
    let mut x = b.embedding()?;
    for layer in 0..b.hparams.layers {
        let shape = LayerShape {
            window: (layer % pattern < pattern - 1).then_some(window),
            ..SHAPE
        };
        let normed = b.norm(&format!("blk.{layer}.attn_norm"), x)?;
        let attention = b.attention(layer, normed, &shape, &rope)?;
        x = b.add(&format!("blk.{layer}.attn_residual"), attention, x)?;
        let normed = b.norm(&format!("blk.{layer}.post_attention_norm"), x)?;
        let ffn = b.experts(layer, normed, &EXPERTS)?;
        x = b.add(&format!("blk.{layer}.ffn_residual"), ffn, x)?;
    }
    b.head(x, false)
}
