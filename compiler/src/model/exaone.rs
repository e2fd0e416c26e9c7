//! exaone: EXAONE 3 and 3.5. As llama with half-split rotary pairs.
//! Facts: llama.cpp src/models/exaone.cpp.

use super::Architecture;
use super::decoder::Decoder;
use super::ffn::Ffn;
use super::parts::Builder;
use crate::error::Error;
use crate::graph::{Activation, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "exaone",
    reads: &[],
    refuses: &[],
    build,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let rope = b.factored_rope(RopeStyle::Neox)?;
    let ffn = Ffn::unscaled(Activation::Silu);
    b.decoder(&Decoder::new(ffn), |b, layer| {
        b.plain_attention(layer, rope)
    })
}
