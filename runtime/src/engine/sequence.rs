//! One accepted request on its way: prompt position, sampler, text and timing. Knows neither slots of others nor the
//! device.

use std::time::Instant;

use super::event::{Event, FinishReason, Stats};
use super::request::{Request, RequestId};
use super::stop::StopWatch;
use crate::device::Candidates;
use crate::sampler::Sampler;
use crate::tokenizer::{TextStream, Tokenizer};

/// State of one request.
pub(super) struct Sequence {
    pub(super) id: RequestId,
    /// Present while it is in the batch.
    pub(super) slot: Option<u32>,
    prompt: Vec<u32>,
    /// Tokens whose K and V are cached: the next row's position.
    cached: usize,
    /// Sampled, not fed yet. `None` while the prompt is processed.
    next: Option<u32>,
    generated: usize,
    max_tokens: usize,
    context: usize,
    ignore_eos: bool,
    sampler: Sampler,
    stream: TextStream,
    stops: StopWatch,
    submitted: Instant,
    admitted: Option<Instant>,
    prefilled: Option<Instant>,
}

impl Sequence {
    /// `prompt` is valid for the model and no longer than `context`.
    pub(super) fn new(id: RequestId, prompt: Vec<u32>, request: Request, context: u32) -> Self {
        let mut sampler = Sampler::new(request.sampling, context);
        prompt.iter().for_each(|&token| sampler.accept(token));
        Self {
            id,
            slot: None,
            prompt,
            cached: 0,
            next: None,
            generated: 0,
            max_tokens: request.max_tokens.map_or(usize::MAX, |n| n as usize),
            context: context as usize,
            ignore_eos: request.ignore_eos,
            sampler,
            stream: TextStream::new(),
            stops: StopWatch::new(request.stop),
            submitted: Instant::now(),
            admitted: None,
            prefilled: None,
        }
    }

    pub(super) fn admit(&mut self, slot: u32) {
        self.slot = Some(slot);
        self.admitted = Some(Instant::now());
    }

    /// Position of its next row.
    pub(super) fn position(&self) -> u32 {
        self.cached as u32
    }

    /// The token to decode next; `None` during prefill.
    pub(super) fn decode_token(&self) -> Option<u32> {
        self.next
    }

    /// Prompt tokens not processed yet.
    pub(super) fn prompt_left(&self) -> &[u32] {
        self.prompt_after(0)
    }

    /// Prompt tokens that its `rows` next rows leave.
    pub(super) fn prompt_after(&self, rows: usize) -> &[u32] {
        self.prompt.get(self.cached + rows..).unwrap_or_default()
    }

    /// Whether the prompt's last row needs logits.
    pub(super) fn wants_first_token(&self) -> bool {
        self.max_tokens > 0
    }

    /// Records that `rows` more tokens are cached.
    pub(super) fn advance(&mut self, rows: usize, events: &mut Vec<Event>) {
        let prefilling = self.next.take().is_none();
        self.cached += rows;
        if prefilling {
            events.push(Event::Prefill {
                id: self.id,
                done: self.cached,
                total: self.prompt.len(),
            });
            if self.cached == self.prompt.len() {
                self.prefilled = Some(Instant::now());
            }
        }
    }

    /// Chooses the next token from the largest logits of its last row, if they decide it.
    pub(super) fn choose_among(&mut self, candidates: &Candidates<'_>) -> Option<u32> {
        self.sampler.sample_among(candidates)
    }

    /// Whether the largest logits of a row may decide its next token.
    pub(super) fn takes_candidates(&self) -> bool {
        self.sampler.takes_candidates()
    }

    /// Whether the most likely token will be its next, unless that is forbidden.
    pub(super) fn takes_largest(&self) -> bool {
        self.sampler.takes_largest()
    }

    /// Whether the token that follows its `rows` next rows is the last, whatever it is.
    pub(super) fn ends_after(&self, rows: usize) -> bool {
        self.generated + 1 >= self.max_tokens || self.cached + rows >= self.context
    }

    /// Chooses the next token from the logits of its last row.
    pub(super) fn choose(&mut self, logits: &[f32]) -> u32 {
        self.sampler.sample(logits)
    }

    /// Continues with `token`; `Some` ends the request.
    pub(super) fn take(
        &mut self,
        token: u32,
        tokenizer: Option<&Tokenizer>,
        events: &mut Vec<Event>,
    ) -> Option<FinishReason> {
        self.sampler.accept(token);
        if !self.ignore_eos && tokenizer.is_some_and(|t| t.is_end(token)) {
            return Some(FinishReason::EndOfText);
        }
        self.generated += 1;
        let bytes = tokenizer.map_or(&[][..], |t| t.token_bytes(token, false));
        let (text, stopped) = self.stops.push(&self.stream.push(bytes));
        events.push(Event::Token {
            id: self.id,
            token,
            text,
        });
        self.next = Some(token);
        if stopped {
            self.stream = TextStream::new();
            Some(FinishReason::Stop)
        } else if self.generated >= self.max_tokens {
            Some(FinishReason::Length)
        } else if self.cached >= self.context {
            Some(FinishReason::Context)
        } else {
            None
        }
    }

    /// The closing event. The slot is the engine's to release.
    pub(super) fn finish(mut self, reason: FinishReason) -> Event {
        let now = Instant::now();
        let mut text = String::new();
        if reason != FinishReason::Stop {
            let (shown, stopped) = self.stops.push(&self.stream.finish());
            text = shown;
            if !stopped {
                text.push_str(&self.stops.finish());
            }
        }
        let admitted = self.admitted.unwrap_or(now);
        let prefilled = self.prefilled.unwrap_or(now);
        let stats = Stats {
            prompt_tokens: self.prompt.len(),
            generated_tokens: self.generated,
            seed: self.sampler.seed(),
            queued: admitted - self.submitted,
            prefill: prefilled.saturating_duration_since(admitted),
            decode: now - prefilled,
        };
        Event::Finished {
            id: self.id,
            reason,
            text,
            stats,
        }
    }
}
