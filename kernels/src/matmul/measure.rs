//! Times matmul micro-kernels on this machine as a step program runs them: all workers at once, each on its share of the
//! tiles of one matrix, with weights that no cache holds. Every timed result is compared with the reference. What to time,
//! how often, and what to make of it is the caller's business.

mod memory;

use std::fmt;
use std::ops::Range;
use std::time::Instant;

use half::{bf16, f16};

use memory::{Line, Rendezvous, bytes, bytes_mut, evict, lines};
pub use memory::{read_bandwidth, sum};

use super::{Isa, Reason, VariantId, activation_row_bytes, reference};
use crate::cpu::abi::{Q8Block, TILE_N};
use crate::cpu::symbols::{MatmulFn, QuantiseFn};
use crate::cpu::tile::{
    dequantise_tile_row, scale_halves_bytes, scale_plane_bytes, scale_unit_bytes, tile_bytes,
};
use crate::cpu::{self};
use crate::quant::{PackedLayout, Scale, Store};

/// A larger matrix is timed by this much of it.
const MOST_BYTES: usize = 8 << 20;
/// Tiles with weights of their own; the others repeat them. Timing does not depend on values, and checking needs them
/// as f32.
const DISTINCT: usize = 4;
/// Largest error of a result, relative to the sum of the magnitudes it is a sum of: that of a sum in f32.
const TOLERANCE: f32 = 1e-5;

/// A matrix of one shape, cut among workers, and rows to multiply it with.
pub struct Bench {
    layout: PackedLayout,
    k: usize,
    tile: usize,
    /// Of how much more than is timed the matrix consists.
    scale: f64,
    /// Tiles that are warm at a time, as in emitted code.
    span: usize,
    weights: Vec<Line>,
    x: Vec<Line>,
    /// Each worker's tiles, and its output rows.
    shares: Vec<(Range<usize>, Vec<f32>)>,
    rows: usize,
    /// `[rows][outputs of the distinct tiles]`.
    expected: Vec<f32>,
    /// What an error is relative to, likewise.
    magnitude: Vec<f32>,
}

/// Times of one run over the whole matrix, seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Weights came from memory.
    pub cold: f64,
    /// Weights had just been read.
    pub warm: f64,
}

/// Why there is no sample.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// The kernel cannot run here.
    Illegal(Reason),
    /// Its result is wrong.
    Wrong {
        /// Which kernel.
        kernel: VariantId,
        /// Its error, relative to the magnitudes summed.
        error: f32,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Illegal(reason) => reason.fmt(f),
            Failure::Wrong { kernel, error } => {
                write!(f, "{kernel} is off by {error} of the sum of magnitudes")
            }
        }
    }
}

impl Bench {
    /// A matrix `[n, k]` of `layout` for `workers` threads, and activation rows for stamps of up to `rows` rows.
    /// `l2_bytes` is the cache in which weights stay warm.
    ///
    /// # Errors
    /// k does not fit the layout.
    pub fn new(
        layout: PackedLayout,
        (n, k): (usize, usize),
        rows: usize,
        workers: usize,
        l2_bytes: usize,
    ) -> Result<Bench, Reason> {
        let multiple = layout.k_multiple();
        let tile = tile_bytes(&layout, k).ok_or(Reason::KMultiple { k, multiple })?;
        let all = n.div_ceil(TILE_N).max(1);
        let tiles = all.min((MOST_BYTES / tile).max(workers));
        let distinct = tiles.min(DISTINCT);
        let mut weights = lines(tiles * tile);
        let filled = &mut bytes_mut(&mut weights)[..distinct * tile];
        for (i, tile) in filled.chunks_exact_mut(tile).enumerate() {
            fill_tile(&layout, k, i as u32, tile);
        }
        for t in distinct..tiles {
            let from = t % distinct * tile;
            bytes_mut(&mut weights).copy_within(from..from + tile, t * tile);
        }
        let (x, values) = activations(&layout, rows, k);
        let mut matrix = vec![0.0; distinct * TILE_N * k];
        for (i, row) in matrix.chunks_exact_mut(k).enumerate() {
            let tile = &bytes(&weights)[i / TILE_N * tile..][..tile];
            dequantise_tile_row(&layout, tile, i % TILE_N, row);
        }
        let abs = |v: &[f32]| v.iter().map(|v| v.abs()).collect::<Vec<_>>();
        let shares = (0..workers.max(1)).map(|w| {
            let workers = workers.max(1);
            let range = tiles * w / workers..tiles * (w + 1) / workers;
            let y = vec![0.0; rows * range.len() * TILE_N];
            (range, y)
        });
        Ok(Bench {
            layout,
            k,
            tile,
            scale: all as f64 / tiles as f64,
            span: (l2_bytes / 4 / tile).max(1),
            shares: shares.collect(),
            rows,
            expected: reference(&values, &matrix, k),
            magnitude: reference(&abs(&values), &abs(&matrix), k),
            weights,
            x,
        })
    }

