//! What every architecture owes a user: a graph from a good file, a named cause from a bad one.

mod delta;
mod gemma4;

use coldpress_kernels::tensor_type::TensorType;

use super::*;
use crate::gguf::{Array, GgufWriter, Value};
use crate::graph::dump::dump;
use crate::graph::{Op, Source, interpret};
use crate::pass::tests::{RECURRENT, Tiny, open};

fn each(check: impl Fn(Tiny)) {
    for Architecture { name, .. } in ARCHITECTURES {
        check(Tiny {
            architecture: name,
            heads: 4,
            kv_heads: 2,
            layers: 2,
            ..Tiny::PLAIN
        });
    }
}

/// Whether the architecture implements a key that others refuse.
fn reads(tiny: &Tiny, suffix: &str) -> bool {
    let architecture = ARCHITECTURES.iter().find(|a| a.name == tiny.architecture);
    architecture.unwrap().reads.contains(&suffix)
}

fn error(writer: &GgufWriter) -> Error {
    build(&open(writer)).unwrap_err()
}

/// The file of `tiny` with some of its keys and tensors changed.
fn edited(
    tiny: Tiny,
    key: impl Fn(&str) -> Option<Value>,
    tensor: impl Fn(&str) -> Option<(String, TensorType, Vec<u64>)>,
) -> GgufWriter<'static> {
    let gguf = tiny.gguf();
    let mut writer = GgufWriter::new();
    for (name, value) in gguf.keys() {
        let suffix = name
            .strip_prefix(tiny.architecture)
            .map_or(name, |rest| &rest[1..]);
        writer.add(name, key(suffix).unwrap_or_else(|| value.clone()));
    }
    for info in gguf.tensors() {
        match tensor(&info.name) {
            Some((name, ty, dims)) => {
                let rows: u64 = dims[1..].iter().product();
                let bytes = ty.row_bytes(dims[0]).unwrap() * rows;
                writer.tensor(name, ty, &dims, vec![0; bytes as usize]);
            }
            None => {
                writer.tensor(
                    info.name.clone(),
                    info.ty,
                    &info.dims,
                    gguf.data(info).to_vec(),
                );
            }
        }
    }
    writer
}

fn with_key(tiny: Tiny, suffix: &str, value: Value) -> GgufWriter<'static> {
    let mut writer = tiny.writer();
    writer.add(format!("{}.{suffix}", tiny.architecture), value);
    writer
}

#[test]
fn every_architecture_builds_with_its_dimensions() {
    each(|tiny| {
        let model = build(&tiny.gguf()).unwrap();
        let ModelInfo {
            vocab_size,
            hidden,
            layers,
            heads,
            kv_heads,
            head_dim,
            max_context,
            parameters,
            ..
        } = model.info;
        assert_eq!((vocab_size, hidden, layers, max_context), (8, 32, 2, 64));
        assert_eq!((heads, kv_heads, head_dim), (4, 2, 8));
        let stored: u64 = tiny.gguf().tensors().iter().map(|t| t.n() * t.k()).sum();
        assert_eq!(parameters, stored);
        let recurrent = RECURRENT.contains(&tiny.architecture);
        let (kv, states) = (model.graph.kv.len(), model.graph.states.len());
        assert_eq!((kv, states), if recurrent { (1, 2) } else { (2, 0) });
    });
}

#[test]
fn unknown_architectures_are_refused_with_the_known_ones() {
    let mut writer = GgufWriter::new();
    writer.add("general.architecture", Value::Str("mamba".into()));
    let error = error(&writer);
    assert_eq!(error.exit_code(), 3);
    assert_eq!(
        error.to_string(),
        format!(
            "architecture mamba: not implemented (supported: {})",
            ARCHITECTURES
                .iter()
                .map(|a| a.name)
                .collect::<Vec<_>>()
                .join(", ")
        )
    );
    let nameless = build(&open(&GgufWriter::new())).unwrap_err().to_string();
    assert!(
        nameless.starts_with("general.architecture: missing"),
        "{nameless}"
    );
}

