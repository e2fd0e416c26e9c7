//! Text to token ids and back, from a `TokenizerSpec`. Merging is the `tokenizers` crate's (BPE) or spm.rs's;
//! which spec a model has is the compiler's business, chat templates are `crate::chat`'s.
//!
//! Ids equal llama.cpp's for the same metadata: special tokens are cut out first (special.rs), the text between them
//! is encoded piece by piece.

mod bpe;
mod spec;
mod special;
mod split;
mod spm;
mod stream;

pub use spec::{Algorithm, Alphabet, BpeSpec, Split, SpmSpec, TokenKind, TokenizerSpec};
pub use stream::TextStream;

use std::fmt;

use bpe::Bpe;
use special::{Fragment, Specials};
use spm::Spm;

/// A tokenizer, ready to use from any thread.
pub struct Tokenizer {
    model: Model,
    specials: Specials,
    /// Bytes of token i are `bytes[ends[i - 1]..ends[i]]`.
    bytes: Vec<u8>,
    ends: Vec<usize>,
    kinds: Vec<TokenKind>,
    bos: Option<u32>,
    eos: Option<u32>,
    eot: Option<u32>,
    eom: Option<u32>,
    unk: Option<u32>,
    pad: Option<u32>,
    /// Sorted.
    end_of_generation: Vec<u32>,
    add_bos: bool,
    add_eos: bool,
    chat_template: Option<String>,
}

enum Model {
    Bpe(Box<Bpe>),
    Spm(Box<Spm>),
}

/// What `encode` does beyond ordinary text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Put the model's begin and end tokens around the text, where it has them.
    pub add_special: bool,
    /// Recognise control tokens written out in the text.
    pub parse_special: bool,
}

/// Why a tokenizer could not be built or a text not be encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizerError {
    /// A list does not have one entry per token.
    Lengths {
        /// Which list.
        what: &'static str,
        /// Its length.
        found: usize,
        /// Number of tokens.
        tokens: usize,
    },
    /// A token has no text.
    EmptyToken {
        /// The token.
        id: u32,
    },
    /// Two tokens have the same text.
    DuplicateToken {
        /// The earlier one.
        first: u32,
        /// The later one.
        id: u32,
    },
    /// A token id that the vocabulary does not have.
    BadId {
        /// What the id was for.
        what: &'static str,
        /// The id.
        id: u32,
        /// Number of tokens.
        tokens: usize,
    },
    /// A merge whose parts or whose result are no tokens.
    BadMerge {
        /// Place in the list of merges.
        rank: usize,
        /// Left part.
        left: u32,
        /// Right part.
        right: u32,
    },
    /// A token of kind `Byte` that is not written `<0xAB>`.
    BadByte {
        /// The token.
        id: u32,
    },
    /// A pattern that is no valid regular expression, or too large.
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The special tokens cannot be searched for.
    SpecialTokens(String),
    /// The BPE library refused the vocabulary or a text.
    Model(String),
    /// A character that the vocabulary cannot express, not even as bytes.
    NoToken {
        /// The character.
        character: String,
    },
}

impl fmt::Display for TokenizerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lengths {
                what,
                found,
                tokens,
            } => write!(f, "tokenizer: {found} {what} for {tokens} tokens"),
            Self::EmptyToken { id } => write!(f, "tokenizer: token {id} is empty"),
            Self::DuplicateToken { first, id } => {
                write!(f, "tokenizer: tokens {first} and {id} have the same text")
            }
            Self::BadId { what, id, tokens } => {
                write!(f, "tokenizer: {what} token {id} of only {tokens} tokens")
            }
            Self::BadMerge { rank, left, right } => write!(
                f,
                "tokenizer: merge {rank} joins tokens {left} and {right}, but there is no such token"
            ),
            Self::BadByte { id } => write!(f, "tokenizer: byte token {id} is not written <0xAB>"),
            Self::Pattern { pattern, reason } => {
                let start: String = pattern.chars().take(60).collect();
                let reason = reason.lines().last().unwrap_or_default();
                write!(f, "tokenizer: split pattern `{start}`: {reason}")
            }
            Self::SpecialTokens(reason) => write!(f, "tokenizer: special tokens: {reason}"),
            Self::Model(reason) => write!(f, "tokenizer: {reason}"),
            Self::NoToken { character } => {
                write!(
                    f,
                    "tokenizer: no token and no byte tokens for {character:?}"
                )
            }
        }
    }
}

