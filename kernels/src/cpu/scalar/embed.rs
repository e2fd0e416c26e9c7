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
        "embed_i2u4m_scalar",
        Symbol(embed::<11> as EmbedFn as *const ()),
    ),
    (
        "embed_i3i8_scalar",
        Symbol(embed::<12> as EmbedFn as *const ()),
    ),
    (
        "embed_nl4f16_scalar",
        Symbol(embed::<13> as EmbedFn as *const ()),
    ),
    (
        "embed_nl4i8_scalar",
        Symbol(embed::<14> as EmbedFn as *const ()),
    ),
    (
        "embed_fp4e8_scalar",
        Symbol(embed::<15> as EmbedFn as *const ()),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::lookup;
    use crate::cpu::tile::pack_tile;
    use crate::quant::dequantise_row;

    fn step(tokens: &[u32], logit_rows: &[u32]) -> Step {
        Step {
            rows: tokens.len(),
            logits: logit_rows.len(),
            tokens: tokens.as_ptr(),
            positions: std::ptr::null(),
            slots: std::ptr::null(),
            logit_rows: logit_rows.as_ptr(),
            page_table: std::ptr::null(),
            pages_per_slot: 0,
        }
    }

    #[test]
    fn embeddings_are_the_dequantised_rows_of_live_tokens() {
        let (k, vocab, tokens) = (256, 20, [16, 3, 19]);
        for fmt in FORMATS {
            let row_bytes = fmt.ty.row_bytes(k as u64).expect("legal k") as usize;
            // Bytes below 0x3c keep every f16, bf16 and f32 finite.
            let raw: Vec<u8> = (0..vocab * row_bytes)
                .map(|i| (i * 13 % 59) as u8)
                .collect();
            let rows: Vec<&[u8]> = raw.chunks_exact(row_bytes).collect();
            let bytes = tile_bytes(&fmt.layout, k).expect("legal k");
            let mut tiles = vec![0; 2 * bytes];
            for (rows, tile) in rows.chunks(TILE_N).zip(tiles.chunks_exact_mut(bytes)) {
                pack_tile(fmt, k, rows, tile);
            }
            let symbol = lookup(&format!("embed_{}_scalar", fmt.layout)).expect("listed");
            let (step, stride) = (step(&tokens, &[]), k + 16);
            let mut out = vec![7.0f32; 4 * stride];
            // SAFETY: the symbol has this type by its name; out holds the live rows.
            unsafe {
                let embed: EmbedFn = std::mem::transmute(symbol.0);
                let scale = 1.5f32.to_bits() as usize;
                embed(
                    tiles.as_ptr(),
                    &step,
                    out.as_mut_ptr(),
                    k,
                    1,
                    4,
                    stride * 4,
                    scale,
                );
            }
            assert!(
                out[..stride].iter().all(|&v| v == 7.0),
                "row 0 was not asked for"
            );
            assert!(
                out[3 * stride..].iter().all(|&v| v == 7.0),
                "row 3 is not live"
            );
            let mut expected = vec![0.0; k];
            for r in [1, 2] {
                dequantise_row(fmt, rows[tokens[r] as usize], &mut expected);
                expected.iter_mut().for_each(|v| *v *= 1.5);
                assert_eq!(out[r * stride..][..k], expected, "{} row {r}", fmt.ty);
            }
        }
    }

    #[test]
    fn gathered_rows_follow_logit_rows() {
        let x: Vec<f32> = (0..12).map(|v| v as f32).collect();
        let mut out = [9.0; 8];
        let step = step(&[0; 4], &[3, 1]);
        // SAFETY: x holds 4 rows of 3 floats, out 4 rows of 2.
        unsafe { gather_rows(x.as_ptr(), &step, out.as_mut_ptr(), 2, 0, 4, 12, 8) };
        assert_eq!(out, [9.0, 10.0, 3.0, 4.0, 9.0, 9.0, 9.0, 9.0]);
    }
}
