//! What an engine reports while it runs. Plain data.

use std::time::Duration;

use super::request::RequestId;

/// Something that happened to one request in a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Part of a prompt was processed.
    Prefill {
        /// The request.
        id: RequestId,
        /// Prompt tokens processed so far.
        done: usize,
        /// Prompt tokens in all.
        total: usize,
    },
    /// A token was generated.
    Token {
        /// The request.
        id: RequestId,
        /// The token.
        token: u32,
        /// Text that became complete: empty while a character or a possible stop string is unfinished.
        text: String,
    },
    /// The request is over and its slot free.
    Finished {
        /// The request.
        id: RequestId,
        /// Why.
        reason: FinishReason,
        /// Text that was still held back.
        text: String,
        /// What it took.
        stats: Stats,
    },
}

/// Why a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// A stop string came up.
    Stop,
    /// `max_tokens` were generated.
    Length,
    /// The model generated one of its end tokens.
    EndOfText,
    /// `cancel` was called.
    Cancelled,
    /// The sequence is as long as the bundle allows.
    Context,
}

impl FinishReason {
    /// Lower case, for output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::EndOfText => "end of text",
            Self::Cancelled => "cancelled",
            Self::Context => "context",
        }
    }
}

/// What one request took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated, an end token not counted.
    pub generated_tokens: usize,
    /// Seed of its random numbers, given or drawn.
    pub seed: u64,
    /// From `submit` until it got a slot.
    pub queued: Duration,
    /// From the slot until the prompt was processed (which yields the first token).
    pub prefill: Duration,
    /// From then to the end.
    pub decode: Duration,
}

impl Stats {
    /// Prompt tokens per second; 0 if there was no prefill.
    pub fn prefill_rate(&self) -> f64 {
        rate(self.prompt_tokens, self.prefill)
    }

    /// Generated tokens per second after the first one, which belongs to the prefill; 0 if there was only that.
    pub fn decode_rate(&self) -> f64 {
        rate(self.generated_tokens.saturating_sub(1), self.decode)
    }
}

/// Tokens per second; 0 for no time.
pub fn rate(tokens: usize, time: Duration) -> f64 {
    if time.is_zero() {
        0.0
    } else {
        tokens as f64 / time.as_secs_f64()
    }
}

/// A finished request in one piece.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The request.
    pub id: RequestId,
    /// Generated tokens, without the end token.
    pub tokens: Vec<u32>,
    /// Their text, up to a stop string.
    pub text: String,
    /// Why it ended.
    pub reason: FinishReason,
    /// What it took.
    pub stats: Stats,
}
