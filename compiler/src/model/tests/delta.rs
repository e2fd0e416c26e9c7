//! Gated delta nets: which layers they are, sizes that cannot be, orders of heads, layers that take no part.

use super::*;
use crate::gguf::GgufWriter;

const TINY: Tiny = Tiny {
    architecture: "qwen35",
    heads: 4,
    kv_heads: 2,
    layers: 2,
    ..Tiny::PLAIN
};

/// Heads of keys and of values, and their elements.
const KEYS: usize = 2;
const HEADS: usize = 4;
const DIM: usize = 16;

#[test]
fn the_file_says_which_layers_attend() {
    let tiny = Tiny { layers: 4, ..TINY };
    let attends = |writer: &GgufWriter| -> Vec<bool> {
        let graph = build(&open(writer)).unwrap().graph;
        let label = |layer| format!("blk.{layer}.attn");
        (0..4)
            .map(|layer| graph.nodes.node_weights().any(|n| n.label == label(layer)))
            .collect()
    };
    assert_eq!(attends(&tiny.writer()), [false, true, false, true]);
    let bools = |layers: &[bool]| Value::Array(Array::Bool(layers.to_vec()));
    let said = with_key(
        tiny,
        "attention.recurrent_layers",
        bools(&[true, false, true, false]),
    );
    assert_eq!(attends(&said), [false, true, false, true]);
    let numbers = Value::Array(Array::U32(vec![1, 0, 1, 0]));
    let said = with_key(tiny, "attention.recurrent_layers", numbers);
    assert_eq!(attends(&said), [false, true, false, true]);
    for (value, code, says) in [
        (bools(&[true; 4]), 3, "no layer attends"),
        (Value::Bool(true), 3, "no layer attends"),
        (bools(&[false]), 1, "has 1 elements for 4 layers"),
    ] {
        let error = error(&with_key(tiny, "attention.recurrent_layers", value));
        assert_eq!(error.exit_code(), code, "{error}");
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("qwen35.attention.recurrent_layers: {says}")),
            "{text}"
        );
    }
    let change = |key: &str| (key == "full_attention_interval").then_some(Value::U32(0));
    let text = error(&edited(tiny, change, |_| None)).to_string();
    assert_eq!(text, "qwen35.full_attention_interval: is 0");
}

#[test]
fn sizes_that_cannot_be_are_named() {
    for (suffix, value, code, says) in [
        ("ssm.group_count", 0, 1, "is 0"),
        ("ssm.time_step_rank", 0, 1, "is 0"),
        ("ssm.state_size", 0, 1, "is 0"),
        ("ssm.inner_size", 0, 1, "is 0"),
        ("ssm.conv_kernel", 0, 1, "is 0"),
        (
            "ssm.conv_kernel",
            1,
            3,
            "a convolution of 1 taps (supported: 2 to 8)",
        ),
        (
            "ssm.conv_kernel",
            u32::MAX,
            3,
            "a convolution of 4294967295 taps (supported: 2 to 8)",
        ),
        (
            "ssm.state_size",
            24,
            3,
            "heads of 24 elements (supported: multiples of 16 up to 256)",
        ),
        (
            "ssm.state_size",
            u32::MAX,
            3,
            "heads of 4294967295 elements (supported: multiples of 16 up to 256)",
        ),
        ("ssm.group_count", 3, 1, "4 heads of values over 3 of keys"),
        (
            "ssm.inner_size",
            96,
            1,
            "96 is not ssm.time_step_rank times ssm.state_size, 4 times 16",
        ),
        ("nextn_predict_layers", 2, 1, "2 of 2 layers"),
        (
            "nextn_predict_layers",
            u32::MAX,
            1,
            "4294967295 of 2 layers",
        ),
    ] {
        let change = |key: &str| (key == suffix).then_some(Value::U32(value));
        let mut writer = edited(TINY, change, |_| None);
        if suffix.starts_with("nextn") {
            writer.add(format!("qwen35.{suffix}"), Value::U32(value));
        }
        let error = error(&writer);
        assert_eq!(error.to_string(), format!("qwen35.{suffix}: {says}"));
        assert_eq!(error.exit_code(), code, "{error}");
    }
    // Numbers that agree with each other and not with the file.
    let change = |key: &str| match key {
        "ssm.time_step_rank" => Some(Value::U32(1 << 27)),
        "ssm.inner_size" => Some(Value::U32(1 << 31)),
        _ => None,
    };
    let text = error(&edited(TINY, change, |_| None)).to_string();
    assert!(
        text.starts_with("blk.0.attn_qkv.weight: expected [32, 2147483712]"),
        "{text}"
    );
}

#[test]
fn layers_that_predict_further_tokens_are_left_out() {
    let tiny = Tiny {
        ty: TensorType::F32,
        ..TINY
    };
    let plain = tiny.gguf();
    let change = |key: &str| (key == "block_count").then_some(Value::U32(3));
    let mut writer = edited(tiny, change, |_| None);
    writer.add("qwen35.nextn_predict_layers", Value::U32(1));
    for name in ["blk.2.nextn.eh_proj.weight", "blk.2.attn_q.weight"] {
        writer.tensor(name, TensorType::F32, &[4], vec![0; 16]);
    }
    let with = open(&writer);
    let model = build(&with).unwrap();
    assert_eq!(model.info.layers, 2);
    assert_eq!(logits(&with), logits(&plain));
    writer.tensor("blk.3.attn_q.weight", TensorType::F32, &[4], vec![0; 16]);
    let text = error(&writer).to_string();
    assert!(text.starts_with("blk.3.attn_q.weight: no qwen35"), "{text}");
}

