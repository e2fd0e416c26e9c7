//! Stop strings in streamed text: finds them across token boundaries and holds back what could be the beginning of
//! one. Knows text only, no tokens.

/// Watches one request's text.
#[derive(Clone, Debug)]
pub(super) struct StopWatch {
    stops: Vec<String>,
    held: String,
}

impl StopWatch {
    /// Watches for `stops`, none of them empty.
    pub(super) fn new(stops: Vec<String>) -> Self {
        Self {
            stops,
            held: String::new(),
        }
    }

    /// Takes more text. Returns what is safe to show, and whether a stop string was completed: then the text ends
    /// right before the first one, and nothing may be pushed any more.
    pub(super) fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        let first = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()))
            .min();
        if let Some(at) = first {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let safe = self.held.len() - self.longest_beginning();
        let rest = self.held.split_off(safe);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// The end of the text: what was held back turned out to be no stop string.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes of the longest end of `held` that begins a stop string.
    fn longest_beginning(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let earliest = (self.held.len() + 1).saturating_sub(longest);
        (earliest..self.held.len())
            .filter(|&at| self.held.is_char_boundary(at))
            .find(|&at| {
                self.stops
                    .iter()
                    .any(|stop| stop.starts_with(&self.held[at..]))
            })
            .map_or(0, |at| self.held.len() - at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(stops: &[&str]) -> StopWatch {
        StopWatch::new(stops.iter().map(|s| s.to_string()).collect())
    }

    fn feed(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut watch = watch(stops);
        let mut shown = String::new();
        for piece in pieces {
            let (text, stopped) = watch.push(piece);
            shown.push_str(&text);
            if stopped {
                return (shown, true);
            }
        }
        shown.push_str(&watch.finish());
        (shown, false)
    }

    #[test]
    fn every_cut_of_the_text_gives_the_same_answer() {
        let text = "one two\n\nthrée";
        for a in (0..=text.len()).filter(|&i| text.is_char_boundary(i)) {
            for b in (a..=text.len()).filter(|&i| text.is_char_boundary(i)) {
                let pieces = [&text[..a], &text[a..b], &text[b..]];
                assert_eq!(feed(&["\n\nthr"], &pieces), ("one two".into(), true));
                assert_eq!(feed(&["ée!", "two three"], &pieces), (text.into(), false));
            }
        }
    }

    #[test]
    fn the_earliest_of_several_wins() {
        assert_eq!(feed(&["cd", "bcd"], &["ab", "cde"]), ("a".into(), true));
    }

    #[test]
    fn only_possible_beginnings_are_held_back() {
        let mut watch = watch(&["END"]);
        assert_eq!(watch.push("the E"), ("the ".into(), false));
        assert_eq!(watch.push("N"), (String::new(), false));
        assert_eq!(watch.push("EN"), ("EN".into(), false));
        assert_eq!(watch.push("D tail"), (String::new(), true));
    }

    #[test]
    fn without_stop_strings_nothing_is_held() {
        let mut watch = watch(&[]);
        assert_eq!(watch.push("text"), ("text".into(), false));
        assert_eq!(watch.finish(), "");
    }
}
