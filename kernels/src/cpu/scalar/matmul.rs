//! Portable matmul micro-kernels over packed tiles. The order of operations per row is the one all ISAs share: per 16 k
//! an exact integer dot product, per 32 k the f32 folds of both.

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::cpu::abi::{ACT_GROUP, TILE_N, q8_row};
use crate::cpu::symbols::{Named, matmul_symbols};
use crate::cpu::tile::{GROUP_K, group_bytes, scale_plane_bytes, scale_unit_bytes, tile_bytes};
use crate::quant::{FORMATS, PackedLayout, SUPER_GROUP, Scale, Store};

/// `matmul_<layout>_scalar_n<N>`, of type [`crate::cpu::symbols::MatmulFn`].
pub const SYMBOLS: &[Named] = matmul_symbols!("scalar", int_matmul [1 4], float_matmul [1 4]);

/// One value for each of the 16 outputs of a tile.
type Lanes = [f32; TILE_N];

/// Scales of 32 k: both scale groups (equal halves of the quants; twice the same with groups of 32), and the min.
struct Scales {
    scale: [Lanes; 2],
    min: Lanes,
}

/// # Safety
/// The contract of [`crate::cpu::symbols::MatmulFn`]: `w` holds `tiles` tiles, `x`, `init` (or null) and `y` hold N rows.
#[allow(clippy::too_many_arguments)]
unsafe extern "C" fn int_matmul<const L: usize, const N: usize>(
    w: *const u8,
    x: *const u8,
    init: *const f32,
    y: *mut f32,
    k: usize,
    tiles: usize,
    x_stride: usize,
    init_stride: usize,
    y_stride: usize,
) {
    let layout = const { &FORMATS[L].layout };
    let Some(bytes) = tile_bytes(layout, k) else {
        return;
    };
    let row = q8_row(k);
    let groups_of_16 = usize::from(layout.group) * 2 == GROUP_K;
    for t in 0..tiles {
        // SAFETY: the caller passes `tiles` whole tiles.
        let tile = unsafe { std::slice::from_raw_parts(w.add(t * bytes), bytes) };
        let (plane, quants) = tile.split_at(scale_plane_bytes(layout, k));
        let mut acc = [[0.0; TILE_N]; N];
        for (g, quants) in quants.chunks_exact(group_bytes(layout)).enumerate() {
            let scales = group_scales(layout, plane, g);
            let quads = unpack_group(layout, quants);
            for (n, acc) in acc.iter_mut().enumerate() {
                // SAFETY: the caller passes N int8 rows of length k.
                let x = unsafe { std::slice::from_raw_parts(x.add(n * x_stride), row.bytes) };
                let word = |at: usize| [x[at], x[at + 1], x[at + 2], x[at + 3]];
                let float = |at: usize| f32::from_le_bytes(word(at));
                let zero = |half: usize| {
                    let z = i32::from_le_bytes(word(row.z16 + 8 * g + 4 * half));
                    if layout.zero == 0 {
                        0
                    } else {
                        z >> layout.zero_shift()
                    }
                };
                let q = &x[g * GROUP_K..][..GROUP_K];
                let a = dot(&quads[..4], &q[..ACT_GROUP], zero(0));
                let b = dot(&quads[4..], &q[ACT_GROUP..], zero(1));
                let (d0, d1) = (float(row.d + 8 * g), float(row.d + 8 * g + 4));
                for (c, acc) in acc.iter_mut().enumerate() {
                    let (a, b) = (a[c] as f32, b[c] as f32);
                    if groups_of_16 {
                        *acc += a * (scales.scale[0][c] * d0);
                        *acc += b * (scales.scale[1][c] * d1);
                    } else {
                        *acc += (a * d0 + b * d1) * scales.scale[0][c];
                    }
                }
                if layout.min {
                    let s = float(row.s32 + 4 * g);
                    for (acc, min) in acc.iter_mut().zip(&scales.min) {
                        *acc -= min * s;
                    }
                }
            }
        }
        // SAFETY: `init` and `y` hold N rows of 16 * tiles floats.
        unsafe { store(&acc, init, y, t, init_stride, y_stride) };
    }
}

/// # Safety
/// As `int_matmul`, with f32 rows in `x`.
#[allow(clippy::too_many_arguments)]
unsafe extern "C" fn float_matmul<const L: usize, const N: usize>(
    w: *const u8,
    x: *const u8,
    init: *const f32,
    y: *mut f32,
    k: usize,
    tiles: usize,
    x_stride: usize,
    init_stride: usize,
    y_stride: usize,
) {
    let layout = const { &FORMATS[L].layout };
    let line_bytes = const { FORMATS[L].ty.block_bytes() as usize * TILE_N };
    let Some(bytes) = tile_bytes(layout, k) else {
        return;
    };
    for t in 0..tiles {
        // SAFETY: the caller passes `tiles` whole tiles.
        let tile = unsafe { std::slice::from_raw_parts(w.add(t * bytes), bytes) };
        let mut chains = [[[0.0; TILE_N]; N]; 2];
        for (at, line) in tile.chunks_exact(line_bytes).take(k).enumerate() {
            let weights = float_line(layout, line);
            for (n, acc) in chains[at % 2].iter_mut().enumerate() {
                // SAFETY: the caller passes N rows of k floats.
                let x = unsafe { x.add(n * x_stride).cast::<f32>().add(at).read_unaligned() };
                for (acc, weight) in acc.iter_mut().zip(&weights) {
                    *acc += weight * x;
                }
            }
        }
        let [mut acc, odd] = chains;
        for (acc, odd) in acc.iter_mut().flatten().zip(odd.iter().flatten()) {
            *acc += odd;
        }
        // SAFETY: `init` and `y` hold N rows of 16 * tiles floats.
        unsafe { store(&acc, init, y, t, init_stride, y_stride) };
    }
}

