//! Measures the matmul micro-kernels on one core: the source of the rates in `matmul::VARIANTS`. For every layout, ISA
//! and stamp it prints multiply-adds per cycle with weights in cache and the bandwidth of weights streamed from memory;
//! with `pack` for the megabytes, how fast GGUF rows are packed.
//!
//! `cargo run --release -p coldpress-kernels --example matmul_rates -- [MEGABYTES] [LAYOUT] [ISA] [K]`; the
//! variable STAMPS=1,8 leaves only those. Each figure is the median of many short slices, so that other work on the machine
//! disturbs it little.

use std::hint::black_box;
use std::time::Instant;

use coldpress_kernels::cpu::symbols::MatmulFn;
use coldpress_kernels::cpu::tile::{pack_tile, tile_bytes};
use coldpress_kernels::cpu::{self, abi::TILE_N};
use coldpress_kernels::matmul::{Isa, VARIANTS, VariantId, activation_row_bytes};
use coldpress_kernels::quant::FORMATS;

const K: usize = 1024;
const ROWS: usize = 32;

fn main() {
    let mut args = std::env::args().skip(1);
    let first = args.next().unwrap_or_default();
    if first == "pack" {
        return pack_rates();
    }
    let megabytes = first.parse::<usize>().unwrap_or(400);
    let layout = args.next();
    let only = args.next();
    let k = args.next().and_then(|a| a.parse().ok()).unwrap_or(K);
    let ghz = clock() / 1e9;
    println!("clock {ghz:.2} GHz, k={k}, {megabytes} MB streamed");
    println!(
        "| kernel | MAC/cycle in cache | GMAC/s | GB/s in cache | GB/s streamed | GMAC/s streamed |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    let mut weights = vec![[0u8; 64]; megabytes << 14];
    for (i, line) in weights.iter_mut().enumerate() {
        // Scales, exponents among them, that are ordinary numbers.
        line.fill(i as u8 & 0x33 | 0x40);
    }
    for fmt in FORMATS {
        for variant in VARIANTS {
            let id = VariantId {
                layout: fmt.layout,
                isa: variant.isa,
                stamp: variant.stamp,
            };
            let wanted = layout.as_ref().is_none_or(|l| *l == fmt.layout.name())
                && only.as_ref().is_none_or(|o| o == variant.isa.name());
            if wanted
                && variant.isa.available()
                && std::env::var("STAMPS").map_or(true, |s| {
                    s.split(",").any(|s| s == variant.stamp.to_string())
                })
            {
                measure(id, k, weights.as_flattened(), ghz);
            }
        }
    }
}

fn measure(id: VariantId, k: usize, weights: &[u8], ghz: f64) {
    let Some(symbol) = cpu::lookup(&id.to_string()) else {
        return;
    };
    // SAFETY: the symbol has this type by its name.
    let matmul: MatmulFn = unsafe { std::mem::transmute(symbol.0) };
    let tile = tile_bytes(&id.layout, k).expect("a multiple of 256");
    let x_row = activation_row_bytes(&id.layout, k);
    let x = vec![0u8; x_row * ROWS];
    let mut y = vec![0.0f32; ROWS * TILE_N * ((2 << 20) / tile).max(1)];
    let mut run = |weights: &[u8], tiles: usize| {
        let width = tiles * TILE_N * 4;
        let start = Instant::now();
        // SAFETY: the weights hold the tiles; x and y hold the rows of the largest stamp.
        unsafe {
            matmul(
                weights.as_ptr(),
                x.as_ptr(),
                std::ptr::null(),
                y.as_mut_ptr(),
                k,
                tiles,
                x_row,
                0,
                width,
            );
        }
        black_box(&y);
        start.elapsed().as_secs_f64()
    };
    let slow = if id.isa == Isa::Scalar { 16 } else { 1 };
    let cached = (262_144 / tile).max(1);
    let mut times: Vec<f64> = (0..200 / slow).map(|_| run(weights, cached)).collect();
    let macs = |tiles: usize| (tiles * TILE_N * k * id.stamp) as f64;
    let in_cache = median(&mut times);
    let slice = ((2 << 20) / tile).max(1);
    let mut times: Vec<f64> = weights
        .chunks_exact(slice * tile)
        .step_by(slow)
        .map(|w| run(w, slice))
        .collect();
    let streamed = median(&mut times);
    println!(
        "| {id} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} |",
        macs(cached) / in_cache / 1e9 / ghz,
        macs(cached) / in_cache / 1e9,
        (cached * tile) as f64 / in_cache / 1e9,
        (slice * tile) as f64 / streamed / 1e9,
        macs(slice) / streamed / 1e9,
    );
}

/// Prints GGUF bytes per second of `pack_tile` on one core.
fn pack_rates() {
    for fmt in FORMATS {
        let row_bytes = fmt.ty.row_bytes(K as u64).expect("K fits every format") as usize;
        let raw = vec![0x35u8; row_bytes * TILE_N * 64];
        let mut out = vec![0u8; tile_bytes(&fmt.layout, K).expect("K fits every layout")];
        let mut times: Vec<f64> = (0..20)
            .map(|_| {
                let start = Instant::now();
                for rows in raw.chunks_exact(row_bytes * TILE_N) {
                    let rows: Vec<&[u8]> = rows.chunks_exact(row_bytes).collect();
                    pack_tile(fmt, K, black_box(&rows), black_box(&mut out));
                }
                start.elapsed().as_secs_f64()
            })
            .collect();
        println!(
            "pack {}: {:.2} GB/s",
            fmt.ty,
            raw.len() as f64 / median(&mut times) / 1e9
        );
    }
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Cycles per second, from a chain of dependent 64-bit multiplications, three cycles each on current cores.
fn clock() -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..50 {
        let start = Instant::now();
        let mut v = black_box(3u64);
        for _ in 0..100_000 {
            v = v.wrapping_mul(black_box(5));
        }
        black_box(v);
        best = best.min(start.elapsed().as_secs_f64());
    }
    3.0 * 100_000.0 / best
}
