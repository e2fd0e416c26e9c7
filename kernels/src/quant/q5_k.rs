//! Q5_K: 5-bit weights, 6-bit scales and mins per 32 under one f16 pair per 256.
//! The bytes of its quant block are understood here and nowhere else.
//!
//! Layout (ggml-common.h): f16 d, f16 dmin; u8 scales[12] (see `k_scales`); u8 qh[32]: bit g of byte i is
//! the fifth bit of weight i of scale group g; u8 qs[128] as in Q4_K; w = (d * sc) * q - dmin * mn.

use super::{PackedLayout, QuantFormat, Scale, Store, Unpacked, k_scales, nibbles};
use crate::tensor_type::TensorType;

/// 5-bit weights, 6-bit scales and mins per 32 under one f16 pair per 256.
pub const Q5_K: QuantFormat = QuantFormat {
    ty: TensorType::Q5_K,
    layout: PackedLayout {
        store: Store::Int(5),
        group: 32,
        zero: 0,
        scale: Scale::U8F16,
        min: true,
    },
    unpack,
};

const _: () = assert!(Q5_K.ty.block_len() == 256 && Q5_K.ty.block_bytes() == 2 + 2 + 12 + 32 + 128);

fn unpack(bytes: &[u8], u: &mut Unpacked) {
    u.d[0] = u16::from_le_bytes([bytes[0], bytes[1]]);
    u.m[0] = u16::from_le_bytes([bytes[2], bytes[3]]);
    k_scales(&bytes[4..16], u);
    for (qs, q) in bytes[48..176]
        .chunks_exact(32)
        .zip(u.q.chunks_exact_mut(64))
    {
        nibbles(qs, q);
    }
    for (group, q) in u.q.chunks_exact_mut(32).enumerate() {
        for (q, &high) in q.iter_mut().zip(&bytes[16..48]) {
            *q |= (high >> group & 1) << 4;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_gguf_py() {
        let bytes: [u8; 176] = [
            168, 34, 96, 37, 159, 196, 233, 19, 56, 93, 130, 167, 204, 241, 27, 64, 101, 138, 175,
            212, 249, 35, 72, 109, 146, 183, 220, 6, 43, 80, 117, 154, 191, 228, 14, 51, 88, 125,
            162, 199, 236, 22, 59, 96, 133, 170, 207, 244, 30, 67, 104, 141, 178, 215, 1, 38, 75,
            112, 149, 186, 223, 9, 46, 83, 120, 157, 194, 231, 17, 54, 91, 128, 165, 202, 239, 25,
            62, 99, 136, 173, 210, 247, 33, 70, 107, 144, 181, 218, 4, 41, 78, 115, 152, 189, 226,
            12, 49, 86, 123, 160, 197, 234, 20, 57, 94, 131, 168, 205, 242, 28, 65, 102, 139, 176,
            213, 250, 36, 73, 110, 147, 184, 221, 7, 44, 81, 118, 155, 192, 229, 15, 52, 89, 126,
            163, 200, 237, 23, 60, 97, 134, 171, 208, 245, 31, 68, 105, 142, 179, 216, 2, 39, 76,
            113, 150, 187, 224, 10, 47, 84, 121, 158, 195, 232, 18, 55, 92, 129, 166, 203, 240, 26,
            63, 100, 137, 174, 211,
        ];
        let spots = [
            (0, 0x412ea280),
            (1, 0x3d084000),
            (2, 0x4107f200),
            (3, 0x40820780),
            (15, 0x3d084000),
            (16, 0x4107f200),
            (31, 0x40820780),
            (32, 0xbf0e9000),
            (63, 0xbdb60000),
            (64, 0x4118d680),
            (100, 0x4093b100),
            (127, 0x3f29c800),
            (128, 0x40c14a00),
            (177, 0x4118aa00),
            (200, 0x3d97e000),
            (255, 0xbf418000),
        ];
        crate::quant::tests::check(&Q5_K, &bytes, &spots, 0x33ed_14e2_51f9_0527);
    }
}
