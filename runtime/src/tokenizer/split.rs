//! Cutting text into the pieces that BPE merges do not cross. Automata only, so time is linear in the text for any
//! pattern; the one look-ahead in use, "white space not followed by something else", is rewritten here.

use std::ops::Range;

use regex_automata::meta::{Config, Regex};
use regex_automata::{Input, PatternID};

use super::{Split, TokenizerError};

/// Bytes an automaton may take before its pattern is refused.
const AUTOMATON_BYTES: usize = 32 << 20;

/// `Split` steps, compiled.
pub(super) struct Splitter {
    steps: Vec<Step>,
}

enum Step {
    Isolate(Matcher),
    Triples { run: Matcher, cut_after: bool },
}

/// One automaton for all alternatives; `gives_back[p]` says that a match of pattern p ends with one
/// character that only serves as look-ahead.
struct Matcher {
    regex: Regex,
    gives_back: Vec<bool>,
}

impl Splitter {
    pub(super) fn new(splits: &[Split]) -> Result<Splitter, TokenizerError> {
        let steps = splits
            .iter()
            .map(|split| {
                Ok(match split {
                    Split::Pattern(pattern) => Step::Isolate(Matcher::new(pattern)?),
                    Split::Triples { run, cut_after } => Step::Triples {
                        run: Matcher::new(run)?,
                        cut_after: *cut_after,
                    },
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Splitter { steps })
    }

    /// The pieces of `text` as byte ranges: in order, non-empty, covering it.
    pub(super) fn split(&self, text: &str) -> Vec<Range<usize>> {
        let mut pieces = Vec::new();
        if !text.is_empty() {
            pieces.push(0..text.len());
        }
        for step in &self.steps {
            let mut cut = Vec::with_capacity(pieces.len());
            for piece in pieces {
                let base = piece.start;
                let inside = &text[piece];
                let mut done = 0;
                let mut end_piece = |end: usize| {
                    if end > done {
                        cut.push(base + done..base + end);
                        done = end;
                    }
                };
                match step {
                    Step::Isolate(matcher) => matcher.each(inside, |found| {
                        end_piece(found.start);
                        end_piece(found.end);
                    }),
                    Step::Triples { run, cut_after } => run.each(inside, |found| {
                        let digits = inside[found.clone()].chars().count();
                        let chars = inside[found.clone()].char_indices().enumerate();
                        for (index, (offset, _)) in chars {
                            // With `cut_after`, what lies before a run stays with its first group.
                            if (digits - index).is_multiple_of(3) && (index > 0 || !cut_after) {
                                end_piece(found.start + offset);
                            }
                        }
                        if *cut_after {
                            end_piece(found.end);
                        }
                    }),
                }
                end_piece(inside.len());
            }
            pieces = cut;
        }
        pieces
    }
}

impl Matcher {
    fn new(pattern: &str) -> Result<Matcher, TokenizerError> {
        let refuse = |reason: String| TokenizerError::Pattern {
            pattern: pattern.to_owned(),
            reason,
        };
        let mut patterns: Vec<String> = Vec::new();
        let mut gives_back = Vec::new();
        let mut join = false;
        for alternative in alternatives(pattern) {
            if let Some(space) = alternative.strip_suffix(r"(?!\S)") {
                // Not followed by a non-space: at the end, or followed by a space that is given back.
                patterns.push(format!(r"(?:{space})\z"));
                patterns.push(format!(r"(?:{space})\s"));
                gives_back.extend([false, true]);
                join = false;
            } else if let (true, Some(last)) = (join, patterns.last_mut()) {
                last.push('|');
                last.push_str(alternative);
            } else {
                patterns.push(alternative.to_owned());
                gives_back.push(false);
                join = true;
            }
        }
        let regex = Regex::builder()
            .configure(Config::new().nfa_size_limit(Some(AUTOMATON_BYTES)))
            .build_many(&patterns)
            .map_err(|error| {
                refuse(match error.syntax_error() {
                    Some(syntax) => syntax.to_string(),
                    None => error.to_string(),
                })
            })?;
        Ok(Matcher { regex, gives_back })
    }

    /// Calls `found` for every match in `text`, left to right, leaving out empty ones.
    fn each(&self, text: &str, mut found: impl FnMut(Range<usize>)) {
        let mut input = Input::new(text);
        while let Some(hit) = self.regex.search(&input) {
            let mut end = hit.end();
            if self.gives_back(hit.pattern()) {
                let last = text[..end].chars().next_back();
                end -= last.map_or(0, char::len_utf8);
            }
            if end > hit.start() {
                found(hit.start()..end);
            } else {
                // An empty match: step over one character so that the search moves on.
                end += text[end..].chars().next().map_or(1, char::len_utf8);
            }
            if end >= text.len() {
                break;
            }
            input.set_start(end);
        }
    }

    fn gives_back(&self, pattern: PatternID) -> bool {
        self.gives_back
            .get(pattern.as_usize())
            .copied()
            .unwrap_or(false)
    }
}

/// The top-level alternatives of a pattern.
fn alternatives(pattern: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut parens, mut brackets, mut escaped) = (0, 0usize, 0usize, false);
    for (at, byte) in pattern.bytes().enumerate() {
        if escaped {
            escaped = false;
            continue;
        }
        match byte {
            b'\\' => escaped = true,
            b'[' => brackets += 1,
            b']' => brackets = brackets.saturating_sub(1),
            b'(' if brackets == 0 => parens += 1,
            b')' if brackets == 0 => parens = parens.saturating_sub(1),
            b'|' if brackets == 0 && parens == 0 => {
                parts.push(&pattern[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&pattern[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(splits: &[Split], text: &str) -> Vec<String> {
        let splitter = Splitter::new(splits).expect("patterns are valid");
        let pieces = splitter.split(text);
        pieces.into_iter().map(|p| text[p].to_owned()).collect()
    }

    fn pattern(text: &str) -> Vec<Split> {
        vec![Split::Pattern(text.to_owned())]
    }

    #[test]
    fn white_space_leaves_its_last_character_to_the_word() {
        let splits = pattern(r" ?\p{L}+|\s+(?!\S)|\s+");
        assert_eq!(split(&splits, "a   b  "), ["a", "  ", " b", "  "]);
        assert_eq!(split(&splits, "\ta"), ["\t", "a"]);
        assert_eq!(
            split(&splits, " \u{3000} \u{3000}x"),
            [" \u{3000} ", "\u{3000}", "x"]
        );
    }

    #[test]
    fn bounded_white_space_keeps_its_bound() {
        let splits = pattern(r"\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}");
        assert_eq!(split(&splits, "       x"), ["    ", "  ", " ", "x"]);
        assert_eq!(split(&splits, "     "), ["    ", " "]);
    }

    #[test]
    fn text_between_matches_is_a_piece_and_steps_stack() {
        let splits = [
            Split::Pattern("[0-9]".to_owned()),
            Split::Pattern("b+".to_owned()),
        ];
        assert_eq!(
            split(&splits, "abba12ba"),
            ["a", "bb", "a", "1", "2", "b", "a"]
        );
        assert!(split(&splits, "").is_empty());
    }

    #[test]
    fn triples_count_from_the_end() {
        let after = [Split::Triples {
            run: r"\p{N}+".to_owned(),
            cut_after: true,
        }];
        assert_eq!(split(&after, "ab12345c"), ["ab12", "345", "c"]);
        assert_eq!(split(&after, "ab123456"), ["ab123", "456"]);
        let before = [Split::Triples {
            run: "[0-9]+".to_owned(),
            cut_after: false,
        }];
        assert_eq!(split(&before, "1234567"), ["1", "234", "567"]);
        assert_eq!(split(&before, "²345²"), ["²", "345²"]);
    }

    #[test]
    fn empty_matches_do_not_stall() {
        assert_eq!(split(&pattern("a*"), "béab"), ["bé", "a", "b"]);
    }

    #[test]
    fn hostile_patterns_are_errors() {
        for bad in [r"(", r"(?!a)b", r"\p{L}{100000}{1000}", r"[a", r"\"] {
            assert!(Splitter::new(&pattern(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_megabyte_of_anything_is_linear() {
        let splits = pattern(r" ?\p{L}+|\s*[\r\n]+|\s+(?!\S)|\s+");
        for unit in [" ", "a", "é", "\u{85}", " \t"] {
            let text = unit.repeat((1 << 20) / unit.len());
            assert!(!split(&splits, &text).is_empty());
        }
    }
}
