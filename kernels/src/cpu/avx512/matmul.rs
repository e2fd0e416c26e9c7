//! AVX-512 VNNI matmul micro-kernels, weight-stationary: 32 k of 32 outputs (two tiles abreast) are unpacked once into 16
//! vectors and meet the activations of all N rows while they sit in registers. Each activation word that is read meets
//! both tiles: with many rows it is the reading of activations that binds, and with few rows two streams of weights keep
//! more of memory busy than one. Per row the operations and their order are the same in every stamp, so a row's bits do
//! not depend on its batch.

use std::arch::x86_64::*;
use std::hint::black_box;

use super::weights::{Group, group_scale, load_floats, unit_halves, unpack};
use crate::cpu::abi::{Q8Row, TILE_N, q8_row};
use crate::cpu::symbols::{Named, matmul_symbols};
use crate::cpu::tile::{
    GROUP_K, group_bytes, scale_halves_bytes, scale_plane_bytes, scale_unit_bytes, tile_bytes,
};
use crate::quant::{FORMATS, PackedLayout};

/// `matmul_<layout>_avx512_n<N>`, of type [`crate::cpu::symbols::MatmulFn`].
pub const SYMBOLS: &[Named] = matmul_symbols!("avx512", int_matmul [1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32], float_matmul [1 2 3 4 5 6 7 8]);

/// Bytes between the weights being used and those being prefetched: a read of memory takes about as long as the
/// arithmetic on this much (measured: without it one row streams at 60 % of the bandwidth).
const PREFETCH: usize = 16384;

/// From this many rows on their sums wait in L1.
const ROWS_IN_MEMORY: usize = 6;

/// Runs the body once per row with a constant row number, so that what is indexed by it may stay in registers.
macro_rules! each_row {
    ($rows:expr, $n:ident => $body:block) => {
        each_row!(@ $rows, $n, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31)
    };
    (@ $rows:expr, $n:ident, $body:block, $($i:literal)*) => {
        $(if $i < $rows {
            let $n: usize = $i;
            $body
        })*
    };
}

/// # Safety
/// The contract of [`crate::cpu::symbols::MatmulFn`]: `w` holds `tiles` tiles, `x`, `init` (or null) and `y` hold N rows;
/// and the CPU has the features.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c")]
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
    let Some(bytes) = tile_bytes(const { &FORMATS[L].layout }, k) else {
        return;
    };
    let out = Output {
        init,
        init_stride,
        y,
        y_stride,
    };
    // SAFETY: by the caller; both see tiles below `tiles` only.
    unsafe {
        for t in (0..tiles - tiles % 2).step_by(2) {
            abreast::<L, N, 2>(w.add(t * bytes), bytes, x, x_stride, k, &out.at_tile(t));
        }
        if tiles % 2 == 1 {
            let t = tiles - 1;
            abreast::<L, N, 1>(w.add(t * bytes), bytes, x, x_stride, k, &out.at_tile(t));
        }
    }
}

/// N rows against T tiles, side by side. While rows take their turns, what comes later of the tiles is prefetched, a few lines
/// with each: many at once would fill the buffers of L1, and loads would have to wait for memory behind them.
///
/// # Safety
/// `w` holds T tiles of `bytes` bytes, `x` N int8 rows of length `k`, `out` N rows of 16 T floats.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c")]
unsafe fn abreast<const L: usize, const N: usize, const T: usize>(
    w: *const u8,
    bytes: usize,
    x: *const u8,
    x_stride: usize,
    k: usize,
    out: &Output,
) {
    let meeting = const { Meeting::of(&FORMATS[L].layout) };
    let row = q8_row(k);
    let mut sums = [[_mm512_setzero_ps(); T]; N];
    // Of many rows only a part would find place in registers, and what a turn needs would be moved out of their way.
    let sums = match N {
        0..ROWS_IN_MEMORY => &mut sums,
        _ => black_box(&mut sums),
    };
    let mut tiles: [_; T] =
        std::array::from_fn(|t| TileReader::<L>::new(w.wrapping_add(t * bytes), k, bytes, T));
    // SAFETY: reads stay inside the T tiles and the N rows.
    unsafe {
        for g in 0..k / GROUP_K {
            let mut groups = [Group::ZERO; T];
            for (group, tile) in groups.iter_mut().zip(&mut tiles) {
                *group = tile.next();
            }
            each_row!(N, n => {
                for tile in &tiles {
                    tile.prefetch::<N>(n);
                }
                meet(meeting, &mut sums[n], &groups, x.add(n * x_stride), &row, g);
            });
        }
        for (n, sums) in sums.iter().enumerate() {
            for (t, &sum) in sums.iter().enumerate() {
                out.store(n, t, sum);
            }
        }
    }
}

