//! gemma: Gemma 1. As llama with a scaled embedding, GELU gates and the embedding matrix as output.
//! Facts: llama.cpp src/models/gemma.cpp.

use super::Architecture;
use super::decoder::Decoder;
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
    let decoder = Decoder {
        embedding: (b.hparams.hidden as f32).sqrt(),
        ..Decoder::new(Ffn::unscaled(Activation::GeluTanh))
    };
    b.decoder(&decoder, |b, layer| b.plain_attention(layer, rope))
}
