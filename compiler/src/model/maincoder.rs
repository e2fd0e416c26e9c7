//! maincoder: Maincoder. As llama with an RMS norm of every Q and K head after the rotation.
//! Facts: llama.cpp src/models/maincoder.cpp.

use super::Architecture;
use super::attention::{Attention, QkNorm};
use super::decoder::Decoder;
use super::ffn::Ffn;
use super::parts::Builder;
use crate::error::Error;
use crate::graph::{Activation, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "maincoder",
    reads: &[],
    refuses: &[],
    build,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let rope = b.plain_rope(RopeStyle::Interleaved)?;
    let ffn = Ffn::unscaled(Activation::Silu);
    b.decoder(&Decoder::new(ffn), |b, layer| Attention {
        qk_norm: QkNorm::HeadsAfterRotation,
        ..b.plain_attention(layer, rope)
    })
}
