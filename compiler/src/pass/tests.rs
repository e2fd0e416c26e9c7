//! A tiny model and what the tests of all passes ask of it: the text before and after, and equal results.

use std::collections::BTreeMap;
use std::sync::Mutex;

use coldpress_kernels::tensor_type::TensorType;

use super::*;
use crate::gguf::{Array, Gguf, GgufWriter, Value};
use crate::graph::dump::dump;
use crate::graph::interpret::{Interpreter, Rounding, Row, Weights};
use crate::graph::{DType, Op};

/// Pseudo-random values in -1..1 (xorshift64*), the same on every run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> f32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40;
        bits as f32 / (1 << 23) as f32 - 1.0
    }
}

/// Bytes of `len` random weights: small for matrices, around one for vectors.
fn bytes(random: &mut Random, ty: TensorType, len: u64, vector: bool) -> Vec<u8> {
    match ty {
        TensorType::F32 => (0..len)
            .flat_map(|_| {
                let value = random.next();
                let value = if vector {
                    1.0 + value * 0.25
                } else {
                    value * 0.5
                };
                value.to_le_bytes()
            })
            .collect(),
        TensorType::F16 => (0..len)
            .flat_map(|_| half::f16::from_f32(random.next() * 0.5).to_le_bytes())
            .collect(),
        // 1/256 as f16, then 32 integers.
        TensorType::Q8_0 => (0..len / 32)
            .flat_map(|_| {
                let integers: Vec<u8> = (0..32)
                    .map(|_| (random.next() * 127.0) as i8 as u8)
                    .collect();
                [0x00, 0x1c].into_iter().chain(integers)
            })
            .collect(),
        other => panic!("no random {other}"),
    }
}

/// Metadata that makes a tiny model of an architecture show what it has of its own: windows of two tokens, every second
/// layer recurrent, and keys without which it is no model.
fn own_keys(architecture: &str, head_dim: u64) -> Vec<(&'static str, Value)> {
    let experts = vec![
        ("expert_count", Value::U32(5)),
        ("expert_used_count", Value::U32(2)),
        ("expert_feed_forward_length", Value::U32(64)),
    ];
    match architecture {
        "gpt-oss" => {
            let window = ("attention.sliding_window", Value::U32(2));
            [experts, vec![window]].concat()
        }
        "qwen35" => vec![
            ("full_attention_interval", Value::U32(2)),
            (
                "rope.dimension_sections",
                Value::Array(Array::I32(vec![2, 1, 1, 0])),
            ),
            ("ssm.conv_kernel", Value::U32(3)),
            ("ssm.inner_size", Value::U32(64)),
            ("ssm.state_size", Value::U32(16)),
            ("ssm.time_step_rank", Value::U32(4)),
            ("ssm.group_count", Value::U32(2)),
        ],
        "qwen35moe" | "qwen3next" => [experts, own_keys("qwen35", head_dim)].concat(),
        "qwen3vlmoe" => [experts, own_keys("qwen3vl", head_dim)].concat(),
        name if name.contains("moe") => experts,
        "gemma2" | "gemma3" => vec![
            ("attention.sliding_window", Value::U32(2)),
            ("attention.sliding_window_pattern", Value::U32(2)),
            ("rope.freq_base_swa", Value::F32(100.0)),
            ("rope.scaling.factor", Value::F32(4.0)),
        ],
        "gemma4" => vec![
            ("attention.sliding_window", Value::U32(2)),
            ("attention.sliding_window_pattern", Value::U32(2)),
            ("rope.freq_base_swa", Value::F32(100.0)),
            ("attention.key_length_swa", Value::U32(head_dim as u32)),
            ("attention.value_length_swa", Value::U32(head_dim as u32)),
            ("embedding_length_per_layer_input", Value::U32(32)),
        ],
        "olmo2" => vec![("attention.sliding_window", Value::U32(2))],
        "qwen2vl" | "qwen3vl" | "hunyuan-dense" | "glm4" => vec![(
            "rope.dimension_sections",
            Value::Array(Array::I32(vec![2, 1, 1, 0])),
        )],
        "granite" => vec![
            ("logit_scale", Value::F32(8.0)),
            ("residual_scale", Value::F32(0.5)),
            ("embedding_scale", Value::F32(3.0)),
            ("attention.scale", Value::F32(0.25)),
        ],
        _ => vec![],
    }
}

/// Architectures with recurrent layers: the first of every two of a tiny model.
pub const RECURRENT: &[&str] = &["qwen35", "qwen35moe", "qwen3next"];

/// Names and dimensions of tensors.
type Tensors = Vec<(String, Vec<u64>)>;

