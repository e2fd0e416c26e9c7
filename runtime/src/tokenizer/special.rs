//! Finding special tokens in text before anything else looks at it: the longest token first, each from left to
//! right, in what earlier tokens left. Ordinary text is handed on untouched.

use std::collections::HashSet;

use aho_corasick::{AhoCorasick, MatchKind};

use super::{TokenKind, TokenizerError};

/// What a text consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fragment {
    /// Byte range of ordinary text, non-empty.
    Text(usize, usize),
    /// A special token.
    Token(u32),
}

/// A token looked for in text.
struct Special {
    id: u32,
    text: String,
    /// Only looked for with `parse_special`.
    on_request: bool,
    strip_left: bool,
    strip_right: bool,
}

/// All special tokens of a vocabulary.
pub(super) struct Specials {
    /// Longest first, then by id.
    tokens: Vec<Special>,
    /// Pattern index = index in `tokens`; `None` when there are none.
    scan: Option<AhoCorasick>,
}

impl Specials {
    pub(super) fn new(
        tokens: &[String],
        kinds: &[TokenKind],
        strip_left: &[u32],
        strip_right: &[u32],
    ) -> Result<Specials, TokenizerError> {
        let set = |ids: &[u32]| ids.iter().copied().collect::<HashSet<u32>>();
        let (strip_left, strip_right) = (set(strip_left), set(strip_right));
        let mut specials: Vec<Special> = Vec::new();
        for (id, (text, kind)) in (0u32..).zip(tokens.iter().zip(kinds)) {
            let on_request = match kind {
                TokenKind::Control | TokenKind::Unknown => true,
                TokenKind::UserDefined => false,
                TokenKind::Normal | TokenKind::Unused | TokenKind::Byte => continue,
            };
            specials.push(Special {
                id,
                text: text.clone(),
                on_request,
                strip_left: strip_left.contains(&id),
                strip_right: strip_right.contains(&id),
            });
        }
        specials.sort_by_key(|special| (std::cmp::Reverse(special.text.len()), special.id));
        let scan = match specials.is_empty() {
            true => None,
            false => Some(
                AhoCorasick::builder()
                    .match_kind(MatchKind::Standard)
                    .build(specials.iter().map(|special| &special.text))
                    .map_err(|error| TokenizerError::SpecialTokens(error.to_string()))?,
            ),
        };
        Ok(Specials {
            tokens: specials,
            scan,
        })
    }

    /// Cuts `text` into ordinary text and special tokens; control tokens only with `parse_special`.
    pub(super) fn partition(&self, text: &str, parse_special: bool) -> Vec<Fragment> {
        let mut fragments = Vec::new();
        if text.is_empty() {
            return fragments;
        }
        fragments.push(Fragment::Text(0, text.len()));
        // One pass finds which tokens occur at all: few do, and only those are worth a search of their own.
        let mut occurs = vec![false; self.tokens.len()];
        if let Some(scan) = &self.scan {
            for hit in scan.find_overlapping_iter(text) {
                occurs[hit.pattern().as_usize()] = true;
            }
        }
        for (special, _) in self.tokens.iter().zip(occurs).filter(|(_, occurs)| *occurs) {
            if special.on_request && !parse_special {
                continue;
            }
            fragments = special.cut(text, &fragments);
        }
        fragments
    }
}

impl Special {
    /// Takes every occurrence of this token out of the text fragments.
    fn cut(&self, text: &str, fragments: &[Fragment]) -> Vec<Fragment> {
        let mut cut = Vec::with_capacity(fragments.len() + 2);
        for fragment in fragments {
            let Fragment::Text(mut start, end) = *fragment else {
                cut.push(*fragment);
                continue;
            };
            while let Some(at) = text[start..end].find(&self.text) {
                let mut left = &text[start..start + at];
                if self.strip_left {
                    left = left.trim_end_matches(is_c_space);
                }
                if !left.is_empty() {
                    cut.push(Fragment::Text(start, start + left.len()));
                }
                cut.push(Fragment::Token(self.id));
                start += at + self.text.len();
                if self.strip_right {
                    start = end - text[start..end].trim_start_matches(is_c_space).len();
                }
            }
            if start < end {
                cut.push(Fragment::Text(start, end));
            }
        }
        cut
    }
}

/// C's `isspace` in the C locale.
fn is_c_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\u{b}' | '\u{c}' | '\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn specials(tokens: &[(&str, TokenKind)], left: &[u32], right: &[u32]) -> Specials {
        let texts: Vec<String> = tokens.iter().map(|t| t.0.to_owned()).collect();
        let kinds: Vec<TokenKind> = tokens.iter().map(|t| t.1).collect();
        Specials::new(&texts, &kinds, left, right).expect("tokens are valid")
    }

    #[test]
    fn longest_first_then_leftmost() {
        use TokenKind::{Control, UserDefined};
        let s = specials(
            &[("<<", UserDefined), ("<a>", UserDefined), ("<", Control)],
            &[],
            &[],
        );
        assert_eq!(
            s.partition("x<<a><<", true),
            [
                Fragment::Text(0, 1),
                Fragment::Token(2),
                Fragment::Token(1),
                Fragment::Token(0)
            ]
        );
        assert_eq!(
            s.partition("x<<a>", false),
            [Fragment::Text(0, 2), Fragment::Token(1)]
        );
    }

    #[test]
    fn stripping_takes_ascii_space_only() {
        let s = specials(&[("<e>", TokenKind::Control)], &[0], &[0]);
        assert_eq!(
            s.partition("a \u{a0} \n<e> \t<e>  b", true),
            [
                Fragment::Text(0, 4),
                Fragment::Token(0),
                Fragment::Token(0),
                Fragment::Text(16, 17)
            ]
        );
        assert_eq!(s.partition(" <e> ", true), [Fragment::Token(0)]);
        assert_eq!(s.partition("", true), []);
    }
}
