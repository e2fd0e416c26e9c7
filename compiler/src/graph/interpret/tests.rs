//! Interpreter against the golden logits of the fixtures, and what it refuses.

use std::path::{Path, PathBuf};

use coldpress_kernels::quant;

use super::*;
use crate::pass;

fn fixtures() -> Option<PathBuf> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/fixtures");
    let root = std::env::var_os("COLDPRESS_FIXTURES").unwrap_or_else(|| default.into());
    let root = PathBuf::from(root);
    if !root.is_dir() {
        let ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
        assert!(!ci, "fixtures not found");
        println!("skipped: fixtures not found");
        return None;
    }
    Some(root)
}

fn nmse(found: &[Vec<f64>], expected: &[f32]) -> f64 {
    let (mut error, mut energy) = (0.0, 0.0);
    for (a, &b) in found.iter().flatten().zip(expected) {
        error += (a - f64::from(b)).powi(2);
        energy += f64::from(b).powi(2);
    }
    error / energy
}

struct Fixture {
    gguf: Gguf,
    rows: Vec<Row>,
    exact: Vec<f32>,
}

fn fixture(root: &Path, entry: &serde_json::Value) -> Fixture {
    let path = |key: &str| root.join(entry[key].as_str().unwrap());
    let tokens = entry["tokens"].as_array().unwrap().iter();
    let row = |(position, token): (usize, &serde_json::Value)| Row {
        token: token.as_u64().unwrap() as u32,
        slot: 0,
        position,
        wants_logits: true,
    };
    let bytes = std::fs::read(path("logits")).unwrap();
    let (values, _) = bytes.as_chunks::<4>();
    Fixture {
        gguf: Gguf::open(&path("file")).unwrap(),
        rows: tokens.enumerate().map(row).collect(),
        exact: values.iter().map(|&b| f32::from_le_bytes(b)).collect(),
    }
}

/// Logits in two steps, so that the second reads the cache of the first.
fn logits(graph: &OpGraph, weights: &Weights, rows: &[Row], rounding: Rounding) -> Vec<Vec<f64>> {
    let mut interpreter = Interpreter::new(graph, weights, rounding);
    let (first, second) = rows.split_at(rows.len() / 3);
    let mut logits = interpreter.step(first).unwrap();
    logits.extend(interpreter.step(second).unwrap());
    logits
}

#[test]
fn logits_are_the_golden_ones_before_and_after_all_passes() {
    let Some(root) = fixtures() else { return };
    let index = std::fs::read_to_string(root.join("index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    let mut compared = 0;
    for entry in index["models"].as_array().unwrap() {
        let name = entry["name"].as_str().unwrap();
        let known = crate::model::ARCHITECTURES
            .iter()
            .any(|a| entry["arch"] == a.name);
        let types = entry["tensor_types"].as_object().unwrap();
        let readable = types
            .keys()
            .all(|ty| quant::FORMATS.iter().any(|format| format.ty.name() == ty));
        if !known || !readable {
            continue;
        }
        let Fixture { gguf, rows, exact } = fixture(&root, entry);
        let mut graph = crate::model::build(&gguf).unwrap().graph;
        let weights = Weights::read(&graph, &gguf).unwrap();
        let before = logits(&graph, &weights, &rows, Rounding::Exact);
        assert_eq!(before.len() * before[0].len(), exact.len());
        let error = nmse(&before, &exact);
        println!("{name}: {error:e}");
        assert!(error < 1e-9, "{name}: {error:e}");
        compared += 1;

        pass::run_all(&mut graph, None).unwrap();
        let few = &rows[..6];
        let after = logits(&graph, &weights, few, Rounding::Exact);
        for (a, b) in before.iter().zip(&after) {
            let close = a
                .iter()
                .zip(b)
                .all(|(a, b)| (a - b).abs() < 1e-11 * (1.0 + a.abs()));
            assert!(close, "{name} changes in the passes");
        }
        if entry["quant"] == "Q8_0" {
            let rounded = logits(&graph, &weights, few, Rounding::Int8);
            let native = entry["native_nmse"].as_f64().unwrap();
            let error = nmse(&rounded, &exact[..rounded.len() * rounded[0].len()]);
            assert!(
                (native / 10.0..native * 10.0).contains(&error),
                "{name}: {error:e} against {native:e}"
            );
        }
    }
    assert!(compared >= 8, "only {compared} fixtures compared");
}

#[test]
fn wrong_rows_are_refused() {
    let tiny = crate::pass::tests::Tiny::PLAIN;
    let (graph, gguf) = (tiny.graph(), tiny.gguf());
    let weights = Weights::read(&graph, &gguf).unwrap();
    let row = |token, position| Row {
        token,
        slot: 0,
        position,
        wants_logits: true,
    };
    let mut interpreter = Interpreter::new(&graph, &weights, Rounding::Exact);
    let error = interpreter.step(&[row(8, 0)]).unwrap_err();
    assert_eq!(error.to_string(), "token 8 of 8");
    let error = interpreter.step(&[row(1, 0), row(1, 2)]).unwrap_err();
    assert!(error.to_string().contains("never run"), "{error}");
}
