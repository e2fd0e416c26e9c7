//! xverse: XVERSE 7B to 65B. As llama without biases of projections.
//! Facts: llama.cpp src/models/xverse.cpp.

use super::Architecture;
use super::decoder::Decoder;
use super::ffn::Ffn;
use super::parts::Builder;
use crate::error::Error;
use crate::graph::{Activation, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "xverse",
    reads: &[],
    refuses: &[],
    build,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let rope = b.plain_rope(RopeStyle::Interleaved)?;
    let ffn = Ffn::unscaled(Activation::Silu);
    b.decoder(&Decoder::new(ffn), |b, layer| {
        b.plain_attention(layer, rope)
    })
}
