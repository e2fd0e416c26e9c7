//! How GGUF tensor types store weights, and the `PackedLayout` that kernels read after packing.
//!
//! One format per file in `quant/`, one line in `FORMATS`. A quant block's bytes are understood in that file and nowhere
//! else; everything downstream sees integers, scales and the `PackedLayout` that describes them.

use crate::tensor_type::TensorType;
use serde::{Deserialize, Serialize};

/// Numeric meaning of packed weights: `w = scale * (q - zero) - min`, per scale group along k.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PackedLayout {
    /// What one stored weight is.
    pub store: Store,
    /// Weights along k that share one scale: 16 or 32; 1 for float storage.
    pub group: u16,
    /// Subtracted from every stored integer: 8 (q4_0), 16 (q5_0), 32 (q6_k), 128 (q8_0), else 0.
    pub zero: u8,
    /// How scales (and mins) are stored.
    pub scale: Scale,
    /// Whether a min is subtracted per group.
    pub min: bool,
}

/// Storage of one weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Store {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
    /// Unsigned integer of this many bits (4, 5, 6, 8).
    Int(u8),
}

/// Storage of group scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Scale {
    /// Float weights have none.
    None,
    /// One f16 per group (and one f16 min).
    F16,
    /// An 8-bit code per group (unsigned) times an f16 per 256 weights; mins likewise.
    U8F16,
    /// A signed 8-bit code per group times an f16 per 256 weights.
    I8F16,
}

/// One quant block taken apart: integers and scale codes, no arithmetic on values.
#[derive(Clone, Debug)]
pub struct Unpacked {
    /// Stored integers, `block_len` of them.
    pub q: [u8; 256],
    /// f16 bits: group scales when `Scale::F16` (index = group), else element 0 is the scale of the 256 weights.
    pub d: [u16; 8],
    /// f16 bits of the mins, same indexing as `d`.
    pub m: [u16; 8],
    /// 8-bit scale codes per group (`U8F16`; `I8F16` as two's complement).
    pub sc: [u8; 16],
    /// 8-bit min codes per group.
    pub mn: [u8; 16],
}

/// A GGUF tensor type that coldpress can pack.
pub struct QuantFormat {
    /// GGUF type: name, quant block length and bytes.
    pub ty: TensorType,
    /// What kernels read after packing.
    pub layout: PackedLayout,
    /// Takes one quant block apart (integer layouts; float formats leave it unused).
    pub unpack: fn(&[u8], &mut Unpacked),
}