/// Adds the products of T times 32 k of 16 outputs with group `g` of the row `x` to the row's sums. Every word of the row
/// that is read meets all T tiles.
///
/// # Safety
/// `x` is an int8 row of layout `row` with more than `g` groups.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")]
unsafe fn meet<const T: usize>(
    meeting: Meeting,
    sums: &mut [__m512; T],
    groups: &[Group; T],
    x: *const u8,
    row: &Q8Row,
    g: usize,
) {
    // SAFETY: group g has its quants at 32 g and its z16 at 8 g.
    unsafe {
        let int = |at: usize| _mm512_set1_epi32(x.add(at).cast::<i32>().read_unaligned());
        let (a, b) = match meeting {
            Meeting::Min | Meeting::MinHalves => (_mm512_setzero_si512(), _mm512_setzero_si512()),
            _ => (int(row.z16 + 8 * g), int(row.z16 + 8 * g + 4)),
        };
        let (mut a, mut b) = ([a; T], [b; T]);
        for i in 0..4 {
            let words = (int(GROUP_K * g + 4 * i), int(GROUP_K * g + 4 * (i + 4)));
            for (t, group) in groups.iter().enumerate() {
                a[t] = _mm512_dpbusd_epi32(a[t], group.q[i], words.0);
                b[t] = _mm512_dpbusd_epi32(b[t], group.q[i + 4], words.1);
            }
        }
        for (t, sum) in sums.iter_mut().enumerate() {
            *sum = fold(meeting, *sum, a[t], b[t], &groups[t], x, row, g);
        }
    }
}

/// How a layout's levels, scales and mins meet a row of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meeting {
    /// Levels around a zero, one scale per 32.
    Centred,
    /// Levels from 0, a scale and a min per 32.
    Min,
    /// Levels around a zero, one scale per 16.
    CentredHalves,
    /// Levels from 0, a scale and a min per 16.
    MinHalves,
}

impl Meeting {
    const fn of(layout: &PackedLayout) -> Meeting {
        match (layout.min, layout.group) {
            (false, 16) => Meeting::CentredHalves,
            (true, 16) => Meeting::MinHalves,
            (false, _) => Meeting::Centred,
            (true, _) => Meeting::Min,
        }
    }
}

