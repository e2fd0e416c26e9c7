//! The arithmetic and the table formats of `bench`; nothing is timed.

use super::*;

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
        bucket: 4,
        decode_bytes: 5e9,
    };
    let v = values(&m, 20e9);
    assert_eq!(
        v,
        [
            100., 10., 4., 640., 2., 200., 0.5, 80., 2.5, 176., 50., 4., 10., 0.5
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
        csv.ends_with("100,10,4,640,2,200,0.5,80,2.5,176,50,4,10,0.5\n"),
        "{csv}"
    );
    let json: serde_json::Value = serde_json::from_str(&json(&[m], 20e9)).expect("valid JSON");
    assert_eq!(json[0]["pl"], 4);
    assert_eq!(json[0]["tg"], 10);
    assert_eq!(json[0]["speed_tg"], 80.0);
}
