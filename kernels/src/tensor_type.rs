//! The ggml tensor types: id, name and storage size of every type a GGUF file may hold. Sizes only; how the bytes
//! of a quant block decode belongs to the quant format of that type, and what a GGUF file looks like to the compiler.
//!
//! Ids are `enum ggml_type` of ggml.h, sizes `GGML_QUANT_SIZES` of gguf-py's constants.py.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! tensor_types {
    ($($name:ident = $id:literal, $block_len:literal weights in $block_bytes:literal;)*) => {
        /// How the weights of one tensor are stored. The variant is named as ggml names it, its value is ggml's id.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        #[allow(non_camel_case_types)]
        #[repr(u32)]
        pub enum TensorType {
            $(
                #[doc = concat!("ggml type ", $id, ": ", $block_len, " weights in ", $block_bytes, " bytes.")]
                $name = $id,
            )*
        }

        impl TensorType {
            /// Every type, by ascending id.
            pub const ALL: &[TensorType] = &[$(TensorType::$name),*];

            /// ggml's name, in upper case: `Q4_K`.
            pub fn name(self) -> &'static str {
                match self {
                    $(TensorType::$name => stringify!($name),)*
                }
            }

            /// Weights in one quant block; 1 for types that are not quantised.
            pub const fn block_len(self) -> u64 {
                match self {
                    $(TensorType::$name => $block_len,)*
                }
            }

            /// Bytes of one quant block.
            pub const fn block_bytes(self) -> u64 {
                match self {
                    $(TensorType::$name => $block_bytes,)*
                }
            }
        }
    };
}

tensor_types! {
    F32 = 0, 1 weights in 4;
    F16 = 1, 1 weights in 2;
    Q4_0 = 2, 32 weights in 18;
    Q4_1 = 3, 32 weights in 20;
    Q5_0 = 6, 32 weights in 22;
    Q5_1 = 7, 32 weights in 24;
    Q8_0 = 8, 32 weights in 34;
    Q8_1 = 9, 32 weights in 36;
    Q2_K = 10, 256 weights in 84;
    Q3_K = 11, 256 weights in 110;
    Q4_K = 12, 256 weights in 144;
    Q5_K = 13, 256 weights in 176;
    Q6_K = 14, 256 weights in 210;
    Q8_K = 15, 256 weights in 292;
    IQ2_XXS = 16, 256 weights in 66;
    IQ2_XS = 17, 256 weights in 74;
    IQ3_XXS = 18, 256 weights in 98;
    IQ1_S = 19, 256 weights in 50;
    IQ4_NL = 20, 32 weights in 18;
    IQ3_S = 21, 256 weights in 110;
    IQ2_S = 22, 256 weights in 82;
    IQ4_XS = 23, 256 weights in 136;
    I8 = 24, 1 weights in 1;
    I16 = 25, 1 weights in 2;
    I32 = 26, 1 weights in 4;
    I64 = 27, 1 weights in 8;
    F64 = 28, 1 weights in 8;
    IQ1_M = 29, 256 weights in 56;
    BF16 = 30, 1 weights in 2;
    TQ1_0 = 34, 256 weights in 54;
    TQ2_0 = 35, 256 weights in 66;
    MXFP4 = 39, 32 weights in 17;
    NVFP4 = 40, 64 weights in 36;
    Q1_0 = 41, 128 weights in 18;
    Q2_0 = 42, 64 weights in 18;
}

/// Ids that ggml once gave out and withdrew, with the type to requantise to.
const REMOVED: &[(u32, &str, TensorType)] = &[
    (4, "Q4_2", TensorType::Q4_0),
    (5, "Q4_3", TensorType::Q4_1),
    (31, "Q4_0_4_4", TensorType::Q4_0),
    (32, "Q4_0_4_8", TensorType::Q4_0),
    (33, "Q4_0_8_8", TensorType::Q4_0),
    (36, "IQ4_NL_4_4", TensorType::IQ4_NL),
    (37, "IQ4_NL_4_8", TensorType::IQ4_NL),
    (38, "IQ4_NL_8_8", TensorType::IQ4_NL),
];

impl TensorType {
    /// The type with ggml's id `id`; `None` for ids that do not exist and for removed ones (see [`TensorType::removed`]).
    pub fn from_id(id: u32) -> Option<TensorType> {
        TensorType::ALL.iter().copied().find(|ty| ty.id() == id)
    }

    /// Name of the removed type that had `id`, and the type that took its place. No such type has a size any more.
    pub fn removed(id: u32) -> Option<(&'static str, TensorType)> {
        REMOVED
            .iter()
            .find(|(removed, ..)| *removed == id)
            .map(|&(_, name, successor)| (name, successor))
    }

    /// ggml's id.
    pub fn id(self) -> u32 {
        self as u32
    }