/// Architecture, and heads, KV heads, layers and whether there are biases.
type Known = (&'static str, (u64, u64, u64, bool));

/// Names and dimensions of the tensors of files written before: asking takes a build for each tensor.
static KNOWN: Mutex<BTreeMap<Known, Tensors>> = Mutex::new(BTreeMap::new());

/// How a tiny model differs from the plainest one.
#[derive(Clone, Copy)]
pub struct Tiny {
    pub architecture: &'static str,
    pub heads: u64,
    pub kv_heads: u64,
    pub layers: u64,
    /// Type of all matrices but `float`.
    pub ty: TensorType,
    /// Ending of matrices stored as F32 whatever `ty` is; empty for none.
    pub float: &'static str,
    /// Whether every matmul that may have a bias has one (llama).
    pub biases: bool,
}

impl Tiny {
    pub const PLAIN: Tiny = Tiny {
        architecture: "llama",
        heads: 1,
        kv_heads: 1,
        layers: 1,
        ty: TensorType::Q8_0,
        float: "none",
        biases: false,
    };

    /// The file: hidden 32, head size 32 / heads, feed-forward 64, vocabulary 8, and whatever tensors the architecture
    /// asks for.
    pub fn writer(&self) -> GgufWriter<'static> {
        let shape = (self.heads, self.kv_heads, self.layers, self.biases);
        let key = (self.architecture, shape);
        let mut known = KNOWN.lock().unwrap();
        let tensors = known.entry(key).or_insert_with(|| self.asked_for());
        self.written(tensors)
    }

    /// Tensors of a file that the architecture accepts.
    fn asked_for(&self) -> Tensors {
        let mut tensors = self.optional();
        loop {
            let writer = self.written(&tensors);
            let error = match crate::model::build(&open(&writer)) {
                Ok(_) => return tensors,
                Err(error) => error,
            };
            let text = error.to_string();
            let (name, why) = text.split_once(": ").unwrap();
            if let Some(dims) = why.strip_prefix("missing: expected ") {
                tensors.push((name.into(), serde_json::from_str(dims).unwrap()));
            } else if why.ends_with("so its effect would be lost") {
                tensors.retain(|(tensor, _)| tensor != name);
            } else {
                panic!("{text}");
            }
        }
    }

    /// Tensors that no architecture misses and that some may have.
    fn optional(&self) -> Tensors {
        let (hidden, ffn, vocab) = (32, 64, 8);
        let mut tensors: Tensors = vec![
            ("token_embd.weight".into(), vec![hidden, vocab]),
            ("output_norm.weight".into(), vec![hidden]),
            ("output.weight".into(), vec![hidden, vocab]),
        ];
        for layer in 0..self.layers {
            let mut tensor =
                |name: &str, len: u64| tensors.push((format!("blk.{layer}.{name}"), vec![len]));
            // Where attention is gated, attn_q has rows for the gates.
            let recurrent = RECURRENT.contains(&self.architecture);
            tensor("attn_q.bias", if recurrent { 2 * hidden } else { hidden });
            if self.architecture == "qwen3moe" {
                tensor("ffn_gate_exps.scale", 5);
                tensor("ffn_down_exps.scale", 5);
            }
            if self.biases {
                tensor("attn_output.bias", hidden);
                tensor("ffn_gate.bias", ffn);
                tensor("ffn_up.bias", ffn);
                tensor("ffn_down.bias", hidden);
            }
        }
        tensors
    }

    /// The file with these tensors.
    fn written(&self, tensors: &[(String, Vec<u64>)]) -> GgufWriter<'static> {
        let mut writer = GgufWriter::new();
        let key = |suffix: &str| format!("{}.{suffix}", self.architecture);
        writer.add("general.architecture", Value::Str(self.architecture.into()));
        for (suffix, value) in [
            ("block_count", self.layers),
            ("context_length", 64),
            ("embedding_length", 32),
            ("feed_forward_length", 64),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
        ] {
            writer.add(key(suffix), Value::U32(value as u32));
        }
        writer.add(key("attention.layer_norm_rms_epsilon"), Value::F32(1e-5));
        for (suffix, value) in own_keys(self.architecture, 32 / self.heads) {
            writer.add(key(suffix), value);
        }
        let mut random = Random(7);
        for (name, dims) in tensors {
            let vector = dims.len() == 1 || name.ends_with(".bias");
            // llama.cpp quantises no convolution.
            let float = name.ends_with(self.float) || name.ends_with(".ssm_conv1d.weight");
            let ty = match vector || float {
                true => TensorType::F32,
                false => self.ty,
            };
            let mut bytes = bytes(&mut random, ty, dims.iter().product(), vector);
            if name.ends_with(".ssm_a") {
                // Decay, not growth.
                bytes
                    .iter_mut()
                    .skip(3)
                    .step_by(4)
                    .for_each(|top| *top |= 0x80);
            }
            writer.tensor(name.clone(), ty, dims, bytes);
        }
        writer
    }

    pub fn gguf(&self) -> Gguf {
        open(&self.writer())
    }

    pub fn graph(&self) -> OpGraph {
        crate::model::build(&self.gguf()).unwrap().graph
    }
}

/// The file that `writer` describes.
pub fn open(writer: &GgufWriter) -> Gguf {
    let file = tempfile::NamedTempFile::new().unwrap();
    writer.write(file.path()).unwrap();
    Gguf::open(file.path()).unwrap()
}

