//! Q5_0: 5-bit weights around 16, one f16 scale per 32.
//! The bytes of its quant block are understood here and nowhere else.
//!
//! Layout (ggml-common.h): f16 d; u32 qh: fifth bit of each weight; u8 qs[16] as in Q4_0; w = d * (q - 16).

use super::{PackedLayout, QuantFormat, Scale, Store, Unpacked, fifth_bits, nibbles};
use crate::tensor_type::TensorType;

/// 5-bit weights around 16, one f16 scale per 32.
pub const Q5_0: QuantFormat = QuantFormat {
    ty: TensorType::Q5_0,
    layout: PackedLayout {
        store: Store::Int(5),
        group: 32,
        zero: 16,
        scale: Scale::F16,
        min: false,
    },
    unpack,
};

const _: () = assert!(Q5_0.ty.block_len() == 32 && Q5_0.ty.block_bytes() == 2 + 4 + 16);

fn unpack(bytes: &[u8], u: &mut Unpacked) {
    u.d[0] = u16::from_le_bytes([bytes[0], bytes[1]]);
    nibbles(&bytes[6..22], &mut u.q[..32]);
    fifth_bits(&bytes[2..6], &mut u.q[..32]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_gguf_py() {
        let bytes: [u8; 22] = [
            205, 52, 85, 122, 159, 196, 233, 19, 56, 93, 130, 167, 204, 241, 27, 64, 101, 138, 175,
            212, 249, 35,
        ];
        let spots = [
            (0, 0x402cd400),
            (1, 0xc079a400),
            (2, 0x4019a000),
            (3, 0xbf667000),
            (5, 0xc02cd400),
            (8, 0xbfc00800),
            (15, 0xc079a400),
            (16, 0x40866c00),
            (17, 0x3e99a000),
            (20, 0x4019a000),
            (24, 0xc0900600),
            (28, 0xbfe67000),
            (31, 0x3f19a000),
        ];
        crate::quant::tests::check(&Q5_0, &bytes, &spots, 0xafbd_19bd_0ae9_20e0);
    }
}
