//! AVX-512 VNNI matmul micro-kernels, weight-stationary: 32 k of 32 outputs (two tiles abreast) are unpacked once into 16
//! vectors and meet the activations of all N rows while they sit in registers. Each activation word that is read meets
//! both tiles: with many rows it is the reading of activations that binds, and with few rows two streams of weights keep
//! more of memory busy than one. Per row the operations and their order are the same in every stamp, so a row's bits do
//! not depend on its batch.

use std::arch::x86_64::*;
use std::hint::black_box;

use super::weights::{Group, PREFETCH, TileReader, load_floats};
use crate::cpu::abi::{LIFT, Q8Block, TILE_N};
use crate::cpu::symbols::{Named, matmul_symbols};
use crate::cpu::tile::{GROUP_K, tile_bytes};
use crate::quant::{FORMATS, PackedLayout};

/// `matmul_<layout>_avx512_n<N>`, of type [`crate::cpu::symbols::MatmulFn`].
pub const SYMBOLS: &[Named] = matmul_symbols!("avx512", int_matmul [1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32], float_matmul [1 2 3 4 5 6 7 8]);

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
                let x = x.add(n * x_stride).cast::<Q8Block>().add(g);
                meet(meeting, &mut sums[n], &groups, x);
            });
        }
        for (n, sums) in sums.iter().enumerate() {
            for (t, &sum) in sums.iter().enumerate() {
                out.store(n, t, sum);
            }
        }
    }
}

/// Adds the products of T times 32 k of 16 outputs with the block `x` of a row to the row's sums. Every word of the row
/// that is read meets all T tiles. The block is no reference: what is known not to change beside the sums has the compiler
/// keep a second copy of those.
///
/// # Safety
/// `x` points at a block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")]
unsafe fn meet<const T: usize>(
    meeting: Meeting,
    sums: &mut [__m512; T],
    groups: &[Group; T],
    x: *const Q8Block,
) {
    // SAFETY: the block has 32 activations, and two of what belongs to a half.
    unsafe {
        let int = |at: *const i32| _mm512_set1_epi32(at.read_unaligned());
        let word = |i: usize| int((&raw const (*x).q).cast::<i32>().add(i));
        let start = |half: usize| match meeting {
            Meeting::Min | Meeting::MinHalves => _mm512_set1_epi32(LIFT.to_bits() as i32),
            _ => int((&raw const (*x).start).cast::<i32>().add(half)),
        };
        let (mut a, mut b) = ([start(0); T], [start(1); T]);
        for i in 0..4 {
            let words = (word(i), word(i + 4));
            for (t, group) in groups.iter().enumerate() {
                a[t] = _mm512_dpbusd_epi32(a[t], group.q[i], words.0);
                b[t] = _mm512_dpbusd_epi32(b[t], group.q[i + 4], words.1);
            }
        }
        for (t, sum) in sums.iter_mut().enumerate() {
            let lifted = [a[t], b[t]].map(|dot| _mm512_castsi512_ps(dot));
            *sum = fold(meeting, *sum, lifted, &groups[t], x);
        }
    }
}

/// How a layout's levels, scales and mins meet a block of activations. Dot products of 16 arrive lifted by
/// [`LIFT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meeting {
    /// Levels around a zero, one scale per 32. Both lifts are taken out together, which rounds the first of the two dot
    /// products to a whole number; with levels shifted by 3 bits or more that is less than a fifth of what one activation's
    /// rounding does.
    Centred,
    /// Levels from 0, a scale and a min per 32; as above.
    Min,
    /// Levels around a zero, one scale per 16, or per 32 for levels that need all 8 bits. Lifts are taken out exactly.
    CentredHalves,
    /// Levels from 0, a scale and a min per 16.
    MinHalves,
}

/// Bits that levels must leave free for [`Meeting::Centred`] and [`Meeting::Min`].
const SPARE_BITS: u32 = 3;

impl Meeting {
    const fn of(layout: &PackedLayout) -> Meeting {
        let spare = layout.level_shift() >= SPARE_BITS;
        match (layout.min, layout.group) {
            (true, 16) => Meeting::MinHalves,
            (true, _) => {
                assert!(spare, "no kernel for 8-bit levels with a min");
                Meeting::Min
            }
            (false, 32) if spare => Meeting::Centred,
            (false, _) => Meeting::CentredHalves,
        }
    }
}

/// Adds the dot products of both halves, lifted by [`LIFT`], to a row's sums.
///
/// # Safety
/// `x` points at a block.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn fold(
    meeting: Meeting,
    acc: __m512,
    [a, b]: [__m512; 2],
    group: &Group,
    x: *const Q8Block,
) -> __m512 {
    let [scale0, scale1] = group.scale;
    let [min0, min1] = group.min;
    // SAFETY: by the caller.
    unsafe {
        let (d0, d1) = (_mm512_set1_ps((*x).d[0]), _mm512_set1_ps((*x).d[1]));
        let unlift = |half: usize| _mm512_set1_ps((*x).unlift[half]);
        match meeting {
            Meeting::Centred | Meeting::Min => {
                let sum = _mm512_fmadd_ps(a, d0, _mm512_set1_ps((*x).unlift_both));
                let acc = _mm512_fmadd_ps(_mm512_fmadd_ps(b, d1, sum), scale0, acc);
                match meeting {
                    Meeting::Min => _mm512_fnmadd_ps(min0, _mm512_set1_ps((*x).sum), acc),
                    _ => acc,
                }
            }
            Meeting::CentredHalves => {
                let acc = _mm512_fmadd_ps(_mm512_fmadd_ps(a, d0, unlift(0)), scale0, acc);
                _mm512_fmadd_ps(_mm512_fmadd_ps(b, d1, unlift(1)), scale1, acc)
            }
            Meeting::MinHalves => {
                let lift = _mm512_set1_ps(LIFT);
                let z = |half: usize| _mm512_sub_ps(_mm512_set1_ps((*x).start[half]), lift);
                let [a, b] = [a, b].map(|dot| _mm512_sub_ps(dot, lift));
                let a = _mm512_fmadd_ps(a, scale0, _mm512_mul_ps(min0, z(0)));
                let b = _mm512_fmadd_ps(b, scale1, _mm512_mul_ps(min1, z(1)));
                _mm512_fmadd_ps(b, d1, _mm512_fmadd_ps(a, d0, acc))
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
