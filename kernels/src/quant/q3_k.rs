//! Q3_K: 3-bit weights around 4, signed 6-bit scales per 16 under one f16 per 256.
//! The bytes of its quant block are understood here and nowhere else.
//!
//! Layout (ggml-common.h): u8 hmask[32]: top bit of weight 32 j + i at bit j of byte i; u8 qs[64]: low bits as in Q2_K;
//! u8 scales[12]: low nibbles of scales 0..8 and 8..16 in 8 bytes, then 4 bytes with the top bits of scale 4 j + i at
//! bit 2 j of byte i; f16 d; w = (d * (sc - 32)) * (q - 4).

use super::{PackedLayout, QuantFormat, Scale, Store, Unpacked, nibbles, two_bits};
use crate::tensor_type::TensorType;

/// 3-bit weights around 4, signed 6-bit scales per 16 under one f16 per 256.
pub const Q3_K: QuantFormat = QuantFormat {
    ty: TensorType::Q3_K,
    layout: PackedLayout {
        store: Store::Int(3),
        group: 16,
        zero: 4,
        scale: Scale::I8F16,
        min: false,
    },
    unpack,
};

const _: () = assert!(Q3_K.ty.block_len() == 256 && Q3_K.ty.block_bytes() == 32 + 64 + 12 + 2);

fn unpack(bytes: &[u8], u: &mut Unpacked) {
    two_bits(&bytes[32..96], &mut u.q);
    for (j, q) in u.q.chunks_exact_mut(32).enumerate() {
        for (q, &top) in q.iter_mut().zip(&bytes[..32]) {
            *q |= (top >> j & 1) << 2;
        }
    }
    let (low, top) = bytes[96..108].split_at(8);
    nibbles(low, &mut u.sc);
    for (j, sc) in u.sc.iter_mut().enumerate() {
        let code = *sc | (top[j % 4] >> (2 * (j / 4)) & 3) << 4;
        *sc = code.wrapping_sub(32);
    }
    u.d[0] = u16::from_le_bytes([bytes[108], bytes[109]]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_gguf_py() {
        let bytes: [u8; 110] = [
            11, 48, 85, 122, 159, 196, 233, 19, 56, 93, 130, 167, 204, 241, 27, 64, 101, 138, 175,
            212, 249, 35, 72, 109, 146, 183, 220, 6, 43, 80, 117, 154, 191, 228, 14, 51, 88, 125,
            162, 199, 236, 22, 59, 96, 133, 170, 207, 244, 30, 67, 104, 141, 178, 215, 1, 38, 75,
            112, 149, 186, 223, 9, 46, 83, 120, 157, 194, 231, 17, 54, 91, 128, 165, 202, 239, 25,
            62, 99, 136, 173, 210, 247, 33, 70, 107, 144, 181, 218, 4, 41, 78, 115, 152, 189, 226,
            12, 49, 86, 123, 160, 197, 234, 20, 57, 94, 131, 168, 205, 181, 34,
        ];
        let spots = [
            (0, 0x3d20f800),
            (1, 0xbd56a000),
            (2, 0x3cd6a000),
            (3, 0xbc56a000),
            (15, 0xbd56a000),
            (16, 0x3f138e00),
            (31, 0xbe938e00),
            (32, 0xbf534580),
            (63, 0x80000000),
            (64, 0xbe8cd900),
            (100, 0x3d56a000),
            (127, 0x3ea7ad00),
            (128, 0x3f2e6200),
            (177, 0x3f5d5500),
            (200, 0x3dd6a000),
            (255, 0x00000000),
        ];
        crate::quant::tests::check(&Q3_K, &bytes, &spots, 0x82cf_65f8_6491_9767);
    }
}
