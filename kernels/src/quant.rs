//! How GGUF tensor types store weights, and the `PackedLayout` that kernels read after packing.
//!
//! One format per file in `quant/`, one line in `FORMATS`. A quant block's bytes are understood in that file and nowhere
//! else; everything downstream sees integers, scales and the `PackedLayout` that describes them.

use std::fmt;

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use crate::tensor_type::TensorType;

mod codebook;
mod fields;
mod float;
mod iq4_nl;
mod iq4_xs;
mod mxfp4;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;

pub use codebook::Codebook;
use fields::{fifth_bits, k_scales, nibbles, two_bits};
pub use float::{BF16, F16, F32};
pub use iq4_nl::IQ4_NL;
pub use iq4_xs::IQ4_XS;
pub use mxfp4::MXFP4;
pub use q2_k::Q2_K;
pub use q3_k::Q3_K;
pub use q4_0::Q4_0;
pub use q4_1::Q4_1;
pub use q4_k::Q4_K;
pub use q5_0::Q5_0;
pub use q5_1::Q5_1;
pub use q5_k::Q5_K;
pub use q6_k::Q6_K;
pub use q8_0::Q8_0;

/// Every format coldpress can pack.
pub const FORMATS: &[QuantFormat] = &[
    F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K, Q2_K, Q3_K, IQ4_NL, IQ4_XS,
    MXFP4,
];

const _: () = {
    let mut i = 0;
    while i < FORMATS.len() {
        assert!(FORMATS[i].layout.kernels_can_read());
        i += 1;
    }
};

/// The format of a GGUF tensor type; `None` when coldpress cannot pack it.
pub fn format(ty: TensorType) -> Option<&'static QuantFormat> {
    FORMATS.iter().find(|fmt| fmt.ty == ty)
}

/// Weights under one f16 of a two-level scale (`U8F16`, `I8F16`, `U4F16`).
pub const SUPER_GROUP: usize = 256;

/// Sign bit of an f16: GGUF's `d * q + m` formats are packed as `scale * q - min` with `min = -m`.
const F16_SIGN: u16 = 0x8000;

/// Numeric meaning of packed weights: `w = scale * (level - zero) - min`, per scale group along k. The level of a stored
/// integer is the integer itself, that of a code `zero` plus its value in the codebook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PackedLayout {
    /// What one stored weight is.
    pub store: Store,
    /// Weights along k that share one scale: 16 or 32; 1 for float storage.
    pub group: u16,
    /// Subtracted from every level: 4 (q3_k), 8 (q4_0), 16 (q5_0, mxfp4), 32 (q6_k), 128 (q8_0, iq4), else 0. The middle
    /// of the levels' range, or 0 where there is a min.
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
    /// Unsigned integer of this many bits (2, 3, 4, 5, 6, 8).
    Int(u8),
    /// 4-bit code that stands for one of 16 values.
    Code(Codebook),
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
    /// 4-bit codes per group, of the scale and of the min, each times an f16 per 256 weights.
    U4F16,
    /// A power of two per group, an 8-bit exponent: `2^(e - 128)`.
    E8,
}

/// One quant block taken apart: integers and scale codes, no arithmetic on values.
#[derive(Clone, Copy, Debug)]
pub struct Unpacked {
    /// Stored integers or codes, `block_len` of them; each below 2^bits.
    pub q: [u8; 256],
    /// f16 bits: group scales when `Scale::F16` (index = group), else element 0 is the scale of the 256 weights.
    pub d: [u16; 8],
    /// f16 bits of the mins, same indexing as `d`.
    pub m: [u16; 8],
    /// Scale codes per group (`U8F16`, `U4F16`; `I8F16` as two's complement), exponents when `E8`.
    pub sc: [u8; 16],
    /// Min codes per group.
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

impl PackedLayout {
    /// k must be a multiple of this: 1 for float weights, 32 for one scale level, 256 for two.
    pub const fn k_multiple(&self) -> usize {
        match self.scale {
            Scale::None => 1,
            Scale::F16 | Scale::E8 => 32,
            Scale::U8F16 | Scale::I8F16 | Scale::U4F16 => SUPER_GROUP,
        }
    }

