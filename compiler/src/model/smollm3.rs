//! smollm3: SmolLM 3. As llama; every fourth layer does not rotate.
//! Facts: llama.cpp src/models/smollm3.cpp.

use super::Architecture;
use super::attention::Attention;
use super::decoder::{Branch, Head};
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
    let ffn = Ffn {
        scales: false,
        ..Ffn::new(Activation::Silu)
    };
    let mut x = b.embedding(1.0)?;
    for layer in 0..b.hparams.layers {
        let rotates = !(layer + 1).is_multiple_of(PERIOD);
        let attention = Attention {
            rope: rotates.then_some(rope),
            ..b.plain_attention(layer, rope)
        };
        x = b.attention_branch(layer, x, Branch::PRE_NORM, &attention)?;
        x = b.ffn_branch(layer, x, Branch::PRE_NORM, &ffn)?;
    }
    b.head(x, &Head::PLAIN)
}
