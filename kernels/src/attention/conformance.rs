//! Every attention kernel this CPU can run, against the f64 reference over the same cached values, every number of
//! workers and every row alone against all rows by one worker, with shuffled pages, poisoned cache, scratch and padding.

mod cache;

use super::*;
use cache::{Cache, WORKERS, values};

/// Slot and position of each row: decode rows of several slots, chunks of one slot across the ends of a page and of a
/// split, rows around the ends of splits, and a last row that is padding.
const ROWS: [(u32, u32); 25] = [
    (0, 0),
    (2, 31),
    (1, 100),
    (0, 29),
    (0, 30),
    (0, 31),
    (0, 32),
    (0, 33),
    (0, 34),
    (0, 35),
    (1, 254),
    (1, 255),
    (1, 256),
    (1, 257),
    (1, 258),
    (2, 33),
    (1, 1),
    (1, 511),
    (1, 64),
    (2, 255),
    (0, 512),
    (2, 513),
    (2, 256),
    (1, 599),
    (0, 100),
];
const LIVE: usize = 24;
const TOKENS: usize = 600;

fn check(cache: &Cache, shape: &Shape) {
    legal(shape).expect("legal");
    let what = format!("{} {:?} {shape:?}", cache.isa.name(), cache.ty);
    let (width, kv_heads) = (shape.heads * shape.head_dim, shape.kv_heads);
    let mut q = values(5, ROWS.len() * width, 2.0);
    q[LIVE * width..].fill(f32::NAN);
    let together = cache.attend(shape, &q, &ROWS, LIVE, 1);
    assert!(
        together.iter().all(|v| !v.is_nan()),
        "{what}: reads what was not appended"
    );
    for workers in WORKERS {
        let divided = cache.attend(shape, &q, &ROWS, LIVE, workers);
        assert!(
            bits(&divided) == bits(&together),
            "{what}: {workers} workers"
        );
    }
    let pairs = together.chunks_exact(width + 1).zip(q.chunks_exact(width));
    for (r, ((out, q), (slot, pos))) in pairs.zip(ROWS).enumerate() {
        assert_eq!(out[width], f32::MAX, "{what}: row {r} written past its end");
        if r >= LIVE {
            assert!(
                out.iter().all(|&v| v == f32::MAX),
                "{what}: padding row written"
            );
            continue;
        }
        for workers in [WORKERS[0], WORKERS[1 + r % 3]] {
            let alone = cache.attend(shape, q, &[(slot, pos)], 1, workers);
            assert!(
                bits(&alone) == bits(out),
                "{what}: row {r} depends on the batch, {workers} workers"
            );
        }
        let tokens = (pos as usize + 1) * kv_heads * shape.head_dim;
        let (k, v) = (
            &cache.k[slot as usize][..tokens],
            &cache.v[slot as usize][..tokens],
        );
        let tolerance = tolerance(q, k, v, shape);
        let expected = reference_with_sinks(q, k, v, shape, cache.sinks.as_deref());
        for (i, (y, e)) in out.iter().zip(expected).enumerate() {
            assert!(
                (y - e).abs() <= tolerance,
                "{what}: row {r} at {i}: {y} for {e}"
            );
        }
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// A score rounded in f32 is off by an epsilon of the products it sums, and an output by that fraction of the values.
fn tolerance(q: &[f32], k: &[f32], v: &[f32], shape: &Shape) -> f32 {
    let abs = |x: &[f32]| x.iter().map(|x| x.abs()).collect::<Vec<_>>();
    let (q, k) = (abs(q), abs(k));
    let largest = |x: &[f32]| x.iter().copied().fold(0.0, |m: f32, x| m.max(x.abs()));
    let mut score = 0.0f32;
    for (h, q) in q.chunks_exact(shape.head_dim).enumerate() {
        let kv_head = h / (shape.heads / shape.kv_heads);
        for token in k.chunks_exact(shape.kv_heads * shape.head_dim) {
            let k = &token[kv_head * shape.head_dim..];
            let dot: f32 = q.iter().zip(k).map(|(q, k)| q * k).sum();
            score = score.max(dot * shape.scale);
        }
    }
    f32::EPSILON * (4.0 + 2.0 * score) * largest(v)
}

fn check_isa(isa: Isa) {
    if !isa.available() {
        println!("skipped: {}", isa.name());
        return;
    }
    for ty in [KvType::F32, KvType::F16, KvType::Q8_0] {
        for (head_dim, kv_heads) in [
            (64, 3),
            (80, 2),
            (96, 1),
            (100, 1),
            (128, 2),
            (256, 1),
            (512, 1),
        ] {
            let mut cache = Cache::filled(isa, ty, (kv_heads, head_dim), 3, TOKENS);
            let scale = 1.0 / (head_dim as f32).sqrt();
            for group in [1, 2, 3, 7, 8, 9] {
                let plain = Shape {
                    heads: kv_heads * group,
                    kv_heads,
                    head_dim,
                    scale,
                    window: 0,
                    softcap: 0.0,
                };
                check(&cache, &plain);
                // Far below the scores, among them, and above.
                cache.sinks = Some((0..plain.heads).map(|h| h as f32 * 4.0 - 9.0).collect());
                check(
                    &cache,
                    &Shape {
                        window: 33,
                        ..plain
                    },
                );
                check(&cache, &plain);
                cache.sinks = None;
                if group <= 2 {
                    check(&cache, &Shape { window: 5, ..plain });
                    // Begins in one split and ends in the next, or the one after it.
                    check(
                        &cache,
                        &Shape {
                            window: 300,
                            ..plain
                        },
                    );
                    check(
                        &cache,
                        &Shape {
                            window: 33,
                            softcap: 0.8,
                            ..plain
                        },
                    );
                    check(
                        &cache,
                        &Shape {
                            softcap: 50.0,
                            ..plain
                        },
                    );
                    check(
                        &cache,
                        &Shape {
                            window: 1,
                            scale: 3.0,
                            ..plain
                        },
                    );
                }
            }
        }
    }
}

#[test]
fn scalar_kernels() {
    check_isa(Isa::Scalar);
}

#[test]
fn avx2_kernels() {
    check_isa(Isa::Avx2);
}

#[test]
fn avx512_kernels() {
    check_isa(Isa::Avx512Vnni);
}

#[test]
fn the_largest_group_fits() {
    for isa in Isa::classes().filter(|isa| isa.available()) {
        let cache = Cache::filled(isa, KvType::F16, (1, 64), 3, TOKENS);
        let shape = Shape {
            heads: MAX_HEADS_PER_KV_HEAD,
            kv_heads: 1,
            head_dim: 64,
            scale: 0.125,
            window: 0,
            softcap: 0.0,
        };
        check(&cache, &shape);
    }
}

#[test]
fn splits_follow_each_other_and_stay_few() {
    let mut begin = 0;
    for split in 0..400 {
        let range = split_range(split);
        assert_eq!(range.start, begin);
        assert_eq!(range.len() % PIECE_TOKENS, 0);
        for pos in [range.start, range.start + 1, range.end - 1] {
            assert_eq!(split_of(pos), split);
        }
        begin = range.end;
    }
    let counted = [0, 1, 256, 257, 16_384, 16_385, 1 << 16, 1 << 24].map(splits);
    assert_eq!(counted, [0, 1, 1, 2, 64, 65, 112, 304]);
    assert_eq!(split_range(63).len(), PIECE_TOKENS);
    assert_eq!(split_range(64), 16_384..16_384 + 4 * PIECE_TOKENS);
}

#[test]
fn long_sequences_have_long_splits() {
    const LONG: usize = 18_700;
    for isa in Isa::classes().filter(|isa| isa.available()) {
        let cache = Cache::filled(isa, KvType::F16, (1, 32), 1, LONG);
        let shape = Shape {
            heads: 2,
            kv_heads: 1,
            head_dim: 32,
            scale: 0.2,
            window: 0,
            softcap: 0.0,
        };
        for window in [0, 2500] {
            let shape = Shape { window, ..shape };
            for pos in [16_383, 16_384, 16_700, 17_407, 17_408, LONG - 1] {
                let q = values(3, 64, 2.0);
                let rows = [(0, pos as u32)];
                let alone = cache.attend(&shape, &q, &rows, 1, 1);
                for workers in WORKERS {
                    let divided = cache.attend(&shape, &q, &rows, 1, workers);
                    assert!(bits(&divided) == bits(&alone), "{workers} workers");
                }
                let end = (pos + 1) * 32;
                let expected = reference(&q, &cache.k[0][..end], &cache.v[0][..end], &shape);
                for (y, e) in alone.iter().zip(expected) {
                    assert!((y - e).abs() <= 2e-5, "{} {pos}: {y} for {e}", isa.name());
                }
            }
        }
    }
}

#[test]
fn extreme_values_stay_in_the_cache_types() {
    for isa in Isa::classes().filter(|isa| isa.available()) {
        let mut cache = Cache::filled(isa, KvType::Q8_0, (1, 32), 3, 1);
        let mut k = [1e-12f32; 32];
        let mut v = [3e7f32; 32];
        (k[3], v[3]) = (-1e-12, -3e7);
        cache.append(&k, &v, &[0], &[1], 1);
        let (k, v) = cache.read(0, 1);
        assert!(k.iter().all(|&x| x == 0.0), "{k:?}");
        let largest = 127.0 * half::f16::MAX.to_f32();
        assert_eq!((v[0], v[3]), (largest, -largest), "{}", isa.name());
    }
}

#[test]
fn shapes_without_kernels_are_refused() {
    let shape = Shape {
        heads: 8,
        kv_heads: 2,
        head_dim: 64,
        scale: 1.0,
        window: 0,
        softcap: 0.0,
    };
    assert_eq!(legal(&shape), Ok(()));
    let error = |shape: Shape| legal(&shape).expect_err("illegal").to_string();
    assert_eq!(
        error(Shape {
            kv_heads: 3,
            ..shape
        }),
        "8 query heads do not divide among 3 KV heads"
    );
    assert_eq!(
        error(Shape {
            heads: 130,
            ..shape
        }),
        "65 query heads per KV head, at most 64"
    );
    assert_eq!(
        error(Shape {
            head_dim: 513,
            ..shape
        }),
        "head_dim 513 is not in 1..=512"
    );
    assert_eq!(shape.kv_bytes(KvType::F16, 99), 100 * 2 * 2 * 128);
    assert_eq!(
        Shape {
            window: 10,
            ..shape
        }
        .kv_bytes(KvType::F16, 99),
        10 * 2 * 2 * 128
    );
}
