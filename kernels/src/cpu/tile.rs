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
    (k / layout.k_multiple() * scale_unit_bytes(layout)).next_multiple_of(64)
}

/// Bytes of the scale plane per [`PackedLayout::k_multiple`]: f16 scales (and mins), then the codes of a two-level scale.
pub const fn scale_unit_bytes(layout: &PackedLayout) -> usize {
    let codes = match layout.scale {
        Scale::None => return 0,
        Scale::F16 => 0,
        Scale::U8F16 | Scale::I8F16 => SUPER_GROUP / layout.group as usize,
    };
    (2 + codes) * TILE_N * (1 + layout.min as usize)
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
    assert!(
        rows.iter().all(|row| row.len() == row_bytes),
        "rows of {row_bytes} bytes"
    );
    match fmt.layout.store {
        Store::F32 => pack_floats::<4>(rows, out),
        Store::F16 | Store::Bf16 => pack_floats::<2>(rows, out),
        Store::Int(bits) => pack_ints(fmt, bits, k, rows, out),
    }
}

fn pack_floats<const BYTES: usize>(rows: &[&[u8]], out: &mut [u8]) {
    out.fill(0);
    for (c, row) in rows.iter().enumerate() {
        for (element, line) in row
            .chunks_exact(BYTES)
            .zip(out.chunks_exact_mut(BYTES * TILE_N))
        {
            line[c * BYTES..][..BYTES].copy_from_slice(element);
        }
    }
}

