//! Every matmul micro-kernel this CPU can run, over every format, row count and boundary shape: against an exact
//! reference on the same activations, and bit by bit against the other stamps.

mod experts;
mod extremes;

use super::*;
use crate::cpu;
use crate::cpu::abi::{ACT_GROUP, Q8Block, TILE_N, q8_row_bytes};
use crate::cpu::symbols::{MatmulFn, QuantiseFn};
use crate::cpu::tile::{GROUP_K, pack_tile, tile_bytes};
use crate::quant::{FORMATS, QuantFormat, Scale, Store, Unpacked, dequantise_row};

/// A 64-byte aligned buffer.
struct Aligned(Vec<[u64; 8]>, usize);

impl Aligned {
    fn new(bytes: usize) -> Aligned {
        Aligned(vec![[0x5a5a_5a5a_5a5a_5a5a; 8]; bytes.div_ceil(64)], bytes)
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the vector owns at least this many initialised bytes.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.1) }
    }
}

/// GGUF rows whose bytes are `byte(i)`, but for floats, and f16 scales and mins, of ordinary size.
fn raw_rows(fmt: &QuantFormat, n: usize, k: usize, byte: fn(usize) -> u8) -> Vec<u8> {
    let bytes = n * fmt.ty.row_bytes(k as u64).expect("legal k") as usize;
    let mut raw: Vec<u8> = (0..bytes).map(byte).collect();
    let half = |i: usize| half::f16::from_f32(0.01 + (i * 31 % 251) as f32 * 1e-4);
    match fmt.layout.store {
        Store::F32 => floats(&mut raw, f32::to_le_bytes),
        Store::F16 => floats(&mut raw, |v| half::f16::from_f32(v).to_le_bytes()),
        Store::Bf16 => floats(&mut raw, |v| half::bf16::from_f32(v).to_le_bytes()),
        Store::Int(_) | Store::Code(_) => {
            let (d, m) = (field(fmt, |u| u.d[0]), field(fmt, |u| u.m[0]));
            for (i, b) in raw
                .chunks_exact_mut(fmt.ty.block_bytes() as usize)
                .enumerate()
            {
                if let Some(at) = d {
                    b[at..at + 2].copy_from_slice(&half(i).to_le_bytes());
                }
                if let Some(at) = m {
                    b[at..at + 2].copy_from_slice(&half(i + 7).to_le_bytes());
                }
                if fmt.layout.scale == Scale::E8 {
                    // Exponents whose powers of two lie between 2^-8 and 2^-1.
                    b[0] = 120 + (i % 8) as u8;
                }
            }
        }
    }
    raw
}

/// Floats of ordinary size in place of raw bytes.
fn floats<const BYTES: usize>(raw: &mut [u8], bytes: fn(f32) -> [u8; BYTES]) {
    for (i, b) in raw.chunks_exact_mut(BYTES).enumerate() {
        b.copy_from_slice(&bytes((i * 31 % 251) as f32 * 0.01 - 1.2));
    }
}

/// Where a quant block holds the f16 that `unpack` puts into a field, sign aside; `None` when it has none.
fn field(fmt: &QuantFormat, pick: fn(&Unpacked) -> u16) -> Option<usize> {
    (0..fmt.ty.block_bytes() as usize - 1).find(|&at| {
        let mut block = vec![0; fmt.ty.block_bytes() as usize];
        block[at..at + 2].copy_from_slice(&0x1234u16.to_le_bytes());
        let mut u = Unpacked::zeros(&fmt.layout);
        (fmt.unpack)(&block, &mut u);
        pick(&u) & 0x7fff == 0x1234
    })
}

struct Case {
    fmt: &'static QuantFormat,
    n: usize,
    k: usize,
    tiles: Aligned,
    weights: Vec<f32>,
}

/// Bytes that vary every field; the period of 251 is no multiple of any group.
fn varied(i: usize) -> u8 {
    (i * 89 % 251) as u8 ^ (i / 251 % 7) as u8
}

