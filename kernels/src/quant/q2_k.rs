//! Q2_K: 2-bit weights, 4-bit scales and mins per 16 under one f16 pair per 256.
//! The bytes of its quant block are understood here and nowhere else.
//!
//! Layout (ggml-common.h): u8 scales[16]: scale in the low nibble, min in the high one; u8 qs[64]; f16 d, f16 dmin. Each
//! half of 128 weights takes 32 bytes of qs: weight 32 j + i of the half is at bit 2 j of its byte i;
//! w = (d * sc) * q - dmin * mn.

use super::{PackedLayout, QuantFormat, Scale, Store, Unpacked, two_bits};
use crate::tensor_type::TensorType;

/// 2-bit weights, 4-bit scales and mins per 16 under one f16 pair per 256.
pub const Q2_K: QuantFormat = QuantFormat {
    ty: TensorType::Q2_K,
    layout: PackedLayout {
        store: Store::Int(2),
        group: 16,
        zero: 0,
        scale: Scale::U4F16,
        min: true,
    },
    unpack,
};

const _: () = assert!(Q2_K.ty.block_len() == 256 && Q2_K.ty.block_bytes() == 16 + 64 + 2 + 2);

fn unpack(bytes: &[u8], u: &mut Unpacked) {
    for ((sc, mn), &codes) in u.sc.iter_mut().zip(&mut u.mn).zip(&bytes[..16]) {
        (*sc, *mn) = (codes & 15, codes >> 4);
    }
    two_bits(&bytes[16..80], &mut u.q);
    u.d[0] = u16::from_le_bytes([bytes[80], bytes[81]]);
    u.m[0] = u16::from_le_bytes([bytes[82], bytes[83]]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_gguf_py() {
        let bytes: [u8; 84] = [
            11, 48, 85, 122, 159, 196, 233, 19, 56, 93, 130, 167, 204, 241, 27, 64, 101, 138, 175,
            212, 249, 35, 72, 109, 146, 183, 220, 6, 43, 80, 117, 154, 191, 228, 14, 51, 88, 125,
            162, 199, 236, 22, 59, 96, 133, 170, 207, 244, 30, 67, 104, 141, 178, 215, 1, 38, 75,
            112, 149, 186, 223, 9, 46, 83, 120, 157, 194, 231, 17, 54, 91, 128, 165, 202, 239, 25,
            62, 99, 136, 173, 181, 34, 96, 33,
        ];
        let spots = [
            (0, 0x3e138e00),
            (1, 0x3e938e00),
            (2, 0x3edd5500),
            (3, 0x00000000),
            (15, 0x3e938e00),
            (16, 0xbd010000),
            (31, 0xbd010000),
            (32, 0x3c552000),
            (63, 0x3d6b9000),
            (64, 0x3e98d600),
            (100, 0x3e53ae00),
            (127, 0x3ddbf400),
            (128, 0x3e366000),
            (177, 0x3e2e3200),
            (200, 0xbe010000),
            (255, 0xbd2c0000),
        ];
        crate::quant::tests::check(&Q2_K, &bytes, &spots, 0x9e57_e4b7_ecff_782d);
    }
}
