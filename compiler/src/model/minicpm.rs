//! minicpm: MiniCPM 1 and 2, with experts or without. As granite, with scales that files need not name.
//! Facts: llama.cpp src/models/minicpm.cpp.

use super::Architecture;
use super::attention::Attention;
use super::decoder::{Branch, Decoder, Feed, Head};
use super::experts::{self, ExpertShape};
use super::ffn::Ffn;
use super::parts::Builder;
use crate::error::Error;
use crate::graph::{Activation, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "minicpm",
    reads: experts::READS,
    refuses: &[("expert_group_count", &[0.0, 1.0])],
    build,
};

const EXPERTS: ExpertShape = ExpertShape {
    scales: false,
    ..ExpertShape::MIXTRAL
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let rope = b.factored_rope(RopeStyle::Interleaved)?;
    let (layers, hidden) = (b.hparams.layers as f32, b.hparams.hidden as f32);
    // 0 is none.
    let number = |key: &str, default: f32| {
        let value = b.metadata.f32(key)?.unwrap_or(default);
        Ok::<_, Error>(if value == 0.0 { 1.0 } else { value })
    };
    let ffn = Ffn {
        bias: true,
        ..Ffn::unscaled(Activation::Silu)
    };
    let decoder = Decoder {
        embedding: number("embedding_scale", 12.0)?,
        branch: Branch {
            scale: number("residual_scale", 1.4 / layers.sqrt())?,
            ..Branch::PRE_NORM
        },
        feed: match b.has_experts()? {
            true => Feed::Experts(EXPERTS),
            false => Feed::Dense(ffn),
        },
        head: Head {
            scale: 1.0 / number("logit_scale", 256.0 / hidden)?,
            ..Head::PLAIN
        },
    };
    b.decoder(&decoder, |b, layer| Attention {
        output_bias: true,
        ..b.plain_attention(layer, rope)
    })
}
