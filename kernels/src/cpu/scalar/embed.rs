//! Row copies: token embeddings out of packed tiles, and the rows that want logits. Bound by a few cache lines per row,
//! so one portable version serves every ISA.

use crate::cpu::abi::{Step, TILE_N};
use crate::cpu::symbols::{EmbedFn, GatherRowsFn, Named, Symbol};
use crate::cpu::tile::{dequantise_tile_row, tile_bytes};
use crate::quant::FORMATS;

/// `embed_<layout>_scalar` of type [`EmbedFn`], and `gather_rows_scalar` of type [`GatherRowsFn`].
pub const SYMBOLS: &[Named] = &[
    (
        "embed_f32_scalar",
        Symbol(embed::<0> as EmbedFn as *const ()),
    ),
    (
        "embed_f16_scalar",
        Symbol(embed::<1> as EmbedFn as *const ()),
    ),
    (
        "embed_bf16_scalar",
        Symbol(embed::<2> as EmbedFn as *const ()),
    ),
    (
        "embed_i8f16_scalar",
        Symbol(embed::<3> as EmbedFn as *const ()),
    ),
    (
        "embed_i4f16_scalar",
        Symbol(embed::<4> as EmbedFn as *const ()),
    ),
    (
        "embed_i4f16m_scalar",
        Symbol(embed::<5> as EmbedFn as *const ()),
    ),
    (
        "embed_i5f16_scalar",
        Symbol(embed::<6> as EmbedFn as *const ()),
    ),
    (
        "embed_i5f16m_scalar",
        Symbol(embed::<7> as EmbedFn as *const ()),
    ),
    (
        "embed_i4u8m_scalar",
        Symbol(embed::<8> as EmbedFn as *const ()),
    ),
    (
        "embed_i5u8m_scalar",
        Symbol(embed::<9> as EmbedFn as *const ()),
    ),
    (
        "embed_i6i8_scalar",
        Symbol(embed::<10> as EmbedFn as *const ()),
    ),
    (
        "gather_rows_scalar",
        Symbol(gather_rows as GatherRowsFn as *const ()),
    ),
];

/// # Safety
/// The contract of [`EmbedFn`]: `w` holds the tiles of every token id in `step`, `out` the rows up to `row_end`.
#[allow(clippy::too_many_arguments)]
unsafe extern "C" fn embed<const L: usize>(
    w: *const u8,
    step: *const Step,
    out: *mut f32,
    k: usize,
    row_begin: usize,
    row_end: usize,
    out_stride: usize,
    scale_bits: usize,
) {
    let layout = const { &FORMATS[L].layout };
    let Some(bytes) = tile_bytes(layout, k) else {
        return;
    };
    let scale = f32::from_bits(scale_bits as u32);
    // SAFETY: the step is valid for the whole call.
    let step = unsafe { &*step };
    for r in row_begin..row_end.min(step.rows) {
        // SAFETY: r < rows; the token's tile is inside the weights, and row r inside `out`.
        let (tile, out, token) = unsafe {
            let token = *step.tokens.add(r) as usize;
            let tile = std::slice::from_raw_parts(w.add(token / TILE_N * bytes), bytes);
            let out = std::slice::from_raw_parts_mut(out.byte_add(r * out_stride), k);
            (tile, out, token)
        };
        dequantise_tile_row(layout, tile, token % TILE_N, out);
        for v in out {
            *v *= scale;
        }
    }
}

/// # Safety
/// The contract of [`GatherRowsFn`]: `x` holds every row named by `step.logit_rows`, `out` the rows up to `row_end`.
#[allow(clippy::too_many_arguments)]
unsafe extern "C" fn gather_rows(
    x: *const f32,
    step: *const Step,
    out: *mut f32,
    width: usize,
    row_begin: usize,
    row_end: usize,
    x_stride: usize,
    out_stride: usize,
) {
    // SAFETY: the step is valid for the whole call.
    let step = unsafe { &*step };
    for r in row_begin..row_end.min(step.logits) {
        // SAFETY: r < logits; both rows hold `width` floats and live in different buffers.
        unsafe {
            let from = x.byte_add(*step.logit_rows.add(r) as usize * x_stride);
            std::ptr::copy_nonoverlapping(from, out.byte_add(r * out_stride), width);
        }
    }
}