/// Adds the dot products `a` and `b` of the halves of group `g` of the row `x` to the row's sums.
///
/// # Safety
/// `x` is an int8 row of layout `row` with more than `g` groups.
#[inline]
#[target_feature(enable = "avx512f")]
#[allow(clippy::too_many_arguments)]
unsafe fn fold(
    meeting: Meeting,
    acc: __m512,
    a: __m512i,
    b: __m512i,
    group: &Group,
    x: *const u8,
    row: &Q8Row,
    g: usize,
) -> __m512 {
    // SAFETY: group g has its d and z16 at 8 g and its s32 at 4 g.
    unsafe {
        let float = |at: usize| _mm512_set1_ps(x.add(at).cast::<f32>().read_unaligned());
        let z16 = |half: usize| {
            let at = x.add(row.z16 + 8 * g + 4 * half).cast::<i32>();
            _mm512_cvtepi32_ps(_mm512_set1_epi32(at.read_unaligned()))
        };
        let (a, b) = (_mm512_cvtepi32_ps(a), _mm512_cvtepi32_ps(b));
        let (d0, d1) = (float(row.d + 8 * g), float(row.d + 8 * g + 4));
        let [scale0, scale1] = group.scale;
        let [min0, min1] = group.min;
        match meeting {
            Meeting::Centred | Meeting::Min => {
                let sum = _mm512_fmadd_ps(b, d1, _mm512_mul_ps(a, d0));
                let acc = _mm512_fmadd_ps(sum, scale0, acc);
                match meeting {
                    Meeting::Min => _mm512_fnmadd_ps(min0, float(row.s32 + 4 * g), acc),
                    _ => acc,
                }
            }
            Meeting::CentredHalves => {
                let acc = _mm512_fmadd_ps(a, _mm512_mul_ps(scale0, d0), acc);
                _mm512_fmadd_ps(b, _mm512_mul_ps(scale1, d1), acc)
            }
            Meeting::MinHalves => {
                let a = _mm512_fmadd_ps(a, scale0, _mm512_mul_ps(min0, z16(0)));
                let b = _mm512_fmadd_ps(b, scale1, _mm512_mul_ps(min1, z16(1)));
                _mm512_fmadd_ps(b, d1, _mm512_fmadd_ps(a, d0, acc))
            }
        }
    }
}

/// Walks a tile, 32 k at a time.
struct TileReader<const L: usize> {
    /// The next unit of the scale plane.
    unit: *const u8,
    /// Codes of the next scale group, in the unit being read.
    codes: *const u8,
    /// Steps of 32 k left in that unit.
    left: usize,
    d: __m512,
    m: __m512,
    quants: *const u8,
    /// What is prefetched in this step, and how far that moves from step to step.
    ahead: *const u8,
    stride: usize,
    /// Where `ahead` leaves the tile, and what it jumps over then.
    end: *const u8,
    skip: usize,
}

impl<const L: usize> TileReader<L> {
    /// At the beginning of the tile `w` of reduction length `k` and `bytes` bytes, one of `abreast` tiles that are read together.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(w: *const u8, k: usize, bytes: usize, abreast: usize) -> TileReader<L> {
        let layout = const { &FORMATS[L].layout };
        let stride = bytes / (k / GROUP_K);
        TileReader {
            unit: w,
            codes: w,
            left: 0,
            d: _mm512_setzero_ps(),
            m: _mm512_setzero_ps(),
            quants: w.wrapping_add(scale_plane_bytes(layout, k)),
            ahead: w.wrapping_add(PREFETCH / abreast).wrapping_sub(stride),
            stride,
            end: w.wrapping_add(bytes),
            skip: bytes * (abreast - 1),
        }
    }

    /// Prefetches one of `PARTS` parts of what belongs to this step.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn prefetch<const PARTS: usize>(&self, part: usize) {
        let lines = const {
            let layout = &FORMATS[L].layout;
            let scales = scale_unit_bytes(layout) / (layout.k_multiple() / GROUP_K);
            (group_bytes(layout) + scales).div_ceil(64)
        };
        for line in lines * part / PARTS..lines * (part + 1) / PARTS {
            _mm_prefetch::<_MM_HINT_T1>(self.ahead.wrapping_add(64 * line).cast());
        }
    }

    /// The next 32 k, unpacked.
    ///
    /// # Safety
    /// The tile has 32 k more.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn next(&mut self) -> Group {
        let layout = const { &FORMATS[L].layout };
        self.ahead = self.ahead.wrapping_add(self.stride);
        if self.ahead >= self.end {
            self.ahead = self.ahead.wrapping_add(self.skip);
            self.skip = 0;
        }
        // SAFETY: the unit and the quants are inside the tile.
        unsafe {
            if self.left == 0 {
                (self.d, self.m) = unit_halves::<L>(self.unit);
                self.codes = self.unit.add(scale_halves_bytes(layout));
                self.unit = self.unit.add(scale_unit_bytes(layout));
                self.left = layout.k_multiple() / GROUP_K;
            }
            self.left -= 1;
            let first = group_scale::<L>(self.d, self.m, &mut self.codes);
            let second = match layout.group {
                16 => group_scale::<L>(self.d, self.m, &mut self.codes),
                _ => first,
            };
            let q = unpack::<L>(self.quants);
            self.quants = self.quants.add(group_bytes(layout));
            Group {
                q,
                scale: [first.0, second.0],
                min: [first.1, second.1],
            }
        }
    }
}

