//! The embedding lookup: one row of a packed matrix per live row, dequantised. Also the template constants that describe a
//! layout to kernels that read weights one at a time; formats have no names there.

use super::rows::columns;
use super::tile::{unit_bytes, unit_k};
use super::{Constant, Geometry, Kernel};
use crate::quant::{PackedLayout, Scale, Store};

arguments! {
    /// Arguments of [`embed`]: `out[r] = scale * weights[tokens[r]]` for the live rows. Template: `embed`.
    pub struct EmbedArgs {
        /// Address of the packed matrix.
        weights,
        /// Address of u32 token ids.
        tokens,
        /// Address of u32, for each row the row of `ids` whose first is its token, or
        /// [`super::abi::StepLayout::GIVEN`].
        follows,
        /// Address of rows of u32 token ids that the last head program left; null if it leaves none.
        ids,
        /// Address of the live rows and live logits rows, two u32.
        live,
        /// Address of f32 rows.
        out,
        /// Elements of a row.
        k,
        /// Units of the matrix along k ([`super::tile::units`]).
        units,
        /// Bytes between rows of `out`.
        out_stride,
        /// Multiplier (f32).
        scale,
        /// Token ids in a row of `ids`.
        ids_count,
        /// Rows of the matrix.
        vocab,
    }
}

/// The lookup in a matrix of this layout.
pub fn embed(layout: &PackedLayout) -> Kernel {
    Kernel {
        name: format!("embed_{layout}"),
        template: "embed",
        constants: layout_constants(layout),
        threads: 128,
    }
}

/// Thread blocks of [`embed`].
pub fn geometry(k: usize, rows: usize) -> Geometry {
    Geometry {
        grid: [columns(k), rows as u32, 1],
        shared_bytes: 0,
    }
}

/// Bytes that [`embed`] moves, about: a row of weights and of f32 for every row.
pub fn bytes(layout: &PackedLayout, k: usize, rows: usize) -> u64 {
    let row = k * unit_bytes(layout) / (unit_k(layout) * super::tile::TILE_N);
    (rows * (row + k * 4)) as u64
}

/// What the part `unpack.cuh` declares: how a weight is stored, and how its scale is.
pub fn layout_constants(layout: &PackedLayout) -> Vec<(&'static str, Constant)> {
    let word = |word: &str| Constant::Word(word.into());
    let store = match layout.store {
        Store::F32 => "F32",
        Store::F16 => "F16",
        Store::Bf16 => "BF16",
        Store::Int(_) => "INTEGERS",
        Store::Code(_) => "CODES",
    };
    let scale = match layout.scale {
        Scale::None => "NONE",
        Scale::F16 => "HALVES",
        Scale::U8F16 => "BYTES",
        Scale::I8F16 => "SIGNED_BYTES",
        Scale::U4F16 => "NIBBLES",
        Scale::E8 => "EXPONENTS",
    };
    let levels: [[u8; 4]; 4] = {
        let levels = match layout.store {
            Store::Code(_) => layout.levels(),
            _ => [0; 16],
        };
        std::array::from_fn(|i| std::array::from_fn(|j| levels[4 * i + j]))
    };
    let level_word = |i: usize| Constant::Int(i64::from(u32::from_le_bytes(levels[i])));
    vec![
        ("store", word(store)),
        ("bits", Constant::Int(layout.int_bits().unwrap_or(0).into())),
        ("group", Constant::Int(layout.group.into())),
        ("zero", Constant::Int(layout.zero.into())),
        ("scale_kind", word(scale)),
        ("min", Constant::Flag(layout.min)),
        ("unit_k", Constant::Int(unit_k(layout) as i64)),
        ("unit_bytes", Constant::Int(unit_bytes(layout) as i64)),
        ("levels_0", level_word(0)),
        ("levels_4", level_word(1)),
        ("levels_8", level_word(2)),
        ("levels_12", level_word(3)),
    ]
}
