//! qwen3next: Qwen3-Next. As qwen35moe, with the heads of a key beside each other, one tensor for alpha and beta, and plain
//! rotation.
//! Facts: llama.cpp src/models/qwen3next.cpp, delta-net-base.cpp.

use super::Architecture;
use super::decoder::Feed;
use super::delta::{self, DeltaNet};
use super::experts;
use super::parts::Builder;
use crate::error::Error;
use crate::graph::RopeStyle;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen3next",
    reads: delta::READS_WITH_EXPERTS,
    refuses: experts::REFUSES,
    build,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    // Queries, keys, values and gates in one tensor, in files that have them in two as well.
    for layer in 0..b.hparams.layers {
        if b.has(&format!("blk.{layer}.attn_qkv.weight")) {
            b.ignore(format!("blk.{layer}.ssm_in.weight"));
            b.ignore(format!("blk.{layer}.ssm_in.scale"));
        }
    }
    let rope = b.plain_rope(RopeStyle::Neox)?;
    b.delta_decoder(rope, DeltaNet::GROUPED, Feed::Experts(delta::EXPERTS))
}
