//! Text to token ids and back, from a `TokenizerSpec`. Merging is the `tokenizers` crate's (BPE) or spm.rs's;
//! which spec a model has is the compiler's business, chat templates are `crate::chat`'s.
//!
//! Ids equal llama.cpp's for the same metadata: special tokens are cut out first (special.rs), the text between them
//! is encoded piece by piece.

mod bpe;
mod error;
mod spec;
mod special;
mod split;
mod spm;
mod stream;
#[cfg(test)]
mod tests;

pub use error::TokenizerError;
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
