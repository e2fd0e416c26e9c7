//! qwen3vlmoe: Qwen3-VL with experts, its text. As qwen3moe; rotary pairs have sections that take turns.
//! Facts: llama.cpp src/models/qwen3vlmoe.cpp.

use super::Architecture;
use super::attention::{Attention, QkNorm};
use super::decoder::Decoder;
use super::experts::{self, ExpertShape, ExpertWidth};
use super::parts::Builder;
use super::rope::RopeSpec;
use crate::error::Error;
use crate::graph::RopeStyle;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen3vlmoe",
    reads: experts::READS,
    refuses: experts::REFUSES,
    build,
};

const EXPERTS: ExpertShape = ExpertShape {
    width: ExpertWidth::OwnKey,
    scales: false,
    ..ExpertShape::MIXTRAL
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let sections = b.rope_sections(true)?;
    let spec = b.rope_spec(RopeStyle::Neox)?;
    let rope = b.rope("", &RopeSpec { sections, ..spec })?;
    b.decoder(&Decoder::of_experts(EXPERTS), |b, layer| Attention {
        qk_norm: QkNorm::Heads,
        output_bias: true,
        ..b.plain_attention(layer, rope)
    })
}
