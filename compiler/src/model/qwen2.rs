//! qwen2: Qwen 1.5, 2 and 2.5. As llama with half-split rotary pairs and biases on Q, K and V.
//! Facts: llama.cpp src/models/qwen2.cpp.

use super::Architecture;
use super::decoder::{Branch, Head};
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
    let ffn = Ffn {
        scales: false,
        ..Ffn::new(Activation::Silu)
    };
    let mut x = b.embedding(1.0)?;
    for layer in 0..b.hparams.layers {
        let attention = b.plain_attention(layer, rope);
        x = b.attention_branch(layer, x, Branch::PRE_NORM, &attention)?;
        x = b.ffn_branch(layer, x, Branch::PRE_NORM, &ffn)?;
    }
    let head = Head {
        bias: true,
        ..Head::PLAIN
    };
    b.head(x, &head)
}
