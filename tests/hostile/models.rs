//! Models that are damaged, unsupported or contradict themselves.

use super::*;
use coldpress_compiler::gguf::{Array, GgufWriter, Value};
use coldpress_kernels::quant;
use coldpress_kernels::tensor_type::TensorType;

#[test]
fn models_that_cannot_be_read() {
    let dir = tempdir().expect("temporary folder");
    let path = model(&dir);
    let bytes = std::fs::read(&path).expect("model");
    let damaged = dir.path().join("damaged.gguf");
    let check = |bytes: &[u8], code, says: &[&str]| {
        std::fs::write(&damaged, bytes).expect("written");
        refuses(&dir, &damaged, code, says);
    };
    check(&bytes[..3], 1, &["damaged.gguf"]);
    check(&bytes[..bytes.len() / 2], 1, &["damaged.gguf"]);
    check(
        b"PK\x03\x04 not a model at all, but long enough",
        1,
        &["damaged.gguf"],
    );
    let mut version = bytes.clone();
    version[4] = 9;
    check(&version, 1, &["version 9"]);
    let mut counts = bytes.clone();
    counts[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    check(&counts, 1, &["damaged.gguf"]);
    refuses(&dir, &dir.path().join("absent.gguf"), 1, &["absent.gguf"]);
}

#[test]
fn models_that_are_not_supported() {
    let dir = tempdir().expect("temporary folder");
    let path = dir.path().join("odd.gguf");
    let write = |w: &GgufWriter| w.write(&path).expect("written");
    let mut w = GgufWriter::new();
    w.add("general.architecture", Value::Str("mamba9".into()));
    write(&w);
    refuses(&dir, &path, 3, &["mamba9", "llama"]);

    let mut shape = Shape::small();
    shape.extra = vec![(
        "qwen3.rope.scaling.type".into(),
        Value::Str("spiral".into()),
    )];
    write(&shape.writer(1));
    refuses(&dir, &path, 3, &["spiral"]);
}

#[test]
fn models_without_tokenizer_take_token_ids() {
    let dir = tempdir().expect("temporary folder");
    let (path, bundle) = (dir.path().join("ids.gguf"), dir.path().join("ids.press"));
    for name in ["none", "test"] {
        Shape::small().write(&path, 1);
        let gguf = coldpress_compiler::gguf::Gguf::open(&path).expect("opens");
        let mut w = GgufWriter::new();
        for (key, value) in gguf.keys() {
            let value = match key {
                "tokenizer.ggml.model" => Value::Str(name.into()),
                _ => value.clone(),
            };
            w.add(key, value);
        }
        for t in gguf.tensors() {
            w.tensor(t.name.clone(), t.ty, &t.dims, gguf.data(t).to_vec());
        }
        w.write(&path).expect("written");
        succeed(&["compile", arg(&path), "-o", arg(&bundle), "-c", "64"]);
        let out = dir.path().join("logits.npy");
        let flags = ["--tokens", "1,2,3", "-o", arg(&out)];
        succeed(&[&["logits", arg(&bundle)][..], &flags].concat());
        assert_eq!(read_npy(&out).0[0], 3);
        fail(
            &["run", arg(&bundle), "-p", "text", "-n", "1"],
            2,
            &["no tokenizer", "token ids"],
        );
    }
}

/// Edits one tensor (name, type, dimensions, bytes) of a model, or drops it by returning false.
type Change<'a> = dyn Fn(&str, &mut TensorType, &mut Vec<u64>, &mut Vec<u8>) -> bool + 'a;

/// Writes a good model to `path`, each tensor as `change` leaves it.
fn rewritten(dir: &TempDir, path: &Path, change: &Change<'_>) {
    let good = dir.path().join("good.gguf");
    Shape {
        hidden: 256,
        ..Shape::small()
    }
    .write(&good, 1);
    let gguf = coldpress_compiler::gguf::Gguf::open(&good).expect("opens");
    let mut w = GgufWriter::new();
    for (key, value) in gguf.keys() {
        w.add(key, value.clone());
    }
    for t in gguf.tensors() {
        let (mut ty, mut dims, mut bytes) = (t.ty, t.dims.clone(), gguf.data(t).to_vec());
        if change(&t.name, &mut ty, &mut dims, &mut bytes) {
            w.tensor(t.name.clone(), ty, &dims, bytes);
        }
    }
    w.write(path).expect("written");
}

#[test]
fn tensors_that_are_wrong() {
    let dir = tempdir().expect("temporary folder");
    let path = dir.path().join("odd.gguf");
    rewritten(&dir, &path, &|name, _, _, _| name != "blk.1.ffn_up.weight");
    refuses(&dir, &path, 1, &["blk.1.ffn_up.weight"]);
    rewritten(&dir, &path, &|name, _, dims, bytes| {
        if name == "blk.0.attn_k.weight" {
            dims[1] /= 2;
            bytes.truncate(bytes.len() / 2);
        }
        true
    });
    refuses(&dir, &path, 1, &["blk.0.attn_k.weight", "32", "64"]);
}

#[test]
fn types_without_kernel_are_named_with_their_tensor() {
    let dir = tempdir().expect("temporary folder");
    let path = dir.path().join("odd.gguf");
    let no_format = |ty: &&TensorType| quant::format(**ty).is_none();
    for &unread in TensorType::ALL.iter().filter(no_format) {
        for tensor in ["blk.0.ffn_gate.weight", "token_embd.weight"] {
            rewritten(&dir, &path, &|name, ty, dims, bytes| {
                if name == tensor {
                    *ty = unread;
                    let row = unread.row_bytes(dims[0]).expect("256 weights");
                    bytes.resize((row * dims[1]) as usize, 0);
                }
                true
            });
            let refusal = format!("{tensor}: no kernel reads {unread} (supported: ");
            refuses(&dir, &path, 3, &[&refusal, "Q4_K"]);
        }
    }
}

#[test]
fn tokenizers_that_are_unknown() {
    let dir = tempdir().expect("temporary folder");
    let path = dir.path().join("vocab.gguf");
    let write = |model: &str, pre: &str| {
        let mut w = GgufWriter::new();
        w.add("general.architecture", Value::Str("llama".into()));
        w.add("tokenizer.ggml.model", Value::Str(model.into()));
        w.add("tokenizer.ggml.pre", Value::Str(pre.into()));
        w.add(
            "tokenizer.ggml.tokens",
            Value::Array(Array::Str(vec!["a".into(), "b".into()])),
        );
        w.add("tokenizer.ggml.merges", Value::Array(Array::Str(vec![])));
        w.write(&path).expect("written");
    };
    write("runes", "gpt-2");
    fail(&["tokenize", arg(&path), "ab"], 3, &["runes"]);
    write("gpt2", "elvish");
    fail(&["tokenize", arg(&path), "ab"], 3, &["elvish"]);
}

#[test]
fn weights_that_are_no_numbers() {
    let dir = tempdir().expect("temporary folder");
    let (path, bundle) = (dir.path().join("nan.gguf"), dir.path().join("nan.press"));
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 0.0] {
        for tensor in ["output_norm.weight", "blk.0.ffn_norm.weight"] {
            for (ty, hidden) in [(TensorType::F16, 64), (TensorType::Q4_K, 256)] {
                let shape = Shape {
                    hidden,
                    types: vec![ty],
                    ..Shape::small()
                };
                let good = dir.path().join("good.gguf");
                shape.write(&good, 1);
                let gguf = coldpress_compiler::gguf::Gguf::open(&good).expect("opens");
                let mut w = GgufWriter::new();
                for (key, v) in gguf.keys() {
                    w.add(key, v.clone());
                }
                for t in gguf.tensors() {
                    let mut bytes = gguf.data(t).to_vec();
                    if t.name == tensor {
                        bytes[8..12].copy_from_slice(&value.to_le_bytes());
                    }
                    w.tensor(t.name.clone(), t.ty, &t.dims, bytes);
                }
                w.write(&path).expect("written");
                let out = coldpress(&[
                    "compile",
                    arg(&path),
                    "-o",
                    arg(&bundle),
                    "-np",
                    "2",
                    "-t",
                    "1",
                ]);
                let said = String::from_utf8_lossy(&out.stderr).into_owned();
                assert!(matches!(out.status.code(), Some(0 | 1)), "{value} {said}");
                if !out.status.success() {
                    assert!(said.contains("error:"), "{said}");
                    continue;
                }
                for temperature in ["0", "0.8"] {
                    let run = ["run", arg(&bundle), "-p", "ab", "-n", "3", "-q"];
                    let out = coldpress(&[&run[..], &["--temp", temperature]].concat());
                    let said = String::from_utf8_lossy(&out.stderr).into_owned();
                    assert!(
                        matches!(out.status.code(), Some(0 | 1)) && !said.contains("panicked"),
                        "{value} in {tensor}, {ty:?}, temperature {temperature}: {said}"
                    );
                }
                let out = coldpress(&["verify", arg(&bundle)]);
                assert!(
                    matches!(out.status.code(), Some(0 | 6)),
                    "{value} in {tensor}: {}",
                    String::from_utf8_lossy(&out.stderr)
                );
            }
        }
    }
}