/// One layer of the plainest model, unfused.
pub fn tiny() -> OpGraph {
    Tiny::PLAIN.graph()
}

/// Logits of two slots that share one step, then of one more row each.
fn logits(graph: &OpGraph, weights: &Weights, rounding: Rounding) -> Vec<Vec<f64>> {
    let row = |token, slot, position, wants_logits| Row {
        token,
        slot,
        position,
        wants_logits,
    };
    let mut interpreter = Interpreter::new(graph, weights, rounding);
    let first = [
        row(3, 0, 0, false),
        row(1, 0, 1, true),
        row(5, 1, 0, true),
        row(2, 1, 1, false),
    ];
    let mut all = interpreter.step(&first).unwrap();
    all.extend(
        interpreter
            .step(&[row(7, 1, 2, true), row(0, 0, 2, true)])
            .unwrap(),
    );
    all
}

/// Runs the pass of that name alone on the tiny model.
pub fn apply(name: &str, tiny: Tiny) -> (OpGraph, String, String) {
    let mut graph = tiny.graph();
    let before = dump(&graph);
    let pass = PASSES.iter().find(|pass| pass.name == name).unwrap();
    run(pass, &mut graph).unwrap();
    let after = dump(&graph);
    (graph, before, after)
}

/// Asserts that both texts have these lines, in this order, whatever value numbers they carry.
pub fn assert_lines(text: &str, expected: &[&str]) {
    let mut lines = text.lines();
    for want in expected {
        assert!(
            lines.any(|line| line.contains(want)),
            "{want:?} missing or out of order in\n{text}"
        );
    }
}

#[test]
fn every_pass_computes_the_same() {
    for architecture in crate::model::ARCHITECTURES.iter().map(|a| a.name) {
        for (ty, float) in [
            (TensorType::F32, "none"),
            (TensorType::Q8_0, "none"),
            (TensorType::Q8_0, "attn_v.weight"),
        ] {
            let tiny = Tiny {
                architecture,
                heads: 4,
                kv_heads: 2,
                layers: 2,
                ty,
                float,
                biases: true,
            };
            let mut graph = tiny.graph();
            let gguf = tiny.gguf();
            let weights = Weights::read(&graph, &gguf).unwrap();
            let exact = logits(&graph, &weights, Rounding::Exact);
            let scale = exact
                .iter()
                .flatten()
                .fold(0.0f64, |max, x| max.max(x.abs()));
            for pass in PASSES {
                run(pass, &mut graph).unwrap();
                let now = logits(&graph, &weights, Rounding::Exact);
                for (a, b) in exact.iter().flatten().zip(now.iter().flatten()) {
                    assert!(
                        (a - b).abs() <= 1e-12 * scale,
                        "{architecture} {ty} {}: {a} {b}",
                        pass.name
                    );
                }
            }
            let rounded = logits(&graph, &weights, Rounding::Int8);
            let error: f64 = exact
                .iter()
                .flatten()
                .zip(rounded.iter().flatten())
                .map(|(a, b)| (a - b).powi(2))
                .sum();
            let energy: f64 = exact.iter().flatten().map(|a| a * a).sum();
            match ty {
                TensorType::F32 => assert_eq!(error, 0.0, "float weights read no int8"),
                _ => assert!(error > 0.0 && error < 1e-2 * energy, "{}", error / energy),
            }
        }
    }
}

#[test]
fn passes_are_deterministic_and_dumped() {
    let texts = || {
        let mut texts = Vec::new();
        let mut graph = Tiny {
            layers: 3,
            ..Tiny::PLAIN
        }
        .graph();
        run_all(
            &mut graph,
            Some(&mut |name, text| texts.push((name.to_owned(), text.to_owned()))),
        )
        .unwrap();
        texts
    };
    let first = texts();
    assert!(
        first
            .iter()
            .map(|(name, _)| name.as_str())
            .eq(PASSES.iter().map(|pass| pass.name))
    );
    assert_eq!(first, texts());
}

#[test]
fn a_pass_run_twice_changes_nothing_more() {
    let mut graph = Tiny {
        layers: 2,
        ..Tiny::PLAIN
    }
    .graph();
    run_all(&mut graph, None).unwrap();
    let once = dump(&graph);
    run_all(&mut graph, None).unwrap();
    assert_eq!(once, dump(&graph));
}

#[test]
fn after_all_passes_integer_weights_read_int8() {
    for float in ["none", "attn_v.weight", "output.weight"] {
        let mut graph = Tiny {
            layers: 2,
            float,
            ..Tiny::PLAIN
        }
        .graph();
        run_all(&mut graph, None).unwrap();
        for node in graph.order() {
            let Op::MatMul { parts, .. } = &graph.nodes[node].op else {
                continue;
            };
            let expected = match graph.is_integer(parts[0].weight) {
                true => DType::Q8,
                false => DType::F32,
            };
            let label = &graph.nodes[node].label;
            assert_eq!(
                graph.value_type(graph.inputs(node)[0]).dtype,
                expected,
                "{label}"
            );
        }
    }
}