fn case(fmt: &'static QuantFormat, n: usize, k: usize, byte: fn(usize) -> u8) -> Case {
    packed(fmt, n, k, &raw_rows(fmt, n, k, byte))
}

fn packed(fmt: &'static QuantFormat, n: usize, k: usize, raw: &[u8]) -> Case {
    let row_bytes = raw.len() / n;
    let tile = tile_bytes(&fmt.layout, k).expect("legal k");
    let mut tiles = Aligned::new(n.div_ceil(TILE_N) * tile);
    let rows: Vec<&[u8]> = raw.chunks_exact(row_bytes).collect();
    for (rows, tile) in rows
        .chunks(TILE_N)
        .zip(tiles.bytes().chunks_exact_mut(tile))
    {
        pack_tile(fmt, k, rows, tile);
    }
    let mut weights = vec![0.0; n * k];
    for (row, out) in rows.iter().zip(weights.chunks_exact_mut(k)) {
        dequantise_row(fmt, row, out);
    }
    Case {
        fmt,
        n,
        k,
        tiles,
        weights,
    }
}

fn activations(rows: usize, k: usize) -> Vec<f32> {
    (0..rows * k)
        .map(|i| ((i * 67 % 257) as f32 - 120.0) * 0.013 * (1.0 + (i / k) as f32))
        .collect()
}

/// Int8 rows of `x` by this ISA's quantiser, and the values they stand for.
fn quantised(isa: Isa, x: &[f32], k: usize) -> (Aligned, Vec<f32>) {
    let (rows, stride) = (x.len() / k, q8_row_bytes(k));
    let mut out = Aligned::new(rows * stride);
    let class = isa.numeric_class().name();
    let symbol = cpu::lookup(&format!("quantise_{class}")).expect("every class quantises");
    // SAFETY: the symbol has this type by its name; both buffers hold `rows` rows.
    unsafe {
        let quantise: QuantiseFn = std::mem::transmute(symbol.0);
        quantise(x.as_ptr(), out.bytes().as_mut_ptr(), k, rows, k * 4, stride);
    }
    let rows = out.bytes().chunks_exact(stride);
    let values = rows.flat_map(|row| Q8Block::of_row(row, k));
    let values = values.flat_map(Q8Block::values).collect();
    (out, values)
}