    /// Bytes of a row of `k` weights; `None` when `k` is no multiple of [`TensorType::block_len`], or on overflow.
    pub fn row_bytes(self, k: u64) -> Option<u64> {
        if !k.is_multiple_of(self.block_len()) {
            return None;
        }
        (k / self.block_len()).checked_mul(self.block_bytes())
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QK_K: u64 = 256;

    /// `GGMLQuantizationType` and `GGML_QUANT_SIZES` of gguf-py/gguf/constants.py: name, id, weights, and the bytes
    /// as that file writes them, field by field.
    #[rustfmt::skip]
    const GGML_QUANT_SIZES: &[(&str, u32, u64, u64)] = &[
        ("F32", 0, 1, 4),
        ("F16", 1, 1, 2),
        ("Q4_0", 2, 32, 2 + 16),
        ("Q4_1", 3, 32, 2 + 2 + 16),
        ("Q5_0", 6, 32, 2 + 4 + 16),
        ("Q5_1", 7, 32, 2 + 2 + 4 + 16),
        ("Q8_0", 8, 32, 2 + 32),
        ("Q8_1", 9, 32, 2 + 2 + 32),
        ("Q2_K", 10, 256, 2 + 2 + QK_K / 16 + QK_K / 4),
        ("Q3_K", 11, 256, 2 + QK_K / 4 + QK_K / 8 + 12),
        ("Q4_K", 12, 256, 2 + 2 + QK_K / 2 + 12),
        ("Q5_K", 13, 256, 2 + 2 + QK_K / 2 + QK_K / 8 + 12),
        ("Q6_K", 14, 256, 2 + QK_K / 2 + QK_K / 4 + QK_K / 16),
        ("Q8_K", 15, 256, 4 + QK_K + QK_K / 8),
        ("IQ2_XXS", 16, 256, 2 + QK_K / 4),
        ("IQ2_XS", 17, 256, 2 + QK_K / 4 + QK_K / 32),
        ("IQ3_XXS", 18, 256, 2 + QK_K / 4 + QK_K / 8),
        ("IQ1_S", 19, 256, 2 + QK_K / 8 + QK_K / 16),
        ("IQ4_NL", 20, 32, 2 + 16),
        ("IQ3_S", 21, 256, 2 + QK_K / 4 + QK_K / 8 + QK_K / 32 + 4),
        ("IQ2_S", 22, 256, 2 + QK_K / 4 + QK_K / 16),
        ("IQ4_XS", 23, 256, 2 + 2 + QK_K / 2 + QK_K / 64),
        ("I8", 24, 1, 1),
        ("I16", 25, 1, 2),
        ("I32", 26, 1, 4),
        ("I64", 27, 1, 8),
        ("F64", 28, 1, 8),
        ("IQ1_M", 29, 256, QK_K / 8 + QK_K / 16 + QK_K / 32),
        ("BF16", 30, 1, 2),
        ("TQ1_0", 34, 256, 2 + 4 * 13),
        ("TQ2_0", 35, 256, 2 + 64),
        ("MXFP4", 39, 32, 1 + 16),
        ("NVFP4", 40, 64, 4 + 32),
        ("Q1_0", 41, 128, 2 + 16),
        ("Q2_0", 42, 64, 2 + 16),
    ];

    #[test]
    fn sizes_are_those_of_gguf_py() {
        assert_eq!(TensorType::ALL.len(), GGML_QUANT_SIZES.len());
        for &(name, id, block_len, block_bytes) in GGML_QUANT_SIZES {
            let ty = TensorType::from_id(id).unwrap();
            assert_eq!(
                (ty.name(), ty.id(), ty.block_len(), ty.block_bytes()),
                (name, id, block_len, block_bytes)
            );
            assert_eq!(ty.to_string(), name);
        }
    }

    #[test]
    fn every_id_is_a_type_or_removed_or_unknown() {
        for id in 0..43 {
            let is_type = TensorType::from_id(id).is_some();
            assert_ne!(is_type, TensorType::removed(id).is_some(), "id {id}");
        }
        for id in [43, 100, u32::MAX] {
            assert_eq!(TensorType::from_id(id), None);
            assert_eq!(TensorType::removed(id), None);
        }
    }

    #[test]
    fn row_bytes_counts_whole_quant_blocks() {
        assert_eq!(TensorType::Q4_K.row_bytes(512), Some(288));
        assert_eq!(TensorType::Q4_K.row_bytes(511), None);
        assert_eq!(TensorType::Q8_0.row_bytes(0), Some(0));
        assert_eq!(TensorType::F32.row_bytes(3), Some(12));
        assert_eq!(TensorType::F32.row_bytes(u64::MAX), None);
        assert_eq!(
            TensorType::I8.row_bytes(u64::MAX),
            Some(u64::MAX),
            "no overflow, no error"
        );
    }
}
