//! granite: Granite 3 and 4. As llama, with scales of embedding, scores, branches and logits; with experts or without.
//! Facts: llama.cpp src/models/granite.cpp.

use super::Architecture;
use super::attention::Attention;
use super::decoder::{Branch, Decoder, Feed, Head};
use super::experts::{self, ExpertShape, Shared};
use super::ffn::Ffn;
use super::parts::Builder;
use crate::error::Error;
use crate::graph::{Activation, RopeStyle};

/// What logits are divided by.
const LOGIT_SCALE: &str = "logit_scale";

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "granite",
    reads: experts::READS,
    refuses: &[
        ("deepstack_mapping", &[-1.0]),
        ("expert_group_count", &[0.0, 1.0]),
    ],
    build,
};

const EXPERTS: ExpertShape = ExpertShape {
    scales: false,
    shared: Shared::Plain,
    ..ExpertShape::MIXTRAL
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let rope = b.factored_rope(RopeStyle::Interleaved)?;
    // A switch of the rotation, whatever its name says.
    let rotates = b
        .metadata
        .gguf
        .bool(&b.metadata.key("rope.scaling.finetuned"))?;
    let ffn = Ffn {
        bias: true,
        ..Ffn::unscaled(Activation::Silu)
    };
    // 0 is unset.
    let number = |b: &Builder, key: &str| {
        let value = b.metadata.f32(key)?;
        Ok::<_, Error>(value.filter(|&value| value != 0.0))
    };
    let scale = number(b, "attention.scale")?;
    let logits = number(b, LOGIT_SCALE)?.ok_or_else(|| b.metadata.missing(LOGIT_SCALE))?;
    let decoder = Decoder {
        embedding: number(b, "embedding_scale")?.unwrap_or(1.0),
        branch: Branch {
            scale: number(b, "residual_scale")?.unwrap_or(1.0),
            ..Branch::PRE_NORM
        },
        feed: match b.has_experts()? {
            true => Feed::Experts(EXPERTS),
            false => Feed::Dense(ffn),
        },
        head: Head {
            scale: 1.0 / logits,
            ..Head::PLAIN
        },
    };
    b.decoder(&decoder, |b, layer| {
        let plain = b.plain_attention(layer, rope);
        Attention {
            rope: plain.rope.filter(|_| rotates != Some(false)),
            scale: scale.unwrap_or(plain.scale),
            output_bias: true,
            ..plain
        }
    })
}
