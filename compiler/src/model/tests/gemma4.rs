//! What only Gemma 4 has: V from K, layers that read the cache of others, per-layer embeddings that are views.

use super::*;
use crate::graph::dump::dump;
use crate::graph::interpret::{Interpreter, Rounding, Row, Weights};
use crate::graph::{OpGraph, Value as GraphValue};

const TINY: Tiny = Tiny {
    architecture: "gemma4",
    heads: 4,
    kv_heads: 2,
    layers: 4,
    ty: TensorType::F32,
    ..Tiny::PLAIN
};

fn is_v(name: &str) -> bool {
    name.ends_with("attn_v.weight")
}

/// The file of `TINY` with every `period`-th layer global; those layers, or all, have no V.
fn without_v(period: u32) -> Gguf {
    let global = move |layer: u32| period == 1 || layer % period == period - 1;
    let gguf = TINY.gguf();
    let mut writer = GgufWriter::new();
    for (key, value) in gguf.keys() {
        match key.ends_with("sliding_window_pattern") {
            true => writer.add(key, Value::U32(period)),
            false => writer.add(key, value.clone()),
        };
    }
    for info in gguf.tensors() {
        let layer = info.name.split('.').nth(1).and_then(|l| l.parse().ok());
        if !(is_v(&info.name) && layer.is_some_and(global)) {
            let bytes = gguf.data(info).to_vec();
            writer.tensor(info.name.clone(), info.ty, &info.dims, bytes);
        }
    }
    open(&writer)
}

/// The same file, with a V of each layer that is a copy of its K.
fn with_copies(gguf: &Gguf) -> Gguf {
    let mut writer = GgufWriter::new();
    for (key, value) in gguf.keys() {
        writer.add(key, value.clone());
    }
    for info in gguf.tensors() {
        let mut add = |name: String| {
            writer.tensor(name, info.ty, &info.dims, gguf.data(info).to_vec());
        };
        add(info.name.clone());
        let v = info.name.replace("attn_k.weight", "attn_v.weight");
        if v != info.name && gguf.tensor(&v).is_none() {
            add(v);
        }
    }
    open(&writer)
}

/// Logits of a batch of two slots at different depths, in two steps.
fn batched(graph: &OpGraph, gguf: &Gguf) -> Vec<Vec<f64>> {
    let weights = Weights::read(graph, gguf).unwrap();
    let mut interpreter = Interpreter::new(graph, &weights, Rounding::Exact);
    let row = |slot: usize, position: usize| Row {
        token: ((7 * position + 3 * slot) % 8) as u32,
        slot,
        position,
        wants_logits: true,
    };
    let first: Vec<Row> = (0..6)
        .map(|p| row(0, p))
        .chain((0..2).map(|p| row(1, p)))
        .collect();
    let second: Vec<Row> = (2..6).map(|p| row(1, p)).chain([row(0, 6)]).collect();
    let mut all = interpreter.step(&first).unwrap();
    all.extend(interpreter.step(&second).unwrap());
    all
}

/// Logits of one slot, token by token.
fn single(graph: &OpGraph, gguf: &Gguf, slot: usize, length: usize) -> Vec<Vec<f64>> {
    let weights = Weights::read(graph, gguf).unwrap();
    let mut interpreter = Interpreter::new(graph, &weights, Rounding::Exact);
    let step = |position: usize| {
        let row = Row {
            token: ((7 * position + 3 * slot) % 8) as u32,
            slot: 0,
            position,
            wants_logits: true,
        };
        interpreter.step(&[row]).unwrap().remove(0)
    };
    (0..length).map(step).collect()
}

/// `graph` with V taken after K's norm.
fn mutated(mut graph: OpGraph) -> OpGraph {
    let find = |graph: &OpGraph, label: &str| {
        let mut nodes = graph.order().into_iter();
        nodes.find(|&node| graph.nodes[node].label == label)
    };
    for layer in 0..TINY.layers {
        let label = |part: &str| format!("blk.{layer}.{part}");
        let v = find(&graph, &label("attn_v_norm")).unwrap();
        let k = find(&graph, &label("attn_k_norm")).unwrap();
        if graph.inputs(v) == graph.inputs(k) {
            graph.set_input(v, 0, GraphValue { node: k, port: 0 });
        }
    }
    graph
}

