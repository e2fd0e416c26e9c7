//! Damaged and absurd models through the front end, in thousands: reader, model, passes, plan and tokenizer either accept
//! or refuse; none panics or allocates beyond a small multiple of the file.

use crate::harness::*;
use coldpress_compiler::compile::{Options, prepare};
use coldpress_compiler::gguf::{Array, Gguf, GgufWriter, Value};
use coldpress_compiler::target::TargetProfile;
use coldpress_compiler::{model, tokenizer};
use coldpress_kernels::tensor_type::TensorType;
use coldpress_runtime::tokenizer::{EncodeOptions, Tokenizer};
use std::path::Path;
use tempfile::tempdir;

/// Address space a test may have beyond the binary, in KiB.
const LIMIT_KIB: u64 = 2 << 20;
const INSIDE: &str = "COLDPRESS_TEST_INSIDE_LIMIT";

/// Runs the test of this name again in a process of its own whose address space is limited: an allocation sized by an
/// untrusted count ends it. True in that process.
fn inside_limit(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let binary = std::env::current_exe().expect("this binary");
    let run = std::process::Command::new("bash")
        .args(["-c", "ulimit -v $0; exec \"$@\"", &LIMIT_KIB.to_string()])
        .arg(binary)
        .args(["--exact", test, "--nocapture", "--test-threads", "1"])
        .env(INSIDE, "1")
        .output()
        .expect("bash");
    let (stdout, stderr) = (
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr),
    );
    assert!(run.status.success(), "{:?}\n{stdout}\n{stderr}", run.status);
    assert!(stdout.contains("1 passed"), "{stdout}");
    false
}

fn tiny() -> Shape {
    Shape {
        layers: 1,
        hidden: 32,
        ffn: 32,
        heads: 2,
        kv_heads: 1,
        head_dim: 16,
        types: vec![TensorType::Q8_0, TensorType::F16],
        ..Shape::small()
    }
}

/// Everything that reads a model before code is generated. True if all of it accepts.
fn front(path: &Path) -> bool {
    let Ok(gguf) = Gguf::open(path) else {
        return false;
    };
    let built = model::build(&gguf).is_ok();
    let spec = tokenizer::from_gguf(&gguf).ok();
    let tokenizer = spec.and_then(|spec| Tokenizer::new(spec).ok());
    if let Some(t) = &tokenizer {
        // Whatever it is now, it encodes and decodes without panicking.
        let options = EncodeOptions {
            add_special: true,
            parse_special: true,
        };
        for id in t
            .encode("a b\u{e9}\u{1f600}[PAD256]", options)
            .unwrap_or_default()
        {
            t.token_bytes(id, true);
        }
    }
    let mut options = Options::new(TargetProfile::native());
    (options.max_batch, options.max_context, options.threads) = (2, Some(64), Some(2));
    built && prepare(path, &options).is_ok() && tokenizer.is_some()
}

#[test]
fn models_with_flipped_bytes() {
    if !inside_limit("fuzz::models_with_flipped_bytes") {
        return;
    }
    let dir = tempdir().expect("temporary folder");
    let path = dir.path().join("m.gguf");
    for (seed, spm) in [(1, false), (2, true)] {
        let mut writer = tiny().writer(seed);
        if spm {
            writer = sentencepiece(&path, &writer);
        }
        writer.write(&path).expect("written");
        assert!(front(&path), "the undamaged model is fine");
        let good = std::fs::read(&path).expect("model");
        let data: u64 = Gguf::open(&path)
            .expect("opens")
            .tensors()
            .iter()
            .map(|t| t.bytes())
            .sum();
        let header = good.len() - data as usize;
        let mut random = Random(99 + seed);
        let mut refused = 0;
        for round in 0..1500 {
            let mut bytes = good.clone();
            for _ in 0..1 + random.below(3) {
                let at = random.below(header - 8);
                match round % 4 {
                    0 => bytes[at] ^= 1 << random.below(8),
                    1 => bytes[at] = random.next() as u8,
                    2 => {
                        let value = [0, 1, u32::MAX, 1 << 31, 1 << 24][random.below(5)];
                        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
                    }
                    _ => {
                        let value = [0, u64::MAX, 1 << 63, 1 << 40, 1 << 32][random.below(5)];
                        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
                    }
                }
            }
            if random.below(8) == 0 {
                bytes.truncate(random.below(bytes.len()));
            }
            std::fs::write(&path, &bytes).expect("written");
            refused += usize::from(!front(&path));
        }
        assert!(refused > 300, "only {refused} of 1500 were refused");
    }
}

