//! gemma: Gemma 1. As llama with a scaled embedding, GELU gates and the embedding matrix as output.
//! Facts: llama.cpp src/models/gemma.cpp.

use super::Architecture;
use super::decoder::{Branch, Head};
use super::ffn::Ffn;
use super::parts::Builder;
use crate::error::Error;
use crate::graph::{Activation, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "gemma",
    reads: &[],
    refuses: &[],
    build,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let rope = b.plain_rope(RopeStyle::Neox)?;
    let ffn = Ffn {
        scales: false,
        ..Ffn::new(Activation::GeluTanh)
    };
    let mut x = b.embedding((b.hparams.hidden as f32).sqrt())?;
    for layer in 0..b.hparams.layers {
        let attention = b.plain_attention(layer, rope);
        x = b.attention_branch(layer, x, Branch::PRE_NORM, &attention)?;
        x = b.ffn_branch(layer, x, Branch::PRE_NORM, &ffn)?;
    }
    b.head(x, &Head::PLAIN)
}