#[test]
fn v_without_a_tensor_is_k_before_its_norm() {
    for period in [1, 2] {
        let gguf = without_v(period);
        assert!(gguf.tensor("blk.3.attn_v.weight").is_none());
        let copies = with_copies(&gguf);
        let graph = build(&gguf).unwrap().graph;
        let found = batched(&graph, &gguf);
        let expected = batched(&build(&copies).unwrap().graph, &copies);
        assert_eq!(found, expected, "every {period}");
        let wrong = batched(&mutated(graph.clone()), &gguf);
        let differs = found.iter().zip(&wrong).all(|(a, b)| a != b);
        assert!(differs, "every {period}: the mutation has no effect");
        // Rows of slot 0 are 0..6 and 12, of slot 1 6..12.
        let alone = [single(&graph, &gguf, 0, 7), single(&graph, &gguf, 1, 6)];
        assert_eq!(found[..6], alone[0][..6]);
        assert_eq!(found[6..12], alone[1][..]);
        assert_eq!(found[12], alone[0][6]);
        let mut passed = graph.clone();
        crate::pass::run_all(&mut passed, None).unwrap();
        for (a, b) in batched(&passed, &gguf)
            .iter()
            .flatten()
            .zip(found.iter().flatten())
        {
            assert!((a - b).abs() < 1e-9 * (1.0 + b.abs()), "{a} {b}");
        }
    }
}

#[test]
fn shared_layers_read_the_cache_of_the_last_of_their_kind() {
    let shared = |layers: u32| {
        let mut writer = TINY.writer();
        writer.add("gemma4.attention.shared_kv_layers", Value::U32(layers));
        build(&open(&writer))
    };
    let graph = shared(2).unwrap().graph;
    let text = dump(&graph);
    assert_eq!(graph.kv.len(), 2, "{text}");
    assert_eq!(graph.kv[0].window, Some(2));
    assert_eq!(graph.kv[1].window, None);
    let read: Vec<usize> = graph
        .order()
        .into_iter()
        .filter_map(|node| match graph.nodes[node].op {
            Op::Attention { layer, .. } => Some(layer),
            _ => None,
        })
        .collect();
    assert_eq!(read, [0, 1, 0, 1]);
    assert!(
        !text.contains("blk.2.attn_k") && !text.contains("blk.3.attn_v"),
        "{text}"
    );
    let says = |layers| shared(layers).unwrap_err().to_string();
    assert_eq!(
        says(3),
        "gemma4.attention.shared_kv_layers: 3 of 4 layers leave no two to share"
    );
    assert!(says(9).contains("9 of 4 layers"));

    // The two layers before the shared ones are both without a window.
    let pattern = Value::Array(Array::Bool(vec![false, false, true, false]));
    let change = |key: &str| (key == "attention.sliding_window_pattern").then(|| pattern.clone());
    let mut writer = edited(TINY, change, |_| None);
    writer.add("gemma4.attention.shared_kv_layers", Value::U32(2));
    let text = build(&open(&writer)).unwrap_err().to_string();
    assert_eq!(
        text,
        "blk.2.attn: reads the cache of a layer of another kind"
    );
}

#[test]
fn every_layer_views_its_own_embedding() {
    let text = dump(&build(&TINY.gguf()).unwrap().graph);
    for layer in 0..4 {
        let view = format!(
            "= columns blk.{layer}.per_layer_input (%9) {}..{}",
            32 * layer,
            32 * layer + 32
        );
        let parts: Vec<&str> = view.split(" (%9)").collect();
        let found = text
            .lines()
            .any(|line| parts.iter().all(|part| line.contains(part)));
        assert!(found, "{view} in\n{text}");
    }
    let odd = |key: &str| (key == "embedding_length_per_layer_input").then_some(Value::U32(24));
    let error = error(&edited(TINY, odd, |_| None));
    assert_eq!(error.exit_code(), 3);
    let expected = "gemma4.embedding_length_per_layer_input: 24 is no multiple of 16";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn layer_output_scales_multiply_and_files_may_lack_them() {
    let scaled = |factor: f32| {
        let mut writer = TINY.writer();
        let bytes = factor.to_le_bytes().to_vec();
        writer.tensor(
            "blk.1.layer_output_scale.weight",
            TensorType::F32,
            &[1],
            bytes,
        );
        logits(&open(&writer))
    };
    let plain = logits(&TINY.gguf());
    assert_eq!(scaled(1.0), plain);
    assert_ne!(scaled(0.5), plain);
}
