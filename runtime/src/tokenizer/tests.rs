//! Encoding and decoding with a small hand-made vocabulary, and specs that contradict themselves.

use super::*;

/// Bytes 0..256 as byte tokens, then letters, a merged word and specials.
fn spec() -> TokenizerSpec {
    let mut tokens: Vec<String> = (0..=255u8).map(|b| format!("<0x{b:02X}>")).collect();
    let mut kinds = vec![TokenKind::Byte; 256];
    let more = [
        ("\u{2581}", TokenKind::Normal),
        ("a", TokenKind::Normal),
        ("b", TokenKind::Normal),
        ("\u{2581}a", TokenKind::Normal),
        ("<s>", TokenKind::Control),
        ("</s>", TokenKind::Control),
        ("\u{2581}!", TokenKind::UserDefined),
        ("<x>", TokenKind::Unused),
    ];
    for (text, kind) in more {
        tokens.push(text.to_owned());
        kinds.push(kind);
    }
    TokenizerSpec {
        algorithm: Algorithm::Spm(SpmSpec {
            scores: vec![0.0; tokens.len()],
            add_space_prefix: true,
        }),
        tokens,
        kinds,
        bos: Some(260),
        eos: Some(261),
        eot: None,
        eom: None,
        unk: None,
        pad: None,
        end_of_generation: vec![261],
        add_bos: true,
        add_eos: false,
        strip_left: Vec::new(),
        strip_right: Vec::new(),
        chat_template: None,
    }
}

fn encode(tokenizer: &Tokenizer, text: &str, add_special: bool, parse_special: bool) -> Vec<u32> {
    let options = EncodeOptions {
        add_special,
        parse_special,
    };
    tokenizer.encode(text, options).expect("encodes")
}

#[test]
fn specials_and_the_space_prefix() {
    let t = Tokenizer::new(spec()).expect("valid");
    assert_eq!(encode(&t, "ab", true, false), [260, 259, 258]);
    assert_eq!(encode(&t, "", true, false), [260]);
    assert_eq!(encode(&t, "b</s>a", false, true), [256, 258, 261, 259]);
    let written = [256, 60, 115, 62].map(|b| if b == 115 { u32::from(b's') } else { b });
    assert_eq!(encode(&t, "<s>", false, false), written);
    assert!(t.is_end(261) && !t.is_end(260) && !t.is_end(u32::MAX));
}

#[test]
fn bytes_of_every_kind() {
    let t = Tokenizer::new(spec()).expect("valid");
    assert_eq!(t.token_bytes(0xe2, false), [0xe2]);
    assert_eq!(t.token_bytes(259, false), b" a");
    assert_eq!(t.token_bytes(260, false), b"");
    assert_eq!(t.token_bytes(260, true), b"<s>");
    assert_eq!(t.token_bytes(262, false), "\u{2581}!".as_bytes());
    assert_eq!(t.token_bytes(263, true), b"");
    assert_eq!(t.token_bytes(264, true), b"");
    assert_eq!(t.token_bytes(u32::MAX, true), b"");
}

#[test]
fn decoding_is_the_inverse() {
    let t = Tokenizer::new(spec()).expect("valid");
    for text in ["a b", " a", "", "é\u{0}€😀", "\n\n"] {
        assert_eq!(t.decode(&encode(&t, text, true, false)), text);
    }
}

#[test]
fn contradictions_are_errors() {
    let broken = |change: fn(&mut TokenizerSpec)| {
        let mut spec = spec();
        change(&mut spec);
        Tokenizer::new(spec).expect_err("must be refused")
    };
    assert!(matches!(
        broken(|s| s.bos = Some(u32::MAX)),
        TokenizerError::BadId { what: "bos", .. }
    ));
    assert!(matches!(
        broken(|s| s.end_of_generation.push(264)),
        TokenizerError::BadId { .. }
    ));
    assert!(matches!(
        broken(|s| s.strip_right.push(9999)),
        TokenizerError::BadId { .. }
    ));
    assert!(matches!(
        broken(|s| s.kinds.truncate(3)),
        TokenizerError::Lengths { .. }
    ));
    assert!(matches!(
        broken(|s| s.tokens[257].clear()),
        TokenizerError::EmptyToken { id: 257 }
    ));
    assert!(matches!(
        broken(|s| s.tokens[257] = "b".to_owned()),
        TokenizerError::DuplicateToken { .. }
    ));
    assert!(matches!(
        broken(|s| s.tokens[7] = "<0x+7>".to_owned()),
        TokenizerError::BadByte { id: 7 }
    ));
    assert!(matches!(
        broken(|s| s.algorithm = Algorithm::Spm(SpmSpec {
            scores: vec![],
            add_space_prefix: true
        })),
        TokenizerError::Lengths { what: "scores", .. }
    ));
}
