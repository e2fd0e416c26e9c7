//! Continuous batching: requests wait for a slot, join and leave at any step, and share every step's rows. Decides which
//! rows a step has and what becomes of its logits; executing rows is `executor`'s, choosing tokens `sampler`'s.
//!
//! A step holds one row for every decoding request, always, and fills what is left with prompt tokens, first come first
//! served. Rows do not influence each other, so a request's tokens depend on nothing but the request.

mod event;
mod flight;
mod request;
mod sequence;
mod steps;
mod stop;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::path::Path;

pub use event::{Completion, Event, FinishReason, Stats, rate};
use flight::Flight;
pub use request::{Prompt, Request, RequestError, RequestId};
use sequence::Sequence;
pub use steps::Steps;

use crate::bundle::{Bundle, SectionKind};
use crate::error::Error;
use crate::executor::{Executor, ExecutorOptions, Row};
use crate::manifest::Limits;
use crate::tokenizer::{EncodeOptions, Tokenizer, TokenizerSpec};

/// Choices that trade latency against throughput; none changes anybody's tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineOptions {
    /// Prompt tokens in one step at most, over all requests; `None`: what the compiled rows allow. Less keeps the
    /// steps short that decoding requests share with a long prompt.
    pub prefill_chunk: Option<u32>,
    /// Requests that decode together at most; `None`: as compiled.
    pub max_batch: Option<u32>,
}

/// Runs any number of requests through one executor.
pub struct Engine {
    executor: Box<dyn Steps>,
    tokenizer: Option<Tokenizer>,
    options: EngineOptions,
    /// Waiting for a slot, oldest first.
    queue: VecDeque<Sequence>,
    /// In the batch, oldest first.
    active: Vec<Sequence>,
    /// Events of `cancel`, delivered by the next step.
    pending: Vec<Event>,
    rows: Vec<Row>,
    /// Per row, the row of logits that its token follows.
    follows: Vec<u32>,
    /// The step that the device works on.
    flight: Option<Flight>,
    next_id: u64,
}

