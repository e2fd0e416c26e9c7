//! llama: Llama 1 to 3, Mistral and their kin. Interleaved rotary pairs, optional biases and frequency factors.
//! Facts: llama.cpp src/models/llama.cpp.

use super::Architecture;
use super::attention::Attention;
use super::decoder::{Branch, Head};
use super::ffn::Ffn;
use super::parts::Builder;
use crate::error::Error;
use crate::graph::{Activation, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "llama",
    reads: &[],
    refuses: &[],
    build,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let rope = b.factored_rope(RopeStyle::Interleaved)?;
    let ffn = Ffn {
        bias: true,
        ..Ffn::new(Activation::Silu)
    };
    let mut x = b.embedding(1.0)?;
    for layer in 0..b.hparams.layers {
        let attention = Attention {
            output_bias: true,
            ..b.plain_attention(layer, rope)
        };
        x = b.attention_branch(layer, x, Branch::PRE_NORM, &attention)?;
        x = b.ffn_branch(layer, x, Branch::PRE_NORM, &ffn)?;
    }
    b.head(x, &Head::PLAIN)
}