/// Adds `init` to the sums of tile `t` and writes them.
///
/// # Safety
/// `init` (unless null) and `y` hold N rows of at least 16 * (t + 1) floats at their strides.
unsafe fn store<const N: usize>(
    acc: &[Lanes; N],
    init: *const f32,
    y: *mut f32,
    t: usize,
    init_stride: usize,
    y_stride: usize,
) {
    for (n, acc) in acc.iter().enumerate() {
        for (c, &sum) in acc.iter().enumerate() {
            let column = t * TILE_N + c;
            // SAFETY: row n and the column are inside both buffers; they may alias, and each float is read first.
            unsafe {
                let from = match init.is_null() {
                    true => 0.0,
                    false => *init.byte_add(n * init_stride).add(column),
                };
                *y.byte_add(n * y_stride).add(column) = sum + from;
            }
        }
    }
}

/// The 16 weights of one reduction index.
fn float_line(layout: &PackedLayout, line: &[u8]) -> Lanes {
    let mut floats = [0.0; TILE_N];
    match layout.store {
        Store::F16 => {
            let mut halves = [f16::ZERO; TILE_N];
            for (half, b) in halves.iter_mut().zip(line.chunks_exact(2)) {
                *half = f16::from_le_bytes([b[0], b[1]]);
            }
            halves.convert_to_f32_slice(&mut floats);
        }
        Store::Bf16 => {
            for (float, b) in floats.iter_mut().zip(line.chunks_exact(2)) {
                *float = f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
            }
        }
        _ => {
            for (float, b) in floats.iter_mut().zip(line.chunks_exact(4)) {
                *float = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
    }
    floats
}

/// The 8 quads of a group, one byte per stored integer.
fn unpack_group(layout: &PackedLayout, quants: &[u8]) -> [[u8; 64]; 8] {
    let mut quads = [[0; 64]; 8];
    let vector = |i: usize| &quants[64 * i..][..64];
    for (i, quad) in quads.iter_mut().enumerate() {
        let Store::Int(bits) = layout.store else {
            continue;
        };
        let source = vector(if bits == 8 { i } else { i / 2 });
        for (lane, q) in quad.iter_mut().enumerate() {
            *q = match bits {
                8 => source[lane],
                _ => source[lane] >> (4 * (i % 2)) & 15,
            };
        }
        match bits {
            5 => {
                for (q, &high) in quad.iter_mut().zip(vector(4)) {
                    *q |= (high >> i & 1) << 4;
                }
            }
            6 => {
                for (q, &high) in quad.iter_mut().zip(vector(4 + i / 4)) {
                    *q |= (high >> (2 * (i % 4)) & 3) << 4;
                }
            }
            _ => {}
        }
    }
    quads
}

/// Integer dot product of each output with 4 activations per quad, added to `from`.
fn dot(quads: &[[u8; 64]], x: &[u8], from: i32) -> [i32; TILE_N] {
    let mut sums = [from; TILE_N];
    for (quad, x) in quads.iter().zip(x.chunks_exact(4)) {
        for (sum, q) in sums.iter_mut().zip(quad.chunks_exact(4)) {
            for (&q, &x) in q.iter().zip(x) {
                *sum += i32::from(q) * i32::from(x as i8);
            }
        }
    }
    sums
}

/// Scales of the `g`-th 32 k.
fn group_scales(layout: &PackedLayout, plane: &[u8], g: usize) -> Scales {
    let unit = &plane[g * GROUP_K / layout.k_multiple() * scale_unit_bytes(layout)..];
    let pair = 1 + usize::from(layout.min);
    let half = |i: usize| f16::from_le_bytes([unit[2 * i], unit[2 * i + 1]]).to_f32();
    let d: Lanes = std::array::from_fn(half);
    let mut min: Lanes = std::array::from_fn(|c| if layout.min { half(TILE_N + c) } else { 0.0 });
    if layout.scale == Scale::F16 {
        return Scales { scale: [d; 2], min };
    }
    let groups = GROUP_K / usize::from(layout.group);
    let first = g * GROUP_K % SUPER_GROUP / usize::from(layout.group);
    let codes = |group: usize| &unit[(2 + group) * TILE_N * pair..];
    let code = |code: u8| match layout.scale {
        Scale::I8F16 => f32::from(code as i8),
        _ => f32::from(code),
    };
    if layout.min {
        for (min, &m) in min.iter_mut().zip(&codes(first)[TILE_N..]) {
            *min *= code(m);
        }
    }
    let scale = [first, first + groups - 1].map(|group| {
        let codes = codes(group);
        std::array::from_fn(|c| d[c] * code(codes[c]))
    });
    Scales { scale, min }
}
