//! Whole models against exact logits: the fixtures' own, and for shapes they do not have, the graph interpreter's.

use crate::harness::*;
use coldpress_compiler::gguf::{Gguf, Value};
use coldpress_compiler::graph::interpret;
use coldpress_compiler::{model, pass};
use coldpress_kernels::tensor_type::TensorType;
use std::path::Path;
use tempfile::tempdir;

/// Architectures and formats this build claims.
const ARCHITECTURES: &[&str] = &["llama", "qwen2", "qwen3"];
const QUANTS: &[&str] = &[
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K_M", "Q5_K_M", "Q6_K",
];

fn compile(model: &Path, bundle: &Path, kv: &str) {
    succeed(&[
        "compile",
        arg(model),
        "-o",
        arg(bundle),
        "--kv-type",
        kv,
        "--ctx-size",
        "256",
        "--max-batch",
        "3",
        "-t",
        "2",
    ]);
}

fn logits(bundle: &Path, tokens: &[u32], out: &Path) -> Vec<f32> {
    let list: Vec<String> = tokens.iter().map(u32::to_string).collect();
    succeed(&[
        "logits",
        arg(bundle),
        "--tokens",
        &list.join(","),
        "-o",
        arg(out),
    ]);
    read_npy(out).1
}

/// The bars of "Numbers that mean correct".
fn bar(quant: &str, kv: &str, native: f64) -> f64 {
    match (quant, kv) {
        ("F32" | "F16" | "BF16", "f32") => native.max(1e-6),
        ("F32" | "F16" | "BF16", _) => native.max(1e-6) + 1e-5,
        _ => (1.1 * native).max(1e-5),
    }
}

