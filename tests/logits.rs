//! Whole models against exact logits: the fixtures' own, and for shapes they do not have, the graph interpreter's.

use crate::harness::*;
use coldpress_compiler::gguf::{Array, Gguf, Value};
use coldpress_compiler::graph::interpret;
use coldpress_compiler::{model, pass};
use coldpress_kernels::quant::FORMATS;
use coldpress_kernels::tensor_type::TensorType;
use std::path::Path;
use tempfile::tempdir;

/// Formats this build claims; architectures are those of `model::ARCHITECTURES`.
const QUANTS: &[&str] = &[
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K_M", "Q4_K_M",
    "Q5_K_M", "Q6_K", "IQ4_NL", "IQ4_XS",
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
        let known = model::ARCHITECTURES.iter().any(|a| a.name == f.arch);
        if !known || !QUANTS.contains(&f.quant.as_str()) {
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
        checked >= 24,
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
    let path = dir.path().join("random.gguf");
    shape.write(&path, seed);
    let error = compiled_error(&path, 11, "256", seed);
    assert!(error <= bar, "{shape:?}: NMSE {error:.3e} > {bar:.0e}");
}

/// NMSE of a compiled model's logits for `length` random tokens, with the interpreter as judge.
fn compiled_error(path: &Path, length: usize, context: &str, seed: u64) -> f64 {
    let bundle = path.with_extension("press");
    let gguf = Gguf::open(path).expect("opens");
    let mut built = model::build(&gguf).expect("builds");
    pass::run_all(&mut built.graph, None).expect("passes");
    let mut random = Random(seed + 1);
    let tokens: Vec<u32> = (0..length)
        .map(|_| random.below(built.info.vocab_size) as u32)
        .collect();
    let exact: Vec<f32> = interpret::prompt_logits(&built.graph, &gguf, &tokens)
        .expect("interprets")
        .into_iter()
        .flatten()
        .collect();
    let sizes = ["--kv-type", "f32", "-c", context, "--max-batch", "3"];
    let command = ["compile", arg(path), "-o", arg(&bundle), "-t", "2"];
    succeed(&[&command[..], &sizes].concat());
    nmse(
        &logits(&bundle, &tokens, &path.with_extension("npy")),
        &exact,
    )
}

/// Adds to a good model, compiles it and compares.
fn with_tensors(shape: &Shape, tensors: &[(&str, Vec<f32>)]) {
    let dir = tempdir().expect("temporary folder");
    let path = dir.path().join("random.gguf");
    let error = |tensors: &[(&str, Vec<f32>)]| {
        let mut w = shape.writer(8);
        for (name, values) in tensors {
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            w.tensor(*name, TensorType::F32, &[values.len() as u64], bytes);
        }
        w.write(&path).expect("written");
        let error = compiled_error(&path, 11, "256", 8);
        (
            error,
            read_npy(&path.with_extension("npy"))
                .1
                .iter()
                .map(|v| v.to_bits())
                .collect::<Vec<_>>(),
        )
    };
    let (with, without) = (error(tensors), error(&[]));
    assert!(with.0 <= 1e-9, "NMSE {:.3e}", with.0);
    assert!(with.1 != without.1, "the tensors have no effect");
}

#[test]
fn llama_with_biases_and_frequency_factors() {
    let shape = Shape {
        arch: "llama",
        ..Shape::small()
    };
    let ramp = |n: usize, scale: f32| {
        (0..n)
            .map(|i| scale * ((i * 7 % 11) as f32 - 5.0))
            .collect()
    };
    with_tensors(
        &shape,
        &[
            ("blk.0.attn_q.bias", ramp(128, 0.03)),
            ("blk.0.attn_v.bias", ramp(64, 0.05)),
            ("blk.1.attn_k.bias", ramp(64, 0.04)),
            ("blk.1.attn_output.bias", ramp(64, 0.05)),
        ],
    );
    with_tensors(
        &shape,
        &[
            ("blk.0.ffn_gate.bias", ramp(96, 0.05)),
            ("blk.1.ffn_up.bias", ramp(96, 0.05)),
            ("blk.1.ffn_down.bias", ramp(64, 0.05)),
        ],
    );
    let factors = (0..16).map(|i| 1.0 + 0.5 * i as f32).collect();
    with_tensors(&shape, &[("rope_freqs.weight", factors)]);
}

#[test]
fn partial_rotation_and_heads_per_layer() {
    for (i, arch) in ["llama", "qwen3"].into_iter().enumerate() {
        let extra = vec![(format!("{arch}.rope.dimension_count"), Value::U32(20))];
        let shape = Shape {
            arch,
            extra,
            ..Shape::small()
        };
        against_interpreter(&shape, 400 + i as u64, 1e-9);
    }
    let layer_heads = vec![(4, 2), (6, 1), (3, 3)];
    let counts = |f: fn(&(usize, usize)) -> usize| {
        Value::Array(Array::U32(
            layer_heads.iter().map(|h| f(h) as u32).collect(),
        ))
    };
    let extra = vec![
        ("llama.attention.head_count".to_string(), counts(|h| h.0)),
        ("llama.attention.head_count_kv".to_string(), counts(|h| h.1)),
    ];
    let shape = Shape {
        arch: "llama",
        layers: 3,
        layer_heads: layer_heads.clone(),
        extra,
        ..Shape::small()
    };
    against_interpreter(&shape, 410, 1e-9);
}

#[test]
fn one_token_vocabularies_and_one_wide_models() {
    for (i, (hidden, ffn, vocab)) in [(64, 96, 1), (2, 1, 2), (33, 7, 3)].into_iter().enumerate() {
        let shape = Shape {
            hidden,
            ffn,
            vocab,
            heads: 1,
            kv_heads: 1,
            head_dim: 2,
            ..Shape::small()
        };
        against_interpreter(&shape, 420 + i as u64, 1e-9);
    }
}

#[test]
fn a_context_is_used_to_its_last_token() {
    let dir = tempdir().expect("temporary folder");
    let path = dir.path().join("random.gguf");
    Shape::small().write(&path, 12);
    for length in [1, 15, 16, 17, 37, 64, 65] {
        let error = compiled_error(&path, length, &length.to_string(), 12);
        assert!(error <= 1e-9, "context {length}: NMSE {error:.3e}");
        let bundle = path.with_extension("press");
        let one_more = vec!["1"; length + 1].join(",");
        let out = path.with_extension("npy");
        fail(
            &[
                "logits",
                arg(&bundle),
                "--tokens",
                &one_more,
                "-o",
                arg(&out),
            ],
            2,
            &[&length.to_string()],
        );
        assert!(!succeed(&["verify", arg(&bundle)]).contains("FAIL"));
        // Two prompts that fill the context, and two that generate into its end.
        let text = "x".repeat(length);
        for (prompt, generated) in [(text.as_str(), 1), ("x", length)] {
            let run = ["run", arg(&bundle), "--json", "--temp", "0", "--ignore-eos"];
            let lines = succeed(&[&run[..], &["-p", prompt, "-p", prompt]].concat());
            assert_eq!(lines.lines().count(), 2);
            for line in lines.lines() {
                let v: serde_json::Value = serde_json::from_str(line).expect("JSON");
                assert_eq!(
                    v["completion_tokens"], generated,
                    "context {length}: {line}"
                );
            }
        }
    }
}

/// Every fixture of `names` compiled for `target` meets the bars and is bit-identical in chunks and batches.
fn for_target(target: &str, names: &[&str]) {
    let Some(fixtures) = fixtures() else { return };
    let dir = tempdir().expect("temporary folder");
    let (bundle, out) = (dir.path().join("m.press"), dir.path().join("o.npy"));
    let mut checked = 0;
    for f in index(&fixtures) {
        if !names.contains(&f.name.as_str()) {
            continue;
        }
        let model = fixtures.join(&f.file);
        let compile = ["compile", arg(&model), "-o", arg(&bundle), "-t", "2"];
        let sizes = ["--max-batch", "3", "-c", "64", "--target", target];
        succeed(&[&compile[..], &sizes].concat());
        let alone = logits(&bundle, &f.tokens, &out);
        let error = nmse(&alone, &read_f32(&fixtures.join(&f.logits)));
        let bar = bar(&f.quant, "f16", f.native_nmse);
        assert!(
            error <= bar,
            "{} on {target}: NMSE {error:.3e} > {bar:.3e}",
            f.name
        );
        let list = f.tokens.iter().map(u32::to_string);
        let list = list.collect::<Vec<_>>().join(",");
        let run = ["logits", arg(&bundle), "-o", arg(&out), "--chunk", "7"];
        succeed(&[&run[..], &["--tokens", &list, "--tokens", &list]].concat());
        let batch = read_npy(&out).1;
        let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert!(
            bits(&batch) == bits(&[&alone[..], &alone].concat()),
            "{} on {target}: batch of two in chunks of 7",
            f.name
        );
        checked += 1;
    }
    assert_eq!(checked, names.len(), "fixtures of {names:?}");
}

/// Float and quantised files of each kind of layout.
const FOR_TARGETS: &[&str] = &[
    "llama-F16",
    "llama-BF16",
    "llama3-F16",
    "qwen2-F16",
    "qwen3-F16",
    "qwen3-Q8_0",
    "qwen3-Q4_K_M",
    "llama-Q2_K",
    "llama-Q3_K_M",
    "llama-IQ4_NL",
    "llama-IQ4_XS",
    "gemma3-F16",
    "gemma4-e-F16",
    "gemma4-e-Q8_0",
    "gemma4-12b-F16",
    "gemma4-12b-Q4_K_M",
    "phi3-F16",
];

#[test]
fn avx2_meets_the_bars() {
    let has = |f: &str| {
        coldpress_runtime::bundle::Machine::detect()
            .features
            .iter()
            .any(|x| x == f)
    };
    if !(has("avx2") && has("fma") && has("f16c")) {
        eprintln!("skipped: this machine has no AVX2");
        return;
    }
    for_target("cpu:avx2", FOR_TARGETS);
}

#[test]
fn scalar_meets_the_bars() {
    for_target("cpu:scalar", FOR_TARGETS);
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
        TensorType::Q2_K,
        TensorType::Q3_K,
        TensorType::IQ4_NL,
        TensorType::IQ4_XS,
        TensorType::MXFP4,
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
fn models_of_each_format_alone() {
    for (i, fmt) in FORMATS.iter().enumerate() {
        let shape = Shape {
            arch: "llama",
            hidden: 256,
            ffn: 512,
            head_dim: 64,
            types: vec![fmt.ty],
            ..Shape::small()
        };
        let bar = if fmt.layout.int_bits().is_some() {
            2e-3
        } else {
            1e-9
        };
        against_interpreter(&shape, 500 + i as u64, bar);
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

/// Layers of every kind that an architecture has, and more tokens than a window holds.
#[test]
fn every_architecture_is_what_the_interpreter_says() {
    for (i, arch) in model::ARCHITECTURES.iter().map(|a| a.name).enumerate() {
        for (types, bar) in [
            (vec![TensorType::F16, TensorType::F32], 1e-9),
            (vec![TensorType::Q8_0, TensorType::Q4_0], 5e-3),
        ] {
            let mixes = arch.contains("moe") || ["gpt-oss", "qwen3next"].contains(&arch);
            // Rounding can send a row to another expert, and states keep it.
            let bar = match (mixes, arch) {
                _ if bar <= 1e-9 => bar,
                (true, "qwen35moe" | "qwen3next") => 1e-1,
                (true, _) => 3e-2,
                (false, _) => bar,
            };
            let shape = Shape {
                arch,
                layers: 6,
                extra: own_keys(arch),
                experts: mixes.then_some((5, 2)),
                types,
                ..Shape::small()
            };
            let dir = tempdir().expect("temporary folder");
            let path = dir.path().join("random.gguf");
            shape.write(&path, 600 + i as u64);
            let error = compiled_error(&path, 40, "64", 600 + i as u64);
            println!("{arch} {:?}: NMSE {error:.3e}", shape.types[0]);
            assert!(error <= bar, "{shape:?}: NMSE {error:.3e} > {bar:.0e}");
        }
    }
}

/// Experts whose rows do not fill tiles are padded one by one: a run of tiles that is packed by itself begins beyond the rows
/// that as many full tiles would have.
#[test]
fn many_experts_of_odd_widths_are_packed_in_pieces() {
    let shape = Shape {
        arch: "qwen3moe",
        layers: 1,
        hidden: 1024,
        ffn: 40,
        experts: Some((12, 2)),
        types: vec![TensorType::F32],
        ..Shape::small()
    };
    against_interpreter(&shape, 93, 1e-9);
}

/// Gemma 4's experts, beside the network of all rows; and the same file with gate and value of an expert in one tensor.
#[test]
fn experts_beside_a_network_and_both_halves_in_one_tensor() {
    for ty in [TensorType::F16, TensorType::Q8_0] {
        both_halves_in_one_tensor(ty);
    }
}

fn both_halves_in_one_tensor(ty: TensorType) {
    let shape = Shape {
        arch: "gemma4",
        layers: 6,
        extra: own_keys("gemma4"),
        experts: Some((6, 2)),
        types: vec![ty],
        ..Shape::small()
    };
    if ty == TensorType::F16 {
        against_interpreter(&shape, 91, 1e-9);
    }
    let dir = tempdir().expect("temporary folder");
    let (apart, joined) = (dir.path().join("a.gguf"), dir.path().join("j.gguf"));
    shape.write(&apart, 91);
    assert_eq!(join_halves(&apart, &joined), 6);
    let bits = |path: &Path| {
        let (bundle, out) = (path.with_extension("press"), path.with_extension("npy"));
        succeed(&[
            "compile",
            arg(path),
            "-o",
            arg(&bundle),
            "-c",
            "64",
            "-t",
            "2",
        ]);
        let list: Vec<u32> = (0..40).map(|i| i * 7 % 300).collect();
        let found = logits(&bundle, &list, &out);
        found.into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    assert!(bits(&apart) == bits(&joined));
}

/// Layers that see a window keep a ring of pages, which a long sequence goes round several times. Where steps may be as long
/// as the context there is no ring: the same numbers.
#[test]
fn rings_of_pages_hold_what_windows_see() {
    let dir = tempdir().expect("temporary folder");
    let path = dir.path().join("random.gguf");
    let shape = Shape {
        arch: "gemma3",
        layers: 6,
        extra: own_keys("gemma3"),
        ..Shape::small()
    };
    shape.write(&path, 77);
    let list: Vec<String> = (0..630u32).map(|i| (i * 7 % 300).to_string()).collect();
    let list = list.join(",");
    let logits = |batch: &str, kept: &str, chunk: &str| {
        let bundle = path.with_extension("press");
        let out = path.with_extension("npy");
        let sizes = ["--max-batch", batch, "-c", "640", "-t", "2"];
        succeed(&[&["compile", arg(&path), "-o", arg(&bundle)][..], &sizes].concat());
        let text = succeed(&["inspect", arg(&bundle)]);
        assert!(text.contains(kept), "{kept}: {text}");
        let tokens = ["--tokens", &list, "--tokens", &list, "--chunk", chunk];
        succeed(&[&["logits", arg(&bundle), "-o", arg(&out)][..], &tokens].concat());
        let bits = read_npy(&out).1.into_iter().map(f32::to_bits);
        bits.collect::<Vec<_>>()
    };
    let whole = logits("640", "6 layers keep all tokens", "64");
    for chunk in ["1", "29", "64"] {
        let ring = logits("2", "2 layers keep all tokens, 4 the last 7", chunk);
        assert!(ring == whole, "chunks of {chunk}");
    }
}

#[test]
fn int8_kv_of_odd_head_sizes_and_deep_models() {
    let dir = tempdir().expect("temporary folder");
    let path = dir.path().join("random.gguf");
    let bundle = path.with_extension("press");
    let tokens: Vec<u32> = (0..40).map(|i| i * 7 % 300).collect();
    for (head_dim, layers) in [(20, 2), (32, 24), (80, 2)] {
        let shape = Shape {
            head_dim,
            layers,
            ..Shape::small()
        };
        shape.write(&path, 77);
        let [exact, int8] = ["f32", "q8_0"].map(|kv| {
            let command = ["compile", arg(&path), "-o", arg(&bundle)];
            succeed(&[&command[..], &["--kv-type", kv, "-c", "64", "-np", "2"]].concat());
            logits(&bundle, &tokens, &path.with_extension("npy"))
        });
        let error = nmse(&int8, &exact);
        println!("head size {head_dim}, {layers} layers: NMSE {error:.3e}");
        assert!(
            error > 0.0 && error < 1e-3,
            "head size {head_dim}: {error:.3e}"
        );
        succeed(&["verify", arg(&bundle)]);
    }
}
