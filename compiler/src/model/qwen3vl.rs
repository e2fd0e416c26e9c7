//! qwen3vl: dense Qwen3-VL, its text. As qwen3; rotary pairs have sections that take turns.
//! Facts: llama.cpp src/models/qwen3vl.cpp.

use super::Architecture;
use super::attention::{Attention, QkNorm};
use super::decoder::Decoder;
use super::ffn::Ffn;
use super::parts::Builder;
use super::rope::RopeSpec;
use crate::error::Error;
use crate::graph::{Activation, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen3vl",
    reads: &[],
    refuses: &[],
    build,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let sections = b.rope_sections(true)?;
    let spec = b.rope_spec(RopeStyle::Neox)?;
    let rope = b.rope("", &RopeSpec { sections, ..spec })?;
    // The head of reranking models, which does not change logits.
    b.ignore("cls.output.weight".into());
    let ffn = Ffn::unscaled(Activation::Silu);
    b.decoder(&Decoder::new(ffn), |b, layer| Attention {
        qk_norm: QkNorm::Heads,
        ..b.plain_attention(layer, rope)
    })
}
