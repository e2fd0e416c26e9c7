//! `from_gguf` over small vocabularies written key by key; no encoding of real texts (`tests/tokenizer.rs` has that).

use super::*;
use crate::gguf::{Array, GgufWriter, Value};
use coldpress_runtime::tokenizer::Tokenizer;

fn texts(texts: &[&str]) -> Value {
    Value::Array(Array::Str(texts.iter().map(|t| (*t).to_owned()).collect()))
}

/// `from_gguf` of a file with these keys, on top of a small byte-level vocabulary.
fn read(keys: &[(&str, Value)]) -> Result<TokenizerSpec, Error> {
    let tokens = [
        "a",
        "b",
        "ab",
        "",
        "<|im_end|>",
        "<|eot_id|>",
        "<|end|>",
        "</s>",
    ];
    let mut all = vec![
        ("tokenizer.ggml.model", Value::Str("gpt2".to_owned())),
        ("tokenizer.ggml.pre", Value::Str("qwen2".to_owned())),
        ("tokenizer.ggml.tokens", texts(&tokens)),
        ("tokenizer.ggml.merges", texts(&["a b", "a b"])),
    ];
    for (key, value) in keys {
        all.retain(|(known, _)| known != key);
        all.push((*key, value.clone()));
    }
    let dir = tempfile::tempdir().expect("a directory for the test");
    let path = dir.path().join("vocab.gguf");
    let mut writer = GgufWriter::new();
    for (key, value) in all {
        writer.add(key, value);
    }
    writer.write(&path).expect("a file for the test");
    from_gguf(&Gguf::open(&path).expect("a valid file"))
}

#[test]
fn tokens_are_recognised_by_their_text() {
    let spec = read(&[("tokenizer.ggml.eos_token_id", Value::U32(1))]).expect("valid");
    assert_eq!(spec.tokens[3], "[EMPTY_3]");
    assert_eq!(spec.eot, Some(5), "the preferred end of turn");
    assert_eq!(spec.end_of_generation, [1, 4, 5, 6, 7]);
    assert_eq!(spec.kinds[4], TokenKind::Control);
    assert_eq!((spec.bos, spec.add_bos), (None, false));
    let Algorithm::Bpe(bpe) = &spec.algorithm else {
        panic!("gpt2 is BPE");
    };
    assert_eq!(bpe.merges, [(0, 1)]);
    assert!(Tokenizer::new(spec).is_ok());
}

#[test]
fn ends_inside_a_turn_do_not_end_it() {
    let tokens = [
        "<|return|>",
        "<|call|>",
        "<|end|>",
        "<|message|>",
        "</s>",
        "<|tool_response>",
    ];
    let spec = read(&[
        ("tokenizer.ggml.tokens", texts(&tokens)),
        ("tokenizer.ggml.merges", texts(&[])),
    ])
    .expect("valid");
    assert_eq!(spec.end_of_generation, [0, 1, 5]);
    assert_eq!(
        spec.kinds[2..5],
        [
            TokenKind::UserDefined,
            TokenKind::UserDefined,
            TokenKind::Normal
        ]
    );
}

#[test]
fn ids_out_of_range_count_as_absent() {
    let spec = read(&[
        ("tokenizer.ggml.bos_token_id", Value::U32(u32::MAX)),
        ("tokenizer.ggml.padding_token_id", Value::I32(-1)),
    ])
    .expect("valid");
    assert_eq!((spec.bos, spec.pad), (None, None));
}

#[test]
fn unknown_names_are_refused_with_the_known_ones() {
    let unknown = |key, name: &str| {
        let error = read(&[(key, Value::Str(name.to_owned()))]).expect_err("must be refused");
        assert_eq!(error.exit_code(), 3);
        error.to_string()
    };
    let model = unknown("tokenizer.ggml.model", "t5");
    assert!(
        model.contains("`t5`") && model.contains("gemma4"),
        "{model}"
    );
    let pre = unknown("tokenizer.ggml.pre", "qwen-99");
    assert!(
        pre.contains("`qwen-99`") && pre.contains("llama-bpe"),
        "{pre}"
    );
}

#[test]
fn contradicting_metadata_is_an_error_naming_the_key() {
    let cases = [
        ("tokenizer.ggml.merges", texts(&["a c"]), "merges[0]"),
        ("tokenizer.ggml.merges", texts(&["ab"]), "merges[0]"),
        ("tokenizer.ggml.merges", texts(&["b a"]), "merges[0]"),
        ("tokenizer.ggml.merges", texts(&[""]), "merges[0]"),
        (
            "tokenizer.ggml.tokens",
            texts(&["a", "b", "ab", "a"]),
            "tokens 0 and 3",
        ),
        (
            "tokenizer.ggml.token_type",
            Value::Array(Array::I32(vec![1; 3])),
            "token_type",
        ),
        (
            "tokenizer.ggml.tokens",
            Value::U32(1),
            "tokenizer.ggml.tokens",
        ),
    ];
    for (key, value, named) in cases {
        let error = read(&[(key, value)])
            .expect_err("must be refused")
            .to_string();
        assert!(error.contains(named), "{error}");
    }
    let scores = read(&[
        ("tokenizer.ggml.model", Value::Str("llama".to_owned())),
        (
            "tokenizer.ggml.scores",
            Value::Array(Array::F32(vec![0.0; 2])),
        ),
    ]);
    assert!(scores.is_err_and(|error| error.to_string().contains("scores")));
}