fn pack_ints(fmt: &QuantFormat, bits: u8, k: usize, rows: &[&[u8]], out: &mut [u8]) {
    let layout = &fmt.layout;
    let (len, bytes) = (fmt.ty.block_len() as usize, fmt.ty.block_bytes() as usize);
    let (scales, quants) = out.split_at_mut(scale_plane_bytes(layout, k));
    scales[k / len * scale_unit_bytes(layout)..].fill(0);
    let units = scales.chunks_exact_mut(scale_unit_bytes(layout));
    let quants = quants.chunks_exact_mut(len / GROUP_K * group_bytes(layout));
    let mut columns = [Unpacked::zeros(layout); TILE_N];
    for (b, (unit, quants)) in units.zip(quants).enumerate() {
        for (row, column) in rows.iter().zip(&mut columns) {
            (fmt.unpack)(&row[b * bytes..][..bytes], column);
        }
        pack_scales(layout, &columns, unit);
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

/// One unit of the scale plane: the f16s of 16 columns, then their codes group by group.
fn pack_scales(layout: &PackedLayout, columns: &[Unpacked; TILE_N], unit: &mut [u8]) {
    let pair = 1 + usize::from(layout.min);
    let (halves, codes) = unit.split_at_mut(2 * TILE_N * pair);
    for (c, column) in columns.iter().enumerate() {
        halves[2 * c..][..2].copy_from_slice(&column.d[0].to_le_bytes());
        if layout.min {
            halves[2 * (TILE_N + c)..][..2].copy_from_slice(&column.m[0].to_le_bytes());
        }
    }
    for (g, codes) in codes.chunks_exact_mut(TILE_N * pair).enumerate() {
        for (c, column) in columns.iter().enumerate() {
            codes[c] = column.sc[g];
            if layout.min {
                codes[TILE_N + c] = column.mn[g];
            }
        }
    }
}

/// Quants of 32 k, group `g` of the unpacked quant blocks. A quad travels as the four bytes of a u32.
fn pack_group<const BITS: usize>(columns: &[Unpacked; TILE_N], g: usize, out: &mut [u8]) {
    for (c, column) in columns.iter().enumerate() {
        let mut quads = [0u32; 8];
        for (quad, q) in quads
            .iter_mut()
            .zip(column.q[g * GROUP_K..].chunks_exact(4))
        {
            *quad = u32::from_le_bytes([q[0], q[1], q[2], q[3]]);
        }
        let mut put = |vector: usize, quad: u32| {
            out[64 * vector + 4 * c..][..4].copy_from_slice(&quad.to_le_bytes());
        };
        if BITS == 8 {
            for (i, &quad) in quads.iter().enumerate() {
                put(i, quad);
            }
            continue;
        }
        for (i, two) in quads.chunks_exact(2).enumerate() {
            put(i, two[0] & 0x0f0f_0f0f | (two[1] & 0x0f0f_0f0f) << 4);
        }
        let high = |i: usize, mask: u32, shift: usize| (quads[i] >> 4 & mask) << shift;
        if BITS == 5 {
            put(4, (0..8).fold(0, |bits, i| bits | high(i, 0x0101_0101, i)));
        }
        if BITS == 6 {
            put(
                4,
                (0..4).fold(0, |bits, i| bits | high(i, 0x0303_0303, 2 * i)),
            );
            put(
                5,
                (0..4).fold(0, |bits, i| bits | high(i + 4, 0x0303_0303, 2 * i)),
            );
        }
    }
}

/// The stored integer of output `c` at `k_in_group` within the quants of 32 k.
fn stored_int(bits: u8, quants: &[u8], c: usize, k_in_group: usize) -> u8 {
    let (quad, lane) = (k_in_group / 4, 4 * c + k_in_group % 4);
    if bits == 8 {
        return quants[64 * quad + lane];
    }
    let low = quants[64 * (quad / 2) + lane] >> (4 * (quad % 2)) & 15;
    let high = match bits {
        5 => quants[256 + lane] >> quad & 1,
        6 => quants[256 + 64 * (quad / 4) + lane] >> (2 * (quad % 4)) & 3,
        _ => 0,
    };
    low | high << 4
}

/// Scale and min of output `c` for the scale group that holds `k`.
fn scale_and_min(layout: &PackedLayout, scales: &[u8], c: usize, k: usize) -> (f32, f32) {
    let unit = &scales[k / layout.k_multiple() * scale_unit_bytes(layout)..];
    let half = |i: usize| u16::from_le_bytes([unit[2 * i], unit[2 * i + 1]]);
    let pair = 1 + usize::from(layout.min);
    let mut u = Unpacked::zeros(layout);
    u.d[0] = half(c);
    u.m[0] = if layout.min { half(TILE_N + c) } else { 0 };
    if layout.scale != Scale::F16 {
        let group = k % SUPER_GROUP / usize::from(layout.group);
        let codes = &unit[(2 + group) * TILE_N * pair..];
        u.sc[0] = codes[c];
        u.mn[0] = if layout.min { codes[TILE_N + c] } else { 0 };
    }
    layout.group_scale(&u, 0)
}

/// Weight of output `c` (of 16) at reduction index `at`, from a tile of reduction length `k`.
///
/// # Panics
/// When `tile` is shorter than [`tile_bytes`], or `c` or `at` is out of range.
pub fn unpack_value(layout: &PackedLayout, k: usize, tile: &[u8], c: usize, at: usize) -> f32 {
    let mut out = [0.0];
    dequantise(layout, k, tile, c, at, &mut out);
    out[0]
}

/// All `out.len()` = k weights of output `c` (of 16), bit-equal to dequantising the GGUF row.
///
/// # Panics
/// When `tile` is shorter than [`tile_bytes`] or `c` is not below 16.
pub fn dequantise_tile_row(layout: &PackedLayout, tile: &[u8], c: usize, out: &mut [f32]) {
    dequantise(layout, out.len(), tile, c, 0, out);
}

fn dequantise(
    layout: &PackedLayout,
    k: usize,
    tile: &[u8],
    c: usize,
    from: usize,
    out: &mut [f32],
) {
    assert!(
        c < TILE_N && from + out.len() <= k,
        "output {c}, k {from}.. of {k}"
    );
    let element = |at: usize| (from + at) * TILE_N + c;
    match layout.store {
        Store::F32 => {
            for (at, w) in out.iter_mut().enumerate() {
                let b = &tile[4 * element(at)..][..4];
                *w = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
        Store::F16 => {
            for (at, w) in out.iter_mut().enumerate() {
                let i = 2 * element(at);
                *w = f16::from_le_bytes([tile[i], tile[i + 1]]).to_f32();
            }
        }
        Store::Bf16 => {
            for (at, w) in out.iter_mut().enumerate() {
                let i = 2 * element(at);
                *w = bf16::from_le_bytes([tile[i], tile[i + 1]]).to_f32();
            }
        }
        Store::Int(bits) => {
            let (scales, quants) = tile.split_at(scale_plane_bytes(layout, k));
            let (mut scale, mut min) = (0.0, 0.0);
            for (at, w) in out.iter_mut().enumerate() {
                let at = from + at;
                if at == from || at.is_multiple_of(usize::from(layout.group)) {
                    (scale, min) = scale_and_min(layout, scales, c, at);
                }
                let quants = &quants[at / GROUP_K * group_bytes(layout)..];
                *w = layout.value(stored_int(bits, quants, c, at % GROUP_K), scale, min);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{FORMATS, Q4_0, Q4_K, Q5_K, Q6_K, Q8_0, dequantise_row};

    #[test]
    fn bits_per_weight_are_the_published_ones() {
        for (fmt, bits) in [
            (Q4_K, 4.625),
            (Q5_K, 5.625),
            (Q6_K, 6.5625),
            (Q8_0, 8.5),
            (Q4_0, 4.5),
        ] {
            let bytes = tile_bytes(&fmt.layout, 1024).expect("legal k");
            assert_eq!(
                bytes as f64 * 8.0 / (1024 * TILE_N) as f64,
                bits,
                "{}",
                fmt.ty
            );
        }
    }

    #[test]
    fn illegal_k_has_no_tile() {
        assert_eq!(tile_bytes(&Q8_0.layout, 48), None);
        assert_eq!(tile_bytes(&Q4_K.layout, 288), None);
        assert_eq!(tile_bytes(&FORMATS[0].layout, 0), None);
        assert_eq!(tile_bytes(&FORMATS[1].layout, 7), Some(256));
    }

    #[test]
    fn packing_keeps_every_bit_of_every_weight() {
        for fmt in FORMATS {
            for (k, rows) in [(256, 16), (512, 5), (768, 1)] {
                let row_bytes = fmt.ty.row_bytes(k as u64).expect("legal k") as usize;
                let bytes: Vec<u8> = (0..rows * row_bytes)
                    .map(|i| (i * 89 % 253) as u8)
                    .collect();
                let raw: Vec<&[u8]> = bytes.chunks_exact(row_bytes).collect();
                let mut tile = vec![0xff; tile_bytes(&fmt.layout, k).expect("legal k")];
                pack_tile(fmt, k, &raw, &mut tile);
                let (mut packed, mut direct) = (vec![0.0; k], vec![0.0; k]);
                for c in 0..TILE_N {
                    direct.fill(0.0);
                    if let Some(row) = raw.get(c) {
                        dequantise_row(fmt, row, &mut direct);
                    }
                    dequantise_tile_row(&fmt.layout, &tile, c, &mut packed);
                    for at in 0..k {
                        let value = unpack_value(&fmt.layout, k, &tile, c, at);
                        let bits = |w: f32| (w + 0.0).to_bits();
                        assert_eq!(
                            bits(packed[at]),
                            bits(direct[at]),
                            "{} output {c} k {at} of {k}",
                            fmt.ty
                        );
                        assert_eq!(value.to_bits(), packed[at].to_bits());
                    }
                }
            }
        }
    }
}
