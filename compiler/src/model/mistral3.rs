//! mistral3: Mistral Small 3 and Ministral 3. As llama, with YaRN parameters in metadata. Beyond the original context llama.cpp
//! makes scores grow with the position, which is not implemented: such contexts are refused.
//! Facts: llama.cpp src/models/mistral3.cpp.

use super::Architecture;
use super::attention::Attention;
use super::decoder::Decoder;
use super::experts;
use super::ffn::Ffn;
use super::parts::Builder;
use super::rope::Scaling;
use crate::error::Error;
use crate::graph::{Activation, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "mistral3",
    reads: experts::READS,
    refuses: experts::REFUSES,
    build,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    grows_beyond_context(b)?;
    let mut spec = b.factored_rope_spec(RopeStyle::Interleaved)?;
    let key = |key: &str| b.metadata.f32(key);
    if let Scaling::Yarn {
        beta_fast,
        beta_slow,
        log_multiplier,
        ..
    } = &mut spec.scaling
    {
        let fast = key("rope.scaling.yarn_beta_fast")?;
        let slow = key("rope.scaling.yarn_beta_slow")?;
        *beta_fast = fast.map_or(*beta_fast, f64::from);
        *beta_slow = slow.map_or(*beta_slow, f64::from);
        *log_multiplier = f64::from(key("rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0));
    }
    let rope = b.rope("", &spec)?;
    let ffn = Ffn {
        bias: true,
        ..Ffn::new(Activation::Silu)
    };
    let feed = b.mixtral_or(ffn)?;
    b.decoder(&Decoder::with(feed), |b, layer| Attention {
        output_bias: true,
        ..b.plain_attention(layer, rope)
    })
}

/// Refuses a context in which positions change the scale of scores.
fn grows_beyond_context(b: &Builder) -> Result<(), Error> {
    const KEY: &str = "attention.temperature_scale";
    let original = b.original_context()?;
    match b.metadata.f32(KEY)?.unwrap_or(0.0) {
        scale if scale != 0.0 && b.context > original => Err(Error::Unsupported {
            what: b.metadata.key(KEY),
            why: format!(
                "{scale} is implemented up to the original context of {original} tokens only (give --ctx-size {original} or less)"
            ),
        }),
        _ => Ok(()),
    }
}
