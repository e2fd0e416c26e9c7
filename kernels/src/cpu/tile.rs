//! Packed weights as the CPU micro-kernels read them: tiles of 16 outputs, all of k. Packing and scalar unpacking live
//! here; the arithmetic on tiles lives in the micro-kernels, quant blocks in `quant`.
//!
//! A tile is a scale plane followed by a quant plane, both multiples of 64 bytes, and tiles follow each other without
//! gaps, so a matrix is one stream of aligned 64-byte vectors:
//!
//! ```text
//! integer tile   | scale plane ........ pad | quants of k 0..32 | k 32..64 | ... |
//! scale plane    F16            per 32 k:  d f16[16] (, m f16[16])
//!                U8F16, I8F16   per 256 k: d f16[16] (, m f16[16]), then per scale group: sc u8[16] (, mn u8[16])
//! quants of 32 k 8 quads of 4 consecutive k; byte 4 c + j of a vector is k = 4 quad + j of output c
//!                4 bits  4 vectors: low nibbles = quad 2 i, high nibbles = quad 2 i + 1                256 bytes
//!                5 bits  the 4 vectors, then 1 vector: bit q = top bit of quad q                       320 bytes
//!                6 bits  the 4 vectors, then 2 vectors: bits 2 (q % 4).. of vector q / 4 = top bits    384 bytes
//!                8 bits  8 vectors, one per quad                                                       512 bytes
//! float tile     [k][16] elements, padded to 64 bytes at the end
//! ```
//!
//! One broadcast word of 4 int8 activations thus meets 16 outputs in one `vpdpbusd`, and an output never leaves its lane.

use half::{bf16, f16};

use super::abi::TILE_N;
use crate::quant::{PackedLayout, QuantFormat, SUPER_GROUP, Scale, Store, Unpacked};

/// k covered by one step of the quant plane.
pub const GROUP_K: usize = 32;

/// Bytes of the scale plane of a tile of reduction length `k`, a multiple of 64.
pub const fn scale_plane_bytes(layout: &PackedLayout, k: usize) -> usize {
    let pair = 1 + layout.min as usize;
    let bytes = match layout.scale {
        Scale::None => 0,
        Scale::F16 => k / GROUP_K * 2 * TILE_N * pair,
        Scale::U8F16 | Scale::I8F16 => k / SUPER_GROUP * super_group_bytes(layout),
    };
    bytes.next_multiple_of(64)
}

/// Bytes of the scale plane for one f16 of a two-level scale: 256 k of 16 outputs.
const fn super_group_bytes(layout: &PackedLayout) -> usize {
    let pair = 1 + layout.min as usize;
    (2 * TILE_N + SUPER_GROUP / layout.group as usize * TILE_N) * pair
}

/// Bytes of the quant plane per 32 k; 0 for float layouts.
pub const fn group_bytes(layout: &PackedLayout) -> usize {
    match layout.store {
        Store::Int(bits) => GROUP_K * TILE_N * bits as usize / 8,
        _ => 0,
    }
}

/// Bytes of a tile: 16 outputs of reduction length `k`, a multiple of 64. `None` when `k` is 0 or no multiple of
/// [`PackedLayout::k_multiple`].
pub const fn tile_bytes(layout: &PackedLayout, k: usize) -> Option<usize> {
    if k == 0 || !k.is_multiple_of(layout.k_multiple()) {
        return None;
    }
    Some(match layout.store {
        Store::F32 => k * 4 * TILE_N,
        Store::F16 | Store::Bf16 => (k * 2 * TILE_N).next_multiple_of(64),
        Store::Int(_) => scale_plane_bytes(layout, k) + k / GROUP_K * group_bytes(layout),
    })
}

/// Packs up to 16 GGUF rows of `k` weights into one tile; rows that are missing become zero weights.
///
/// # Panics
/// When `k` is illegal for the layout, a row is not exactly `k` weights long, more than 16 rows are given, or `out` is
/// not [`tile_bytes`] long. Tensor sizes are checked where the file is read.
pub fn pack_tile(fmt: &QuantFormat, k: usize, rows: &[&[u8]], out: &mut [u8]) {
    let row_bytes = k / fmt.ty.block_len() as usize * fmt.ty.block_bytes() as usize;
    assert_eq!(Some(out.len()), tile_bytes(&fmt.layout, k), "tile of k={k}");
    assert!(rows.len() <= TILE_N, "{} rows in one tile", rows.len());
    assert!(rows.iter().all(|row| row.len() == row_bytes), "rows of {row_bytes} bytes");
    match fmt.layout.store {
        Store::F32 => pack_floats::<4>(rows, out),
        Store::F16 | Store::Bf16 => pack_floats::<2>(rows, out),
        Store::Int(bits) => pack_ints(fmt, bits, k, rows, out),
    }
}

fn pack_floats<const BYTES: usize>(rows: &[&[u8]], out: &mut [u8]) {
    out.fill(0);
    for (c, row) in rows.iter().enumerate() {
        for (element, line) in row.chunks_exact(BYTES).zip(out.chunks_exact_mut(BYTES * TILE_N)) {
            line[c * BYTES..][..BYTES].copy_from_slice(element);
        }
    }
}

fn pack_ints(fmt: &QuantFormat, bits: u8, k: usize, rows: &[&[u8]], out: &mut [u8]) {
    let layout = &fmt.layout;
    let (len, bytes) = (fmt.ty.block_len() as usize, fmt.ty.block_bytes() as usize);
    let (scales, quants) = out.split_at_mut(scale_plane_bytes(layout, k));
    let scale_bytes = k / len;
    let scale_bytes = match layout.scale {
        Scale::F16 => scales.len() / scale_bytes / (2 * TILE_N) * (2 * TILE_N),
        _ => super_group_bytes(layout),
    };
    let mut columns = [const { None::<Unpacked> }; TILE_N].map(|_| Unpacked::zeros(layout));
    for (b, quants) in quants.chunks_exact_mut(len / GROUP_K * group_bytes(layout)).enumerate() {
        for (row, column) in rows.iter().zip(&mut columns) {
            (fmt.unpack)(&row[b * bytes..][..bytes], column);
        }
        pack_scales(layout, len, &columns, &mut scales[b * scale_bytes..][..scale_bytes]);
        for (g, quants) in quants.chunks_exact_mut(group_bytes(layout)).enumerate() {
            match bits {
                4 => pack_group::<4>(&columns, g, quants),
                5 => pack_group::<5>(&columns, g, quants),
                6 => pack_group::<6>(&columns, g, quants),
                _ => pack_group::<8>(&columns, g, quants),
            }
        }
    }
}
