//! phi3: Phi 3, 3.5 and 4. Q, K and V are rows of one tensor, and so are gate and up; LongRoPE factors by context. The
//! window that files name is not used, as in llama.cpp.
//! Facts: llama.cpp src/models/phi3.cpp.

use super::Architecture;
use super::decoder::{Branch, Head};
use super::ffn::Ffn;
use super::parts::Builder;
use crate::error::Error;
use crate::graph::{Activation, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "phi3",
    reads: &[],
    refuses: &[],
    build,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let mut spec = b.rope_spec(RopeStyle::Neox)?;
    spec.factors = b.factors_by_context(spec.shape.rot_dim / 2)?;
    let rope = b.rope("", &spec)?;
    let ffn = Ffn {
        gate_in_up: true,
        scales: false,
        ..Ffn::new(Activation::Silu)
    };
    let mut x = b.embedding(1.0)?;
    for layer in 0..b.hparams.layers {
        let attention = b.plain_attention(layer, rope);
        x = b.attention_branch(layer, x, Branch::PRE_NORM, &attention)?;
        x = b.ffn_branch(layer, x, Branch::PRE_NORM, &ffn)?;
    }
    b.head(x, &Head::PLAIN)
}
