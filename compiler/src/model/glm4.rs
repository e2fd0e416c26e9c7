//! glm4: GLM 4 of 2025 (0414). Norms around both branches, gate and up in one tensor, interleaved pairs in half of a head.
//! Facts: llama.cpp src/models/glm4.cpp.

use super::Architecture;
use super::decoder::{Branch, Decoder};
use super::ffn::Ffn;
use super::parts::Builder;
use super::rope::RopeSpec;
use crate::error::Error;
use crate::graph::{Activation, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "glm4",
    reads: &[],
    refuses: &[],
    build,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let sections = b.rope_sections(false)?;
    // Files with sections, of models that see, have the halves of a pair apart.
    let style = match sections {
        Some(_) => RopeStyle::Neox,
        None => RopeStyle::Interleaved,
    };
    let spec = b.rope_spec(style)?;
    let rope = b.rope("", &RopeSpec { sections, ..spec })?;
    let ffn = Ffn {
        gate_in_up: true,
        ..Ffn::unscaled(Activation::Silu)
    };
    let decoder = Decoder {
        branch: Branch::AROUND,
        ..Decoder::new(ffn)
    };
    b.decoder(&decoder, |b, layer| b.plain_attention(layer, rope))
}