/// The model with a SentencePiece vocabulary instead.
fn sentencepiece(path: &Path, model: &GgufWriter) -> GgufWriter<'static> {
    model.write(path).expect("written");
    let gguf = Gguf::open(path).expect("opens");
    let mut w = GgufWriter::new();
    for (key, value) in gguf.keys() {
        if !key.starts_with("tokenizer.") {
            w.add(key, value.clone());
        }
    }
    let mut tokens = vec!["<unk>".to_string(), "<s>".into(), "</s>".into()];
    tokens.extend((0..=255).map(|b| format!("<0x{b:02X}>")));
    tokens.extend(('a'..='z').map(String::from));
    tokens.extend(["\u{2581}", "ab", "\u{2581}a", "abc"].map(String::from));
    tokens.extend(
        (tokens.len()..300)
            .map(|i| format!("w{i}"))
            .collect::<Vec<_>>(),
    );
    let kind = |i: usize| match i {
        0 => 2,
        1 | 2 => 3,
        3..259 => 6,
        _ => 1,
    };
    w.add("tokenizer.ggml.model", Value::Str("llama".into()));
    w.add(
        "tokenizer.ggml.scores",
        Value::Array(Array::F32((0..300).map(|i| -(i as f32)).collect())),
    );
    w.add(
        "tokenizer.ggml.token_type",
        Value::Array(Array::I32((0..300).map(kind).collect())),
    );
    w.add("tokenizer.ggml.tokens", Value::Array(Array::Str(tokens)));
    for t in gguf.tensors() {
        w.tensor(t.name.clone(), t.ty, &t.dims, gguf.data(t).to_vec());
    }
    w
}

#[test]
fn models_with_absurd_metadata() {
    if !inside_limit("fuzz::models_with_absurd_metadata") {
        return;
    }
    let dir = tempdir().expect("temporary folder");
    let path = dir.path().join("m.gguf");
    let mut refused = 0;
    let some = Some((3, 2));
    for (arch, experts) in [
        ("llama", None),
        ("qwen2", None),
        ("qwen3", None),
        ("qwen3moe", some),
        ("gpt-oss", some),
    ] {
        let window = (format!("{arch}.attention.sliding_window"), Value::U32(8));
        let shape = Shape {
            arch,
            experts,
            extra: experts.map(|_| window).into_iter().collect(),
            ..tiny()
        };
        shape.write(&path, 3);
        let gguf = Gguf::open(&path).expect("opens");
        let mut keys: Vec<String> = gguf.keys().map(|(k, _)| k.to_string()).collect();
        keys.extend(
            [
                "rope.scaling.factor",
                "rope.scaling.type",
                "rope.scaling.original_context_length",
                "vocab_size",
                "attention.scale",
            ]
            .map(|k| format!("{arch}.{k}")),
        );
        for key in ["bos_token_id", "eot_token_id", "add_bos_token", "scores"] {
            keys.push(format!("tokenizer.ggml.{key}"));
        }
        for key in &keys {
            for value in absurd() {
                let mut w = GgufWriter::new();
                for (k, v) in gguf.keys().filter(|(k, _)| k != key) {
                    w.add(k, v.clone());
                }
                w.add(key.clone(), value);
                for t in gguf.tensors() {
                    w.tensor(t.name.clone(), t.ty, &t.dims, gguf.data(t).to_vec());
                }
                let damaged = dir.path().join("d.gguf");
                w.write(&damaged).expect("written");
                refused += usize::from(!front(&damaged));
            }
        }
    }
    assert!(refused > 500, "only {refused} refused");
}

fn absurd() -> Vec<Value> {
    let text = |s: &str| Value::Str(s.into());
    vec![
        Value::U32(0),
        Value::U32(1),
        Value::U32(3),
        Value::U32(1 << 20),
        Value::U32(u32::MAX),
        Value::I32(-1),
        Value::U64(u64::MAX),
        Value::F32(f32::NAN),
        Value::F32(f32::INFINITY),
        Value::F32(-1.0),
        Value::F32(0.0),
        Value::F32(f32::MIN_POSITIVE),
        Value::Bool(true),
        text(""),
        text("yarn"),
        text("{{ x"),
        Value::Array(Array::Str(vec![])),
        Value::Array(Array::Str(vec![String::new(), " ".into(), "a".into()])),
        Value::Array(Array::I32(vec![-1; 400])),
        Value::Array(Array::U32(vec![u32::MAX, 0])),
        Value::Array(Array::F32(vec![f32::NAN; 300])),
    ]
}
