//! Q4_K: 4-bit weights, 6-bit scales and mins per 32 under one f16 pair per 256.
//! The bytes of its quant block are understood here and nowhere else.
//!
//! Layout (ggml-common.h): f16 d, f16 dmin; u8 scales[12] (see `k_scales`); u8 qs[128]: 32 bytes hold scale
//! groups 2j (low nibbles) and 2j + 1 (high nibbles); w = (d * sc) * q - dmin * mn.

use super::{PackedLayout, QuantFormat, Scale, Store, Unpacked, k_scales, nibbles};
use crate::tensor_type::TensorType;

/// 4-bit weights, 6-bit scales and mins per 32 under one f16 pair per 256.
pub const Q4_K: QuantFormat = QuantFormat {
    ty: TensorType::Q4_K,
    layout: PackedLayout {
        store: Store::Int(4),
        group: 32,
        zero: 0,
        scale: Scale::U8F16,
        min: true,
    },
    unpack,
};

const _: () = assert!(Q4_K.ty.block_len() == 256 && Q4_K.ty.block_bytes() == 2 + 2 + 12 + 128);

fn unpack(bytes: &[u8], u: &mut Unpacked) {
    u.d[0] = u16::from_le_bytes([bytes[0], bytes[1]]);
    u.m[0] = u16::from_le_bytes([bytes[2], bytes[3]]);
    k_scales(&bytes[4..16], u);
    for (qs, q) in bytes[16..144]
        .chunks_exact(32)
        .zip(u.q.chunks_exact_mut(64))
    {
        nibbles(qs, q);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_gguf_py() {
        let bytes: [u8; 144] = [
            168, 34, 96, 37, 159, 196, 233, 19, 56, 93, 130, 167, 204, 241, 27, 64, 101, 138, 175,
            212, 249, 35, 72, 109, 146, 183, 220, 6, 43, 80, 117, 154, 191, 228, 14, 51, 88, 125,
            162, 199, 236, 22, 59, 96, 133, 170, 207, 244, 30, 67, 104, 141, 178, 215, 1, 38, 75,
            112, 149, 186, 223, 9, 46, 83, 120, 157, 194, 231, 17, 54, 91, 128, 165, 202, 239, 25,
            62, 99, 136, 173, 210, 247, 33, 70, 107, 144, 181, 218, 4, 41, 78, 115, 152, 189, 226,
            12, 49, 86, 123, 160, 197, 234, 20, 57, 94, 131, 168, 205, 242, 28, 65, 102, 139, 176,
            213, 250, 36, 73, 110, 147, 184, 221, 7, 44, 81, 118, 155, 192, 229, 15, 52, 89, 126,
            163, 200, 237, 23, 60, 97, 134, 171, 208, 245, 31,
        ];
        let spots = [
            (0, 0x3f56dc00),
            (1, 0x4036ae00),
            (2, 0x409bd280),
            (3, 0x3edf6000),
            (15, 0x4036ae00),
            (16, 0x409bd280),
            (31, 0x3edf6000),
            (32, 0xbe980000),
            (63, 0x3e2f4000),
            (64, 0x40ed7300),
            (100, 0x3ff2fa00),
            (127, 0x3fd35c00),
            (128, 0x3f646000),
            (177, 0x40223100),
            (200, 0x40ae3000),
            (255, 0xbf418000),
        ];
        crate::quant::tests::check(&Q4_K, &bytes, &spots, 0xf457_e040_8608_db75);
    }
}
