//! A row's result does not depend on its company: batch, bucket, chunk, joining and leaving.

use crate::harness::*;
use coldpress_compiler::gguf::Value;
use coldpress_kernels::tensor_type::TensorType;
use coldpress_runtime::bundle::Bundle;
use coldpress_runtime::engine::{Engine, EngineOptions, Event, FinishReason, Request};
use coldpress_runtime::sampler::{Penalties, Sampling};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::{TempDir, tempdir};

fn quantised() -> Shape {
    let types = vec![
        TensorType::Q4_K,
        TensorType::Q6_K,
        TensorType::Q8_0,
        TensorType::Q4_0,
        TensorType::Q2_K,
        TensorType::IQ4_XS,
        TensorType::MXFP4,
        TensorType::F16,
    ];
    Shape {
        hidden: 256,
        ffn: 512,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        types,
        ..Shape::small()
    }
}

fn mixture_of_experts() -> Shape {
    Shape {
        arch: "qwen3moe",
        experts: Some((7, 3)),
        ..quantised()
    }
}

/// Windows, sinks, biases and 4-bit floats in the experts.
fn gpt_oss() -> Shape {
    let window = ("gpt-oss.attention.sliding_window".into(), Value::U32(7));
    Shape {
        arch: "gpt-oss",
        experts: Some((6, 2)),
        types: vec![TensorType::MXFP4, TensorType::Q8_0],
        extra: vec![window],
        ..quantised()
    }
}

/// Recurrent layers between those that attend; experts in all.
fn recurrent() -> Shape {
    Shape {
        arch: "qwen35moe",
        layers: 3,
        experts: Some((5, 2)),
        extra: own_keys("qwen35moe"),
        ..quantised()
    }
}

fn compiled(dir: &TempDir, shape: &Shape, threads: &str, kv: &str) -> PathBuf {
    let (model, bundle) = (
        dir.path().join("m.gguf"),
        dir.path().join(format!("m{threads}{kv}.press")),
    );
    shape.write(&model, 7);
    let sizes = [
        "--max-batch",
        "5",
        "--ctx-size",
        "128",
        "--kv-type",
        kv,
        "-t",
        threads,
    ];
    succeed(&[&["compile", arg(&model), "-o", arg(&bundle)], &sizes[..]].concat());
    bundle
}

