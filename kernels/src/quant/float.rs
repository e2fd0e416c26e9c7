//! F32, F16 and BF16: weights that are not quantised. They have no quant block, so there is nothing to unpack.

use super::{PackedLayout, QuantFormat, Scale, Store, Unpacked};
use crate::tensor_type::TensorType;

/// IEEE single precision.
pub const F32: QuantFormat = float(TensorType::F32, Store::F32);
/// IEEE half precision.
pub const F16: QuantFormat = float(TensorType::F16, Store::F16);
/// bfloat16: the high half of an IEEE single.
pub const BF16: QuantFormat = float(TensorType::BF16, Store::Bf16);

const _: () =
    assert!(F32.ty.block_bytes() == 4 && F16.ty.block_bytes() == 2 && BF16.ty.block_bytes() == 2);

const fn float(ty: TensorType, store: Store) -> QuantFormat {
    let layout = PackedLayout {
        store,
        group: 1,
        zero: 0,
        scale: Scale::None,
        min: false,
    };
    QuantFormat {
        ty,
        layout,
        unpack: nothing,
    }
}

fn nothing(_: &[u8], _: &mut Unpacked) {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::dequantise_row;

    #[test]
    fn bits_are_read_in_file_order() {
        let mut out = [0.0; 2];
        dequantise_row(&F32, &[0, 0, 0xc0, 0x3f, 0, 0, 0, 0xc0], &mut out);
        assert_eq!(out, [1.5, -2.0]);
        dequantise_row(&F16, &[0x00, 0x3e, 0x01, 0x80], &mut out);
        assert_eq!(out, [1.5, -2f32.powi(-24)]);
        dequantise_row(&BF16, &[0xc0, 0x3f, 0x80, 0xff], &mut out);
        assert_eq!(out, [1.5, f32::NEG_INFINITY]);
    }
}