#[test]
fn missing_and_misshapen_tensors_are_named() {
    each(|tiny| {
        let rename = |name: &str| {
            (name == "blk.1.attn_k.weight").then(|| ("other".into(), TensorType::F32, vec![1]))
        };
        let missing = error(&edited(tiny, |_| None, rename));
        assert_eq!(
            missing.to_string(),
            "blk.1.attn_k.weight: missing: expected [32, 16]"
        );
        let turn = |name: &str| {
            (name == "blk.1.attn_k.weight").then(|| (name.into(), TensorType::F32, vec![16, 32]))
        };
        let misshapen = error(&edited(tiny, |_| None, turn));
        assert_eq!(misshapen.exit_code(), 1);
        assert_eq!(
            misshapen.to_string(),
            "blk.1.attn_k.weight: expected [32, 16], found [16, 32] (row length first)"
        );
    });
}

#[test]
fn tensors_nobody_reads_are_refused_unless_leftovers() {
    each(|tiny| {
        let mut writer = tiny.writer();
        writer.tensor("blk.0.attn_rot_embd", TensorType::F32, &[4], vec![0; 16]);
        build(&open(&writer)).unwrap();
        writer.tensor(
            "blk.1.attn_rel_b.weight",
            TensorType::F32,
            &[4],
            vec![0; 16],
        );
        let unread = error(&writer);
        assert_eq!(unread.exit_code(), 3);
        assert!(
            unread
                .to_string()
                .starts_with("blk.1.attn_rel_b.weight: no "),
            "{unread}"
        );
    });
}

#[test]
fn types_without_kernel_are_refused() {
    each(|tiny| {
        let retype = |name: &str| {
            (name == "blk.1.attn_k.weight").then(|| (name.into(), TensorType::I32, vec![32, 16]))
        };
        let unreadable = error(&edited(tiny, |_| None, retype));
        assert_eq!(unreadable.exit_code(), 3);
        let text = unreadable.to_string();
        assert!(
            text.starts_with(
                "blk.1.attn_k.weight: no kernel reads I32 (supported: F32, F16, BF16, "
            ),
            "{text}"
        );
        let retype = |name: &str| {
            (name == "output_norm.weight").then(|| (name.into(), TensorType::Q8_0, vec![32]))
        };
        let vector = error(&edited(tiny, |_| None, retype)).to_string();
        assert_eq!(
            vector,
            "output_norm.weight: Q8_0 is no type for a vector (supported: F32, F16, BF16)"
        );
    });
}

#[test]
fn metadata_that_changes_numbers_is_refused_by_name() {
    each(|tiny| {
        for (suffix, value, neutral) in [
            ("expert_count", Value::U32(8), Value::U32(0)),
            ("attention.causal", Value::Bool(false), Value::Bool(true)),
            ("nextn_predict_layers", Value::U32(1), Value::U32(0)),
        ] {
            if reads(&tiny, suffix) {
                continue;
            }
            let refused = error(&with_key(tiny, suffix, value));
            assert_eq!(refused.exit_code(), 3, "{refused}");
            assert!(
                refused
                    .to_string()
                    .starts_with(&format!("{}.{suffix}: ", tiny.architecture)),
                "{refused}"
            );
            build(&open(&with_key(tiny, suffix, neutral))).unwrap();
        }
    });
}

#[test]
fn metadata_that_llama_cpp_does_not_read_is_ignored() {
    each(|tiny| {
        let mut writer = with_key(tiny, "use_parallel_residual", Value::Bool(true));
        writer.add(
            format!("{}.ssm.dt_b_c_rms", tiny.architecture),
            Value::Bool(true),
        );
        let plain = build(&tiny.gguf()).unwrap().graph;
        assert_eq!(dump(&build(&open(&writer)).unwrap().graph), dump(&plain));
    });
}

