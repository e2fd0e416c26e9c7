//! olmo2: OLMo 2 and 3. Norms after both branches and of all Q and K heads together; OLMo 3 has a window on three of four
//! layers, which then rotate without scaling.
//! Facts: llama.cpp src/models/olmo2.cpp.

use super::Architecture;
use super::attention::{Attention, QkNorm};
use super::decoder::{Branch, Head, Norms};
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

/// x + norm(branch(x)).
const BRANCH: Branch = Branch {
    norms: Norms::After,
    scale: 1.0,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let window = window::window(b.metadata, 0)?;
    let windowed = match window {
        Some(_) => window::layers(b.metadata, b.hparams.layers, Some(4))?,
        None => vec![false; b.hparams.layers],
    };
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
    let ffn = Ffn {
        scales: false,
        ..Ffn::new(Activation::Silu)
    };
    let mut x = b.embedding(1.0)?;
    for (layer, windowed) in windowed.into_iter().enumerate() {
        let attention = Attention {
            window: window.filter(|_| windowed),
            qk_norm: QkNorm::Row,
            ..b.plain_attention(layer, if windowed { local } else { rope })
        };
        x = b.attention_branch(layer, x, BRANCH, &attention)?;
        x = b.ffn_branch(layer, x, BRANCH, &ffn)?;
    }
    b.head(x, &Head::PLAIN)
}