/// Where the sums start.
#[derive(Clone, Copy, PartialEq)]
enum Init<'a> {
    Zero,
    /// Floats and the stride of their rows.
    From(&'a [f32], usize),
    /// The output buffer itself.
    InPlace(&'a [f32]),
}

fn run(case: &mut Case, batches: &[SubBatch], x: &[u8], init: Init) -> Vec<f32> {
    let (tiles, x_stride) = (
        case.n.div_ceil(TILE_N),
        activation_row_bytes(&case.fmt.layout, case.k),
    );
    let width = tiles * TILE_N;
    let rows: usize = batches.iter().map(|b| b.rows).sum();
    let mut y = match init {
        Init::InPlace(init) => init[..rows * width].to_vec(),
        _ => vec![f32::NAN; rows * width],
    };
    let mut r = 0;
    for batch in batches {
        let symbol = cpu::lookup(&batch.kernel.to_string()).expect("listed");
        let (from, stride) = match init {
            Init::Zero => (std::ptr::null(), 0),
            Init::From(init, stride) => (init[r * stride / 4..].as_ptr(), stride),
            Init::InPlace(_) => (
                y.as_mut_ptr().wrapping_add(r * width).cast_const(),
                width * 4,
            ),
        };
        // SAFETY: the symbol has this type by its name; all buffers hold the rows at these strides.
        unsafe {
            let matmul: MatmulFn = std::mem::transmute(symbol.0);
            let w = case.tiles.bytes().as_ptr();
            let (x, y) = (x[r * x_stride..].as_ptr(), y.as_mut_ptr().add(r * width));
            matmul(w, x, from, y, case.k, tiles, x_stride, stride, width * 4);
        }
        r += batch.rows;
    }
    y
}

fn batches(fmt: &QuantFormat, isa: Isa, stamp: usize, rows: usize) -> Option<Vec<SubBatch>> {
    let rates = CpuRates {
        cores: 1,
        hz: 1e9,
        bytes_per_s_per_core: 1e9,
        bytes_per_s: 1e9,
    };
    let query = Query {
        layout: fmt.layout,
        n: 16,
        k: 256,
        rows,
        isas: &[isa],
        rates: &rates,
        measured: &[],
    };
    let all = candidates(&query);
    let one = all
        .into_iter()
        .find(|c| c.variant.isa == isa && c.variant.stamp == stamp)?;
    one.verdict.ok().map(|_| one.batches)
}

/// Largest difference as a fraction of the largest magnitude that was summed.
fn worst(y: &[f32], width: usize, expected: &[f32], magnitude: &[f32], n: usize) -> f32 {
    let rows = y
        .chunks_exact(width)
        .zip(expected.chunks_exact(n).zip(magnitude.chunks_exact(n)));
    let errors = rows.flat_map(|(y, (e, m))| {
        y.iter().zip(e).zip(m).map(|((y, e), m)| {
            let error = (y - e).abs() / m.max(1e-6);
            if error.is_nan() { f32::INFINITY } else { error }
        })
    });
    errors.fold(0.0, f32::max)
}

fn nmse(y: &[f32], expected: &[f32]) -> f64 {
    let square = |v: f32| f64::from(v) * f64::from(v);
    let error: f64 = y.iter().zip(expected).map(|(&y, &e)| square(y - e)).sum();
    error / expected.iter().map(|&e| square(e)).sum::<f64>()
}

const MAX_ROWS: usize = 33;

fn check_isa(isa: Isa) {
    extremes::check(isa);
    for fmt in FORMATS {
        let integer = fmt.layout.int_bits().is_some();
        let ks: &[usize] = if integer {
            &[32, 64, 256, 288, 512]
        } else {
            &[1, 7, 32, 100, 256]
        };
        for &k in ks.iter().filter(|&&k| tile_bytes(&fmt.layout, k).is_some()) {
            for n in [1, 15, 16, 17, 40] {
                check_shape(isa, case(fmt, n, k, varied));
            }
        }
    }
}

fn check_shape(isa: Isa, mut case: Case) {
    let (fmt, n, k) = (case.fmt, case.n, case.k);
    let width = n.div_ceil(TILE_N) * TILE_N;
    let x = activations(MAX_ROWS, k);
    let plain: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
    let (mut packed, values) = match fmt.layout.int_bits() {
        Some(_) => quantised(isa, &x, k),
        None => {
            let mut same = Aligned::new(plain.len());
            same.bytes().copy_from_slice(&plain);
            (same, x.clone())
        }
    };
    let x_row = activation_row_bytes(&fmt.layout, k);
    let abs = |v: &[f32]| v.iter().map(|v| v.abs()).collect::<Vec<_>>();
    let exact = reference(&values, &case.weights, k);
    let magnitude = reference(&abs(&values), &abs(&case.weights), k);
    let true_values = reference(&x, &case.weights, k);
    // All of a class are held against one of them.
    let ones = batches(fmt, isa.numeric_class(), 1, MAX_ROWS).expect("stamp 1 exists");
    let single = run(&mut case, &ones, packed.bytes(), Init::Zero);
    let error = worst(&single, width, &exact, &magnitude, n);
    assert!(
        error < 2e-5,
        "{} {isa:?} n={n} k={k}: off by {error} of the sum of magnitudes",
        fmt.ty
    );
    let live: Vec<f32> = single
        .chunks_exact(width)
        .flat_map(|row| &row[..n])
        .copied()
        .collect();
    let loose = nmse(&live, &true_values);
    assert!(loose < 1e-3, "{} {isa:?} n={n} k={k}: NMSE {loose}", fmt.ty);

    let init: Vec<f32> = (0..MAX_ROWS * width)
        .map(|i| (i * 13 % 241) as f32 * 0.25 - 30.0)
        .collect();
    for variant in VARIANTS.iter().filter(|v| v.isa == isa) {
        // Every stamp with nothing left over, and some cuts of two.
        for rows in
            (1..=MAX_ROWS).filter(|&rows| rows <= 17 || rows == variant.stamp || rows == MAX_ROWS)
        {
            let Some(batches) = batches(fmt, isa, variant.stamp, rows) else {
                continue;
            };
            let what = format!(
                "{} {isa:?} stamp {} rows {rows} n={n} k={k}",
                fmt.ty, variant.stamp
            );
            let x = &packed.bytes()[..rows * x_row];
            let y = run(&mut case, &batches, x, Init::Zero);
            assert!(
                same_bits(&y, &single[..rows * width]),
                "{what}: a row depends on its batch"
            );
            let sum = |stride: usize| -> Vec<f32> {
                let from = |i: usize| init[i / width * (stride / 4) + i % width];
                single[..rows * width]
                    .iter()
                    .enumerate()
                    .map(|(i, y)| y + from(i))
                    .collect()
            };
            for stride in [0, width * 4] {
                let y = run(&mut case, &batches, x, Init::From(&init, stride));
                assert!(same_bits(&y, &sum(stride)), "{what}: init stride {stride}");
            }
            let y = run(&mut case, &batches, x, Init::InPlace(&init));
            assert!(same_bits(&y, &sum(width * 4)), "{what}: in place");
        }
    }
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

#[test]
fn all_quantisers_give_the_same_bytes() {
    for k in [100, 256, 256 + 100, 3 * 256] {
        let mut x = activations(5, k);
        for (g, group) in x.chunks_mut(ACT_GROUP).enumerate() {
            group.iter_mut().for_each(|v| *v *= 1.0 + g as f32);
        }
        x[3] = f32::NAN;
        (x[k + 1], x[k + 40]) = (f32::INFINITY, f32::NEG_INFINITY);
        x[2 * k..][..40].fill(0.0);
        x[3 * k..][..64].fill(1e-38);
        same_bytes(&x, k);
    }
}

fn same_bytes(x: &[f32], k: usize) {
    let padded = k.next_multiple_of(GROUP_K);
    let stride = q8_row_bytes(padded);
    let mut first: Option<Vec<u8>> = None;
    for isa in Isa::classes().filter(|isa| isa.available()) {
        let mut out = Aligned::new(5 * stride);
        let symbol =
            cpu::lookup(&format!("quantise_{}", isa.name())).expect("every class quantises");
        // SAFETY: the symbol has this type by its name; both buffers hold 5 rows.
        unsafe {
            let quantise: QuantiseFn = std::mem::transmute(symbol.0);
            quantise(x.as_ptr(), out.bytes().as_mut_ptr(), k, 5, k * 4, stride);
        }
        let bytes = out.bytes().to_vec();
        assert_eq!(*first.get_or_insert(bytes.clone()), bytes, "{isa:?} k {k}");
    }
}

#[test]
fn scalar_kernels() {
    check_isa(Isa::Scalar);
}

#[test]
fn avx2_kernels() {
    match Isa::Avx2.available() {
        true => check_isa(Isa::Avx2),
        false => println!("skipped: avx2"),
    }
}

#[test]
fn avxvnni_kernels() {
    match Isa::AvxVnni.available() {
        true => check_isa(Isa::AvxVnni),
        false => println!("skipped: avxvnni"),
    }
}

#[test]
fn avx512_kernels() {
    match Isa::Avx512Vnni.available() {
        true => check_isa(Isa::Avx512Vnni),
        false => println!("skipped: avx512"),
    }
}
