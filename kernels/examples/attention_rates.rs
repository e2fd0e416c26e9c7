//! Measures the attention micro-kernels on one core, with KV pages streamed from memory in shuffled order: gigabytes of
//! cache read per second for every ISA, cache type, shape and depth, beside a plain read of the same pool in the same
//! run.
//!
//! `cargo run --release -p coldpress-kernels --example attention_rates -- [MEGABYTES] [KV_TYPE] [ISA] [DEPTH]`. Each figure
//! is the median of many calls, each of which reads pages of its own.

use std::hint::black_box;
use std::time::Instant;

use coldpress_kernels::attention::{AttentionFn, Shape, symbol};
use coldpress_kernels::cpu::abi::{KvType, PAGE_TOKENS, Step};
use coldpress_kernels::cpu::{self, Isa};

/// Query heads, KV heads, head_dim, rows of the step and how many of them belong to one slot.
const SHAPES: [(usize, usize, usize, usize, usize); 9] = [
    (8, 8, 128, 1, 1),
    (16, 8, 128, 1, 1),
    (16, 8, 128, 8, 1),
    (32, 8, 128, 1, 1),
    (32, 4, 128, 1, 1),
    (32, 8, 64, 1, 1),
    (32, 8, 64, 8, 1),
    (8, 1, 256, 1, 1),
    (16, 8, 128, 64, 64),
];

/// The cache of one layer: a pool in which every byte has been written, and pages handed out in shuffled order.
struct Pool {
    words: Vec<u64>,
}

fn main() {
    let mut args = std::env::args().skip(1);
    let megabytes = args.next().and_then(|a| a.parse().ok()).unwrap_or(1024);
    let (ty, isa) = (args.next(), args.next());
    let depths: Vec<usize> = match args.next().and_then(|a| a.parse().ok()) {
        Some(depth) => vec![depth],
        None => vec![256, 2048],
    };
    let pool = Pool {
        // As halves 0.02, as floats 7e-9, as signed bytes 37 and 41.
        words: vec![0x2529_2529_2529_2529; megabytes << 17],
    };
    println!("{megabytes} MB of pages");
    println!(
        "| kernel | heads / KV heads x head_dim | rows (of one slot) | depth | GB/s of KV | plain read GB/s | GMAC/s |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for i in Isa::classes().filter(|i| i.available()) {
        for kv in [KvType::F32, KvType::F16, KvType::Q8_0] {
            let wanted = ty.as_ref().is_none_or(|t| *t == kv.name())
                && isa.as_ref().is_none_or(|n| *n == i.name());
            for shape in SHAPES.iter().filter(|_| wanted) {
                for &depth in &depths {
                    measure(i, kv, *shape, depth, &pool);
                }
            }
        }
    }
}

fn measure(
    isa: Isa,
    kv: KvType,
    (heads, kv_heads, head_dim, rows, of_one_slot): (usize, usize, usize, usize, usize),
    depth: usize,
    pool: &Pool,
) {
    let Some(symbol) = cpu::lookup(&symbol(kv, isa)) else {
        return;
    };
    // SAFETY: the symbol has this type by its name.
    let attention: AttentionFn = unsafe { std::mem::transmute(symbol.0) };
    let shape = Shape {
        heads,
        kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        window: 0,
        softcap: 0.0,
    };
    let pages = pool.words.len() * 8 / kv.page_bytes(kv_heads, head_dim);
    let table = shuffled(pages);
    let pages_per_slot = depth.div_ceil(PAGE_TOKENS);
    let slots_per_step = rows / of_one_slot;
    let width = heads * head_dim;
    let q = vec![0.5f32; rows * width];
    let mut out = vec![0.0f32; rows * width];
    let positions: Vec<u32> = (0..rows)
        .map(|r| (depth - of_one_slot + r % of_one_slot) as u32)
        .collect();
    let mut run = |first_slot: usize| {
        let slots: Vec<u32> = (0..rows)
            .map(|r| (first_slot + r / of_one_slot) as u32)
            .collect();
        let step = Step {
            rows,
            logits: 0,
            tokens: std::ptr::null(),
            positions: positions.as_ptr(),
            slots: slots.as_ptr(),
            logit_rows: std::ptr::null(),
            page_table: table.as_ptr(),
            pages_per_slot,
        };
        let start = Instant::now();
        // SAFETY: q and out hold the rows, the table names pages of the pool, which is only read; one worker
        // needs no scratch.
        unsafe {
            attention(
                q.as_ptr(),
                pool.words.as_ptr().cast(),
                out.as_mut_ptr(),
                std::ptr::null_mut(),
                &step,
                heads,
                kv_heads,
                head_dim,
                0,
                1,
                width * 4,
                width * 4,
                0,
                0,
                shape.scale.to_bits() as usize,
                0,
                0,
                std::ptr::null(),
            );
        }
        black_box(&out);
        start.elapsed().as_secs_f64()
    };
    let slots = (pages / pages_per_slot).min(match isa {
        Isa::Scalar => 8 * slots_per_step,
        _ => 128 * slots_per_step,
    });
    let mut times: Vec<f64> = (0..slots / slots_per_step)
        .map(|i| run(i * slots_per_step))
        .collect();
    let seconds = median(&mut times);
    let (mut bytes, mut macs) = (0, 0);
    for (r, &pos) in positions.iter().enumerate() {
        macs += 2 * (pos as usize + 1) * width;
        if (r + 1) % of_one_slot == 0 {
            bytes += shape.kv_bytes(kv, pos as usize);
        }
    }
    println!(
        "| {} {} | {heads} / {kv_heads} x {head_dim} | {rows} ({of_one_slot}) | {depth} | {:.1} | {:.1} | {:.1} |",
        kv.name(),
        isa.name(),
        bytes as f64 / seconds / 1e9,
        plain_read(pool),
        macs as f64 / seconds / 1e9,
    );
}

/// GB/s of adding up the pool, median of slices of 4 MB.
fn plain_read(pool: &Pool) -> f64 {
    let slice = 4 << 17;
    let mut times: Vec<f64> = pool
        .words
        .chunks_exact(slice)
        .map(|words| {
            let start = Instant::now();
            let mut sums = [0u64; 32];
            for line in words.chunks_exact(32) {
                for (sum, word) in sums.iter_mut().zip(line) {
                    *sum = sum.wrapping_add(*word);
                }
            }
            black_box(sums);
            start.elapsed().as_secs_f64()
        })
        .collect();
    (slice * 8) as f64 / median(&mut times) / 1e9
}

/// The numbers below `len` in an order without runs.
fn shuffled(len: usize) -> Vec<u32> {
    let mut all: Vec<u32> = (0..len as u32).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for i in (1..len).rev() {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        all.swap(i, (state >> 33) as usize % (i + 1));
    }
    all
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
