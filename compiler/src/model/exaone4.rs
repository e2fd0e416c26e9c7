//! exaone4: EXAONE 4. Norms after both branches and of every Q and K head; 32B has a window on three of four layers, and only
//! those rotate.
//! Facts: llama.cpp src/models/exaone4.cpp.

use super::Architecture;
use super::attention::{Attention, QkNorm};
use super::decoder::{Branch, Decoder};
use super::ffn::Ffn;
use super::parts::Builder;
use super::rope::{FACTORS, RopeSpec};
use super::window;
use crate::error::Error;
use crate::graph::{Activation, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "exaone4",
    reads: &[],
    refuses: &[],
    build,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let layers = b.hparams.layers;
    let window = match layers {
        64 => window::window(b.metadata, 4096)?,
        _ => None,
    };
    let windowed = window::layers_with(window, b.metadata, layers, 4)?;
    let spec = b.rope_spec(RopeStyle::Neox)?;
    let pairs = spec.shape.rot_dim / 2;
    let factors = b.frequency_factors(FACTORS, pairs)?;
    let rope = b.rope("", &RopeSpec { factors, ..spec })?;
    let decoder = Decoder {
        branch: Branch::POST_NORM,
        ..Decoder::new(Ffn::unscaled(Activation::Silu))
    };
    b.decoder(&decoder, |b, layer| {
        let rotates = windowed[layer] || window.is_none();
        Attention {
            rope: rotates.then_some(rope),
            window: window.filter(|_| windowed[layer]),
            qk_norm: QkNorm::Heads,
            ..b.plain_attention(layer, rope)
        }
    })
}
