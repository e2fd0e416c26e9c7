//! Q6_K: 6-bit weights around 32, signed 8-bit scales per 16 under one f16 per 256.
//! The bytes of its quant block are understood here and nowhere else.
//!
//! Layout (ggml-common.h): u8 ql[128]; u8 qh[64]; i8 scales[16]; f16 d. Each half of 128 weights takes 64 bytes of ql
//! and 32 of qh: weight 32 j + i has its low nibble in ql[i + 32 (j % 2)] (high nibble for j >= 2) and its top bits at
//! 2 j of qh[i]; w = (d * sc) * (q - 32).

use super::{PackedLayout, QuantFormat, Scale, Store, Unpacked};
use crate::tensor_type::TensorType;

/// 6-bit weights around 32, signed 8-bit scales per 16 under one f16 per 256.
pub const Q6_K: QuantFormat = QuantFormat {
    ty: TensorType::Q6_K,
    layout: PackedLayout {
        store: Store::Int(6),
        group: 16,
        zero: 32,
        scale: Scale::I8F16,
        min: false,
    },
    unpack,
};

const _: () = assert!(Q6_K.ty.block_len() == 256 && Q6_K.ty.block_bytes() == 128 + 64 + 16 + 2);

fn unpack(bytes: &[u8], u: &mut Unpacked) {
    u.d[0] = u16::from_le_bytes([bytes[208], bytes[209]]);
    u.sc.copy_from_slice(&bytes[192..208]);
    for half in 0..2 {
        let (ql, qh) = (&bytes[64 * half..][..64], &bytes[128 + 32 * half..][..32]);
        for (j, q) in u.q[128 * half..][..128].chunks_exact_mut(32).enumerate() {
            let low = &ql[32 * (j % 2)..][..32];
            for ((q, &low), &high) in q.iter_mut().zip(low).zip(qh) {
                *q = (low >> (4 * (j / 2)) & 15) | (high >> (2 * j) & 3) << 4;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_gguf_py() {
        let bytes: [u8; 210] = [
            11, 48, 85, 122, 159, 196, 233, 19, 56, 93, 130, 167, 204, 241, 27, 64, 101, 138, 175,
            212, 249, 35, 72, 109, 146, 183, 220, 6, 43, 80, 117, 154, 191, 228, 14, 51, 88, 125,
            162, 199, 236, 22, 59, 96, 133, 170, 207, 244, 30, 67, 104, 141, 178, 215, 1, 38, 75,
            112, 149, 186, 223, 9, 46, 83, 120, 157, 194, 231, 17, 54, 91, 128, 165, 202, 239, 25,
            62, 99, 136, 173, 210, 247, 33, 70, 107, 144, 181, 218, 4, 41, 78, 115, 152, 189, 226,
            12, 49, 86, 123, 160, 197, 234, 20, 57, 94, 131, 168, 205, 242, 28, 65, 102, 139, 176,
            213, 250, 36, 73, 110, 147, 184, 221, 7, 44, 81, 118, 155, 192, 229, 15, 52, 89, 126,
            163, 200, 237, 23, 60, 97, 134, 171, 208, 245, 31, 68, 105, 142, 179, 216, 2, 39, 76,
            113, 150, 187, 224, 10, 47, 84, 121, 158, 195, 232, 18, 55, 92, 129, 166, 203, 240, 26,
            63, 100, 137, 174, 211, 248, 34, 71, 108, 145, 182, 219, 5, 42, 79, 116, 153, 190, 227,
            13, 50, 87, 124, 161, 198, 235, 21, 58, 95, 132, 169, 206, 243, 29, 66, 103, 140, 148,
            27,
        ];
        let spots = [
            (0, 0xbfce07c0),
            (1, 0x40a4d300),
            (2, 0xc10b1208),
            (3, 0xbff73c80),
            (15, 0x40a4d300),
            (16, 0xc1463720),
            (31, 0xc0303100),
            (32, 0x3eb3fb00),
            (63, 0xbf24d300),
            (64, 0x80000000),
            (100, 0xc01716c0),
            (127, 0xc0777920),
            (128, 0xc06aec00),
            (177, 0x3fc50800),
            (200, 0xc01716c0),
            (255, 0x41095a80),
        ];
        crate::quant::tests::check(&Q6_K, &bytes, &spots, 0xacb5_49c8_536e_33a8);
    }
}
