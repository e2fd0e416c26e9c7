//! qwen35moe: Qwen 3.5 with experts in every layer, and a network beside them that all rows pass, through a gate.
//! Facts: llama.cpp src/models/qwen35moe.cpp, delta-net-base.cpp.

use super::Architecture;
use super::decoder::Feed;
use super::delta::{self, DeltaNet};
use super::experts;
use super::parts::Builder;
use super::rope::RopeSpec;
use crate::error::Error;
use crate::graph::RopeStyle;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen35moe",
    reads: delta::READS_WITH_EXPERTS,
    refuses: experts::REFUSES,
    build,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let sections = b.rope_sections(true)?;
    let spec = b.rope_spec(RopeStyle::Neox)?;
    let rope = b.rope("", &RopeSpec { sections, ..spec })?;
    b.delta_decoder(rope, DeltaNet::TILED, Feed::Experts(delta::EXPERTS))
}
