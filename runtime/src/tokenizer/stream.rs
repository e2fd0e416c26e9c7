//! Text that arrives as the bytes of one token after the other: whole characters go out, cut ones wait.

/// Turns a stream of token bytes into valid text. Never sees token ids.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    /// The beginning of a character, at most three bytes.
    pending: Vec<u8>,
    /// The first space to arrive is the tokenizer's own and is dropped.
    drop_space: bool,
}

impl TextStream {
    /// A stream that continues earlier text (a prompt): nothing is dropped.
    pub fn new() -> TextStream {
        TextStream::default()
    }

    /// A stream that begins a text: drops one leading space when the tokenizer puts one there
    /// (`Tokenizer::adds_space_prefix`).
    pub fn at_start(adds_space_prefix: bool) -> TextStream {
        TextStream {
            pending: Vec::new(),
            drop_space: adds_space_prefix,
        }
    }

    /// Takes the bytes of one token and returns the characters they complete. Bytes that cannot be UTF-8 become
    /// U+FFFD at once.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        let mut bytes = bytes;
        if let (true, Some(&first)) = (self.drop_space, bytes.first()) {
            self.drop_space = false;
            if first == b' ' {
                bytes = &bytes[1..];
            }
        }
        self.pending.extend_from_slice(bytes);
        let mut text = String::with_capacity(self.pending.len());
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, tail) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    let Some(bad) = error.error_len() else {
                        rest = tail;
                        break;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &tail[bad..];
                }
            }
        }
        self.pending = rest.to_vec();
        text
    }

    /// Ends the stream: a character that never was completed becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_gives_the_same_text() {
        let text = "aé€😀\u{301} \0z";
        for size in 1..=text.len() {
            let mut stream = TextStream::new();
            let mut out = String::new();
            for part in text.as_bytes().chunks(size) {
                out.push_str(&stream.push(part));
            }
            out.push_str(&stream.finish());
            assert_eq!(out, text, "chunks of {size}");
        }
    }

    #[test]
    fn a_character_waits_for_its_last_byte() {
        let mut stream = TextStream::new();
        assert_eq!(stream.push(&[b'x', 0xf0, 0x9f]), "x");
        assert_eq!(stream.push(&[0x98]), "");
        assert_eq!(stream.push(&[0x80, b'y']), "😀y");
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn broken_bytes_do_not_hold_up_the_rest() {
        let mut stream = TextStream::new();
        assert_eq!(stream.push(&[0xff, b'a', 0xe2, 0x82]), "\u{fffd}a");
        assert_eq!(stream.push(b"b"), "\u{fffd}b");
        assert_eq!(stream.push(&[0xe2]), "");
        assert_eq!(stream.finish(), "\u{fffd}");
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn one_leading_space_is_dropped_at_a_start_only() {
        let mut start = TextStream::at_start(true);
        assert_eq!(start.push(b""), "");
        assert_eq!(start.push(b"  a"), " a");
        assert_eq!(start.push(b" b"), " b");
        assert_eq!(TextStream::at_start(false).push(b" a"), " a");
        assert_eq!(TextStream::new().push(b" a"), " a");
    }
}
