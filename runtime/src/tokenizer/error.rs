//! Why a tokenizer could not be built or a text not be encoded, and the one line that says so.

use std::fmt;

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