    /// Bits of one stored integer or code; `None` for float storage.
    pub const fn int_bits(&self) -> Option<u8> {
        match self.store {
            Store::Int(bits) => Some(bits),
            Store::Code(_) => Some(4),
            _ => None,
        }
    }

    /// What kernels rely on: levels from 0 with a min per scale group, or around the middle of their range, or floats.
    const fn kernels_can_read(&self) -> bool {
        if self.int_bits().is_none() {
            return self.zero == 0 && !self.min;
        }
        let centred = match self.store {
            Store::Int(bits) => self.zero == 1 << (bits - 1),
            Store::Code(codebook) => {
                self.zero.is_power_of_two() && codebook.largest() < self.zero as u16
            }
            _ => false,
        };
        (self.group == 32 || self.group == 16) && if self.min { self.zero == 0 } else { centred }
    }

    /// Level of the stored integer or code `q`, below 256.
    pub const fn level(&self, q: u8) -> u8 {
        match self.store {
            Store::Code(codebook) => self.zero.wrapping_add_signed(codebook.values()[q as usize]),
            _ => q,
        }
    }

    /// Level of each code; those of integers are the integers.
    pub const fn levels(&self) -> [u8; 16] {
        let (mut levels, mut code) = ([0; 16], 0);
        while code < levels.len() {
            levels[code] = self.level(code as u8);
            code += 1;
        }
        levels
    }

    /// The largest level.
    pub const fn max_level(&self) -> u8 {
        match self.store {
            Store::Int(bits) => (u8::MAX) >> (8 - bits),
            Store::Code(codebook) => (self.zero as u16 + codebook.largest()) as u8,
            _ => 0,
        }
    }

    /// Left shift that moves a zero in the middle of the levels' range to 128; 0 without a zero.
    pub const fn zero_shift(&self) -> u32 {
        match self.zero {
            0 => 0,
            zero => zero.leading_zeros(),
        }
    }

    /// Left shift that integer kernels may give all levels, which then fill 8 bits: that of the zero, or with a min per 32
    /// that of the largest level.
    pub const fn level_shift(&self) -> u32 {
        match (self.min, self.group) {
            (true, 32) => self.max_level().leading_zeros(),
            _ => self.zero_shift(),
        }
    }

    /// Short stable name that kernel symbols carry: `f16`; or bits or codebook, scale, `m` for a min: `i8f16`, `i4u8m`,
    /// `i6i8`, `nl4f16`.
    pub fn name(&self) -> String {
        self.to_string()
    }

    /// Scale and min of scale group `g` of an unpacked quant block. The products are ggml's, in its order.
    pub fn group_scale(&self, u: &Unpacked, g: usize) -> (f32, f32) {
        let half = |bits| f16::from_bits(bits).to_f32();
        match self.scale {
            Scale::None => (1.0, 0.0),
            Scale::F16 => (half(u.d[g]), half(u.m[g])),
            Scale::E8 => (exponent_scale(u.sc[g]), 0.0),
            Scale::U8F16 | Scale::U4F16 => (
                half(u.d[0]) * f32::from(u.sc[g]),
                half(u.m[0]) * f32::from(u.mn[g]),
            ),
            Scale::I8F16 => {
                let code = |c: u8| f32::from(c as i8);
                (half(u.d[0]) * code(u.sc[g]), half(u.m[0]) * code(u.mn[g]))
            }
        }
    }

    /// Value of the stored integer or code `q` under `scale` and `min`: `scale * (level - zero) - min`.
    pub fn value(&self, q: u8, scale: f32, min: f32) -> f32 {
        let w = scale * f32::from(i16::from(self.level(q)) - i16::from(self.zero));
        if self.min { w - min } else { w }
    }
}

impl fmt::Display for PackedLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.store {
            Store::F32 => f.write_str("f32")?,
            Store::F16 => f.write_str("f16")?,
            Store::Bf16 => f.write_str("bf16")?,
            Store::Int(bits) => write!(f, "i{bits}")?,
            Store::Code(codebook) => f.write_str(codebook.name())?,
        }
        f.write_str(match self.scale {
            Scale::None => "",
            Scale::F16 => "f16",
            Scale::U8F16 => "u8",
            Scale::I8F16 => "i8",
            Scale::U4F16 => "u4",
            Scale::E8 => "e8",
        })?;
        f.write_str(if self.min { "m" } else { "" })
    }
}

