//! Packed weights as the GPU kernels read them: units of 16 outputs times [`unit_k`] weights along k. Packing and scalar
//! unpacking live here; the arithmetic on units lives in the templates, quant blocks in `quant`.
//!
//! A matrix `[n][k]` is `[ceil(n/16)][units]` units without gaps; missing outputs and k are zero weights. A unit is tiles
//! of 64 k, then the scales of all of them. In a tile, lane `4g + t` of a warp (g < 8, t < 4) owns outputs `g + 8h`
//! (h < 2) at `k = 32j + 16p + 4t + i` (j, p < 2, i < 4): what it feeds to tensor cores as the A operand, so one 16-byte
//! load a lane, 512 consecutive bytes a warp, needs only masks and shifts to become fragments.
//!
//! ```text
//! integer tile   planes one after the other, [32 lanes] each; byte i of a word belongs to element i
//!                4 bits  4 words  word h + 2j: low nibble p = 0, high nibble p = 1
//!                2 bits  2 words  word j: bits 2(2p + h)..            (alone, or above the 4 bits)
//!                1 bit   1 word   bit 4j + 2p + h                     (above the others)
//!                8 bits  [2 = j][32 lanes] 4 words, word 2p + h: two's complement of level - 128
//!                2 bits 256, 3 bits 384, 4 bits 512, 5 bits 640, 6 bits 768, 8 bits 1024 bytes
//! f16, bf16 tile [4 = 2j + p][32 lanes] 4 words: word h has i = 0, 2 (low half first), word h + 2 has i = 1, 3
//! f32 tile       [64 k][16 outputs]
//! scales         F16                  [16 outputs][2 = j] f16 d, then f16 m likewise if there is a min
//!                E8                   [16 outputs][2 = j] u8, padded to 64 bytes
//!                U8F16, I8F16, U4F16  [16 outputs] {f16 d, f16 m}, then codes
//! codes          U8F16, I8F16         [16 outputs] {sc u8[groups] (, mn u8[groups])}
//!                U4F16                [16 outputs] u8[groups]: sc low nibble, mn high
//! ```

#[cfg(test)]
mod tests;

use half::{bf16, f16};

use super::abi::TILE_K;
use crate::quant::{PackedLayout, QuantFormat, SUPER_GROUP, Scale, Store, Unpacked};

/// Outputs of a unit.
pub const TILE_N: usize = 16;

const LANES: usize = 32;

/// Weights along k of one unit: as many as share an f16 of a two-level scale, else one tile.
pub const fn unit_k(layout: &PackedLayout) -> usize {
    match layout.scale {
        Scale::None | Scale::F16 | Scale::E8 => TILE_K,
        Scale::U8F16 | Scale::I8F16 | Scale::U4F16 => SUPER_GROUP,
    }
}

/// Bits in the planes of a tile that hold the layout's integers or codes, lowest first; 0 where there is none.
pub const fn planes(layout: &PackedLayout) -> [u8; 2] {
    match layout.int_bits() {
        Some(bits @ (2 | 4 | 8)) => [bits, 0],
        Some(3) => [2, 1],
        Some(bits) => [4, bits - 4],
        None => [0, 0],
    }
}

/// Bytes of a tile of 64 k without its scales.
pub const fn tile_bytes(layout: &PackedLayout) -> usize {
    TILE_N * TILE_K * store_bits(layout) / 8
}

const fn store_bits(layout: &PackedLayout) -> usize {
    match layout.store {
        Store::F32 => 32,
        Store::F16 | Store::Bf16 => 16,
        Store::Int(bits) => bits as usize,
        Store::Code(_) => 4,
    }
}

/// Bytes of the scales of a unit.
pub const fn scale_bytes(layout: &PackedLayout) -> usize {
    match layout.scale {
        Scale::None => 0,
        Scale::F16 => 64 << layout.min as usize,
        Scale::E8 => 64,
        Scale::U8F16 | Scale::I8F16 | Scale::U4F16 => 64 + TILE_N * code_bytes(layout),
    }
}

/// Bytes of the scale codes of one output in a unit.
const fn code_bytes(layout: &PackedLayout) -> usize {
    let groups = SUPER_GROUP / layout.group as usize;
    match layout.scale {
        Scale::U8F16 | Scale::I8F16 => groups << layout.min as usize,
        Scale::U4F16 => groups,
        Scale::None | Scale::F16 | Scale::E8 => 0,
    }
}