    /// Runs the stamp over the whole matrix twice: once with all weights cold, once with every span twice, of which the
    /// second, warm one is timed. Each span is timed by itself, and the middle half of all workers' spans counts: who
    /// loses a core for a while loses a span.
    ///
    /// # Errors
    /// This CPU lacks the ISA, there is no such stamp, or its result is wrong.
    pub fn sample(&mut self, isa: Isa, stamp: usize) -> Result<Sample, Failure> {
        let kernel = VariantId {
            layout: self.layout,
            isa,
            stamp,
        };
        if !isa.available() {
            return Err(Failure::Illegal(Reason::Isa(isa)));
        }
        let rows = self.rows;
        if stamp > rows {
            return Err(Failure::Illegal(Reason::Rows { stamp, rows }));
        }
        let symbol =
            cpu::lookup(&kernel.to_string()).ok_or(Failure::Illegal(Reason::NoStamp(kernel)))?;
        // SAFETY: the symbol has this type by its name.
        let matmul: MatmulFn = unsafe { std::mem::transmute(symbol.0) };
        let (k, tile, span) = (self.k, self.tile, self.span);
        let x = bytes(&self.x);
        let x_stride = activation_row_bytes(&self.layout, k);
        let weights = bytes(&self.weights);
        let start = Rendezvous::new(self.shares.len());
        let worker = |range: Range<usize>, y: &mut [f32]| {
            let own = &weights[range.start * tile..range.end * tile];
            let y_stride = range.len() * TILE_N * 4;
            let mut call = |tiles: Range<usize>| {
                let w = &own[tiles.start * tile..tiles.end * tile];
                let y = &mut y[tiles.start * TILE_N..];
                let begin = Instant::now();
                // SAFETY: `w` holds the tiles, `x` at least `stamp` rows, and `y` as many rows of this worker's outputs,
                // from the first tile's on; the CPU has the features.
                unsafe {
                    matmul(
                        w.as_ptr(),
                        x.as_ptr(),
                        std::ptr::null(),
                        y.as_mut_ptr(),
                        k,
                        tiles.len(),
                        x_stride,
                        0,
                        y_stride,
                    );
                }
                begin.elapsed().as_secs_f64()
            };
            let spans = || {
                let starts = (0..range.len()).step_by(span);
                starts.map(|first| first..(first + span).min(range.len()))
            };
            let per_tile = |tiles: Range<usize>, seconds: f64| seconds / tiles.len() as f64;
            evict(own);
            start.wait();
            let cold: Vec<f64> = spans().map(|t| per_tile(t.clone(), call(t))).collect();
            evict(own);
            start.wait();
            let warm = spans().map(|t| {
                call(t.clone());
                per_tile(t.clone(), call(t))
            });
            (cold, warm.collect::<Vec<f64>>())
        };
        let (mut cold, mut warm) = (Vec::new(), Vec::new());
        std::thread::scope(|scope| {
            let workers: Vec<_> = self
                .shares
                .iter_mut()
                .map(|(range, y)| {
                    y.fill(f32::NAN);
                    let range = range.clone();
                    scope.spawn(|| worker(range, y))
                })
                .collect();
            for worker in workers {
                // A worker cannot panic: it calls a kernel and reads the clock.
                let (c, w) = worker.join().unwrap_or_default();
                cold.extend(c);
                warm.extend(w);
            }
        });
        // Workers wait for the one with most tiles.
        let share = self.shares.iter().map(|(range, _)| range.len()).max();
        let whole = share.unwrap_or(0) as f64 * self.scale;
        match self.worst(stamp) {
            error if error <= TOLERANCE => Ok(Sample {
                cold: middle(cold) * whole,
                warm: middle(warm) * whole,
            }),
            error => Err(Failure::Wrong { kernel, error }),
        }
    }

    /// Largest relative error in the first `stamp` rows of all outputs; infinite for one that was not written.
    fn worst(&self, stamp: usize) -> f32 {
        let width = self.expected.len() / self.rows;
        let mut worst = 0.0f32;
        for (range, y) in &self.shares {
            for (row, y) in y
                .chunks_exact((range.len() * TILE_N).max(1))
                .take(stamp)
                .enumerate()
            {
                for (i, y) in y.iter().enumerate() {
                    let at = row * width + (range.start * TILE_N + i) % width;
                    let error = (y - self.expected[at]).abs() / self.magnitude[at].max(1e-6);
                    worst = worst.max(if error.is_nan() { f32::INFINITY } else { error });
                }
            }
        }
        worst
    }
}

/// Mean of the middle half: what stands out at either end is something else's doing. NaN of nothing.
pub fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let cut = values.len() / 4;
    let middle = &values[cut..values.len() - cut];
    middle.iter().sum::<f64>() / middle.len() as f64
}