impl Engine {
    /// Opens a bundle and takes the first of its plans that this machine can run.
    ///
    /// # Errors
    /// Whatever opening and loading report: not a bundle, no plan for this machine, not enough memory.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::new(Bundle::open(path.as_ref())?, EngineOptions::default())
    }

    /// An engine over an opened bundle.
    ///
    /// # Errors
    /// No plan for this machine, not enough memory, an unusable tokenizer section.
    pub fn new(bundle: Bundle, options: EngineOptions) -> Result<Self, Error> {
        let spec: Option<TokenizerSpec> = bundle.optional_value(SectionKind::Tokenizer)?;
        let tokenizer = spec.map(Tokenizer::new).transpose();
        let tokenizer = tokenizer.map_err(|error| Error::Tokenizer(Box::new(error)))?;
        Ok(Self::with_steps(
            Box::new(Executor::new(bundle, ExecutorOptions::default())?),
            tokenizer,
            options,
        ))
    }

    /// An engine over anything that runs rows. Without a tokenizer only token prompts are accepted, no text is
    /// produced and no token ends a generation.
    pub fn with_steps(
        executor: Box<dyn Steps>,
        tokenizer: Option<Tokenizer>,
        options: EngineOptions,
    ) -> Self {
        Self {
            executor,
            tokenizer,
            options,
            queue: VecDeque::new(),
            active: Vec::new(),
            pending: Vec::new(),
            rows: Vec::new(),
            follows: Vec::new(),
            flight: None,
            next_id: 0,
        }
    }

    /// What the bundle was compiled for.
    pub fn limits(&self) -> Limits {
        self.executor.limits()
    }

    /// The model's tokenizer, if the bundle has one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// Accepts a request; it takes part from the next step on, or as soon as a slot is free.
    ///
    /// # Errors
    /// The request can never run; see [`RequestError`]. Nothing is queued then.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, RequestError> {
        let mut request = request;
        if let Some(parameter) = request.sampling.invalid_parameter() {
            return Err(RequestError::Parameter(parameter));
        }
        if request.stop.iter().any(String::is_empty) {
            return Err(RequestError::EmptyStop);
        }
        let prompt = std::mem::replace(&mut request.prompt, Prompt::Tokens(Vec::new()));
        let prompt = self.prompt_tokens(prompt)?;
        if request.ignore_eos {
            let ends = self.tokenizer.iter().flat_map(|t| t.end_of_generation());
            request
                .sampling
                .logit_bias
                .extend(ends.map(|&end| (end, f32::NEG_INFINITY)));
        }
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let context = self.executor.limits().max_context;
        self.queue
            .push_back(Sequence::new(id, prompt, request, context));
        Ok(id)
    }

    fn prompt_tokens(&self, prompt: Prompt) -> Result<Vec<u32>, RequestError> {
        let mut tokens = match prompt {
            Prompt::Tokens(tokens) => tokens,
            Prompt::Text {
                text,
                parse_special,
            } => {
                let tokenizer = self.tokenizer.as_ref().ok_or(RequestError::NoTokenizer)?;
                let options = EncodeOptions {
                    add_special: true,
                    parse_special,
                };
                tokenizer
                    .encode(&text, options)
                    .map_err(RequestError::Tokenizer)?
            }
        };
        if tokens.is_empty() {
            let bos = self.tokenizer.as_ref().and_then(Tokenizer::bos);
            tokens.push(bos.ok_or(RequestError::EmptyPrompt)?);
        }
        let context = self.executor.limits().max_context;
        if tokens.len() > context as usize {
            return Err(RequestError::PromptTooLong {
                prompt: tokens.len(),
                context,
            });
        }
        let vocab = self.executor.vocab_size();
        match tokens
            .iter()
            .enumerate()
            .find(|&(_, &token)| token >= vocab)
        {
            Some((index, &token)) => Err(RequestError::TokenOutOfRange {
                token,
                index,
                vocab,
            }),
            None => Ok(tokens),
        }
    }

    /// Ends a request early; its slot is free at once, its `Finished` event comes with the next step. False if there
    /// is no such request (any more).
    pub fn cancel(&mut self, id: RequestId) -> bool {
        let sequence = if let Some(at) = self.queue.iter().position(|s| s.id == id) {
            self.queue.remove(at)
        } else {
            self.active
                .iter()
                .position(|s| s.id == id)
                .map(|at| self.active.remove(at))
        };
        let Some(sequence) = sequence else {
            return false;
        };
        let event = self.retire(sequence, FinishReason::Cancelled);
        self.pending.push(event);
        true
    }

    fn retire(&mut self, sequence: Sequence, reason: FinishReason) -> Event {
        if let Some(slot) = sequence.slot {
            self.executor.release_slot(slot);
        }
        sequence.finish(reason)
    }

    /// Whether there is nothing left to do: no request waiting or running, no event undelivered.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.active.is_empty() && self.pending.is_empty()
    }

    /// Requests waiting for a slot.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Requests in the batch.
    pub fn running(&self) -> usize {
        self.active.len()
    }

    /// Runs one step for all requests in the batch and tells what happened, in the order the requests were submitted. Where
    /// the device feeds back what it finds, it is given the step after that one as well before anybody looks at results.
    ///
    /// # Errors
    /// The device failed. No request has moved; unless the device is lost, stepping again repeats the step.
    pub fn step(&mut self) -> Result<Vec<Event>, Error> {
        self.admit();
        match self.executor.ahead() {
            Some(most) => self.step_ahead(most),
            None => self.step_alone(),
        }
    }

    fn step_alone(&mut self) -> Result<Vec<Event>, Error> {
        let flight = self.plan(None);
        if !self.rows.is_empty() {
            self.executor.step(&self.rows)?;
        }
        let sampled = self.sample(&flight, false)?;
        Ok(self.settle(&flight, &sampled.tokens))
    }

    fn admit(&mut self) {
        let limit = self.options.max_batch.unwrap_or(u32::MAX).max(1) as usize;
        while self.active.len() < limit && !self.queue.is_empty() {
            let Some(slot) = self.executor.acquire_slot() else {
                return;
            };
            if let Some(mut sequence) = self.queue.pop_front() {
                sequence.admit(slot);
                self.active.push(sequence);
            }
        }
    }

    /// Steps until every request is finished and returns the completions in the order of submission.
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn run_to_end(&mut self) -> Result<Vec<Completion>, Error> {
        let mut running: HashMap<RequestId, (Vec<u32>, String)> = HashMap::new();
        let mut done = Vec::new();
        while !self.is_idle() {
            for event in self.step()? {
                match event {
                    Event::Prefill { .. } => {}
                    Event::Token { id, token, text } => {
                        let entry = running.entry(id).or_default();
                        entry.0.push(token);
                        entry.1.push_str(&text);
                    }
                    Event::Finished {
                        id,
                        reason,
                        text,
                        stats,
                    } => {
                        let (tokens, mut whole) = running.remove(&id).unwrap_or_default();
                        whole.push_str(&text);
                        done.push(Completion {
                            id,
                            tokens,
                            text: whole,
                            reason,
                            stats,
                        });
                    }
                }
            }
        }
        done.sort_by_key(|completion| completion.id);
        Ok(done)
    }
}
