//! Q4_0: 4-bit weights around 8, one f16 scale per 32.
//! The bytes of its quant block are understood here and nowhere else.
//!
//! Layout (ggml-common.h): f16 d; u8 qs[16]: low nibbles are weights 0..16, high nibbles 16..32; w = d * (q - 8).

use super::{PackedLayout, QuantFormat, Scale, Store, Unpacked, nibbles};
use crate::tensor_type::TensorType;

/// 4-bit weights around 8, one f16 scale per 32.
pub const Q4_0: QuantFormat = QuantFormat {
    ty: TensorType::Q4_0,
    layout: PackedLayout {
        store: Store::Int(4),
        group: 32,
        zero: 8,
        scale: Scale::F16,
        min: false,
    },
    unpack,
};

const _: () = assert!(Q4_0.ty.block_len() == 32 && Q4_0.ty.block_bytes() == 2 + 16);

fn unpack(bytes: &[u8], u: &mut Unpacked) {
    u.d[0] = u16::from_le_bytes([bytes[0], bytes[1]]);
    nibbles(&bytes[2..18], &mut u.q[..32]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_gguf_py() {
        let bytes: [u8; 18] = [
            205, 52, 85, 122, 159, 196, 233, 19, 56, 93, 130, 167, 204, 241, 27, 64, 101, 138,
        ];
        let spots = [
            (0, 0xbf667000),
            (1, 0x3f19a000),
            (2, 0x40066c00),
            (3, 0xbf99a000),
            (5, 0xbfc00800),
            (8, 0xbfe67000),
            (15, 0x3f19a000),
            (16, 0xbf667000),
            (17, 0xbe99a000),
            (20, 0x3fe67000),
            (24, 0x00000000),
            (28, 0xc0066c00),
            (31, 0x00000000),
        ];
        crate::quant::tests::check(&Q4_0, &bytes, &spots, 0xd954_cea1_d151_0b1c);
    }
}
