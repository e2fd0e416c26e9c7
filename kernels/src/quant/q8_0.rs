//! Q8_0: 8-bit weights, one f16 scale per 32. The bytes of its quant block are understood here and nowhere else.
//!
//! Layout (ggml-common.h): f16 d; i8 q[32]; w = d * q.

use super::{PackedLayout, QuantFormat, Scale, Store, Unpacked};
use crate::tensor_type::TensorType;

/// 8-bit weights, one f16 scale per 32.
pub const Q8_0: QuantFormat = QuantFormat {
    ty: TensorType::Q8_0,
    layout: PackedLayout {
        store: Store::Int(8),
        group: 32,
        zero: 128,
        scale: Scale::F16,
        min: false,
    },
    unpack,
};

const _: () = assert!(Q8_0.ty.block_len() == 32 && Q8_0.ty.block_bytes() == 2 + 32);

fn unpack(bytes: &[u8], u: &mut Unpacked) {
    u.d[0] = u16::from_le_bytes([bytes[0], bytes[1]]);
    for (q, &byte) in u.q[..32].iter_mut().zip(&bytes[2..34]) {
        *q = byte ^ 0x80;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_gguf_py() {
        let bytes: [u8; 34] = [
            205, 52, 85, 122, 159, 196, 233, 19, 56, 93, 130, 167, 204, 241, 27, 64, 101, 138, 175,
            212, 249, 35, 72, 109, 146, 183, 220, 6, 43, 80, 117, 154, 191, 228,
        ];
        let spots = [
            (0, 0x41cc0880),
            (1, 0x42126c80),
            (2, 0xc1e8d680),
            (3, 0xc1900600),
            (5, 0x40b66e00),
            (8, 0xc2173980),
            (15, 0xc20d9f80),
            (16, 0xc1c26e80),
            (17, 0xc1533c00),
            (20, 0x41acd400),
            (24, 0xc12cd400),
            (28, 0x420c6c40),
            (31, 0xc1066c00),
        ];
        crate::quant::tests::check(&Q8_0, &bytes, &spots, 0xe3a1_4b2d_60fd_70f3);
    }
}