#[test]
fn metadata_that_contradicts_itself_is_named() {
    each(|tiny| {
        for (suffix, value, says) in [
            (
                "block_count",
                Value::U32(u32::MAX),
                "says 4294967295 layers",
            ),
            ("block_count", Value::U32(0), "is 0"),
            ("attention.head_count", Value::U32(0), "is 0 for layer 0"),
            (
                "attention.head_count_kv",
                Value::U32(3),
                "3 does not divide attention.head_count, 4",
            ),
            (
                "attention.head_count",
                Value::Array(Array::U32(vec![4])),
                "has 1 elements for 2 layers",
            ),
            (
                "attention.layer_norm_rms_epsilon",
                Value::F32(f32::NAN),
                "is not finite",
            ),
        ] {
            let change = |key: &str| (key == suffix).then(|| value.clone());
            let text = error(&edited(tiny, change, |_| None)).to_string();
            let expected = format!("{}.{suffix}: {says}", tiny.architecture);
            assert!(text.starts_with(&expected), "{text}");
        }
        for (suffix, value, says) in [
            (
                "attention.value_length",
                Value::U32(16),
                "16 differs from the key length 8",
            ),
            (
                "rope.dimension_count",
                Value::U32(10),
                "10 is not an even number up to the head size 8",
            ),
        ] {
            let text = error(&with_key(tiny, suffix, value)).to_string();
            assert!(text.contains(says), "{text}");
        }
        let mut writer = tiny.writer();
        writer.add(
            "tokenizer.ggml.tokens",
            Value::Array(Array::Str(vec!["a".into()])),
        );
        let text = error(&writer).to_string();
        assert_eq!(
            text,
            "token_embd.weight: has 8 rows, but tokenizer.ggml.tokens has 1 tokens"
        );
    });
}

#[test]
fn metadata_reaches_the_graph() {
    each(|tiny| {
        let op = |writer: &GgufWriter, label: &str| {
            let graph = build(&open(writer)).unwrap().graph;
            let node = graph.nodes.node_weights().find(|node| node.label == label);
            node.unwrap().op.clone()
        };
        match op(&tiny.writer(), "blk.1.attn") {
            Op::Attention { heads, .. } => assert_eq!(heads, 4),
            other => panic!("{other:?}"),
        }
        let partial = with_key(tiny, "rope.dimension_count", Value::U32(4));
        match op(&partial, "blk.1.attn_q_rope") {
            Op::Rope { shape, .. } => assert_eq!((shape.head_dim, shape.rot_dim), (8, 4)),
            other => panic!("{other:?}"),
        }
    });
}

/// The file of `tiny` without the tensors that `drop` names, with others instead.
fn replaced(tiny: Tiny, drop: impl Fn(&str) -> bool, with: &[(&str, &[u64], Vec<u8>)]) -> Gguf {
    let gguf = tiny.gguf();
    let mut writer = GgufWriter::new();
    for (key, value) in gguf.keys() {
        writer.add(key, value.clone());
    }
    for info in gguf.tensors().iter().filter(|info| !drop(&info.name)) {
        let bytes = gguf.data(info).to_vec();
        writer.tensor(info.name.clone(), info.ty, &info.dims, bytes);
    }
    for (name, dims, bytes) in with {
        writer.tensor(*name, TensorType::F32, dims, bytes.clone());
    }
    open(&writer)
}

#[test]
fn without_output_weight_the_embedding_is_used() {
    each(|tiny| {
        let gguf = tiny.gguf();
        if gguf.tensor("output.weight").is_none() {
            return;
        }
        let tied = build(&replaced(tiny, |name| name == "output.weight", &[])).unwrap();
        let untied = build(&gguf).unwrap();
        assert_eq!(tied.graph.weights.len() + 1, untied.graph.weights.len());
        assert_eq!(tied.info.parameters + 8 * 32, untied.info.parameters);
    });
}

/// Architectures that divide frequencies by `rope_freqs.weight`.
const FACTORED: &[&str] = &[
    "exaone", "exaone4", "gemma4", "granite", "llama", "minicpm", "mistral3",
];

