//! qwen2: Qwen 1.5, 2 and 2.5. As llama with half-split rotary pairs and biases on Q, K and V.
//! Facts: llama.cpp src/models/qwen2.cpp.

use super::Architecture;
use super::decoder::{Decoder, Head};
use super::ffn::Ffn;
use super::parts::Builder;
use crate::error::Error;
use crate::graph::{Activation, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen2",
    reads: &[],
    refuses: &[],
    build,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let rope = b.plain_rope(RopeStyle::Neox)?;
    let decoder = Decoder {
        head: Head {
            bias: true,
            ..Head::PLAIN
        },
        ..Decoder::new(Ffn::unscaled(Activation::Silu))
    };
    b.decoder(&decoder, |b, layer| b.plain_attention(layer, rope))
}
