//! llama: Llama 1 to 3, Mistral, Mixtral and their kin; with experts or without. Interleaved rotary pairs, optional biases and frequency factors.
//! Facts: llama.cpp src/models/llama.cpp.

use super::Architecture;
use super::attention::Attention;
use super::decoder::Decoder;
use super::experts;
use super::ffn::Ffn;
use super::parts::Builder;
use crate::error::Error;
use crate::graph::{Activation, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "llama",
    reads: experts::READS,
    refuses: experts::REFUSES,
    build,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let rope = b.factored_rope(RopeStyle::Interleaved)?;
    let ffn = Ffn {
        bias: true,
        ..Ffn::new(Activation::Silu)
    };
    let feed = b.mixtral_or(ffn)?;
    b.decoder(&Decoder::with(feed), |b, layer| Attention {
        output_bias: true,
        ..b.plain_attention(layer, rope)
    })
}