#[test]
fn frequency_factors_divide_where_an_architecture_has_them() {
    each(|tiny| {
        let file = |dims: &[u64], factors: [f32; 4]| {
            let mut writer = tiny.writer();
            let bytes: Vec<u8> = factors.iter().flat_map(|f| f.to_le_bytes()).collect();
            writer.tensor("rope_freqs.weight", TensorType::F32, dims, bytes);
            build(&open(&writer))
        };
        let built = file(&[4], [1.0, 2.0, 4.0, 8.0]);
        if tiny.architecture == "pangu-embedded" {
            built.unwrap();
            return;
        }
        if !FACTORED.contains(&tiny.architecture) {
            let text = built.unwrap_err().to_string();
            assert!(text.starts_with("rope_freqs.weight: no "), "{text}");
            return;
        }
        let weights = built.unwrap().graph.weights;
        let table = weights
            .iter()
            .find(|weight| weight.name == "<rope_inv_freq>")
            .unwrap();
        let Source::Computed(table) = &table.source else {
            panic!("not computed")
        };
        let expected = [1.0, 0.1 / 2.0, 0.01 / 4.0, 0.001 / 8.0f32];
        assert!(
            table
                .iter()
                .zip(expected)
                .all(|(a, b)| (a / b - 1.0).abs() < 1e-6),
            "{table:?}"
        );
        let zero = file(&[4], [1.0, 0.0, 4.0, 8.0]).unwrap_err().to_string();
        assert_eq!(
            zero,
            "rope_freqs.weight: element 1 is 0, which nothing can be divided by"
        );
        let square = file(&[2, 2], [1.0; 4]).unwrap_err().to_string();
        assert!(
            square.starts_with("rope_freqs.weight: expected [4], found [2, 2]"),
            "{square}"
        );
    });
}

/// Logits of six tokens of one slot.
fn logits(gguf: &Gguf) -> Vec<Vec<f32>> {
    let graph = build(gguf).unwrap().graph;
    interpret::prompt_logits(&graph, gguf, &[3, 1, 5, 2, 7, 0]).unwrap()
}

#[test]
fn a_fused_tensor_is_its_rows() {
    each(|tiny| {
        let tiny = Tiny {
            ty: TensorType::F32,
            ..tiny
        };
        let gguf = tiny.gguf();
        let parts = ["attn_q", "attn_k", "attn_v"].map(|part| format!("blk.0.{part}.weight"));
        let tensors: Option<Vec<_>> = parts.iter().map(|name| gguf.tensor(name)).collect();
        let Some(tensors) = tensors else { return };
        let bytes = tensors.iter().flat_map(|t| gguf.data(t).to_vec()).collect();
        let rows = tensors.iter().map(|t| t.n()).sum();
        let fused: (&str, &[u64], Vec<u8>) = ("blk.0.attn_qkv.weight", &[32, rows], bytes);
        let one = replaced(tiny, |name| parts.iter().any(|part| part == name), &[fused]);
        let graph = build(&one).unwrap().graph;
        assert_eq!(logits(&one), logits(&gguf), "{}", tiny.architecture);
        let k = graph.weights.iter().find(|w| w.name.contains("[32..48]"));
        assert_eq!(k.unwrap().tensor(), Some("blk.0.attn_qkv.weight"));
        let short: (&str, &[u64], Vec<u8>) = ("blk.0.attn_qkv.weight", &[32, 32], vec![0; 4096]);
        let short = replaced(tiny, |name| parts.iter().any(|part| part == name), &[short]);
        let text = build(&short).unwrap_err().to_string();
        assert!(
            text.starts_with("blk.0.attn_qkv.weight: expected [32, 64]"),
            "{text}"
        );
    });
}

#[test]
fn a_scale_multiplies_the_product_and_not_the_bias() {
    each(|tiny| {
        let tiny = Tiny {
            ty: TensorType::F32,
            ..tiny
        };
        let gguf = tiny.gguf();
        let name = "blk.1.attn_q.weight";
        let tensor = gguf.tensor(name).unwrap();
        let (values, _) = gguf.data(tensor).as_chunks::<4>();
        let twice = values
            .iter()
            .flat_map(|&b| (2.0 * f32::from_le_bytes(b)).to_le_bytes());
        let doubled: (&str, &[u64], Vec<u8>) = (name, &tensor.dims, twice.collect());
        let doubled = logits(&replaced(tiny, |n| n == name, &[doubled]));
        let two = 2f32.to_le_bytes().to_vec();
        let scaled = replaced(tiny, |_| false, &[("blk.1.attn_q.scale", &[1], two)]);
        let scaled = logits(&scaled);
        assert_ne!(scaled, logits(&gguf), "{}", tiny.architecture);
        for (a, b) in doubled.iter().flatten().zip(scaled.iter().flatten()) {
            assert!((a - b).abs() <= 1e-5 * (1.0 + a.abs()), "{a} {b}");
        }
    });
}

