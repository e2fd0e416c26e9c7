//! The arithmetic and the table formats of `bench`; nothing is timed.

use super::report::{csv, json, markdown, values};
use super::*;

/// A batch that decodes at `speed` tokens per second, 10 tokens each.
pub(super) fn measurement(batch: u32, speed: f64) -> Measurement {
    Measurement {
        prompt: 16,
        generated: 10,
        batch,
        depth: 0,
        prefill: 1.0,
        decode: f64::from(batch) * 10.0 / speed,
        fastest_step: f64::from(batch) / speed,
        bucket: batch,
        decode_bytes: 10e9,
    }
}

#[test]
fn medians() {
    assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    assert_eq!(median(Vec::new()), 0.0);
}

#[test]
fn speeds_and_totals_fit_together() {
    let m = Measurement {
        prompt: 100,
        generated: 10,
        batch: 4,
        depth: 50,
        prefill: 2.0,
        decode: 0.5,
        fastest_step: 0.04,
        bucket: 4,
        decode_bytes: 5e9,
    };
    let v = values(&m, 20e9);
    assert_eq!(
        v,
        [
            100., 10., 4., 640., 2., 200., 0.5, 80., 2.5, 176., 50., 4., 10., 0.5, 100.
        ]
    );
    let table = markdown(std::slice::from_ref(&m), 20e9);
    assert_eq!(table.lines().count(), 3);
    assert!(
        table
            .lines()
            .all(|line| line.starts_with('|') && line.ends_with('|')),
        "{table}"
    );
    assert!(table.contains("50.0"), "{table}");
    let csv = csv(std::slice::from_ref(&m), 20e9);
    assert!(
        csv.ends_with("100,10,4,640,2,200,0.5,80,2.5,176,50,4,10,0.5,100\n"),
        "{csv}"
    );
    let json: serde_json::Value =
        serde_json::from_str(&json(&[m], &[None], 20e9)).expect("valid JSON");
    assert_eq!(json[0]["pl"], 4);
    assert_eq!(json[0]["tg"], 10);
    assert_eq!(json[0]["speed_tg"], 80.0);
    assert_eq!(json[0]["cliff"], serde_json::Value::Null);
    let (fast, slow) = (measurement(1, 30.0), measurement(2, 15.0));
    let results = [fast, slow];
    let json = report::json(&results, &cliffs::find(&results), 20e9);
    let json: serde_json::Value = serde_json::from_str(&json).expect("valid JSON");
    assert_eq!(json[1]["cliff"]["below_pl"], 1);
}