impl std::error::Error for TokenizerError {}

impl Tokenizer {
    /// Builds the tables. Takes time and memory linear in the spec.
    ///
    /// # Errors
    /// The spec contradicts itself (lengths, ids, merges, patterns); the variant says where.
    pub fn new(spec: TokenizerSpec) -> Result<Tokenizer, TokenizerError> {
        check(&spec)?;
        let alphabet = match &spec.algorithm {
            Algorithm::Bpe(bpe) => bpe.alphabet,
            Algorithm::Spm(_) => Alphabet::SpaceMarker,
        };
        let mut bytes = Vec::with_capacity(spec.tokens.iter().map(String::len).sum());
        let mut ends = Vec::with_capacity(spec.tokens.len());
        for (id, (text, kind)) in (0u32..).zip(spec.tokens.iter().zip(&spec.kinds)) {
            match kind {
                TokenKind::Normal => push_text(text, alphabet, &mut bytes),
                TokenKind::Byte => {
                    bytes.push(byte_value(text).ok_or(TokenizerError::BadByte { id })?);
                }
                TokenKind::Unused => {}
                TokenKind::Unknown | TokenKind::Control | TokenKind::UserDefined => {
                    bytes.extend_from_slice(text.as_bytes());
                }
            }
            ends.push(bytes.len());
        }
        let specials = Specials::new(
            &spec.tokens,
            &spec.kinds,
            &spec.strip_left,
            &spec.strip_right,
        )?;
        let model = match spec.algorithm {
            Algorithm::Bpe(bpe) => Model::Bpe(Box::new(Bpe::new(spec.tokens, bpe)?)),
            Algorithm::Spm(spm) => Model::Spm(Box::new(Spm::new(spec.tokens, spm, spec.unk)?)),
        };
        let mut end_of_generation = spec.end_of_generation;
        end_of_generation.extend(spec.eos);
        end_of_generation.sort_unstable();
        end_of_generation.dedup();
        Ok(Tokenizer {
            model,
            specials,
            bytes,
            ends,
            kinds: spec.kinds,
            bos: spec.bos,
            eos: spec.eos,
            eot: spec.eot,
            eom: spec.eom,
            unk: spec.unk,
            pad: spec.pad,
            end_of_generation,
            add_bos: spec.add_bos,
            add_eos: spec.add_eos,
            chat_template: spec.chat_template,
        })
    }