/// Bytes of a unit, a multiple of 64.
pub const fn unit_bytes(layout: &PackedLayout) -> usize {
    unit_k(layout) / TILE_K * tile_bytes(layout) + scale_bytes(layout)
}

/// Units along a reduction of `k`.
pub const fn units(layout: &PackedLayout, k: usize) -> usize {
    k.div_ceil(unit_k(layout))
}

/// Bytes of a matrix of `n` outputs and reduction `k`. `None` when either is 0, `k` is no multiple of
/// [`PackedLayout::k_multiple`], or the bytes exceed a `usize`.
pub const fn matrix_bytes(layout: &PackedLayout, n: usize, k: usize) -> Option<usize> {
    if n == 0 || k == 0 || !k.is_multiple_of(layout.k_multiple()) {
        return None;
    }
    match n.div_ceil(TILE_N).checked_mul(units(layout, k)) {
        Some(units) => units.checked_mul(unit_bytes(layout)),
        None => None,
    }
}

/// Packs up to 16 GGUF rows of `k` weights into one row of units; rows that are missing become zero weights.
///
/// # Panics
/// When `k` is illegal for the layout, a row is not exactly `k` weights long, more than 16 rows are given, or `out` is
/// not [`matrix_bytes`] of 16 outputs. Tensor sizes are checked where the file is read.
pub fn pack_tile_row(fmt: &QuantFormat, k: usize, rows: &[&[u8]], out: &mut [u8]) {
    let layout = &fmt.layout;
    let row_bytes = k / fmt.ty.block_len() as usize * fmt.ty.block_bytes() as usize;
    assert_eq!(Some(out.len()), matrix_bytes(layout, TILE_N, k), "k={k}");
    assert!(rows.len() <= TILE_N, "{} rows in one tile", rows.len());
    assert!(
        rows.iter().all(|row| row.len() == row_bytes),
        "rows of {row_bytes} bytes"
    );
    match layout.store {
        Store::F32 => pack_singles(rows, out),
        Store::F16 | Store::Bf16 => pack_halves(rows, out),
        Store::Int(_) | Store::Code(_) => pack_ints(fmt, k, rows, out),
    }
}

fn pack_singles(rows: &[&[u8]], out: &mut [u8]) {
    out.fill(0);
    for (c, row) in rows.iter().enumerate() {
        for (element, line) in row.chunks_exact(4).zip(out.chunks_exact_mut(4 * TILE_N)) {
            line[c * 4..][..4].copy_from_slice(element);
        }
    }
}

fn pack_halves(rows: &[&[u8]], out: &mut [u8]) {
    out.fill(0);
    // Bytes of the word with element i of a quad, and of the half in it.
    const PLACE: [usize; 4] = [0, 8, 2, 10];
    for (c, row) in rows.iter().enumerate() {
        for (quad, elements) in row.chunks(8).enumerate() {
            let at = quad / 4 * LANES * 16 + (4 * (c % 8) + quad % 4) * 16 + c / 8 * 4;
            for (element, place) in elements.chunks_exact(2).zip(PLACE) {
                out[at + place..][..2].copy_from_slice(element);
            }
        }
    }
}

/// The unpacked integers of 16 outputs, for the k of one unit.
struct Columns {
    q: [[u8; SUPER_GROUP]; TILE_N],
}

impl Columns {
    /// The four integers of output `c` from `k` on, as the bytes of a word.
    fn quad(&self, c: usize, k: usize) -> u32 {
        let q = &self.q[c][k..][..4];
        u32::from_le_bytes([q[0], q[1], q[2], q[3]])
    }
}

