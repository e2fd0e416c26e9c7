//! gemma2: Gemma 2. As gemma with norms around both branches, a window on every other layer, and soft caps on scores and
//! logits.
//! Facts: llama.cpp src/models/gemma2.cpp.

use super::Architecture;
use super::attention::Attention;
use super::decoder::{Branch, Decoder, Head};
use super::ffn::Ffn;
use super::parts::Builder;
use super::rope::RopeSpec;
use super::window;
use crate::error::Error;
use crate::graph::{Activation, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "gemma2",
    reads: &[],
    refuses: &[],
    build,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let window = window::window(b.metadata, 4096)?;
    let windowed = window::layers(b.metadata, b.hparams.layers, Some(2))?;
    let spec = b.rope_spec(RopeStyle::Neox)?;
    let rope = b.rope("", &spec)?;
    let local = match b.rope_base("rope.freq_base_swa")? {
        Some(base) => b.rope(".swa", &RopeSpec { base, ..spec })?,
        None => rope,
    };
    let softcap = b.cap("attn_logit_softcapping", 50.0)?;
    // 27B was trained with another scale than its head size asks for.
    let head_dim = match b.hparams.layers {
        46 => b.hparams.hidden / b.hparams.heads[0],
        _ => b.hparams.head_dim,
    };
    let decoder = Decoder {
        embedding: (b.hparams.hidden as f32).sqrt(),
        branch: Branch::AROUND,
        head: Head {
            softcap: b.cap("final_logit_softcapping", 30.0)?,
            ..Head::PLAIN
        },
        ..Decoder::new(Ffn::unscaled(Activation::GeluTanh))
    };
    b.decoder(&decoder, |b, layer| Attention {
        window: window.filter(|_| windowed[layer]),
        scale: 1.0 / (head_dim as f32).sqrt(),
        softcap,
        ..b.plain_attention(layer, if windowed[layer] { local } else { rope })
    })
}
