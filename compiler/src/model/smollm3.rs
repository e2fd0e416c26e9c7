//! smollm3: SmolLM 3. As llama; every fourth layer does not rotate.
//! Facts: llama.cpp src/models/smollm3.cpp.

use super::Architecture;
use super::attention::Attention;
use super::decoder::Decoder;
use super::ffn::Ffn;
use super::parts::Builder;
use crate::error::Error;
use crate::graph::{Activation, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "smollm3",
    reads: &[],
    refuses: &[],
    build,
};

/// One layer of so many has no positions.
const PERIOD: usize = 4;

fn build(b: &mut Builder) -> Result<(), Error> {
    let rope = b.plain_rope(RopeStyle::Interleaved)?;
    let ffn = Ffn::unscaled(Activation::Silu);
    b.decoder(&Decoder::new(ffn), |b, layer| {
        let rotates = !(layer + 1).is_multiple_of(PERIOD);
        Attention {
            rope: rotates.then_some(rope),
            ..b.plain_attention(layer, rope)
        }
    })
}