#[test]
fn fixtures_meet_their_bars() {
    let Some(fixtures) = fixtures() else { return };
    let dir = tempdir().expect("temporary folder");
    let mut checked = 0;
    let mut failures = Vec::new();
    for f in index(&fixtures) {
        if !ARCHITECTURES.contains(&f.arch.as_str()) || !QUANTS.contains(&f.quant.as_str()) {
            continue;
        }
        let exact = read_f32(&fixtures.join(&f.logits));
        for kv in ["f32", "f16"] {
            let bundle = dir.path().join("model.press");
            compile(&fixtures.join(&f.file), &bundle, kv);
            let error = nmse(
                &logits(&bundle, &f.tokens, &dir.path().join("out.npy")),
                &exact,
            );
            let bar = bar(&f.quant, kv, f.native_nmse);
            println!("{:<16} kv {kv}: NMSE {error:.3e}, bar {bar:.3e}", f.name);
            if error.is_nan() || error > bar {
                failures.push(format!("{} kv {kv}: NMSE {error:.3e} > {bar:.3e}", f.name));
            }
            greedy(&f, &bundle, error, &mut failures);
        }
        checked += 1;
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(
        checked >= 14,
        "only {checked} fixtures match the supported architectures and formats"
    );
}

/// Greedy tokens agree up to the first near-tie.
fn greedy(f: &Fixture, bundle: &Path, error: f64, failures: &mut Vec<String>) {
    let list: Vec<String> = f.tokens.iter().map(u32::to_string).collect();
    let out = bundle.with_extension("npy");
    let count = f.greedy.len().to_string();
    let text = succeed(&[
        "logits",
        arg(bundle),
        "--tokens",
        &list.join(","),
        "--greedy",
        &count,
        "-o",
        arg(&out),
    ]);
    let got: Vec<u32> = serde_json::from_str(text.trim()).expect("a JSON array of ids");
    let near_tie = 6.0 * error.sqrt() * f.logits_std;
    let safe = f
        .greedy_margin
        .iter()
        .position(|&m| m < near_tie)
        .unwrap_or(f.greedy.len());
    if got.get(..safe) != Some(&f.greedy[..safe]) {
        failures.push(format!(
            "{}: greedy {got:?}, expected {:?} (first {safe})",
            f.name, f.greedy
        ));
    }
}

/// A random model's logits, compiled, against the interpreter on the dequantised weights.
fn against_interpreter(shape: &Shape, seed: u64, bar: f64) {
    let dir = tempdir().expect("temporary folder");
    let (path, bundle) = (
        dir.path().join("random.gguf"),
        dir.path().join("random.press"),
    );
    shape.write(&path, seed);
    let gguf = Gguf::open(&path).expect("opens");
    let mut built = model::build(&gguf).expect("builds");
    pass::run_all(&mut built.graph, None).expect("passes");
    let mut random = Random(seed + 1);
    let tokens: Vec<u32> = (0..11).map(|_| random.below(shape.vocab) as u32).collect();
    let exact: Vec<f32> = interpret::prompt_logits(&built.graph, &gguf, &tokens)
        .expect("interprets")
        .into_iter()
        .flatten()
        .collect();
    compile(&path, &bundle, "f32");
    let error = nmse(
        &logits(&bundle, &tokens, &dir.path().join("out.npy")),
        &exact,
    );
    assert!(error <= bar, "{shape:?}: NMSE {error:.3e} > {bar:.0e}");
}

#[test]
fn float_models_of_odd_shapes() {
    let float = [TensorType::F16, TensorType::F32, TensorType::BF16];
    for (i, (arch, hidden, ffn, heads, kv_heads, head_dim, vocab, tied)) in [
        ("llama", 100, 52, 5, 5, 20, 261, false),
        ("qwen3", 96, 130, 8, 1, 128, 257, true),
        ("qwen2", 72, 33, 6, 2, 12, 1001, false),
        ("llama", 256, 512, 8, 1, 128, 333, true),
        ("qwen3", 64, 64, 2, 2, 80, 400, false),
    ]
    .into_iter()
    .enumerate()
    {
        let types = float.to_vec();
        let shape = Shape {
            arch,
            hidden,
            ffn,
            heads,
            kv_heads,
            head_dim,
            vocab,
            tied,
            types,
            ..Shape::small()
        };
        against_interpreter(&shape, 100 + i as u64, 1e-9);
    }
}

#[test]
fn quantised_models_of_mixed_formats() {
    let every = [
        TensorType::Q8_0,
        TensorType::Q4_0,
        TensorType::Q4_1,
        TensorType::Q5_0,
        TensorType::Q5_1,
        TensorType::Q4_K,
        TensorType::Q5_K,
        TensorType::Q6_K,
        TensorType::F16,
        TensorType::F32,
        TensorType::BF16,
    ];
    for (i, (arch, hidden, ffn, heads, kv_heads, head_dim, vocab)) in [
        ("llama", 256, 512, 8, 1, 128, 777),
        ("qwen3", 256, 288, 4, 2, 64, 300),
        ("qwen2", 288, 256, 3, 1, 96, 515),
        ("qwen3", 512, 768, 8, 4, 64, 1024),
    ]
    .into_iter()
    .enumerate()
    {
        let types = every.to_vec();
        let shape = Shape {
            arch,
            hidden,
            ffn,
            heads,
            kv_heads,
            head_dim,
            vocab,
            types,
            ..Shape::small()
        };
        // int8 activations cost about 1e-4 in two layers; anything wrong costs far more.
        against_interpreter(&shape, 200 + i as u64, 2e-3);
    }
}

#[test]
fn rope_scaling_linear_and_yarn() {
    for (i, extra) in [
        vec![
            ("llama.rope.scaling.type", Value::Str("linear".into())),
            ("llama.rope.scaling.factor", Value::F32(4.0)),
        ],
        vec![
            ("llama.rope.scaling.type", Value::Str("yarn".into())),
            ("llama.rope.scaling.factor", Value::F32(4.0)),
            ("llama.rope.scaling.original_context_length", Value::U32(64)),
        ],
    ]
    .into_iter()
    .enumerate()
    {
        let extra = extra.into_iter().map(|(k, v)| (k.to_string(), v)).collect();
        let shape = Shape {
            arch: "llama",
            extra,
            ..Shape::small()
        };
        against_interpreter(&shape, 300 + i as u64, 1e-9);
    }
}
