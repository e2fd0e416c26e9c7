//! qwen2: Qwen 1.5, 2 and 2.5. As llama with half-split rotary pairs and biases on Q, K and V.
//! Facts: llama.cpp src/models/qwen2.cpp.

use super::parts::{Biases, Builder, LayerShape, QkNorm};
use super::rope::FreqFactors;
use crate::error::Error;
use crate::graph::{Activation, RopeStyle};

const SHAPE: LayerShape = LayerShape {
    activation: Activation::Silu,
    qk_norm: QkNorm::None,
    window: None,
    sinks: false,
    biases: Biases {
        qkv: true,
        attn_output: false,
        ffn: false,
        output: true,
    },
    experts: None,
};

pub(super) fn build(b: &mut Builder) -> Result<(), Error> {
    let rope = b.rope(RopeStyle::Neox, FreqFactors::None)?;
    b.decoder(&SHAPE, &rope)
}
