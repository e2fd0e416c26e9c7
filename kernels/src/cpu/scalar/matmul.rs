//! Portable matmul micro-kernels over packed tiles. The order of operations per row is the one all ISAs share: per 16 k
//! an exact integer dot product, per 32 k the f32 folds of both.

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::cpu::abi::{ACT_GROUP, LIFT, Q8Block, TILE_N};
use crate::cpu::symbols::{Named, matmul_symbols};
use crate::cpu::tile::{
    GROUP_K, group_bytes, planes, scale_codes, scale_codes_bytes, scale_halves_bytes,
    scale_plane_bytes, scale_unit_bytes, tile_bytes,
};
use crate::quant::{FORMATS, PackedLayout, Scale, Store, exponent_scale};

/// `matmul_<layout>_scalar_n<N>`, of type [`crate::cpu::symbols::MatmulFn`].
pub const SYMBOLS: &[Named] = matmul_symbols!("scalar", int_matmul [1 4], float_matmul [1 4]);

/// One value for each of the 16 outputs of a tile.
type Lanes = [f32; TILE_N];

/// Scales and mins of 32 k: both scale groups (equal halves of the quants; twice the same with groups of 32).
struct Scales {
    scale: [Lanes; 2],
    min: [Lanes; 2],
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
                let x = unsafe { &*x.add(n * x_stride).cast::<Q8Block>().add(g) };
                let zeros = x.start.map(|start| (start - LIFT) as i32);
                let from = zeros.map(|zero| match layout.zero {
                    0 => 0,
                    _ => zero >> layout.zero_shift(),
                });
                let a = dot(&quads[..4], &x.q[..ACT_GROUP], from[0]);
                let b = dot(&quads[4..], &x.q[ACT_GROUP..], from[1]);
                let [d0, d1] = x.d;
                let (scale, min) = (&scales.scale, &scales.min);
                // Sums of the 16 activations before their scale.
                let sums = zeros.map(|zero| (zero / -128) as f32);
                for (c, acc) in acc.iter_mut().enumerate() {
                    let (a, b) = (a[c] as f32, b[c] as f32);
                    match (groups_of_16, layout.min) {
                        (true, true) => {
                            *acc += (a * scale[0][c] - sums[0] * min[0][c]) * d0;
                            *acc += (b * scale[1][c] - sums[1] * min[1][c]) * d1;
                        }
                        (true, false) => {
                            *acc += a * (scale[0][c] * d0);
                            *acc += b * (scale[1][c] * d1);
                        }
                        (false, _) => *acc += (a * d0 + b * d1) * scale[0][c],
                    }
                }
                if layout.min && !groups_of_16 {
                    for (acc, min) in acc.iter_mut().zip(&min[0]) {
                        *acc -= min * x.sum;
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

/// The levels of the 8 quads of a group, one byte each.
fn unpack_group(layout: &PackedLayout, quants: &[u8]) -> [[u8; 64]; 8] {
    let (low, top) = planes(layout);
    let mut quads = [[0; 64]; 8];
    for (i, quad) in quads.iter_mut().enumerate() {
        // Adds the plane of `width` bits whose first vector is `first`, at bit `to`.
        let mut plane = |first: usize, width: usize, to: usize| {
            let at = i * width;
            let vector = &quants[64 * (first + at / 8)..][..64];
            for (q, &bits) in quad.iter_mut().zip(vector) {
                *q |= (bits >> (at % 8) & (u8::MAX >> (8 - width))) << to;
            }
        };
        plane(0, low, 0);
        if top > 0 {
            plane(low, top, low);
        }
        if let Store::Code(_) = layout.store {
            let levels = layout.levels();
            for q in quad.iter_mut() {
                *q = levels[usize::from(*q)];
            }
        }
    }
    quads
}

/// Integer dot product of each output with 4 activations per quad, added to `from`.
fn dot(quads: &[[u8; 64]], x: &[i8], from: i32) -> [i32; TILE_N] {
    let mut sums = [from; TILE_N];
    for (quad, x) in quads.iter().zip(x.chunks_exact(4)) {
        for (sum, q) in sums.iter_mut().zip(quad.chunks_exact(4)) {
            for (&q, &x) in q.iter().zip(x) {
                *sum += i32::from(q) * i32::from(x);
            }
        }
    }
    sums
}

/// Scales of the `g`-th 32 k.
fn group_scales(layout: &PackedLayout, plane: &[u8], g: usize) -> Scales {
    let unit = &plane[g * GROUP_K / layout.k_multiple() * scale_unit_bytes(layout)..];
    let (halves, codes) = unit.split_at(scale_halves_bytes(layout));
    let mut d = [[0.0; TILE_N]; 2];
    for (d, halves) in d.iter_mut().zip(halves.chunks_exact(2 * TILE_N)) {
        for (d, b) in d.iter_mut().zip(halves.chunks_exact(2)) {
            *d = f16::from_le_bytes([b[0], b[1]]).to_f32();
        }
    }
    let [d, m] = d;
    let mut scales = Scales {
        scale: [d; 2],
        min: [m; 2],
    };
    let width = scale_codes_bytes(layout);
    if width == 0 {
        return scales;
    }
    let groups = GROUP_K / usize::from(layout.group);
    let first = g * GROUP_K % layout.k_multiple() / usize::from(layout.group);
    for half in 0..2 {
        let codes = &codes[(first + half * (groups - 1)) * width..][..width];
        for c in 0..TILE_N {
            let (sc, mn) = scale_codes(layout, codes, c);
            (scales.scale[half][c], scales.min[half][c]) = match layout.scale {
                Scale::E8 => (exponent_scale(sc), 0.0),
                Scale::I8F16 => (d[c] * f32::from(sc as i8), m[c] * f32::from(mn as i8)),
                _ => (d[c] * f32::from(sc), m[c] * f32::from(mn)),
            };
        }
    }
    scales
}
