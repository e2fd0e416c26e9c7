//! Q4_1: 4-bit weights, one f16 scale and one f16 offset per 32.
//! The bytes of its quant block are understood here and nowhere else.
//!
//! Layout (ggml-common.h): f16 d, f16 m; u8 qs[16] as in Q4_0; w = d * q + m, so the packed min is -m.

use super::{F16_SIGN, PackedLayout, QuantFormat, Scale, Store, Unpacked, nibbles};
use crate::tensor_type::TensorType;

/// 4-bit weights, one f16 scale and one f16 offset per 32.
pub const Q4_1: QuantFormat = QuantFormat {
    ty: TensorType::Q4_1,
    layout: PackedLayout {
        store: Store::Int(4),
        group: 32,
        zero: 0,
        scale: Scale::F16,
        min: true,
    },
    unpack,
};

const _: () = assert!(Q4_1.ty.block_len() == 32 && Q4_1.ty.block_bytes() == 2 + 2 + 16);

fn unpack(bytes: &[u8], u: &mut Unpacked) {
    u.d[0] = u16::from_le_bytes([bytes[0], bytes[1]]);
    u.m[0] = u16::from_le_bytes([bytes[2], bytes[3]]) ^ F16_SIGN;
    nibbles(&bytes[4..20], &mut u.q[..32]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_gguf_py() {
        let bytes: [u8; 20] = [
            205, 52, 205, 190, 159, 196, 233, 19, 56, 93, 130, 167, 204, 241, 27, 64, 101, 138,
            175, 212,
        ];
        let spots = [
            (0, 0x40333c00),
            (1, 0xbf000000),
            (2, 0x3f800800),
            (3, 0xbf4cd000),
            (5, 0x400cd400),
            (8, 0x3ff34000),
            (15, 0xbf000000),
            (16, 0x3f800800),
            (17, 0x3ff34000),
            (20, 0xbf4cd000),
            (24, 0x3ff34000),
            (28, 0x3dcd0000),
            (31, 0x400cd400),
        ];
        crate::quant::tests::check(&Q4_1, &bytes, &spots, 0xb65b_10b3_5c2c_9b0e);
    }
}
