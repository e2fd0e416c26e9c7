//! MXFP4: 4-bit floats (E2M1), one power-of-two scale (E8M0) per 32, as the OCP microscaling formats define them.
//! The bytes of its quant block are understood here and nowhere else.
//!
//! Layout (ggml-common.h): u8 e; u8 qs[16]: low nibbles are codes 0..16, high nibbles 16..32; w = 2^(e - 128) * value(code):
//! the codebook holds doubled values, which halves the scale.

use super::{Codebook, PackedLayout, QuantFormat, Scale, Store, Unpacked, nibbles};
use crate::tensor_type::TensorType;

/// 4-bit floats, one power-of-two scale per 32.
pub const MXFP4: QuantFormat = QuantFormat {
    ty: TensorType::MXFP4,
    layout: PackedLayout {
        store: Store::Code(Codebook::Fp4),
        group: 32,
        zero: 16,
        scale: Scale::E8,
        min: false,
    },
    unpack,
};

const _: () = assert!(MXFP4.ty.block_len() == 32 && MXFP4.ty.block_bytes() == 1 + 16);

fn unpack(bytes: &[u8], u: &mut Unpacked) {
    u.sc[0] = bytes[0];
    nibbles(&bytes[1..17], &mut u.q[..32]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_gguf_py() {
        let bytes: [u8; 17] = [
            124, 48, 85, 122, 159, 196, 233, 19, 56, 93, 130, 167, 204, 241, 27, 64, 101,
        ];
        let spots = [
            (0, 0x00000000),
            (1, 0x3ec00000),
            (2, 0xbe000000),
            (3, 0xbf400000),
            (5, 0xbd800000),
            (8, 0xbec00000),
            (15, 0x3ec00000),
            (16, 0x3e400000),
            (17, 0x3ec00000),
            (20, 0xbe800000),
            (24, 0x3ec00000),
            (28, 0xbf400000),
            (31, 0x3f000000),
        ];
        crate::quant::tests::check(&MXFP4, &bytes, &spots, 0xaf41_7cbb_f85d_107c);
    }

    #[test]
    fn values_at_the_ends_of_the_exponents_are_those_of_gguf_py() {
        let mut bytes: [u8; 17] = [
            124, 48, 85, 122, 159, 196, 233, 19, 56, 93, 130, 167, 204, 241, 27, 64, 101,
        ];
        for (e, spots, hash) in [
            (
                0,
                [(0, 0x00000000), (1, 0x00c00000), (15, 0x00c00000)],
                0x691c_c60d_221d_df55,
            ),
            (
                1,
                [(0, 0x00000000), (1, 0x01400000), (15, 0x01400000)],
                0xcd5d_6457_2199_0e25,
            ),
            (
                2,
                [(0, 0x00000000), (1, 0x01c00000), (15, 0x01c00000)],
                0x38ad_717f_819a_6be2,
            ),
            (
                3,
                [(0, 0x00000000), (1, 0x02400000), (15, 0x02400000)],
                0x0912_e055_5abd_b245,
            ),
            (
                254,
                [(0, 0x00000000), (1, 0x7f800000), (15, 0x7f800000)],
                0xafd5_f6dc_275b_c752,
            ),
            (
                255,
                [(0, 0x00000000), (1, 0x7f800000), (15, 0x7f800000)],
                0x41ac_75f3_38d9_0445,
            ),
        ] {
            bytes[0] = e;
            crate::quant::tests::check(&MXFP4, &bytes, &spots, hash);
        }
    }
}
