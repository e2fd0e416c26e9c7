//! gemma3: Gemma 3. Norms around both branches and of every Q and K head; all but every sixth layer attend through a window
//! and rotate by a base of their own, which linear scaling leaves alone.
//! Facts: llama.cpp src/models/gemma3.cpp.

use super::Architecture;
use super::attention::{Attention, QkNorm};
use super::decoder::{Branch, Decoder, Head};
use super::ffn::Ffn;
use super::parts::Builder;
use super::rope::{RopeSpec, Scaling};
use super::window;
use crate::error::Error;
use crate::graph::{Activation, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "gemma3",
    reads: &[],
    refuses: &[],
    build,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let window = window::window(b.metadata, 0)?;
    let windowed = window::layers_with(window, b.metadata, b.hparams.layers, 6)?;
    let spec = b.rope_spec(RopeStyle::Neox)?;
    let rope = b.rope("", &spec)?;
    let local = match window {
        Some(_) => {
            let base = b.rope_base("rope.freq_base_swa")?.unwrap_or(10_000.0);
            let scaling = Scaling::None;
            let local = RopeSpec {
                base,
                scaling,
                ..spec
            };
            b.rope(".swa", &local)?
        }
        None => rope,
    };
    // 27B was trained with another scale than its head size asks for.
    let head_dim = match b.hparams.layers {
        62 => b.hparams.hidden / b.hparams.heads[0],
        _ => b.hparams.head_dim,
    };
    let decoder = Decoder {
        embedding: (b.hparams.hidden as f32).sqrt(),
        branch: Branch::AROUND,
        head: Head {
            softcap: b.cap("final_logit_softcapping", 0.0)?,
            ..Head::PLAIN
        },
        ..Decoder::new(Ffn::unscaled(Activation::GeluTanh))
    };
    b.decoder(&decoder, |b, layer| Attention {
        window: window.filter(|_| windowed[layer]),
        scale: 1.0 / (head_dim as f32).sqrt(),
        qk_norm: QkNorm::Heads,
        ..b.plain_attention(layer, if windowed[layer] { local } else { rope })
    })
}
