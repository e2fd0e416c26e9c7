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
//!                U4F16          per 256 k: d f16[16], m f16[16], then per scale group: u8[16], sc low nibble, mn high
//!                E8             per 32 k:  e u8[16]
//! quants of 32 k 8 quads of 4 consecutive k; byte 4 c + j of a vector is k = 4 quad + j of output c. Bit planes: the
//!                low 2, 4 or 8 bits of every integer or code, then the 1 or 2 bits above them, if any ([`planes`]).
//!                A plane of b bits is b vectors: quad q at bits q b % 8.. of vector q b / 8
//!                2 bits  2 vectors            128 bytes        5 bits  4 vectors, 1 vector    320 bytes
//!                3 bits  2 vectors, 1 vector  192 bytes        6 bits  4 vectors, 2 vectors   384 bytes
//!                4 bits  4 vectors            256 bytes        8 bits  8 vectors              512 bytes
//! float tile     [k][16] elements, padded to 64 bytes at the end
//! ```
//!
//! One broadcast word of 4 int8 activations thus meets 16 outputs in one `vpdpbusd`, and an output never leaves its lane.

use half::{bf16, f16};

use super::abi::TILE_N;
use crate::quant::{PackedLayout, QuantFormat, Scale, Store, Unpacked};

/// k covered by one step of the quant plane.
pub const GROUP_K: usize = 32;

/// Bytes of the scale plane of a tile of reduction length `k`, a multiple of 64.
pub const fn scale_plane_bytes(layout: &PackedLayout, k: usize) -> usize {
    (k / layout.k_multiple() * scale_unit_bytes(layout)).next_multiple_of(64)
}

/// Bytes of the scale plane per [`PackedLayout::k_multiple`]: f16 scales (and mins), then codes per scale group.
pub const fn scale_unit_bytes(layout: &PackedLayout) -> usize {
    match layout.scale {
        Scale::None => 0,
        _ => {
            let groups = layout.k_multiple() / layout.group as usize;
            scale_halves_bytes(layout) + groups * scale_codes_bytes(layout)
        }
    }
}

/// Bytes of the f16 scales (and mins) at the start of a unit of the scale plane.
pub const fn scale_halves_bytes(layout: &PackedLayout) -> usize {
    match layout.scale {
        Scale::None | Scale::E8 => 0,
        Scale::F16 | Scale::U8F16 | Scale::I8F16 | Scale::U4F16 => {
            2 * TILE_N * (1 + layout.min as usize)
        }
    }
}

/// Bytes of the codes of one scale group in a unit of the scale plane.
pub const fn scale_codes_bytes(layout: &PackedLayout) -> usize {
    match layout.scale {
        Scale::None | Scale::F16 => 0,
        Scale::U8F16 | Scale::I8F16 => TILE_N * (1 + layout.min as usize),
        Scale::U4F16 | Scale::E8 => TILE_N,
    }
}

/// Bits in the two planes that hold the layout's integers or codes: the low ones, and the ones above them or 0. Both 0 for
/// float layouts.
pub const fn planes(layout: &PackedLayout) -> (usize, usize) {
    match layout.int_bits() {
        Some(bits) => {
            let low = 1 << bits.ilog2();
            (low, bits as usize - low)
        }
        None => (0, 0),
    }
}

