//! qwen3: dense Qwen 3. As qwen2 with an RMS norm of every Q and K head before the rotation.
//! Facts: llama.cpp src/models/qwen3.cpp.

use super::Architecture;
use super::attention::{Attention, QkNorm};
use super::decoder::Decoder;
use super::ffn::Ffn;
use super::parts::Builder;
use crate::error::Error;
use crate::graph::{Activation, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen3",
    reads: &[],
    refuses: &[],
    build,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let rope = b.plain_rope(RopeStyle::Neox)?;
    // The head of reranking models, which does not change logits.
    b.ignore("cls.output.weight".into());
    let ffn = Ffn::new(Activation::Silu);
    b.decoder(&Decoder::new(ffn), |b, layer| Attention {
        qk_norm: QkNorm::Heads,
        ..b.plain_attention(layer, rope)
    })
}
