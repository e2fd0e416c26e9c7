//! qwen2vl: Qwen2-VL and Qwen2.5-VL, their text. As qwen2; rotary pairs have sections.
//! Facts: llama.cpp src/models/qwen2vl.cpp.

use super::Architecture;
use super::decoder::Decoder;
use super::ffn::Ffn;
use super::parts::Builder;
use super::rope::RopeSpec;
use crate::error::Error;
use crate::graph::{Activation, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen2vl",
    reads: &[],
    refuses: &[],
    build,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let sections = b.rope_sections(false)?;
    let spec = b.rope_spec(RopeStyle::Neox)?;
    let rope = b.rope("", &RopeSpec { sections, ..spec })?;
    // llama.cpp loads it and computes without it.
    b.ignore("output.bias".into());
    let ffn = Ffn::unscaled(Activation::Silu);
    b.decoder(&Decoder::new(ffn), |b, layer| {
        b.plain_attention(layer, rope)
    })
}
