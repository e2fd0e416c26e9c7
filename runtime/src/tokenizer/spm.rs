//! SentencePiece-style encoding: neighbouring symbols merge wherever the joined text is a token, best score first.
//! Not expressible as ranked merges, because any split of a token may be the one that meets.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use tokenizers::models::bpe::Vocab;

use super::bpe::SPACE_MARKER;
use super::{SpmSpec, TokenizerError};

/// An SPM model ready to encode.
pub(super) struct Spm {
    ids: Vocab,
    scores: Vec<f32>,
    add_space_prefix: bool,
    /// For each byte `<0xAB>`, or the byte as a character, where the vocabulary has either.
    byte_ids: Vec<Option<u32>>,
    unknown: Option<u32>,
}

/// A stretch of text that is one symbol so far; `len` 0 once merged into its left neighbour.
struct Symbol {
    start: usize,
    len: usize,
    prev: Option<usize>,
    next: Option<usize>,
}

/// Two neighbouring symbols whose joined text of `len` bytes is a token.
struct Bigram {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Ord for Bigram {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score
            .total_cmp(&other.score)
            .then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Bigram {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Bigram {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Bigram {}

impl Spm {
    pub(super) fn new(
        tokens: Vec<String>,
        spec: SpmSpec,
        unknown: Option<u32>,
    ) -> Result<Spm, TokenizerError> {
        if spec.scores.len() != tokens.len() {
            return Err(TokenizerError::Lengths {
                what: "scores",
                found: spec.scores.len(),
                tokens: tokens.len(),
            });
        }
        let mut ids = Vocab::with_capacity(tokens.len());
        for (id, token) in (0u32..).zip(tokens) {
            if let Some(first) = ids.insert(token, id) {
                return Err(TokenizerError::DuplicateToken { first, id });
            }
        }
        let byte_ids = (0..=255u8)
            .map(|byte| {
                let bare = || {
                    let text = byte.is_ascii().then(|| char::from(byte).to_string());
                    text.and_then(|text| ids.get(&text))
                };
                ids.get(&format!("<0x{byte:02X}>")).or_else(bare).copied()
            })
            .collect();
        // Adding zero makes -0.0 and 0.0 the same score, as they compare.
        let scores = spec.scores.iter().map(|score| score + 0.0).collect();
        Ok(Spm {
            ids,
            scores,
            add_space_prefix: spec.add_space_prefix,
            byte_ids,
            unknown,
        })
    }

    /// Whether decoding a whole text drops its first space.
    pub(super) fn add_space_prefix(&self) -> bool {
        self.add_space_prefix
    }

    /// Appends the tokens of ordinary text; `starts` says that nothing or a special token comes before.
    pub(super) fn encode(
        &self,
        text: &str,
        starts: bool,
        out: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let mut marked = String::with_capacity(text.len() + 3);
        if starts && self.add_space_prefix {
            marked.push(SPACE_MARKER);
        }
        for c in text.chars() {
            marked.push(if c == ' ' { SPACE_MARKER } else { c });
        }
        let mut symbols = self.characters(&marked);
        let mut queue = BinaryHeap::with_capacity(symbols.len());
        for right in 1..symbols.len() {
            queue.extend(self.bigram(&marked, &symbols, Some(right - 1), Some(right)));
        }
        while let Some(Bigram {
            left, right, len, ..
        }) = queue.pop()
        {
            let (left_len, right_len) = (symbols[left].len, symbols[right].len);
            if left_len == 0 || right_len == 0 || left_len + right_len != len {
                continue;
            }
            symbols[left].len = len;
            symbols[right].len = 0;
            let next = symbols[right].next;
            symbols[left].next = next;
            if let Some(next) = next {
                symbols[next].prev = Some(left);
            }
            let prev = symbols[left].prev;
            queue.extend(self.bigram(&marked, &symbols, prev, Some(left)));
            queue.extend(self.bigram(&marked, &symbols, Some(left), next));
        }
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            let text = &marked[symbol.start..symbol.start + symbol.len];
            match self.ids.get(text) {
                Some(&id) => out.push(id),
                None => self.fall_back(text, out)?,
            }
        }
        Ok(())
    }

    fn characters(&self, text: &str) -> Vec<Symbol> {
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(index, (start, c))| Symbol {
                start,
                len: c.len_utf8(),
                prev: index.checked_sub(1),
                next: Some(index + 1),
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.next = None;
        }
        symbols
    }

    fn bigram(
        &self,
        text: &str,
        symbols: &[Symbol],
        left: Option<usize>,
        right: Option<usize>,
    ) -> Option<Bigram> {
        let (left, right) = (left?, right?);
        let start = symbols[left].start;
        let len = symbols[left].len + symbols[right].len;
        let id = *self.ids.get(&text[start..start + len])?;
        Some(Bigram {
            score: *self.scores.get(id as usize)?,
            left,
            right,
            len,
        })
    }

    /// A character that is no token: its bytes, or the unknown token.
    fn fall_back(&self, character: &str, out: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let bytes: Option<Vec<u32>> = character
            .bytes()
            .map(|byte| self.byte_ids[usize::from(byte)])
            .collect();
        match (bytes, self.unknown) {
            (Some(ids), _) => out.extend(ids),
            (None, Some(unknown)) => out.push(unknown),
            (None, None) => {
                return Err(TokenizerError::NoToken {
                    character: character.to_owned(),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spm(tokens: &[(&str, f32)], unknown: Option<u32>) -> Spm {
        let texts = tokens.iter().map(|t| t.0.to_owned()).collect();
        let spec = SpmSpec {
            scores: tokens.iter().map(|t| t.1).collect(),
            add_space_prefix: true,
        };
        Spm::new(texts, spec, unknown).expect("valid")
    }

    fn ids(spm: &Spm, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut out = Vec::new();
        spm.encode(text, false, &mut out).map(|()| out)
    }

    #[test]
    fn best_score_first_leftmost_on_ties() {
        let spm = spm(
            &[
                ("a", 0.0),
                ("b", 0.0),
                ("aa", -0.0),
                ("ab", 0.0),
                ("aab", -9.0),
            ],
            None,
        );
        assert_eq!(ids(&spm, "aab").ok(), Some(vec![4]));
        assert_eq!(ids(&spm, "aaab").ok(), Some(vec![2, 3]));
        assert_eq!(ids(&spm, "aba").ok(), Some(vec![3, 0]));
    }

    #[test]
    fn falls_back_to_bytes_then_unknown_then_error() {
        let spm_bytes = spm(&[("<0xC3>", 0.0), ("<0xA9>", 0.0), ("\n", 0.0)], None);
        assert_eq!(ids(&spm_bytes, "é\n").ok(), Some(vec![0, 1, 2]));
        assert!(matches!(
            ids(&spm_bytes, "è"),
            Err(TokenizerError::NoToken { .. })
        ));
        assert_eq!(ids(&spm(&[("?", 0.0)], Some(0)), "è").ok(), Some(vec![0]));
    }

    #[test]
    fn a_megabyte_long_word_is_not_quadratic() {
        let spm = spm(&[("a", 0.0), ("aa", 1.0), ("aaaa", 2.0), ("b", 0.0)], None);
        let mut out = Vec::new();
        spm.encode(&"a".repeat(1 << 20), false, &mut out)
            .expect("encodes");
        assert_eq!(out.len(), 1 << 18);
    }
}