fn pack_ints(fmt: &QuantFormat, k: usize, rows: &[&[u8]], out: &mut [u8]) {
    let layout = &fmt.layout;
    let (len, bytes) = (fmt.ty.block_len() as usize, fmt.ty.block_bytes() as usize);
    let per_unit = unit_k(layout) / len;
    let tiles = unit_k(layout) / TILE_K * tile_bytes(layout);
    let zeros = Unpacked::zeros(layout);
    let mut columns = Columns {
        q: [zeros.q; TILE_N],
    };
    let mut unpacked = zeros;
    for (unit, out) in out.chunks_exact_mut(unit_bytes(layout)).enumerate() {
        let (planes, scales) = out.split_at_mut(tiles);
        scales.fill(0);
        for (b, first) in (unit * per_unit..).zip((0..per_unit).map(|b| b * len)) {
            let present = (b + 1) * len <= k;
            for (c, q) in columns.q.iter_mut().enumerate() {
                let u = match rows.get(c).filter(|_| present) {
                    Some(row) => {
                        (fmt.unpack)(&row[b * bytes..][..bytes], &mut unpacked);
                        &unpacked
                    }
                    None => &zeros,
                };
                q[first..first + len].copy_from_slice(&u.q[..len]);
                pack_scales(layout, u, c, first / len, scales);
            }
        }
        for (t, out) in planes.chunks_exact_mut(tile_bytes(layout)).enumerate() {
            pack_planes(layout, &columns, t * TILE_K, out);
        }
    }
}

/// Scales of output `c` from its quant block `b` of the unit.
fn pack_scales(layout: &PackedLayout, u: &Unpacked, c: usize, b: usize, out: &mut [u8]) {
    let (d, m) = (u.d[0].to_le_bytes(), u.m[0].to_le_bytes());
    match layout.scale {
        Scale::None => {}
        Scale::F16 => {
            let at = (2 * c + b) * 2;
            out[at..at + 2].copy_from_slice(&d);
            if layout.min {
                out[64 + at..64 + at + 2].copy_from_slice(&m);
            }
        }
        Scale::E8 => out[2 * c + b] = u.sc[0],
        Scale::U8F16 | Scale::I8F16 | Scale::U4F16 => {
            out[4 * c..4 * c + 2].copy_from_slice(&d);
            if layout.min {
                out[4 * c + 2..4 * c + 4].copy_from_slice(&m);
            }
            let groups = SUPER_GROUP / usize::from(layout.group);
            let codes = &mut out[64 + c * code_bytes(layout)..][..code_bytes(layout)];
            if layout.scale == Scale::U4F16 {
                for ((code, sc), mn) in codes.iter_mut().zip(u.sc).zip(u.mn) {
                    *code = sc & 15 | mn << 4;
                }
            } else {
                codes[..groups].copy_from_slice(&u.sc[..groups]);
                if layout.min {
                    codes[groups..].copy_from_slice(&u.mn[..groups]);
                }
            }
        }
    }
}

/// One tile's planes from the integers at `k` of the unit on.
fn pack_planes(layout: &PackedLayout, columns: &Columns, k: usize, out: &mut [u8]) {
    const LOW: u32 = 0x0101_0101;
    let mut rest = out;
    let mut from = 0;
    for width in planes(layout).into_iter().filter(|&width| width > 0) {
        let (plane, after) = rest.split_at_mut(LANES * 4 * usize::from(width));
        rest = after;
        let mask = LOW * u32::from(u8::MAX >> (8 - width));
        for lane in 0..LANES {
            // The plane's bits of four elements, at the bottom of their bytes.
            let quad = |h: usize, j: usize, p: usize| {
                columns.quad(lane / 4 + 8 * h, k + 32 * j + 16 * p + lane % 4 * 4) >> from & mask
            };
            let mut put = |at: usize, word: u32| {
                plane[at..at + 4].copy_from_slice(&word.to_le_bytes());
            };
            match width {
                1 => {
                    let bit = |i: usize| quad(i & 1, i >> 2, i >> 1 & 1) << i;
                    put(lane * 4, (0..8).fold(0, |word, i| word | bit(i)));
                }
                2 => {
                    for j in 0..2 {
                        let bits = |i: usize| quad(i & 1, j, i >> 1) << (2 * i);
                        put(lane * 8 + j * 4, (0..4).fold(0, |word, i| word | bits(i)));
                    }
                }
                4 => {
                    for w in 0..4 {
                        let nibbles = |p: usize| quad(w & 1, w >> 1, p) << (4 * p);
                        put(lane * 16 + w * 4, nibbles(0) | nibbles(1));
                    }
                }
                _ => {
                    for w in 0..8 {
                        let at = w / 4 * LANES * 16 + lane * 16 + w % 4 * 4;
                        // Levels from 0 to 255 around 128.
                        put(at, quad(w & 1, w >> 2, w >> 1 & 1) ^ (LOW << 7));
                    }
                }
            }
        }
        from += u32::from(width);
    }
}

