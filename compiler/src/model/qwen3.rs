//! qwen3: dense Qwen 3. As qwen2 with an RMS norm of every Q and K head before the rotation.
//! Facts: llama.cpp src/models/qwen3.cpp.

use super::parts::{Biases, Builder, LayerShape, QkNorm};
use super::rope::FreqFactors;
use crate::error::Error;
use crate::graph::{Activation, RopeStyle};

const SHAPE: LayerShape = LayerShape {
    activation: Activation::Silu,
    qk_norm: QkNorm::Heads,
    window: None,
    sinks: false,
    biases: Biases {
        qkv: true,
        attn_output: false,
        ffn: false,
        output: false,
    },
    experts: None,
};

pub(super) fn build(b: &mut Builder) -> Result<(), Error> {
    let rope = b.rope(RopeStyle::Neox, FreqFactors::None)?;
    b.decoder(&SHAPE, &rope)
}
