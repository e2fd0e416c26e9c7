//! IQ4_NL: 4-bit codes of non-linear levels, one f16 scale per 32.
//! The bytes of its quant block are understood here and nowhere else.
//!
//! Layout (ggml-common.h): f16 d; u8 qs[16]: low nibbles are codes 0..16, high nibbles 16..32; w = d * value(code).

use super::{Codebook, PackedLayout, QuantFormat, Scale, Store, Unpacked, nibbles};
use crate::tensor_type::TensorType;

/// 4-bit codes of non-linear levels, one f16 scale per 32.
pub const IQ4_NL: QuantFormat = QuantFormat {
    ty: TensorType::IQ4_NL,
    layout: PackedLayout {
        store: Store::Code(Codebook::Nl4),
        group: 32,
        zero: 128,
        scale: Scale::F16,
        min: false,
    },
    unpack,
};

const _: () = assert!(IQ4_NL.ty.block_len() == 32 && IQ4_NL.ty.block_bytes() == 2 + 16);

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
            181, 34, 85, 122, 159, 196, 233, 19, 56, 93, 130, 167, 204, 241, 27, 64, 101, 138,
        ];
        let spots = [
            (0, 0xbeeabf00),
            (1, 0x3ea7ad00),
            (2, 0x3fbd7940),
            (3, 0xbf245280),
            (5, 0xbf59fa80),
            (8, 0xbf8b2bc0),
            (15, 0x3ea7ad00),
            (16, 0xbeeabf00),
            (17, 0xbe062400),
            (20, 0x3f953b40),
            (24, 0x3c56a000),
            (28, 0xbfae6200),
            (31, 0x3c56a000),
        ];
        crate::quant::tests::check(&IQ4_NL, &bytes, &spots, 0x955f_be79_c893_d8ce);
    }
}
