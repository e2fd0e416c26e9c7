//! hunyuan-dense: Hunyuan 0.5B to 7B. An RMS norm of every Q and K head after the rotation, whose base grows with `alpha`.
//! Facts: llama.cpp src/models/hunyuan-dense.cpp and hunyuan-vl.cpp.

use super::Architecture;
use super::attention::{Attention, QkNorm};
use super::decoder::Decoder;
use super::ffn::Ffn;
use super::parts::Builder;
use crate::error::Error;
use crate::graph::{Activation, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "hunyuan-dense",
    reads: &["expert_count"],
    refuses: &[("expert_count", &[0.0, 1.0])],
    build,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let mut spec = b.rope_spec(RopeStyle::Neox)?;
    let alpha = b.metadata.f32("rope.scaling.alpha")?.unwrap_or(0.0);
    if alpha > 0.0 {
        let dim = spec.shape.head_dim as f32;
        spec.base *= alpha.powf(dim / (dim - 2.0));
    }
    spec.sections = b.rope_sections(false)?;
    let rope = b.rope("", &spec)?;
    let ffn = Ffn::unscaled(Activation::Silu);
    b.decoder(&Decoder::new(ffn), |b, layer| Attention {
        qk_norm: QkNorm::HeadsAfterRotation,
        ..b.plain_attention(layer, rope)
    })
}
