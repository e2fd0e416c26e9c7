//! Kernels timed on this machine: the cache `tune` writes, what `compile` makes of it, and damage.

use crate::harness::*;
use std::path::PathBuf;
use tempfile::tempdir;

fn tiny() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../examples/tiny/tiny.gguf"
    ))
}

#[test]
fn a_tuned_bundle_verifies() {
    let dir = tempdir().expect("temporary folder");
    let (cache, bundle) = (dir.path().join("tune.json"), dir.path().join("t.press"));
    let model = tiny();
    let compile = |out: &PathBuf| {
        let (cache, out) = (arg(&cache), arg(out));
        let flags = ["-t", "2", "-c", "64", "--tune-cache", cache, "-o", out];
        succeed(&[&["compile", arg(&model)][..], &flags].concat())
    };
    let tune = |model: &PathBuf, more: &[&str]| {
        let flags = ["tune", arg(model), "-o", arg(&cache)];
        succeed(&[&flags[..], more].concat())
    };
    let text = tune(&model, &["-t", "2", "--budget", "1s", "--max-batch", "4"]);
    for part in [
        "picked",
        "GB/s",
        "% of bw",
        "predicted",
        "i4u8m [",
        "bandwidth",
    ] {
        assert!(text.contains(part), "tune should print {part:?}:\n{text}");
    }
    compile(&bundle);
    assert!(!succeed(&["verify", arg(&bundle)]).is_empty());
    // Of the shape that streams most bytes, which is timed whatever the budget.
    let text = succeed(&["explain", arg(&bundle), "blk.0.ffn_gate"]);
    assert!(text.contains("measured: "), "{text}");
    let json: serde_json::Value =
        serde_json::from_str(&succeed(&["inspect", arg(&bundle), "--json"])).expect("JSON");
    let curve = json["manifest"]["plans"][0]["curve"].as_array();
    assert_eq!(curve.expect("a curve").len(), 8);

    let again = dir.path().join("again.press");
    compile(&again);
    assert!(std::fs::read(&bundle).expect("a") == std::fs::read(&again).expect("b"));

    // A bundle has the same shapes as its model; another number of workers is another device, and both are kept.
    let before = std::fs::read_to_string(&cache).expect("a cache");
    tune(&bundle, &["--budget", "0s", "-t", "1"]);
    let after = std::fs::read_to_string(&cache).expect("a cache");
    assert!(after.len() > before.len() && after.contains("\"workers\": 2"));
}

#[test]
fn only_this_machines_times_count() {
    let dir = tempdir().expect("temporary folder");
    let cache = dir.path().join("tune.json");
    let model = tiny();
    let flags = ["-t", "1", "--target", "cpu:scalar"];
    let tune = ["tune", arg(&model), "-o", arg(&cache), "--budget", "0s"];
    succeed(&[&tune[..], &flags].concat());
    let compiled = |name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        let compile = ["compile", arg(&model), "-c", "64", "-o", arg(&out)];
        succeed(&[&compile[..], &flags, more].concat());
        std::fs::read(&out).expect("a bundle")
    };
    let plain = compiled("plain.press", &["--no-tune-cache"]);
    let with = ["--tune-cache", arg(&cache)];
    assert!(compiled("tuned.press", &with) != plain, "times are used");
    let text = std::fs::read_to_string(&cache).expect("a cache");
    let foreign = text.replace("\"cpu\": \"", "\"cpu\": \"another ");
    assert!(foreign != text);
    std::fs::write(&cache, foreign).expect("writes");
    assert!(
        compiled("foreign.press", &with) == plain,
        "another machine's are not"
    );
}

/// A machine on which a lone row is very dear: batches that are not whole stamps run in larger buckets, trunk and head,
/// and give the same answers.
#[test]
fn batches_are_padded_where_that_is_cheaper() {
    let dir = tempdir().expect("temporary folder");
    let (cache, bundle) = (dir.path().join("tune.json"), dir.path().join("p.press"));
    let model = tiny();
    let flags = ["-t", "1", "--target", "cpu:scalar"];
    // Every shape is timed long before that.
    let tune = ["tune", arg(&model), "-o", arg(&cache), "--budget", "60s"];
    succeed(&[&tune[..], &flags].concat());
    let text = std::fs::read_to_string(&cache).expect("a cache");
    let mut json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let shapes = json["devices"][0]["shapes"].as_array_mut().expect("shapes");
    for stamp in shapes
        .iter_mut()
        .flat_map(|s| s["stamps"].as_array_mut().expect("stamps"))
    {
        let times = [("cold_us", 1e5, 1e2), ("warm_us", 1e5, 1e2)];
        for (name, lone, wide) in times {
            stamp[name] = if stamp["rows"] == 1 { lone } else { wide }.into();
        }
    }
    std::fs::write(&cache, json.to_string()).expect("writes");
    let compile = ["compile", arg(&model), "-c", "64", "-o", arg(&bundle)];
    let more = ["--max-batch", "5", "--tune-cache", arg(&cache)];
    succeed(&[&compile[..], &flags, &more].concat());
    let json: serde_json::Value =
        serde_json::from_str(&succeed(&["inspect", arg(&bundle), "--json"])).expect("JSON");
    let rows = |batch: usize| {
        let point = &json["manifest"]["plans"][0]["curve"][batch - 1];
        (point["trunk_rows"].clone(), point["head_rows"].clone())
    };
    assert_eq!(rows(1), (4.into(), 4.into()));
    assert_eq!(rows(5), (12.into(), 8.into()));
    assert!(!succeed(&["verify", arg(&bundle)]).is_empty());
}

#[test]
fn predicted_falls_can_be_denied() {
    let model = tiny();
    // Portable kernels have stamps of 1 and 4 rows: 5 rows cost more than a quarter more than 4.
    let with = |batch: &'static str| {
        let compile = ["compile", arg(&model), "--dry-run", "--no-tune-cache"];
        let scalar = ["--deny-cliffs", "--target", "cpu:scalar", "-t", "1"];
        [&compile[..], &scalar, &["--max-batch", batch]].concat()
    };
    fail(&with("5"), 8, &["batch 5", "tok/s"]);
    succeed(&with("1"));
}

#[test]
fn damaged_caches_and_absurd_flags_are_refused() {
    let dir = tempdir().expect("temporary folder");
    let cache = dir.path().join("tune.json");
    let model = tiny();
    std::fs::write(&cache, "{\"format\": \"coldpress tune cache\"").expect("writes");
    let says = ["tune.json", "delete it", "coldpress tune"];
    let compile = ["compile", arg(&model), "--dry-run", "--tune-cache"];
    fail(&[&compile[..], &[arg(&cache)]].concat(), 1, &says);
    fail(&["tune", arg(&model), "-o", arg(&cache)], 1, &says);
    let absent = dir.path().join("absent.json");
    fail(
        &[&compile[..], &[arg(&absent)]].concat(),
        2,
        &["absent.json", "coldpress tune"],
    );
    fail(&["tune", arg(&cache)], 1, &["tune.json"]);
    fail(
        &["tune", arg(&model), "--max-batch", "0"],
        2,
        &["--max-batch"],
    );
    fail(&["tune", arg(&model), "--budget", "soon"], 2, &["soon"]);
}
