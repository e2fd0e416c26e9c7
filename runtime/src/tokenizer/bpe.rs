//! Byte pair encoding of one piece of text: the alphabet tokens are written in, and merging by the `tokenizers`
//! crate. Pieces come from split.rs; special tokens never get here.

use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Vocab};

use super::split::Splitter;
use super::{Alphabet, BpeSpec, TokenizerError};

/// The character SPM-style vocabularies write for a space.
pub(super) const SPACE_MARKER: char = '\u{2581}';

/// A BPE model ready to encode.
pub(super) struct Bpe {
    model: BPE,
    splitter: Splitter,
    alphabet: Alphabet,
    ignore_merges: bool,
    whole_newline_runs: bool,
    /// Ids of `<0x00>`..`<0xFF>`, where the vocabulary has them.
    byte_ids: Vec<Option<u32>>,
}

impl Bpe {
    pub(super) fn new(tokens: Vec<String>, spec: BpeSpec) -> Result<Bpe, TokenizerError> {
        let splitter = Splitter::new(&spec.splits)?;
        // The library takes texts, and trusts that a result is no longer than the longest token.
        let longest = tokens.iter().map(String::len).max().unwrap_or(0);
        let mut merges = Vec::with_capacity(spec.merges.len());
        for (rank, &(left, right)) in spec.merges.iter().enumerate() {
            match (tokens.get(left as usize), tokens.get(right as usize)) {
                (Some(a), Some(b)) if a.len() + b.len() <= longest => {
                    merges.push((a.clone(), b.clone()));
                }
                _ => return Err(TokenizerError::BadMerge { rank, left, right }),
            }
        }
        let mut vocab = Vocab::with_capacity(tokens.len());
        for (id, token) in (0u32..).zip(tokens) {
            if let Some(first) = vocab.insert(token, id) {
                return Err(TokenizerError::DuplicateToken { first, id });
            }
        }
        let byte_ids = (0..=255u8)
            .map(|byte| vocab.get(&format!("<0x{byte:02X}>")).copied())
            .collect();
        let model = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .build()
            .map_err(|error| TokenizerError::Model(error.to_string()))?;
        Ok(Bpe {
            model,
            splitter,
            alphabet: spec.alphabet,
            ignore_merges: spec.ignore_merges,
            whole_newline_runs: spec.whole_newline_runs,
            byte_ids,
        })
    }

    /// Appends the tokens of ordinary text.
    pub(super) fn encode(&self, text: &str, out: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let spaced;
        let text = match self.alphabet {
            Alphabet::ByteLevel => text,
            Alphabet::SpaceMarker => {
                spaced = text.replace(' ', "\u{2581}");
                &spaced
            }
        };
        let mut word = String::new();
        for piece in self.splitter.split(text) {
            let piece = &text[piece];
            match self.alphabet {
                Alphabet::ByteLevel => {
                    word.clear();
                    word.extend(piece.bytes().map(byte_to_char));
                    self.encode_word(&word, out)?;
                }
                Alphabet::SpaceMarker => self.encode_word(piece, out)?,
            }
        }
        Ok(())
    }

    fn encode_word(&self, word: &str, out: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let whole = self.ignore_merges
            || (self.whole_newline_runs && word.bytes().all(|byte| byte == b'\n'));
        if whole && let Some(id) = self.model.token_to_id(word) {
            out.push(id);
            return Ok(());
        }
        // Characters outside the vocabulary stop merging; the library would drop them and merge across.
        let mut known_from = 0;
        let mut utf8 = [0; 4];
        for (at, c) in word.char_indices() {
            if self.model.token_to_id(c.encode_utf8(&mut utf8)).is_some() {
                continue;
            }
            self.merge(&word[known_from..at], out)?;
            known_from = at + c.len_utf8();
            if self.alphabet == Alphabet::SpaceMarker {
                let bytes = c.encode_utf8(&mut utf8).bytes();
                out.extend(bytes.filter_map(|byte| self.byte_ids[usize::from(byte)]));
            }
        }
        self.merge(&word[known_from..], out)
    }

    fn merge(&self, known: &str, out: &mut Vec<u32>) -> Result<(), TokenizerError> {
        if known.is_empty() {
            return Ok(());
        }
        let tokens = self
            .model
            .tokenize(known)
            .map_err(|error| TokenizerError::Model(error.to_string()))?;
        out.extend(tokens.iter().map(|token| token.id));
        Ok(())
    }
}

/// GPT-2's byte alphabet: printable Latin-1 stands for itself, the other 68 bytes for U+0100 and up, in order.
/// Source: `bytes_to_unicode` of <https://github.com/openai/gpt-2/blob/master/src/encoder.py>.
fn byte_to_char(byte: u8) -> char {
    let code = match byte {
        0x00..=0x20 => 0x100 + u32::from(byte),
        0x7f..=0xa0 => 0x121 + u32::from(byte - 0x7f),
        0xad => 0x143,
        _ => u32::from(byte),
    };
    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The byte a character of GPT-2's alphabet stands for.
pub(super) fn char_to_byte(c: char) -> Option<u8> {
    let byte = match u32::from(c) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => code,
        code @ 0x100..=0x120 => code - 0x100,
        code @ 0x121..=0x142 => code - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::Split;

    #[test]
    fn byte_alphabet_is_a_bijection() {
        for byte in 0..=255u8 {
            assert_eq!(char_to_byte(byte_to_char(byte)), Some(byte));
        }
        assert_eq!(byte_to_char(b' '), 'Ġ');
        assert_eq!(byte_to_char(b'\n'), 'Ċ');
        assert_eq!(char_to_byte('▁'), None);
    }

    fn bpe(tokens: &[&str], merges: &[(u32, u32)]) -> Result<Bpe, TokenizerError> {
        let spec = BpeSpec {
            merges: merges.to_vec(),
            splits: vec![Split::Pattern(r"\p{L}+".to_owned())],
            alphabet: Alphabet::ByteLevel,
            ignore_merges: false,
            whole_newline_runs: false,
        };
        Bpe::new(tokens.iter().map(|t| (*t).to_owned()).collect(), spec)
    }

    fn ids(bpe: &Bpe, text: &str) -> Vec<u32> {
        let mut out = Vec::new();
        bpe.encode(text, &mut out).expect("encodes");
        out
    }

    #[test]
    fn ranks_then_leftmost_and_no_merge_across_missing_characters() {
        let bpe = bpe(&["a", "b", "ab", "aa", "aab"], &[(0, 0), (0, 1), (3, 1)]).expect("valid");
        assert_eq!(ids(&bpe, "aaab"), [3, 2]);
        assert_eq!(ids(&bpe, "axb"), [0, 1]);
    }

    #[test]
    fn merges_of_unknown_tokens_are_errors() {
        assert!(matches!(
            bpe(&["a", "b"], &[(0, 9)]),
            Err(TokenizerError::BadMerge {
                rank: 0,
                right: 9,
                ..
            })
        ));
        assert!(matches!(
            bpe(&["a", "b"], &[(0, 1)]),
            Err(TokenizerError::BadMerge { rank: 0, .. })
        ));
        assert!(matches!(
            bpe(&["a", "b", "ccc"], &[(0, 1)]),
            Err(TokenizerError::Model(_))
        ));
        assert!(matches!(
            bpe(&["a", "a"], &[]),
            Err(TokenizerError::DuplicateToken { first: 0, id: 1 })
        ));
    }
}