    /// The token ids of `text`.
    ///
    /// # Errors
    /// `NoToken`: the vocabulary has no way to write a character of the text.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>, TokenizerError> {
        let mut out = Vec::with_capacity(text.len() / 3 + 2);
        if options.add_special && self.add_bos {
            out.extend(self.bos);
        }
        let mut after_special = true;
        for fragment in self.specials.partition(text, options.parse_special) {
            match fragment {
                Fragment::Token(id) => {
                    out.push(id);
                    after_special = true;
                }
                Fragment::Text(start, end) => {
                    let text = &text[start..end];
                    match &self.model {
                        Model::Bpe(bpe) => bpe.encode(text, &mut out)?,
                        Model::Spm(spm) => spm.encode(text, after_special, &mut out)?,
                    }
                    after_special = false;
                }
            }
        }
        if options.add_special && self.add_eos {
            out.extend(self.eos);
        }
        Ok(out)
    }

    /// The bytes one token stands for; not always whole characters. Control tokens are empty unless
    /// `render_special`; unused tokens and ids outside the vocabulary are always empty.
    pub fn token_bytes(&self, id: u32, render_special: bool) -> &[u8] {
        let index = id as usize;
        let (Some(&end), Some(kind)) = (self.ends.get(index), self.kinds.get(index)) else {
            return &[];
        };
        if !render_special && matches!(kind, TokenKind::Control | TokenKind::Unknown) {
            return &[];
        }
        let start = match index.checked_sub(1) {
            Some(before) => self.ends.get(before).copied().unwrap_or(end),
            None => 0,
        };
        &self.bytes[start..end]
    }

    /// A whole text, control tokens left out, the tokenizer's own leading space dropped; bytes that are no UTF-8
    /// become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut stream = TextStream::at_start(self.adds_space_prefix());
        let mut text = String::new();
        for &id in ids {
            text.push_str(&stream.push(self.token_bytes(id, false)));
        }
        text.push_str(&stream.finish());
        text
    }

    /// Whether encoding puts a space before a text, so that a decoded text starts with one.
    pub fn adds_space_prefix(&self) -> bool {
        match &self.model {
            Model::Bpe(_) => false,
            Model::Spm(spm) => spm.add_space_prefix(),
        }
    }

    /// Whether a generation ends with this token.
    pub fn is_end(&self, id: u32) -> bool {
        self.end_of_generation.binary_search(&id).is_ok()
    }

    /// Every token that ends a generation, ascending.
    pub fn end_of_generation(&self) -> &[u32] {
        &self.end_of_generation
    }

    /// Begin of sequence.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// End of sequence.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// End of turn.
    pub fn eot(&self) -> Option<u32> {
        self.eot
    }

    /// End of message.
    pub fn eom(&self) -> Option<u32> {
        self.eom
    }

    /// Stands for characters the vocabulary cannot express.
    pub fn unk(&self) -> Option<u32> {
        self.unk
    }

    /// Padding.
    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// Whether `add_special` puts `bos` first.
    pub fn adds_bos(&self) -> bool {
        self.add_bos && self.bos.is_some()
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.kinds.len()
    }

    /// The model's chat template (Jinja), for `crate::chat::render`.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .finish_non_exhaustive()
    }
}

/// Lengths and ids of a spec, before anything indexes with them.
fn check(spec: &TokenizerSpec) -> Result<(), TokenizerError> {
    let tokens = spec.tokens.len();
    if spec.kinds.len() != tokens {
        return Err(TokenizerError::Lengths {
            what: "kinds",
            found: spec.kinds.len(),
            tokens,
        });
    }
    if let Some((id, _)) = (0u32..).zip(&spec.tokens).find(|(_, text)| text.is_empty()) {
        return Err(TokenizerError::EmptyToken { id });
    }
    let single = [
        ("bos", spec.bos),
        ("eos", spec.eos),
        ("eot", spec.eot),
        ("eom", spec.eom),
        ("unk", spec.unk),
        ("pad", spec.pad),
    ];
    let lists = [
        ("end-of-generation", &spec.end_of_generation),
        ("strip-left", &spec.strip_left),
        ("strip-right", &spec.strip_right),
    ];
    let single = single.iter().filter_map(|&(what, id)| Some((what, id?)));
    let listed = lists
        .iter()
        .flat_map(|&(what, ids)| ids.iter().map(move |&id| (what, id)));
    for (what, id) in single.chain(listed) {
        if id as usize >= tokens {
            return Err(TokenizerError::BadId { what, id, tokens });
        }
    }
    Ok(())
}

/// The bytes that a normal token's text stands for.
fn push_text(text: &str, alphabet: Alphabet, bytes: &mut Vec<u8>) {
    let mut utf8 = [0; 4];
    for c in text.chars() {
        let byte = match alphabet {
            Alphabet::ByteLevel => bpe::char_to_byte(c),
            Alphabet::SpaceMarker => (c == bpe::SPACE_MARKER).then_some(b' '),
        };
        match byte {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(c.encode_utf8(&mut utf8).as_bytes()),
        }
    }
}

/// The byte of `<0xAB>`.
fn byte_value(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let valid = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    valid.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
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

    fn encode(
        tokenizer: &Tokenizer,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Vec<u32> {
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
}