/// A tile of weights of ordinary size that differ from tile to tile.
fn fill_tile(layout: &PackedLayout, k: usize, seed: u32, tile: &mut [u8]) {
    let mut state = seed;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as u16
    };
    let signed = |bits: u16| f32::from(bits as i16) / 32768.0;
    match layout.store {
        Store::F32 => tile
            .chunks_exact_mut(4)
            .for_each(|b| b.copy_from_slice(&signed(random()).to_le_bytes())),
        Store::F16 => tile
            .chunks_exact_mut(2)
            .for_each(|b| b.copy_from_slice(&f16::from_f32(signed(random())).to_le_bytes())),
        Store::Bf16 => tile
            .chunks_exact_mut(2)
            .for_each(|b| b.copy_from_slice(&bf16::from_f32(signed(random())).to_le_bytes())),
        Store::Int(_) | Store::Code(_) => {
            let (scales, quants) = tile.split_at_mut(scale_plane_bytes(layout, k));
            quants.iter_mut().for_each(|q| *q = random() as u8);
            if layout.scale == Scale::E8 {
                // Powers of two from 2^-8 to 2^-1.
                scales
                    .iter_mut()
                    .for_each(|e| *e = 120 + random() as u8 % 8);
                return;
            }
            let halves = scale_halves_bytes(layout);
            for unit in scales.chunks_exact_mut(scale_unit_bytes(layout)) {
                let (halves, codes) = unit.split_at_mut(halves);
                for half in halves.chunks_exact_mut(2) {
                    let scale = f16::from_f32(0.02 + 0.01 * signed(random()));
                    half.copy_from_slice(&scale.to_le_bytes());
                }
                codes.iter_mut().for_each(|c| *c = 1 + random() as u8 % 63);
            }
        }
    }
}

/// Rows as the kernels of `layout` read them, and the values they stand for.
fn activations(layout: &PackedLayout, rows: usize, k: usize) -> (Vec<Line>, Vec<f32>) {
    let plain: Vec<f32> = (0..rows * k)
        .map(|i| ((i * 67 % 257) as f32 - 120.0) * 0.013)
        .collect();
    let stride = activation_row_bytes(layout, k);
    let mut x = lines(rows * stride);
    if layout.int_bits().is_none() {
        for (value, b) in plain.iter().zip(bytes_mut(&mut x).chunks_exact_mut(4)) {
            b.copy_from_slice(&value.to_le_bytes());
        }
        return (x, plain);
    }
    let quantise = cpu::lookup("quantise_scalar").expect("every build has the scalar kernels");
    // SAFETY: the symbol has this type by its name; both buffers hold the rows at these strides.
    unsafe {
        let quantise: QuantiseFn = std::mem::transmute(quantise.0);
        let out = bytes_mut(&mut x).as_mut_ptr();
        quantise(plain.as_ptr(), out, k, rows, k * 4, stride);
    }
    let rows = bytes(&x).chunks_exact(stride).take(rows);
    let values = rows.flat_map(|row| Q8Block::of_row(row, k));
    let values = values.flat_map(Q8Block::values).collect();
    (x, values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::VARIANTS;
    use crate::quant::{FORMATS, Q4_K};

    /// Every stamp of every layout, on shapes whose tiles do not divide evenly: a sample is a time of a right result.
    #[test]
    fn every_stamp_can_be_timed() {
        for fmt in FORMATS {
            let mut bench = Bench::new(fmt.layout, (70, 256), 16, 2, 1 << 20).expect("legal k");
            for v in VARIANTS
                .iter()
                .filter(|v| v.isa.available() && v.stamp <= 16)
            {
                match bench.sample(v.isa, v.stamp) {
                    Ok(s) => assert!(s.cold > 0.0 && s.warm > 0.0, "{} {v:?}", fmt.ty),
                    Err(Failure::Illegal(Reason::NoStamp(_))) => {}
                    Err(why) => panic!("{} {v:?}: {why}", fmt.ty),
                }
            }
        }
    }

    #[test]
    fn a_wrong_result_is_no_sample() {
        let mut bench = Bench::new(Q4_K.layout, (40, 256), 4, 3, 1 << 20).expect("legal k");
        bench.expected[20] += 0.1 * bench.magnitude[20];
        let found = bench.sample(Isa::Scalar, 4);
        assert!(matches!(found, Err(Failure::Wrong { .. })), "{found:?}");
        let none = bench.sample(Isa::Scalar, 3);
        assert!(
            matches!(none, Err(Failure::Illegal(Reason::NoStamp(_)))),
            "{none:?}"
        );
        let short = bench.sample(Isa::Scalar, 5);
        assert!(
            matches!(short, Err(Failure::Illegal(Reason::Rows { .. }))),
            "{short:?}"
        );
    }

    #[test]
    fn the_middle_ignores_outliers() {
        assert_eq!(middle(vec![9.0, 1.0, 2.0, 3.0, 100.0, 2.0, 0.1, 3.0]), 2.5);
        assert_eq!(middle(vec![4.0]), 4.0);
    }

    #[test]
    fn illegal_shapes_are_refused() {
        let bench = Bench::new(Q4_K.layout, (16, 100), 1, 1, 1 << 20);
        assert!(matches!(bench.err(), Some(Reason::KMultiple { .. })));
    }
}