/// # Safety
/// As `int_matmul`, with f32 rows in `x`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c")]
#[allow(clippy::too_many_arguments)]
unsafe extern "C" fn float_matmul<const L: usize, const N: usize>(
    mut w: *const u8,
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
    let line = const { FORMATS[L].ty.block_bytes() as usize * TILE_N };
    let Some(bytes) = tile_bytes(layout, k) else {
        return;
    };
    let out = Output {
        init,
        init_stride,
        y,
        y_stride,
    };
    for t in 0..tiles {
        let (mut even, mut odd) = ([_mm512_setzero_ps(); N], [_mm512_setzero_ps(); N]);
        // SAFETY: reads stay inside tile t and inside the N rows of k floats. Prefetches may point anywhere.
        unsafe {
            let float = |n: usize, at: usize| {
                _mm512_set1_ps(x.add(n * x_stride + 4 * at).cast::<f32>().read_unaligned())
            };
            for pair in 0..k / 2 {
                let at = 2 * pair;
                let here = w.add(at * line);
                _mm_prefetch::<_MM_HINT_T1>(here.wrapping_add(PREFETCH).cast());
                if line == 64 {
                    _mm_prefetch::<_MM_HINT_T1>(here.wrapping_add(PREFETCH + 64).cast());
                }
                let (w0, w1) = (load_floats::<L>(here), load_floats::<L>(here.add(line)));
                each_row!(N, n => {
                    even[n] = _mm512_fmadd_ps(w0, float(n, at), even[n]);
                    odd[n] = _mm512_fmadd_ps(w1, float(n, at + 1), odd[n]);
                });
            }
            if k % 2 == 1 {
                let last = load_floats::<L>(w.add((k - 1) * line));
                each_row!(N, n => {
                    even[n] = _mm512_fmadd_ps(last, float(n, k - 1), even[n]);
                });
            }
        }
        w = w.wrapping_add(bytes);
        each_row!(N, n => {
            // SAFETY: `init` and `y` hold N rows of 16 * tiles floats.
            unsafe { out.store(n, t, _mm512_add_ps(even[n], odd[n])) };
        });
    }
}

/// Where sums go, and what they are added to.
#[derive(Clone, Copy)]
struct Output {
    /// Null for zeros.
    init: *const f32,
    init_stride: usize,
    y: *mut f32,
    y_stride: usize,
}

impl Output {
    /// The same rows from the outputs of tile `t` on.
    fn at_tile(self, t: usize) -> Output {
        Output {
            init: match self.init.is_null() {
                true => self.init,
                false => self.init.wrapping_add(t * TILE_N),
            },
            y: self.y.wrapping_add(t * TILE_N),
            ..self
        }
    }

    /// Adds the start value to the sums of row `n` and tile `t` and writes them.
    ///
    /// # Safety
    /// Both buffers have the row and the tile.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store(&self, n: usize, t: usize, mut sum: __m512) {
        // SAFETY: by the caller; the buffers may alias, and init is read before the write.
        unsafe {
            if !self.init.is_null() {
                let init = self.init.byte_add(n * self.init_stride).add(t * TILE_N);
                sum = _mm512_add_ps(sum, _mm512_loadu_ps(init));
            }
            _mm512_storeu_ps(self.y.byte_add(n * self.y_stride).add(t * TILE_N), sum);
        }
    }
}
