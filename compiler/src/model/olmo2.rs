//! olmo2: OLMo 2 and 3. Norms after both branches and of all Q and K heads together; OLMo 3 has a window on three of four
//! layers, which then rotate without scaling.
//! Facts: llama.cpp src/models/olmo2.cpp.

use super::Architecture;
use super::attention::{Attention, QkNorm};
use super::decoder::{Branch, Decoder};
use super::ffn::Ffn;
use super::parts::Builder;
use super::rope::{RopeSpec, Scaling};
use super::window;
use crate::error::Error;
use crate::graph::{Activation, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "olmo2",
    reads: &[],
    refuses: &[],
    build,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let window = window::window(b.metadata, 0)?;
    let windowed = window::layers_with(window, b.metadata, b.hparams.layers, 4)?;
    let spec = b.rope_spec(RopeStyle::Neox)?;
    let rope = b.rope("", &spec)?;
    let local = match window {
        Some(_) => {
            let local = RopeSpec {
                scaling: Scaling::None,
                magnitude: 1.0,
                ..spec
            };
            b.rope(".swa", &local)?
        }
        None => rope,
    };
    let decoder = Decoder {
        branch: Branch::POST_NORM,
        ..Decoder::new(Ffn::unscaled(Activation::Silu))
    };
    b.decoder(&decoder, |b, layer| Attention {
        window: window.filter(|_| windowed[layer]),
        qk_norm: QkNorm::Row,
        ..b.plain_attention(layer, if windowed[layer] { local } else { rope })
    })
}
