//! Tokenizers of real vocabularies against llama.cpp's ids: every case of the vocabulary fixtures, and what must hold
//! for any text. Needs compiler (metadata to spec) and runtime (spec to ids) together.

use crate::harness::fixtures;
use std::path::PathBuf;

use coldpress_compiler::gguf::Gguf;
use coldpress_compiler::tokenizer::from_gguf;
use coldpress_runtime::tokenizer::{EncodeOptions, TextStream, Tokenizer};

const PLAIN: EncodeOptions = EncodeOptions {
    add_special: false,
    parse_special: false,
};

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

#[test]
fn special_tokens_in_text() {
    let Some((t, _)) = vocabulary("phi-3") else {
        return;
    };
    let parsed = EncodeOptions {
        add_special: true,
        parse_special: true,
    };
    // `<|user|>` and `<|end|>` swallow the white space behind them, `<s>` does not.
    let ids = t
        .encode("<|user|>\n \tHi<|end|>\n", parsed)
        .expect("encodes");
    assert_eq!(ids.first(), t.bos().as_ref());
    assert_eq!(ids[1..], [32010, 6324, 32007]);
    let spaced = t.encode("<s> Hi", parsed).expect("encodes");
    assert_eq!(spaced[1..], [1, 29871, 6324]);
    let plain = t.encode("<|user|>", PLAIN).expect("encodes");
    assert!(plain.len() > 3 && !plain.contains(&32010));
    for id in [2, 32000, 32007] {
        assert!(t.is_end(id), "{id}");
    }
    assert!(!t.is_end(32010));
    assert!(
        t.chat_template()
            .is_some_and(|text| text.contains("<|assistant|>"))
    );
}

#[test]
fn decoding_gives_any_text_back() {
    for name in ["gpt-2", "llama-spm"] {
        let Some((t, _)) = vocabulary(name) else {
            return;
        };
        // A linear congruential walk over all characters, spaced out by ASCII.
        let mut state = 12345u32;
        for _ in 0..300 {
            let mut text = String::new();
            for _ in 0..40 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                text.extend(char::from_u32((state >> 8) % 0x11_0000));
                text.push(char::from((state >> 25) as u8));
            }
            let ids = t.encode(&text, PLAIN).expect("encodes");
            assert_eq!(written(&t, &ids), text, "{name}");
            assert_eq!(t.decode(&ids), text, "{name}");
        }
    }
}

#[test]
fn a_megabyte_without_a_space_is_encoded() {
    for name in ["gpt-2", "llama-spm"] {
        let Some((t, _)) = vocabulary(name) else {
            return;
        };
        for unit in ["ab", "é", " ", "\n", "1", "!"] {
            let text = unit.repeat((1 << 20) / unit.len());
            let ids = t.encode(&text, PLAIN).expect("encodes");
            assert_eq!(written(&t, &ids).len(), text.len(), "{name}: {unit:?}");
        }
    }
}

#[test]
fn tokenizers_of_model_fixtures() {
    let Some(dir) = fixtures() else {
        return;
    };
    let text = "The quick\tbrown fox, 1234 \u{e9}\u{20ac}\u{1f600}\r\n\n  don't <|eos|>";
    let mut found = 0;
    for entry in std::fs::read_dir(dir.join("models")).expect("fixtures have models") {
        let path = entry.expect("readable").path();
        if path.extension().is_some_and(|end| end == "gguf") {
            let t = tokenizer(&path);
            let ids = t.encode(text, PLAIN).expect("encodes");
            assert_eq!(t.decode(&ids), text, "{}", path.display());
            assert!(
                t.is_end(1022) && t.bos() == Some(1021),
                "{}",
                path.display()
            );
            found += 1;
        }
    }
    assert!(found > 0);
}
