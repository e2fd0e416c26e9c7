//! llama: Llama 1 to 3, Mistral, Mixtral and their kin; with experts or without. Interleaved rotary pairs, optional biases and frequency factors.
//! Facts: llama.cpp src/models/llama.cpp.

use super::Architecture;
use super::attention::Attention;
use super::decoder::{Branch, Head};
use super::experts::{self, ExpertShape, ExpertWidth};
use super::ffn::Ffn;
use super::parts::Builder;
use crate::error::Error;
use crate::graph::{Activation, Gating, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "llama",
    reads: experts::READS,
    refuses: experts::REFUSES,
    build,
};

/// Mixtral's.
const EXPERTS: ExpertShape = ExpertShape {
    activation: Activation::Silu,
    gating: Gating::Softmax,
    normalise: true,
    width: ExpertWidth::Dense,
    biases: false,
    shared: false,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let rope = b.factored_rope(RopeStyle::Interleaved)?;
    let ffn = Ffn {
        bias: true,
        ..Ffn::new(Activation::Silu)
    };
    let experts = b.has_experts()?;
    let mut x = b.embedding(1.0)?;
    for layer in 0..b.hparams.layers {
        let attention = Attention {
            output_bias: true,
            ..b.plain_attention(layer, rope)
        };
        x = b.attention_branch(layer, x, Branch::PRE_NORM, &attention)?;
        x = match experts {
            true => b.experts_branch(layer, x, Branch::PRE_NORM, &EXPERTS)?,
            false => b.ffn_branch(layer, x, Branch::PRE_NORM, &ffn)?,
        };
    }
    b.head(x, &Head::PLAIN)
}
