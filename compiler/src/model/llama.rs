//! llama: Llama 1 to 3, Mistral and their kin. Interleaved rotary pairs, optional biases and Llama-3 frequency factors.
//! Facts: llama.cpp src/models/llama.cpp.

use super::parts::{Biases, Builder, LayerShape};
use super::rope::FreqFactors;
use crate::error::Error;
use crate::graph::{Activation, RopeStyle};

const SHAPE: LayerShape = LayerShape {
    activation: Activation::Silu,
    qk_norm: false,
    biases: Biases {
        qkv: true,
        attn_output: true,
        ffn: true,
        output: false,
    },
};

pub(super) fn build(b: &mut Builder) -> Result<(), Error> {
    let rope = b.rope(RopeStyle::Interleaved, FreqFactors::Optional)?;
    b.decoder(&SHAPE, &rope)
}
