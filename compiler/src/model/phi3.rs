//! phi3: Phi 3, 3.5 and 4. Q, K and V are rows of one tensor, and so are gate and up; LongRoPE factors by context. The
//! window that files name is not used, as in llama.cpp.
//! Facts: llama.cpp src/models/phi3.cpp.

use super::Architecture;
use super::decoder::Decoder;
use super::ffn::Ffn;
use super::parts::Builder;
use crate::error::Error;
use crate::graph::{Activation, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "phi3",
    reads: &[],
    refuses: &[],
    build,
};

fn build(b: &mut Builder) -> Result<(), Error> {
    let mut spec = b.rope_spec(RopeStyle::Neox)?;
    spec.factors = b.factors_by_context(spec.shape.rot_dim / 2)?;
    let rope = b.rope("", &spec)?;
    let ffn = Ffn {
        gate_in_up: true,
        ..Ffn::unscaled(Activation::Silu)
    };
    b.decoder(&Decoder::new(ffn), |b, layer| {
        b.plain_attention(layer, rope)
    })
}
