//! pangu-embedded: openPangu-Embedded. As qwen2 with biases of every projection and of the output.
//! Facts: llama.cpp src/models/pangu-embed.cpp.

use super::Architecture;
use super::attention::Attention;
use super::decoder::Decoder;
use super::ffn::Ffn;
use super::parts::Builder;
use super::rope::FACTORS;
use crate::error::Error;
use crate::graph::{Activation, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "pangu-embedded",
    reads: &[],
    refuses: &[],
    build,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let rope = b.plain_rope(RopeStyle::Neox)?;
    // llama.cpp loads factors and rotates without them.
    b.ignore(FACTORS.into());
    let ffn = Ffn {
        bias: true,
        ..Ffn::unscaled(Activation::Silu)
    };
    b.decoder(&Decoder::new(ffn), |b, layer| Attention {
        output_bias: true,
        ..b.plain_attention(layer, rope)
    })
}