impl Unpacked {
    /// A quant block of zero weights under `layout`. A codebook without a zero has them by its scales, which are f16.
    pub const fn zeros(layout: &PackedLayout) -> Unpacked {
        let q = match layout.store {
            Store::Code(_) => 0,
            _ => layout.zero,
        };
        Unpacked {
            q: [q; 256],
            d: [0; 8],
            m: [0; 8],
            sc: [0; 16],
            mn: [0; 16],
        }
    }
}

/// Dequantises the raw GGUF bytes of `out.len()` weights, bit-equal to llama.cpp's dequantisation. Whole quant blocks
/// only: what exceeds the shorter of the two slices is left untouched.
pub fn dequantise_row(fmt: &QuantFormat, bytes: &[u8], out: &mut [f32]) {
    let layout = &fmt.layout;
    let quant_blocks = bytes.chunks_exact(fmt.ty.block_bytes() as usize);
    match layout.store {
        Store::F32 => {
            for (w, bytes) in out.iter_mut().zip(quant_blocks) {
                *w = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
        }
        Store::F16 => {
            for (w, bytes) in out.iter_mut().zip(quant_blocks) {
                *w = f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
            }
        }
        Store::Bf16 => {
            for (w, bytes) in out.iter_mut().zip(quant_blocks) {
                *w = bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
            }
        }
        Store::Int(_) | Store::Code(_) => {
            let (len, group) = (fmt.ty.block_len() as usize, usize::from(layout.group));
            let mut u = Unpacked::zeros(layout);
            for (w, bytes) in out.chunks_exact_mut(len).zip(quant_blocks) {
                (fmt.unpack)(bytes, &mut u);
                for (g, (w, q)) in w
                    .chunks_exact_mut(group)
                    .zip(u.q.chunks_exact(group))
                    .enumerate()
                {
                    let (scale, min) = layout.group_scale(&u, g);
                    for (w, &q) in w.iter_mut().zip(q) {
                        *w = layout.value(q, scale, min);
                    }
                }
            }
        }
    }
}

/// The power of two that the exponent `e` of [`Scale::E8`] stands for, exact; subnormal below 2.
pub fn exponent_scale(e: u8) -> f32 {
    const LEAST: u32 = 1 << 21; // The bits of 2^-128.
    f32::from_bits(match e {
        0 | 1 => LEAST << e,
        _ => u32::from(e - 1) << 23,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks the dequantised quant block against f32 bits from gguf-py's `gguf.quants.dequantize`: some of them, and
    /// the FNV-1a hash of all in little-endian order.
    pub(super) fn check(fmt: &QuantFormat, bytes: &[u8], spots: &[(usize, u32)], hash: u64) {
        let mut out = vec![0.0; fmt.ty.block_len() as usize];
        dequantise_row(fmt, bytes, &mut out);
        for &(i, bits) in spots {
            assert_eq!(out[i], f32::from_bits(bits), "weight {i}");
        }
        let fnv = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3);
        let all = out.iter().flat_map(|w| w.to_bits().to_le_bytes());
        assert_eq!(all.fold(0xcbf2_9ce4_8422_2325, fnv), hash, "{out:?}");
    }

    #[test]
    fn layout_names_are_unique_and_stable() {
        let names: Vec<_> = FORMATS.iter().map(|fmt| fmt.layout.name()).collect();
        let expected = [
            "f32", "f16", "bf16", "i8f16", "i4f16", "i4f16m", "i5f16", "i5f16m", "i4u8m", "i5u8m",
            "i6i8", "i2u4m", "i3i8", "nl4f16", "nl4i8", "fp4e8",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn types_without_a_format_are_none() {
        assert!(format(TensorType::IQ1_S).is_none());
        assert_eq!(
            format(TensorType::Q6_K).map(|fmt| fmt.layout),
            Some(Q6_K.layout)
        );
    }
}