/// Bytes of the quant plane per 32 k; 0 for float layouts.
pub const fn group_bytes(layout: &PackedLayout) -> usize {
    match layout.int_bits() {
        Some(bits) => GROUP_K * TILE_N * bits as usize / 8,
        None => 0,
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
        Store::Int(_) | Store::Code(_) => {
            scale_plane_bytes(layout, k) + k / GROUP_K * group_bytes(layout)
        }
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
        Store::Int(_) | Store::Code(_) => pack_ints(fmt, k, rows, out),
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

fn pack_ints(fmt: &QuantFormat, k: usize, rows: &[&[u8]], out: &mut [u8]) {
    let layout = &fmt.layout;
    let (len, bytes) = (fmt.ty.block_len() as usize, fmt.ty.block_bytes() as usize);
    let (scales, quants) = out.split_at_mut(scale_plane_bytes(layout, k));
    scales[k / len * scale_unit_bytes(layout)..].fill(0);
    let units = scales.chunks_exact_mut(scale_unit_bytes(layout));
    let quants = quants.chunks_exact_mut(len / GROUP_K * group_bytes(layout));
    let (mut columns, planes) = ([Unpacked::zeros(layout); TILE_N], planes(layout));
    for (b, (unit, quants)) in units.zip(quants).enumerate() {
        for (row, column) in rows.iter().zip(&mut columns) {
            (fmt.unpack)(&row[b * bytes..][..bytes], column);
        }
        pack_scales(layout, &columns, unit);
        for (g, quants) in quants.chunks_exact_mut(group_bytes(layout)).enumerate() {
            match planes {
                (2, 0) => pack_group::<2, 0>(&columns, g, quants),
                (2, _) => pack_group::<2, 1>(&columns, g, quants),
                (4, 0) => pack_group::<4, 0>(&columns, g, quants),
                (4, 1) => pack_group::<4, 1>(&columns, g, quants),
                (4, _) => pack_group::<4, 2>(&columns, g, quants),
                _ => pack_group::<8, 0>(&columns, g, quants),
            }
        }
    }
}

/// One unit of the scale plane: the f16s of 16 columns, then their codes group by group.
fn pack_scales(layout: &PackedLayout, columns: &[Unpacked; TILE_N], unit: &mut [u8]) {
    let (halves, codes) = unit.split_at_mut(scale_halves_bytes(layout));
    let lines = halves.as_chunks_mut::<{ 2 * TILE_N }>().0;
    if let Some(d) = lines.first_mut() {
        for (half, column) in d.chunks_exact_mut(2).zip(columns) {
            half.copy_from_slice(&column.d[0].to_le_bytes());
        }
    }
    if let Some(m) = lines.get_mut(1) {
        for (half, column) in m.chunks_exact_mut(2).zip(columns) {
            half.copy_from_slice(&column.m[0].to_le_bytes());
        }
    }
    if codes.is_empty() {
        return;
    }
    let groups = codes.chunks_exact_mut(scale_codes_bytes(layout));
    for (g, codes) in groups.enumerate() {
        for (c, column) in columns.iter().enumerate() {
            let (sc, mn) = (column.sc[g], column.mn[g]);
            match layout.scale {
                Scale::U4F16 => codes[c] = sc | mn << 4,
                _ if layout.min => (codes[c], codes[TILE_N + c]) = (sc, mn),
                _ => codes[c] = sc,
            }
        }
    }
}

/// Codes of scale and min of output `c` among those of a scale group.
pub(super) fn scale_codes(layout: &PackedLayout, codes: &[u8], c: usize) -> (u8, u8) {
    match layout.scale {
        Scale::U4F16 => (codes[c] & 15, codes[c] >> 4),
        _ => (codes[c], if layout.min { codes[TILE_N + c] } else { 0 }),
    }
}

/// Quants of 32 k, group `g` of the unpacked quant blocks, in planes of `LOW` and `TOP` bits. A quad travels as the four
/// bytes of a u32.
fn pack_group<const LOW: usize, const TOP: usize>(
    columns: &[Unpacked; TILE_N],
    g: usize,
    out: &mut [u8],
) {
    for (c, column) in columns.iter().enumerate() {
        let mut quads = [0u32; 8];
        for (quad, q) in quads
            .iter_mut()
            .zip(column.q[g * GROUP_K..].chunks_exact(4))
        {
            *quad = u32::from_le_bytes([q[0], q[1], q[2], q[3]]);
        }
        // Vectors first..first + width: the `width` bits from bit `from` on of every integer.
        let mut plane = |first: usize, from: usize, width: usize| {
            let mask = 0x0101_0101 * ((1u32 << width) - 1);
            for vector in 0..width {
                let per_vector = 8 / width;
                let word = (0..per_vector).fold(0, |word, i| {
                    word | (quads[vector * per_vector + i] >> from & mask) << (i * width)
                });
                out[64 * (first + vector) + 4 * c..][..4].copy_from_slice(&word.to_le_bytes());
            }
        };
        plane(0, 0, LOW);
        plane(LOW, LOW, TOP);
    }
}

/// The stored integer or code of output `c` at `k_in_group` within the quants of 32 k.
fn stored_int(layout: &PackedLayout, quants: &[u8], c: usize, k_in_group: usize) -> u8 {
    let (quad, lane) = (k_in_group / 4, 4 * c + k_in_group % 4);
    let plane = |first: usize, width: usize| {
        let at = quad * width;
        quants[64 * (first + at / 8) + lane] >> (at % 8) & (u8::MAX >> (8 - width))
    };
    match planes(layout) {
        (low, 0) => plane(0, low),
        (low, top) => plane(0, low) | plane(low, top) << low,
    }
}

/// Scale and min of output `c` for the scale group that holds `k`.
fn scale_and_min(layout: &PackedLayout, scales: &[u8], c: usize, k: usize) -> (f32, f32) {
    let unit = &scales[k / layout.k_multiple() * scale_unit_bytes(layout)..];
    let (halves, codes) = unit.split_at(scale_halves_bytes(layout));
    let mut u = Unpacked::zeros(layout);
    for (line, half) in halves
        .chunks_exact(2 * TILE_N)
        .zip([&mut u.d[0], &mut u.m[0]])
    {
        *half = u16::from_le_bytes([line[2 * c], line[2 * c + 1]]);
    }
    let width = scale_codes_bytes(layout);
    if width > 0 {
        let group = k % layout.k_multiple() / usize::from(layout.group);
        (u.sc[0], u.mn[0]) = scale_codes(layout, &codes[group * width..], c);
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
        Store::Int(_) | Store::Code(_) => {
            let (scales, quants) = tile.split_at(scale_plane_bytes(layout, k));
            let (mut scale, mut min) = (0.0, 0.0);
            for (at, w) in out.iter_mut().enumerate() {
                let at = from + at;
                if at == from || at.is_multiple_of(usize::from(layout.group)) {
                    (scale, min) = scale_and_min(layout, scales, c, at);
                }
                let quants = &quants[at / GROUP_K * group_bytes(layout)..];
                *w = layout.value(stored_int(layout, quants, c, at % GROUP_K), scale, min);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{
        FORMATS, IQ4_NL, IQ4_XS, MXFP4, Q2_K, Q3_K, Q4_0, Q4_K, Q5_K, Q6_K, Q8_0, dequantise_row,
    };

    #[test]
    fn bits_per_weight_are_the_published_ones() {
        for (fmt, bits) in [
            (Q4_K, 4.625),
            (Q5_K, 5.625),
            (Q6_K, 6.5625),
            (Q8_0, 8.5),
            (Q4_0, 4.5),
            (Q2_K, 2.625),
            (Q3_K, 3.5625),
            (IQ4_NL, 4.5),
            (IQ4_XS, 4.3125),
            (MXFP4, 4.25),
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