fn logits(bundle: &Path, sequences: &[Vec<u32>], chunk: Option<usize>) -> Vec<f32> {
    let out = bundle.with_extension("npy");
    let mut args = vec![
        "logits".to_string(),
        arg(bundle).to_string(),
        "-o".into(),
        arg(&out).to_string(),
    ];
    for s in sequences {
        let list: Vec<String> = s.iter().map(u32::to_string).collect();
        args.extend(["--tokens".into(), list.join(",")]);
    }
    if let Some(chunk) = chunk {
        args.extend(["--chunk".into(), chunk.to_string()]);
    }
    succeed(&args.iter().map(String::as_str).collect::<Vec<_>>());
    read_npy(&out).1
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn batches_chunks_threads_and_buckets_give_the_same_bits() {
    let dir = tempdir().expect("temporary folder");
    let dense = ["f16", "f32", "q8_0"].map(|kv| (quantised(), kv));
    for (shape, kv) in dense
        .into_iter()
        .chain([mixture_of_experts(), gpt_oss(), recurrent()].map(|shape| (shape, "f16")))
    {
        let bundle = compiled(&dir, &shape, "2", kv);
        let mut random = Random(3);
        let sequences: Vec<Vec<u32>> = (0..3)
            .map(|_| (0..37).map(|_| random.below(300) as u32).collect())
            .collect();
        let alone: Vec<Vec<u32>> = sequences
            .iter()
            .map(|s| bits(&logits(&bundle, std::slice::from_ref(s), None)))
            .collect();
        for chunk in [Some(1), Some(7), Some(16)] {
            for (s, expected) in sequences.iter().zip(&alone) {
                assert!(
                    bits(&logits(&bundle, std::slice::from_ref(s), chunk)) == *expected,
                    "kv {kv} chunk {chunk:?}"
                );
            }
        }
        for chunk in [None, Some(1), Some(7)] {
            let batch = bits(&logits(&bundle, &sequences, chunk));
            assert!(
                batch == alone.concat(),
                "kv {kv}, batch of three, chunk {chunk:?}"
            );
        }
        for threads in ["1", "3"] {
            let other = compiled(&dir, &shape, threads, kv);
            assert!(
                bits(&logits(&other, &sequences, None)) == alone.concat(),
                "kv {kv}, {threads} threads"
            );
        }
    }
}

#[test]
fn contexts_of_several_splits_give_the_same_bits() {
    let dir = tempdir().expect("temporary folder");
    let mut random = Random(5);
    let sequences: Vec<Vec<u32>> = (0..2)
        .map(|_| (0..540).map(|_| random.below(300) as u32).collect())
        .collect();
    for (heads, kv_heads, kv) in [(4, 1, "f16"), (4, 2, "q8_0")] {
        let shape = Shape {
            heads,
            kv_heads,
            ..Shape::small()
        };
        let model = dir.path().join("long.gguf");
        shape.write(&model, 7);
        let mut expected: Vec<u32> = Vec::new();
        for threads in ["1", "2", "3", "8"] {
            let bundle = dir.path().join(format!("long{threads}.press"));
            let sizes = ["-np", "2", "-c", "640", "--kv-type", kv, "-t", threads];
            let compile = ["compile", arg(&model), "-o", arg(&bundle)];
            succeed(&[&compile[..], &sizes].concat());
            let batch = bits(&logits(&bundle, &sequences, None));
            if threads == "1" {
                expected = batch.clone();
            }
            assert!(batch == expected, "kv {kv}, {threads} threads");
            let half = expected.len() / 2;
            for (chunk, s) in [(Some(1), 0), (Some(7), 1), (None, 0)] {
                let alone = bits(&logits(&bundle, &sequences[s..=s], chunk));
                assert!(
                    alone == expected[s * half..][..half],
                    "kv {kv}, {threads} threads, chunk {chunk:?}"
                );
            }
        }
    }
}

/// Tokens of each request when `joins[i]` says at which step request i is submitted, and one is cancelled midway.
fn tokens(bundle: &Path, joins: &[usize], cancelled: Option<usize>) -> BTreeMap<usize, Vec<u32>> {
    let bundle = Bundle::open(bundle).expect("bundle opens");
    let mut engine = Engine::new(bundle, EngineOptions::default()).expect("engine starts");
    let mut random = Random(11);
    let requests: Vec<Request> = (0..joins.len())
        .map(|i| {
            let prompt: Vec<u32> = (0..3 + 9 * i).map(|_| random.below(256) as u32).collect();
            let sampling = match i % 3 {
                0 => Sampling::greedy(),
                1 => Sampling {
                    temperature: 0.9,
                    seed: Some(5),
                    ..Sampling::default()
                },
                _ => Sampling {
                    temperature: 1.3,
                    top_k: 20,
                    seed: Some(9),
                    penalties: Penalties {
                        repeat: 1.2,
                        ..Penalties::default()
                    },
                    ..Sampling::default()
                },
            };
            Request {
                sampling,
                max_tokens: Some(20),
                ignore_eos: true,
                ..Request::tokens(prompt)
            }
        })
        .collect();
    let mut ids = BTreeMap::new();
    let mut got: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
    for step in 0..400 {
        for (i, request) in requests.iter().enumerate() {
            if joins[i] == step {
                ids.insert(engine.submit(request.clone()).expect("fits"), i);
            }
        }
        for event in engine.step().expect("step") {
            if let Event::Token { id, token, .. } = event {
                let list = got.entry(ids[&id]).or_default();
                list.push(token);
                if cancelled == Some(ids[&id]) && list.len() == 4 {
                    engine.cancel(id);
                }
            }
        }
        if engine.is_idle() && step > joins.iter().copied().max().unwrap_or(0) {
            break;
        }
    }
    got
}

#[test]
fn joining_and_leaving_changes_nobody() {
    for shape in [quantised(), recurrent()] {
        joining_and_leaving(&shape);
    }
}

fn joining_and_leaving(shape: &Shape) {
    let dir = tempdir().expect("temporary folder");
    let bundle = compiled(&dir, shape, "2", "f16");
    let together = tokens(&bundle, &[0, 0, 0, 0, 0], None);
    assert_eq!(together.len(), 5);
    assert!(together.values().all(|t| t.len() == 20));
    assert_eq!(tokens(&bundle, &[0, 4, 9, 2, 30], None), together);
    // One after the other: each alone in the batch.
    assert_eq!(tokens(&bundle, &[0, 60, 120, 180, 240], None), together);
    // More requests than slots would wait; one that leaves early frees its slot and disturbs nobody.
    let mut without = tokens(&bundle, &[0, 4, 9, 2, 30], Some(2));
    assert_eq!(without.remove(&2).map(|t| t.len()), Some(4));
    let mut rest = together.clone();
    rest.remove(&2);
    assert_eq!(without, rest);
}

/// Families whose layers differ in windows, head sizes and whose cache they read: prompts longer than the window, and slots
/// at different depths.
#[test]
fn families_beyond_their_windows_give_the_same_bits() {
    let Some(fixtures) = fixtures() else { return };
    let dir = tempdir().expect("temporary folder");
    let bundle = dir.path().join("family.press");
    let mut checked = 0;
    for f in index(&fixtures) {
        if !["gemma3", "gemma4", "phi3"].contains(&f.arch.as_str()) {
            continue;
        }
        let model = fixtures.join(&f.file);
        let mut random = Random(17);
        let sequences: Vec<Vec<u32>> = (0..3)
            .map(|_| (0..75).map(|_| random.below(1024) as u32).collect())
            .collect();
        let mut expected: Vec<u32> = Vec::new();
        for threads in ["1", "2", "3"] {
            let compile = ["compile", arg(&model), "-o", arg(&bundle), "-t", threads];
            succeed(&[&compile[..], &["-np", "5", "-c", "128"]].concat());
            let batch = bits(&logits(&bundle, &sequences, None));
            if threads == "1" {
                expected = batch.clone();
            }
            assert!(batch == expected, "{}, {threads} threads", f.name);
        }
        let third = expected.len() / 3;
        for (chunk, s) in [(Some(1), 0), (Some(7), 1), (None, 2)] {
            let alone = bits(&logits(&bundle, &sequences[s..=s], chunk));
            let same = alone == expected[s * third..][..third];
            assert!(same, "{}, chunk {chunk:?}", f.name);
        }
        let together = tokens(&bundle, &[0, 0, 0, 0, 0], None);
        assert_eq!(
            tokens(&bundle, &[0, 4, 9, 2, 30], None),
            together,
            "{}",
            f.name
        );
        checked += 1;
    }
    assert!(checked >= 6, "only {checked} fixtures");
}

/// How a request ended: its tokens, its text and why.
type Ending = (Vec<u32>, String, FinishReason);

/// Runs requests that join at given steps; the one in `cancelled` is cancelled as soon as part of its prompt has run.
fn endings(
    bundle: &Path,
    requests: &[(usize, Request)],
    cancelled: Option<usize>,
) -> BTreeMap<usize, Ending> {
    let bundle = Bundle::open(bundle).expect("bundle opens");
    let mut engine = Engine::new(bundle, EngineOptions::default()).expect("engine starts");
    let mut ids = BTreeMap::new();
    let mut got: BTreeMap<usize, (Vec<u32>, String)> = BTreeMap::new();
    let mut ended = BTreeMap::new();
    let mut step = 0;
    while ended.len() < requests.len() {
        for (i, (_, request)) in requests.iter().enumerate().filter(|(_, r)| r.0 == step) {
            ids.insert(engine.submit(request.clone()).expect("fits"), i);
        }
        for event in engine.step().expect("step") {
            match event {
                Event::Prefill { id, done, total } => {
                    if cancelled == Some(ids[&id]) && done < total {
                        assert!(engine.cancel(id) && !engine.cancel(id));
                    }
                }
                Event::Token { id, token, text } => {
                    let entry = got.entry(ids[&id]).or_default();
                    entry.0.push(token);
                    entry.1.push_str(&text);
                }
                Event::Finished {
                    id, reason, text, ..
                } => {
                    let (tokens, mut whole) = got.remove(&ids[&id]).unwrap_or_default();
                    whole.push_str(&text);
                    ended.insert(ids[&id], (tokens, whole, reason));
                }
            }
        }
        step += 1;
        assert!(step < 2000, "the engine comes to an end");
    }
    ended
}

#[test]
fn long_prompts_join_while_others_decode() {
    let dir = tempdir().expect("temporary folder");
    let (model, bundle) = (dir.path().join("m.gguf"), dir.path().join("m.press"));
    quantised().write(&model, 7);
    for kv in ["f16", "q8_0"] {
        let compile = ["compile", arg(&model), "-o", arg(&bundle), "-t", "2"];
        let sizes = ["-np", "4", "-c", "300", "--kv-type", kv];
        succeed(&[&compile[..], &sizes].concat());
        let limits = Bundle::open(&bundle).expect("opens").manifest().limits;
        let long = 2 * limits.max_rows as usize + 5;
        assert!(long + 40 <= limits.max_context as usize);
        let mut random = Random(31);
        let mut request = |length: usize, max_tokens: u32| Request {
            sampling: Sampling {
                seed: Some(length as u64),
                ..Sampling::default()
            },
            max_tokens: Some(max_tokens),
            ignore_eos: true,
            ..Request::tokens(
                (0..length)
                    .map(|_| random.below(256) as u32)
                    .collect::<Vec<_>>(),
            )
        };
        let mut requests = vec![
            (0, request(3, 60)),
            (2, request(long, 30)),
            (5, request(limits.max_rows as usize, 25)),
            (6, request(limits.max_rows as usize + 1, 40)),
            // Waits for a slot.
            (7, request(9, 20)),
        ];
        let alone = |requests: &[(usize, Request)]| -> BTreeMap<usize, Ending> {
            let each = requests.iter().enumerate();
            each.map(|(i, (_, r))| (i, endings(&bundle, &[(0, r.clone())], None).remove(&0)))
                .map(|(i, e)| (i, e.expect("ends")))
                .collect()
        };
        let expected = alone(&requests);
        assert!(expected.values().all(|e| e.2 == FinishReason::Length));
        assert!(endings(&bundle, &requests, None) == expected, "kv {kv}");

        // The long one is cancelled between two chunks of its prompt; nobody else notices.
        let mut rest = endings(&bundle, &requests, Some(1));
        let (tokens, text, reason) = rest.remove(&1).expect("ended");
        assert!(tokens.is_empty() && text.is_empty() && reason == FinishReason::Cancelled);
        let mut others = expected.clone();
        others.remove(&1);
        assert!(rest == others, "kv {kv}, cancelled in its prompt");

        // The first one stops at a text of its own while the long prompts run.
        let text = &expected[&0].1;
        let (at, stop) = text
            .char_indices()
            .skip(4)
            .find(|(_, c)| *c != '\u{fffd}' && !c.is_control())
            .expect("a random text has some character");
        let first = text.find(stop).unwrap_or(at);
        requests[0].1.stop = vec![stop.to_string()];
        let stopped = endings(&bundle, &requests, None);
        assert!(stopped == alone(&requests), "kv {kv}, stopped");
        assert_eq!(stopped[&0].1, text[..first]);
        assert_eq!(stopped[&0].2, FinishReason::Stop);
    }
}