/// The weight of output `row` at reduction index `at`, from a matrix of reduction length `k`.
///
/// # Panics
/// When `bytes` has no such weight.
pub fn value(layout: &PackedLayout, bytes: &[u8], k: usize, row: usize, at: usize) -> f32 {
    assert!(at < k, "k {at} of {k}");
    let (c, unit_k) = (row % TILE_N, unit_k(layout));
    let unit = row / TILE_N * units(layout, k) + at / unit_k;
    let unit = &bytes[unit * unit_bytes(layout)..][..unit_bytes(layout)];
    let (tiles, scales) = unit.split_at(unit_k / TILE_K * tile_bytes(layout));
    let tile = &tiles[at % unit_k / TILE_K * tile_bytes(layout)..][..tile_bytes(layout)];
    let at_tile = at % TILE_K;
    let half = |at: usize| u16::from_le_bytes([tile[at], tile[at + 1]]);
    let (quad, i) = (at_tile / 4, at_tile % 4);
    let place = quad / 4 * LANES * 16 + (4 * (c % 8) + quad % 4) * 16 + c / 8 * 4;
    let place = place + i % 2 * 8 + i / 2 * 2;
    match layout.store {
        Store::F32 => {
            let b = &tile[(at_tile * TILE_N + c) * 4..][..4];
            f32::from_le_bytes([b[0], b[1], b[2], b[3]])
        }
        Store::F16 => f16::from_bits(half(place)).to_f32(),
        Store::Bf16 => bf16::from_bits(half(place)).to_f32(),
        Store::Int(_) | Store::Code(_) => {
            let (scale, min) = scale_and_min(layout, scales, c, at % unit_k);
            layout.value(stored_int(layout, tile, c, at_tile), scale, min)
        }
    }
}

/// The stored integer or code of output `c` at `k` of a tile.
fn stored_int(layout: &PackedLayout, tile: &[u8], c: usize, k: usize) -> u8 {
    let (j, p, t, i) = (k / 32, k / 16 % 2, k / 4 % 4, k % 4);
    let (lane, h) = (4 * (c % 8) + t, c / 8);
    let (mut q, mut from, mut plane) = (0, 0, tile);
    for width in planes(layout).into_iter().filter(|&width| width > 0) {
        let (word, shift) = match width {
            1 => (lane, 4 * j + 2 * p + h),
            2 => (lane * 2 + j, 2 * (2 * p + h)),
            4 => (lane * 4 + h + 2 * j, 4 * p),
            _ => (j * LANES * 4 + lane * 4 + 2 * p + h, 0),
        };
        let bits = plane[word * 4 + i] >> shift & (u8::MAX >> (8 - width));
        q |= if width == 8 {
            bits ^ 0x80
        } else {
            bits << from
        };
        from += width;
        plane = &plane[LANES * 4 * usize::from(width)..];
    }
    q
}

/// Scale and min of output `c` for the scale group that holds `k` of a unit.
fn scale_and_min(layout: &PackedLayout, scales: &[u8], c: usize, k: usize) -> (f32, f32) {
    let half = |at: usize| u16::from_le_bytes([scales[at], scales[at + 1]]);
    let mut u = Unpacked::zeros(layout);
    let group = k / usize::from(layout.group);
    match layout.scale {
        Scale::None => {}
        Scale::F16 => {
            u.d[0] = half(4 * c + 2 * group);
            u.m[0] = if layout.min {
                half(64 + 4 * c + 2 * group)
            } else {
                0
            };
        }
        Scale::E8 => u.sc[0] = scales[2 * c + group],
        Scale::U8F16 | Scale::I8F16 | Scale::U4F16 => {
            (u.d[0], u.m[0]) = (half(4 * c), half(4 * c + 2));
            let codes = &scales[64 + c * code_bytes(layout)..][..code_bytes(layout)];
            (u.sc[0], u.mn[0]) = match layout.scale {
                Scale::U4F16 => (codes[group] & 15, codes[group] >> 4),
                _ if layout.min => (codes[group], codes[codes.len() / 2 + group]),
                _ => (codes[group], 0),
            };
        }
    }
    layout.group_scale(&u, 0)
}