#[test]
fn scores_that_grow_are_refused_beyond_the_original_context() {
    let tiny = Tiny {
        architecture: "mistral3",
        ..Tiny::PLAIN
    };
    let mut writer = tiny.writer();
    writer.add("mistral3.attention.temperature_scale", Value::F32(0.1));
    writer.add(
        "mistral3.rope.scaling.original_context_length",
        Value::U32(16),
    );
    let gguf = open(&writer);
    build_for(&gguf, Some(16)).unwrap();
    let error = build_for(&gguf, Some(17)).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("give --ctx-size 16 or less"));
}

#[test]
fn head_sizes_no_table_could_hold_are_refused() {
    each(|tiny| {
        for dim in [u32::MAX, 1 << 17] {
            let mut writer = tiny.writer();
            for suffix in ["attention.key_length", "attention.value_length"] {
                writer.add(format!("{}.{suffix}", tiny.architecture), Value::U32(dim));
            }
            let text = error(&writer).to_string();
            assert!(text.contains(&format!("heads of {dim} elements")), "{text}");
        }
    });
}

#[test]
fn experts_that_cannot_be_are_named() {
    let moe = Tiny {
        architecture: "qwen3moe",
        ..Tiny::PLAIN
    };
    for (suffix, value, code, says) in [
        ("expert_count", 0, 1, "qwen3moe.expert_count: is 0"),
        (
            "expert_count",
            4096,
            3,
            "qwen3moe.expert_used_count: 4096 experts (supported: 1 to 1024)",
        ),
        (
            "expert_used_count",
            6,
            3,
            "qwen3moe.expert_used_count: 6 of 5 experts for a row (supported: 1 to 5)",
        ),
        (
            "expert_count",
            4,
            1,
            "blk.0.ffn_gate_inp.weight: expected [32, 4], found [32, 5] (row length first)",
        ),
        (
            "expert_feed_forward_length",
            96,
            1,
            "blk.0.ffn_gate_exps.weight: expected [32, 96, 5], found [32, 64, 5] (row length first)",
        ),
    ] {
        let change = |key: &str| (key == suffix).then_some(Value::U32(value));
        let error = error(&edited(moe, change, |_| None));
        assert_eq!(error.to_string(), says);
        assert_eq!(error.exit_code(), code, "{error}");
    }
    let dense = with_key(
        Tiny {
            architecture: "qwen3",
            ..Tiny::PLAIN
        },
        "expert_count",
        Value::U32(8),
    );
    let error = error(&dense);
    assert_eq!(error.exit_code(), 3);
    assert!(
        error
            .to_string()
            .starts_with("qwen3.expert_count: 8 is not implemented"),
        "{error}"
    );
}

#[test]
fn windows_alternate_and_one_base_serves_all_layers() {
    let tiny = Tiny {
        architecture: "gpt-oss",
        layers: 3,
        ..Tiny::PLAIN
    };
    let windows = |writer: &GgufWriter| -> Vec<Option<usize>> {
        let kv = build(&open(writer)).unwrap().graph.kv;
        kv.iter().map(|layer| layer.window).collect()
    };
    assert_eq!(windows(&tiny.writer()), [Some(2), None, Some(2)]);
    let three = with_key(tiny, "attention.sliding_window_pattern", Value::U32(3));
    assert_eq!(windows(&three), [Some(2), Some(2), None]);
    let other = with_key(tiny, "rope.freq_base_swa", Value::F32(5.0));
    let error = error(&other);
    assert_eq!(error.exit_code(), 3);
    assert!(
        error
            .to_string()
            .starts_with("gpt-oss.rope.freq_base_swa: 5 differs"),
        "{error}"
    );
}