/// The rows of head h of values, of `rows` rows for each, in the order in which keys take turns; before them, the `before`
/// rows that are no values.
fn take_turns(data: &[f32], before: usize, rows: usize, width: usize) -> Vec<f32> {
    let (keep, values) = data.split_at(before * width);
    let shared = HEADS / KEYS;
    let head = |head: usize| {
        let (key, rank) = (head % KEYS, head / KEYS);
        let at = (key * shared + rank) * rows * width;
        values[at..at + rows * width].to_vec()
    };
    let values = (0..HEADS).flat_map(head);
    keep.iter().copied().chain(values).collect()
}

/// The two architectures order heads differently, and are the same otherwise.
#[test]
fn heads_beside_each_other_are_heads_that_take_turns() {
    let grouped = Tiny {
        architecture: "qwen3next",
        ty: TensorType::F32,
        ..TINY
    };
    let gguf = grouped.gguf();
    let mut writer = GgufWriter::new();
    for (key, value) in gguf.keys() {
        // One of the two does not read them.
        if key.ends_with("dimension_sections") {
            continue;
        }
        let value = match key {
            "general.architecture" => Value::Str("qwen35moe".into()),
            _ => value.clone(),
        };
        writer.add(key.replace("qwen3next.", "qwen35moe."), value);
    }
    let mut tensor = |name: &str, dims: &[u64], values: &[f32]| {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        writer.tensor(name.to_owned(), TensorType::F32, dims, bytes);
    };
    for info in gguf.tensors() {
        let (values, _) = gguf.data(info).as_chunks::<4>();
        let values: Vec<f32> = values.iter().map(|&b| f32::from_le_bytes(b)).collect();
        let (name, dims) = (info.name.as_str(), info.dims.as_slice());
        let part = name.strip_prefix("blk.0.").unwrap_or("");
        match part {
            "attn_qkv.weight" | "ssm_conv1d.weight" => {
                let turned = take_turns(&values, 2 * KEYS * DIM, DIM, dims[0] as usize);
                tensor(name, dims, &turned);
            }
            "attn_gate.weight" => tensor(name, dims, &take_turns(&values, 0, DIM, 32)),
            "ssm_a" | "ssm_dt.bias" => tensor(name, dims, &take_turns(&values, 0, 1, 1)),
            "ssm_out.weight" => {
                let rows = values.chunks_exact(HEADS * DIM);
                let turned: Vec<f32> = rows.flat_map(|row| take_turns(row, 0, DIM, 1)).collect();
                tensor(name, dims, &turned);
            }
            "ssm_ba.weight" => {
                // For each key its betas, then its alphas.
                let half = |first: usize| -> Vec<f32> {
                    let pairs = values
                        .chunks_exact(HEADS / KEYS * 32)
                        .skip(first)
                        .step_by(2);
                    take_turns(&pairs.flatten().copied().collect::<Vec<_>>(), 0, 1, 32)
                };
                tensor("blk.0.ssm_beta.weight", &[32, HEADS as u64], &half(0));
                tensor("blk.0.ssm_alpha.weight", &[32, HEADS as u64], &half(1));
            }
            _ => tensor(name, dims, &values),
        }
    }
    let turned = open(&writer);
    let (a, b) = (logits(&gguf), logits(&turned));
    for (a, b) in a.iter().flatten().zip(b.iter().flatten()) {
        assert!((a - b).abs() <= 1e-5 * (1.0 + a.abs()), "{a} {b}");
    }
    let next = build(&gguf).unwrap().graph;
    let beta = next.weights.iter().find(|w| w.name.contains("ssm_ba"));
    assert_eq!(beta.unwrap().name, "blk.0.ssm_ba.weight[0..2 of 4]");
}

#[test]
fn what_a_recurrent_layer_remembers_matters() {
    let tiny = Tiny {
        ty: TensorType::F32,
        ..TINY
    };
    let gguf = tiny.gguf();
    let graph = build(&gguf).unwrap().graph;
    let all = logits(&gguf);
    let last = interpret::prompt_logits(&graph, &gguf, &[5, 3, 5, 2, 7, 0]).unwrap();
    assert_ne!(all[5], last[5], "other tokens before it");
    let floats: Vec<usize> = graph.states.iter().map(|state| state.floats).collect();
    assert_eq!(floats, [(2 * KEYS + HEADS) * DIM * 2, HEADS * DIM * DIM]);
}

/// Of the last of six tokens, by llama.cpp on the files that [`Tiny`] writes (with a vocabulary of eight).
#[test]
fn logits_are_llama_cpps() {
    for (architecture, expected) in [
        (
            "qwen35",
            [
                -0.323_654_17,
                -2.459_539_4,
                -1.970_273_7,
                1.101_138_7,
                -0.250_843_1,
                1.947_319_3,
                1.983_038_7,
                -0.370_622_34f32,
            ],
        ),
        (
            "qwen35moe",
            [
                -0.153_349_22,
                0.575_066_6,
                -0.917_198_8,
                -1.313_068_2,
                3.622_490_4,
                0.171_283_45,
                0.990_775_05,
                0.808_885_04,
            ],
        ),
        (
            "qwen3next",
            [
                0.100_981_12,
                -1.972_857_5,
                -1.638_994_8,
                1.750_79,
                1.075_745_8,
                1.839_919,
                0.835_569_14,
                -0.429_73,
            ],
        ),
    ] {
        let tiny = Tiny {
            architecture,
            ty: TensorType::F32,
            ..TINY
        };
        let all = logits(&tiny.gguf());
        for (found, expected) in all[5].iter().zip(expected) {
            assert!(
                (found - expected).abs() <= 1e-5,
                "{architecture}: {found} for {expected}"
            );
        }
    }
}
