//! seed_oss: Seed-OSS 36B. As qwen2; the norm before the feed-forward network has another name.
//! Facts: llama.cpp src/models/seed-oss.cpp.

use super::Architecture;
use super::decoder::{Branch, Head};
use super::ffn::Ffn;
use super::parts::Builder;
use crate::error::Error;
use crate::graph::{Activation, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "seed_oss",
    reads: &[],
    refuses: &[],
    build,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let rope = b.plain_rope(RopeStyle::Neox)?;
    let ffn = Ffn::unscaled(Activation::Silu);
    let mut x = b.embedding(1.0)?;
    for layer in 0..b.hparams.layers {
        let attention = b.plain_attention(layer, rope);
        x = b.attention_branch(layer, x, Branch::PRE_NORM, &attention)?;
        let norms = ["post_attention_norm", ""];
        let names = (norms, "ffn_residual");
        x = b.branch(layer, x, Branch::PRE_NORM, names, |b, x| {
            b.ffn(layer, x, &ffn)
        })?;
    }
    b.head(x, &Head::PLAIN)
}
