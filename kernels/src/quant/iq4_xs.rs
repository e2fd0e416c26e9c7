//! IQ4_XS: 4-bit codes of non-linear levels, signed 6-bit scales per 32 under one f16 per 256.
//! The bytes of its quant block are understood here and nowhere else.
//!
//! Layout (ggml-common.h): f16 d; u16 scales_h: top bits of scale j at bit 2 j; u8 scales_l[4]: low nibbles, two scales a
//! byte; u8 qs[128]: 16 bytes per scale, as in IQ4_NL; w = (d * (sc - 32)) * value(code).

use super::{Codebook, PackedLayout, QuantFormat, Scale, Store, Unpacked, nibbles};
use crate::tensor_type::TensorType;

/// 4-bit codes of non-linear levels, signed 6-bit scales per 32 under one f16 per 256.
pub const IQ4_XS: QuantFormat = QuantFormat {
    ty: TensorType::IQ4_XS,
    layout: PackedLayout {
        store: Store::Code(Codebook::Nl4),
        group: 32,
        zero: 128,
        scale: Scale::I8F16,
        min: false,
    },
    unpack,
};

const _: () = assert!(IQ4_XS.ty.block_len() == 256 && IQ4_XS.ty.block_bytes() == 2 + 2 + 4 + 128);

fn unpack(bytes: &[u8], u: &mut Unpacked) {
    u.d[0] = u16::from_le_bytes([bytes[0], bytes[1]]);
    for (j, sc) in u.sc[..8].iter_mut().enumerate() {
        let low = bytes[4 + j / 2] >> (4 * (j % 2)) & 15;
        let top = bytes[2 + j / 4] >> (2 * (j % 4)) & 3;
        *sc = (low | top << 4).wrapping_sub(32);
    }
    for (qs, q) in bytes[8..136].chunks_exact(16).zip(u.q.chunks_exact_mut(32)) {
        nibbles(qs, q);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_gguf_py() {
        let bytes: [u8; 136] = [
            181, 34, 85, 122, 159, 196, 233, 19, 56, 93, 130, 167, 204, 241, 27, 64, 101, 138, 175,
            212, 249, 35, 72, 109, 146, 183, 220, 6, 43, 80, 117, 154, 191, 228, 14, 51, 88, 125,
            162, 199, 236, 22, 59, 96, 133, 170, 207, 244, 30, 67, 104, 141, 178, 215, 1, 38, 75,
            112, 149, 186, 223, 9, 46, 83, 120, 157, 194, 231, 17, 54, 91, 128, 165, 202, 239, 25,
            62, 99, 136, 173, 210, 247, 33, 70, 107, 144, 181, 218, 4, 41, 78, 115, 152, 189, 226,
            12, 49, 86, 123, 160, 197, 234, 20, 57, 94, 131, 168, 205, 242, 28, 65, 102, 139, 176,
            213, 250, 36, 73, 110, 147, 184, 221, 7, 44, 81, 118, 155, 192, 229, 15, 52, 89, 126,
            163, 200, 237,
        ];
        let spots = [
            (0, 0xbc56a000),
            (1, 0xbf676480),
            (2, 0x3f8b2bc0),
            (3, 0x3e062400),
            (15, 0xbf676480),
            (16, 0x3f59fa80),
            (31, 0x3e938e00),
            (32, 0x40f38c90),
            (63, 0xc09b84f0),
            (64, 0xc1054d60),
            (100, 0xc0bd7940),
            (127, 0xbd56a000),
            (128, 0xc0840b70),
            (177, 0xc1738c90),
            (200, 0x411753d0),
            (255, 0xc18be78c),
        ];
        crate::quant::tests::check(&IQ4_XS, &bytes, &spots, 0x486f_1e96_89e4_e382);
    }
}