#[test]
fn vocabularies_of_another_length_than_the_matrix() {
    let dir = tempdir().expect("temporary folder");
    let (good, path) = (dir.path().join("good.gguf"), dir.path().join("odd.gguf"));
    Shape::small().write(&good, 1);
    let gguf = coldpress_compiler::gguf::Gguf::open(&good).expect("opens");
    for length in [260, 299, 301, 400] {
        let mut w = GgufWriter::new();
        for (key, v) in gguf.keys() {
            let v = match (key, v) {
                ("tokenizer.ggml.tokens", Value::Array(Array::Str(tokens))) => {
                    let more = (tokens.len()..length).map(|i| format!("[MORE{i}]"));
                    let tokens = tokens.iter().cloned().chain(more).take(length);
                    Value::Array(Array::Str(tokens.collect()))
                }
                ("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds))) => {
                    let mut kinds = kinds.clone();
                    kinds.resize(length, 3);
                    Value::Array(Array::I32(kinds))
                }
                _ => v.clone(),
            };
            w.add(key, v);
        }
        for t in gguf.tensors() {
            w.tensor(t.name.clone(), t.ty, &t.dims, gguf.data(t).to_vec());
        }
        w.write(&path).expect("written");
        refuses(&dir, &path, 1, &["300", &length.to_string()]);
    }
}
