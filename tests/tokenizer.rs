//! Tokenizers of real vocabularies against llama.cpp's ids: every case of the vocabulary fixtures, and what must hold
//! for any text. Needs compiler (metadata to spec) and runtime (spec to ids) together.

use std::path::PathBuf;

use coldpress_compiler::gguf::Gguf;
use coldpress_compiler::tokenizer::from_gguf;
use coldpress_runtime::tokenizer::{EncodeOptions, TextStream, Tokenizer};

const VOCABULARIES: [&str; 6] = [
    "gpt-2",
    "llama-bpe",
    "llama-spm",
    "qwen2",
    "gemma-4",
    "phi-3",
];
const PLAIN: EncodeOptions = EncodeOptions {
    add_special: false,
    parse_special: false,
};

fn fixtures() -> Option<PathBuf> {
    let dir = std::env::var_os("COLDPRESS_FIXTURES").map_or_else(
        || {
            PathBuf::from(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../../shared/fixtures"
            ))
        },
        PathBuf::from,
    );
    if dir.is_dir() {
        return Some(dir);
    }
    assert!(
        std::env::var("CI").is_err(),
        "no fixtures in {}",
        dir.display()
    );
    println!("skipped: fixtures not found");
    None
}

fn tokenizer(path: &std::path::Path) -> Tokenizer {
    let gguf = Gguf::open(path).expect("fixture opens");
    Tokenizer::new(from_gguf(&gguf).expect("known tokenizer")).expect("consistent tokenizer")
}

fn vocabulary(name: &str) -> Option<(Tokenizer, PathBuf)> {
    let path = fixtures()?.join(format!("vocab/ggml-vocab-{name}.gguf"));
    Some((tokenizer(&path), path))
}

/// The bytes of all tokens, as a stream gives them out.
fn written(t: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = TextStream::at_start(t.adds_space_prefix());
    let mut text = String::new();
    for &id in ids {
        text.push_str(&stream.push(t.token_bytes(id, true)));
    }
    text + &stream.finish()
}

fn vectors(name: &str) {
    let Some((t, path)) = vocabulary(name) else {
        return;
    };
    let file = |end: &str| {
        let path = format!("{}.{end}", path.display());
        std::fs::read_to_string(path).expect("fixture is text")
    };
    let (input, output) = (file("inp"), file("out"));
    let cases: Vec<&str> = input.split("\n__ggml_vocab_test__\n").collect();
    let expected: Vec<&str> = output.lines().collect();
    // The separator also ends the file, so nothing follows the last case.
    assert!(
        cases.len() >= expected.len() && expected.len() > 40,
        "{name}"
    );
    for (case, line) in cases.iter().zip(expected) {
        let ids: Vec<u32> = line
            .split_ascii_whitespace()
            .map(|id| id.parse().expect("an id"))
            .collect();
        assert_eq!(t.encode(case, PLAIN), Ok(ids.clone()), "{name}: {case:?}");
        assert_eq!(written(&t, &ids), *case, "{name}");
    }
}

#[test]
fn vectors_gpt_2() {
    vectors("gpt-2");
}

#[test]
fn vectors_llama_bpe() {
    vectors("llama-bpe");
}

#[test]
fn vectors_llama_spm() {
    vectors("llama-spm");
}

#[test]
fn vectors_qwen2() {
    vectors("qwen2");
}

#[test]
fn vectors_gemma_4() {
    vectors("gemma-4");
}

#[test]
fn vectors_phi_3() {
    vectors("phi-3");
}
