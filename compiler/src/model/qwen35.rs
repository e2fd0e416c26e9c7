//! qwen35: dense Qwen 3.5. Gated delta nets in three of four layers, gated attention in the others, whose rotary pairs have
//! sections that take turns.
//! Facts: llama.cpp src/models/qwen35.cpp, delta-net-base.cpp.

use super::Architecture;
use super::decoder::Feed;
use super::delta::{self, DeltaNet};
use super::ffn::Ffn;
use super::parts::Builder;
use super::rope::RopeSpec;
use crate::error::Error;
use crate::graph::{Activation, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen35",
    reads: delta::READS,
    refuses: &[],
    build,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let sections = b.rope_sections(true)?;
    let spec = b.rope_spec(RopeStyle::Neox)?;
    let rope = b.rope("", &RopeSpec { sections, ..spec })?;
    let ffn = Ffn::new(Activation::Silu);
    b.delta_decoder(rope, DeltaNet::TILED, Feed::Dense(ffn))
}
