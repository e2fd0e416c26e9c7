//! What a caller asks for, and why a request can be refused before it costs anything. No state of running requests.

use crate::error::Error;
use crate::sampler::{InvalidParameter, Sampling};
use crate::tokenizer::TokenizerError;

/// Names one request of one engine; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(super) u64);

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What a request continues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Token ids, taken as they are.
    Tokens(Vec<u32>),
    /// Text, encoded with the model's begin token where it wants one.
    Text {
        /// The text; empty is allowed if the model has a begin token.
        text: String,
        /// Recognise control tokens written out in the text, as rendered chat templates need.
        parse_special: bool,
    },
}

/// One generation. `Request::text("...")` and struct update give the rest llama.cpp's defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What to continue.
    pub prompt: Prompt,
    /// Tokens to generate at most; `None`: until an end token or the end of the context. 0 only runs the prompt.
    pub max_tokens: Option<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Texts that end the generation; they are not part of the answer.
    pub stop: Vec<String>,
    /// Never choose a token that ends the generation.
    pub ignore_eos: bool,
}

impl Request {
    /// A request that continues `text`.
    pub fn text(text: impl Into<String>) -> Self {
        Self::new(Prompt::Text {
            text: text.into(),
            parse_special: false,
        })
    }

    /// A request that continues `tokens`.
    pub fn tokens(tokens: impl Into<Vec<u32>>) -> Self {
        Self::new(Prompt::Tokens(tokens.into()))
    }

    /// A request for `prompt`, everything else at its default.
    pub fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            max_tokens: None,
            sampling: Sampling::default(),
            stop: Vec::new(),
            ignore_eos: false,
        }
    }
}

/// Why a request was not accepted. Nothing was queued.
#[derive(Clone, Debug, PartialEq)]
pub enum RequestError {
    /// The prompt has no tokens and the model no begin token to stand in.
    EmptyPrompt,
    /// The prompt is longer than a sequence may be.
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens a sequence may have, as compiled.
        context: u32,
    },
    /// A prompt token is not in the vocabulary.
    TokenOutOfRange {
        /// The token.
        token: u32,
        /// Its place in the prompt.
        index: usize,
        /// Tokens of the vocabulary.
        vocab: u32,
    },
    /// A text prompt, but the bundle has no tokenizer.
    NoTokenizer,
    /// The text cannot be encoded.
    Tokenizer(TokenizerError),
    /// A sampling parameter is out of range.
    Parameter(InvalidParameter),
    /// An empty stop string would end every generation at once.
    EmptyStop,
}

impl std::fmt::Display for RequestError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::EmptyPrompt => f.write_str(
                "the prompt is empty and the model has no begin token; give at least one token",
            ),
            Self::PromptTooLong { prompt, context } => write!(
                f,
                "the prompt has {prompt} tokens, the bundle was compiled for a context of {context}; \
                 shorten it or compile with --ctx-size {prompt} or more"
            ),
            Self::TokenOutOfRange {
                token,
                index,
                vocab,
            } => {
                write!(
                    f,
                    "prompt token {token} (index {index}) is outside the vocabulary of {vocab} tokens"
                )
            }
            Self::NoTokenizer => {
                f.write_str("the bundle has no tokenizer; give token ids instead of text")
            }
            Self::Tokenizer(error) => error.fmt(f),
            Self::Parameter(parameter) => parameter.fmt(f),
            Self::EmptyStop => f.write_str("a stop string is empty"),
        }
    }
}

impl std::error::Error for RequestError {}

impl From<RequestError> for Error {
    fn from(error: RequestError) -> Self {
        Self::Usage(error.to_string())
    }
}
