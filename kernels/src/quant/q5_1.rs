//! Q5_1: 5-bit weights, one f16 scale and one f16 offset per 32.
//! The bytes of its quant block are understood here and nowhere else.
//!
//! Layout (ggml-common.h): f16 d, f16 m; u32 qh; u8 qs[16] as in Q5_0; w = d * q + m, so the packed min is -m.

use super::{F16_SIGN, PackedLayout, QuantFormat, Scale, Store, Unpacked, fifth_bits, nibbles};
use crate::tensor_type::TensorType;

/// 5-bit weights, one f16 scale and one f16 offset per 32.
pub const Q5_1: QuantFormat = QuantFormat {
    ty: TensorType::Q5_1,
    layout: PackedLayout {
        store: Store::Int(5),
        group: 32,
        zero: 0,
        scale: Scale::F16,
        min: true,
    },
    unpack,
};

const _: () = assert!(Q5_1.ty.block_len() == 32 && Q5_1.ty.block_bytes() == 2 + 2 + 4 + 16);

fn unpack(bytes: &[u8], u: &mut Unpacked) {
    u.d[0] = u16::from_le_bytes([bytes[0], bytes[1]]);
    u.m[0] = u16::from_le_bytes([bytes[2], bytes[3]]) ^ F16_SIGN;
    nibbles(&bytes[8..24], &mut u.q[..32]);
    fifth_bits(&bytes[4..8], &mut u.q[..32]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_gguf_py() {
        let bytes: [u8; 24] = [
            205, 52, 205, 190, 159, 196, 233, 19, 56, 93, 130, 167, 204, 241, 27, 64, 101, 138,
            175, 212, 249, 35, 72, 109,
        ];
        let spots = [
            (0, 0x40b00800),
            (1, 0x40e00a00),
            (2, 0x406cd800),
            (3, 0x40a66e00),
            (5, 0xbfb33800),
            (8, 0xbe4cc000),
            (15, 0x40e00a00),
            (16, 0x40800600),
            (17, 0xbe4cc000),
            (20, 0x3ff34000),
            (24, 0x409cd400),
            (28, 0x40f33e00),
            (31, 0x3dcd0000),
        ];
        crate::quant::tests::check(&Q5_1, &bytes, &spots, 0xe564_975e_0ddb_3e95);
    }
}
