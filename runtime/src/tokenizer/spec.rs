//! The tokenizer as plain data: what a bundle stores and `Tokenizer::new` builds from. Where the data comes from
//! (metadata keys, names of pre-tokenizers) is the compiler's business; how it runs is in the neighbouring files.

use serde::{Deserialize, Serialize};

/// Everything needed to turn text into token ids and back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenizerSpec {
    /// Text of every token, index = id. Non-empty and unique. In the alphabet of the algorithm: bytes mapped to
    /// printable characters (byte-level BPE) or spaces written as U+2581 (SPM and raw BPE).
    pub tokens: Vec<String>,
    /// Kind of every token, as many as `tokens`.
    pub kinds: Vec<TokenKind>,
    /// How ordinary text becomes tokens.
    pub algorithm: Algorithm,
    /// Begin of sequence.
    pub bos: Option<u32>,
    /// End of sequence.
    pub eos: Option<u32>,
    /// End of turn.
    pub eot: Option<u32>,
    /// End of message.
    pub eom: Option<u32>,
    /// Stands for characters the vocabulary cannot express.
    pub unk: Option<u32>,
    /// Padding.
    pub pad: Option<u32>,
    /// Every token that ends a generation, `eos` included.
    pub end_of_generation: Vec<u32>,
    /// `encode` with `add_special` puts `bos` first.
    pub add_bos: bool,
    /// `encode` with `add_special` puts `eos` last.
    pub add_eos: bool,
    /// Special tokens that swallow ASCII white space to their left.
    pub strip_left: Vec<u32>,
    /// Special tokens that swallow ASCII white space to their right.
    pub strip_right: Vec<u32>,
    /// The model's chat template (Jinja), rendered by `crate::chat`.
    pub chat_template: Option<String>,
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenKind {
    /// Part of ordinary text.
    Normal,
    /// The unknown token; special like `Control`.
    Unknown,
    /// Steers the model; found in text only with `parse_special`, rendered only on request.
    Control,
    /// Found in text before anything else, always; rendered as it is.
    UserDefined,
    /// Reserved; renders as nothing.
    Unused,
    /// One raw byte, written `<0xAB>`.
    Byte,
}

/// How ordinary text becomes tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Algorithm {
    /// Ranked merges inside pieces cut by patterns.
    Bpe(BpeSpec),
    /// SentencePiece-style merging by score, over the whole text.
    Spm(SpmSpec),
}

/// Byte pair encoding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BpeSpec {
    /// Merged pairs `(left, right)` of ids, best first, each once; the joined text is a token too.
    pub merges: Vec<(u32, u32)>,
    /// Applied one after the other, each to the pieces the previous one left.
    pub splits: Vec<Split>,
    /// How text is written in token texts.
    pub alphabet: Alphabet,
    /// A piece that is a token as a whole is taken as it is, whatever the merges say.
    pub ignore_merges: bool,
    /// The same, for pieces of newlines alone.
    pub whole_newline_runs: bool,
}

/// How text is written in the texts of BPE tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Alphabet {
    /// Each byte is one printable character (GPT-2's table).
    ByteLevel,
    /// As it is, except that U+0020 is written U+2581; missing characters fall back to `<0xAB>` tokens.
    SpaceMarker,
}

/// One step of cutting text into the pieces that merges do not cross.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Split {
    /// Every match is a piece, and so is what lies between two matches. Syntax of the `regex` crate; the
    /// only look-around is `X(?!\S)` as a whole top-level alternative, with X matching white space only.
    Pattern(String),
    /// Inside every run (a match of the pattern), cut so that groups of three characters are counted from its end.
    Triples {
        /// Matches one run of digits.
        run: String,
        /// Cut behind the run as well; never in front of it.
        cut_after: bool,
    },
}

/// SentencePiece-style merging.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SpmSpec {
    /// Score of every token; of two possible merges the higher wins, then the leftmost.
    pub scores: Vec<f32>,
    /// A space is put before the text, and before text that follows a special token.
    pub add_space_prefix: bool,
}
