//! What is written is read back, other machines' entries are kept and unused, damage is refused.

use super::*;
use coldpress_kernels::quant::{Q4_K, Q8_0};
use tempfile::tempdir;

fn device(cpu: &str, workers: usize) -> Device {
    Device {
        cpu: cpu.into(),
        isa: "avx512".into(),
        workers,
    }
}

fn shape(n: usize, cold_seconds: f64) -> MeasuredShape {
    let timing = |stamp: usize| Timing {
        isa: Isa::Avx512Vnni,
        stamp,
        cold_seconds: cold_seconds * stamp as f64,
        warm_seconds: cold_seconds / 2.0,
    };
    MeasuredShape {
        layout: Q4_K.layout,
        n,
        k: 256,
        timings: vec![timing(1), timing(8)],
    }
}

fn same(a: &[MeasuredShape], b: &[MeasuredShape]) -> bool {
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-9;
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| {
            (a.layout, a.n, a.k) == (b.layout, b.n, b.k)
                && a.timings.len() == b.timings.len()
                && a.timings.iter().zip(&b.timings).all(|(a, b)| {
                    (a.isa, a.stamp) == (b.isa, b.stamp)
                        && near(a.cold_seconds, b.cold_seconds)
                        && near(a.warm_seconds, b.warm_seconds)
                })
        })
}

#[test]
fn a_cache_survives_its_file() {
    let dir = tempdir().expect("temporary folder");
    let path = dir.path().join("tune.json");
    assert_eq!(Cache::load(&path).expect("absent is fine"), None);
    let here = device("a cpu", 2);
    let mut cache = Cache::default();
    cache.merge(&here, &[shape(64, 1e-4), shape(32, 3.21e-5)]);
    cache.save(&path).expect("writes");
    let read = Cache::load(&path).expect("reads").expect("is there");
    let expected = [shape(32, 3.21e-5), shape(64, 1e-4)];
    assert!(same(&read.measured(&here), &expected), "{read:?}");
    read.save(&path).expect("writes");
    let again = Cache::load(&path).expect("reads").expect("is there");
    assert_eq!(again, read, "nothing is lost by rewriting");
}

#[test]
fn merging_replaces_what_was_measured_again_and_keeps_the_rest() {
    let (here, there) = (device("a cpu", 2), device("a cpu", 4));
    let mut cache = Cache::default();
    cache.merge(&here, &[shape(32, 1.0), shape(64, 1.0)]);
    cache.merge(&there, &[shape(32, 5.0)]);
    cache.merge(&here, &[shape(32, 2.0)]);
    assert!(same(
        &cache.measured(&here),
        &[shape(32, 2.0), shape(64, 1.0)]
    ));
    assert!(same(&cache.measured(&there), &[shape(32, 5.0)]));
    for other in [device("b cpu", 2), device("a cpu", 3)] {
        assert!(cache.measured(&other).is_empty(), "{other}");
    }
}

#[test]
fn names_of_other_versions_are_kept_and_not_used() {
    let here = device("a cpu", 2);
    let mut cache = Cache::default();
    cache.merge(&here, &[shape(32, 1.0)]);
    cache.devices[0].shapes[0].stamps[0].isa = "avx1024".into();
    let mut unknown = cache.devices[0].shapes[0].clone();
    unknown.layout = "i3".into();
    cache.devices[0].shapes.push(unknown);
    let text = serde_json::to_vec(&cache).expect("writes");
    let read = parse(&text).expect("well formed");
    assert_eq!(read, cache);
    let measured = read.measured(&here);
    assert_eq!(measured.len(), 1);
    assert_eq!(measured[0].timings.len(), 1);
    assert!(measured.iter().all(|s| s.layout != Q8_0.layout));
}

#[test]
fn damage_is_refused_by_name() {
    let mut cache = Cache::default();
    cache.merge(&device("a cpu", 2), &[shape(32, 1e-4)]);
    let good = serde_json::to_string(&cache).expect("writes");
    let dir = tempdir().expect("temporary folder");
    let path = dir.path().join("tune.json");
    let deep = "[".repeat(100_000);
    let twice = good.replace("\"rows\":8", "\"rows\":1");
    for (text, says) in [
        ("", "not a tune cache"),
        ("{}", "not a tune cache"),
        (&good[..good.len() / 2], "not a tune cache"),
        (&deep, "not a tune cache"),
        (&good.replace("tune cache", "diary"), "its format is"),
        (&good.replace("\"version\":1", "\"version\":2"), "version 2"),
        (
            &good.replace("\"version\":1", "\"version\":-1"),
            "not a tune cache",
        ),
        (&good.replace("\"n\":32", "\"n\":0"), "i4u8m [0, 256]"),
        (&good.replace("\"n\":32", "\"n\":-3"), "damaged"),
        (
            &good.replace("\"k\":256", "\"k\":99999999999999"),
            "no such shape",
        ),
        (&good.replace("\"workers\":2", "\"workers\":0"), "0 workers"),
        (&good.replace("\"rows\":8", "\"rows\":0"), "0 rows"),
        (&good.replace("100.0", "-100.0"), "damaged"),
        (&good.replace("100.0", "1e300"), "damaged"),
        (&good.replace("\"stamps\"", "\"stumps\""), "damaged"),
        (&twice, "twice"),
    ] {
        std::fs::write(&path, text).expect("writes");
        let error = Cache::load(&path).expect_err(says);
        assert_eq!(error.exit_code(), 1);
        let error = error.to_string();
        for part in [says, "tune.json", "delete it", "--no-tune-cache"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
    let error = Cache::load(dir.path()).expect_err("a folder");
    assert!(error.to_string().contains("not a regular file"), "{error}");
}

#[test]
fn any_flipped_byte_is_read_or_refused() {
    let mut cache = Cache::default();
    cache.merge(&device("a cpu", 2), &[shape(32, 1e-4), shape(64, 1e-5)]);
    let good = serde_json::to_vec(&cache).expect("writes");
    for at in 0..good.len() {
        for byte in [b'0', b'"', b'-', b'e', 0, 0xff] {
            let mut text = good.clone();
            text[at] = byte;
            if let Ok(cache) = parse(&text) {
                for shape in cache.measured(&device("a cpu", 2)) {
                    let positive = |t: &Timing| t.cold_seconds > 0.0 && t.warm_seconds > 0.0;
                    assert!(shape.timings.iter().all(positive));
                }
            }
        }
    }
}
