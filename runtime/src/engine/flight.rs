//! A step on its way: whose rows it has, what becomes of its logits, and the step that is given to the device before they
//! are known. A step may follow another unseen while all its tokens are the most likely ones: the device knows these first.
//! What was foreseen wrongly is undone and run again, so nobody's tokens depend on it.

use std::sync::{Mutex, PoisonError};

use super::Engine;
use super::event::{Event, FinishReason};
use super::request::RequestId;
use super::sequence::Sequence;
use crate::error::Error;
use crate::executor::{GIVEN, Row};

/// What a step has of each request in the batch, in the order of its rows.
#[derive(Debug, Default)]
pub(super) struct Flight {
    parts: Vec<Part>,
    /// Rows with logits.
    logits: u32,
}

#[derive(Clone, Copy, Debug)]
struct Part {
    id: RequestId,
    rows: usize,
    /// Which row of the logits is the one after its last row, if there is one.
    logits: Option<u32>,
}

impl Flight {
    fn part(&self, id: RequestId) -> Option<Part> {
        self.parts.iter().find(|part| part.id == id).copied()
    }
}

/// Tokens chosen, by row of the logits; none where the request is gone.
#[derive(Debug)]
pub(super) struct Sampled {
    pub(super) tokens: Vec<Option<u32>>,
    /// What the step that follows took for granted about these tokens.
    foreseen: Foreseen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Foreseen {
    Rightly,
    /// Some token is not the most likely one.
    Wrongly,
    /// The most likely ones do not decide, and all logits are there no more.
    Undecided,
}

impl Engine {
    /// Gives the device the step after the one it works on, then sees to the results of that.
    pub(super) fn step_ahead(&mut self, most: u32) -> Result<Vec<Event>, Error> {
        let flight = match self.flight.take() {
            Some(flight) => flight,
            None => {
                let flight = self.plan(None);
                if self.rows.is_empty() || flight.logits > most {
                    return self.step_alone();
                }
                self.executor.queue(&self.rows, &self.follows)?;
                flight
            }
        };
        let next = match self.is_foreseeable(&flight) {
            true => self.plan(Some(&flight)),
            false => Flight::default(),
        };
        let follows = !next.parts.is_empty() && !self.rows.is_empty() && next.logits <= most;
        if follows && let Err(error) = self.executor.queue(&self.rows, &self.follows) {
            self.flight = Some(flight);
            return Err(error);
        }
        self.executor.collect()?;
        let sampled = match self.sample(&flight, follows) {
            Ok(sampled) => sampled,
            Err(error) => {
                self.executor.retract();
                return Err(error);
            }
        };
        match sampled.foreseen {
            Foreseen::Rightly if follows => self.flight = Some(next),
            Foreseen::Rightly => {}
            Foreseen::Wrongly => self.executor.abandon(),
            Foreseen::Undecided => {
                self.executor.retract();
                return self.step_alone();
            }
        }
        Ok(self.settle(&flight, &sampled.tokens))
    }

    /// Whether each next token of the step will be the most likely one, as far as can be told.
    fn is_foreseeable(&self, flight: &Flight) -> bool {
        let has_logits = |s: &&Sequence| flight.part(s.id).is_some_and(|p| p.logits.is_some());
        let mut waiting = self.active.iter().filter(has_logits);
        waiting.all(Sequence::takes_largest)
    }

    /// Fills `rows` and `follows` for the next step, in the order of `active`: the step after `behind`, if that is on its way.
    pub(super) fn plan(&mut self, behind: Option<&Flight>) -> Flight {
        self.rows.clear();
        self.follows.clear();
        // Where a request stands when the step before is done: rows of it, and where its token is.
        let before = |sequence: &Sequence| {
            let part = behind.and_then(|flight| flight.part(sequence.id));
            part.map_or((0, None), |part| (part.rows, part.logits))
        };
        let decodes = |sequence: &Sequence| match before(sequence) {
            (rows, Some(_)) => !sequence.ends_after(rows),
            (0, None) => sequence.decode_token().is_some(),
            _ => false,
        };
        let decoding = self.active.iter().filter(|s| decodes(s)).count();
        let free = (self.executor.limits().max_rows as usize).saturating_sub(decoding);
        let chunk = self
            .options
            .prefill_chunk
            .map_or(usize::MAX, |n| n.max(1) as usize);
        let mut prefill = free.min(chunk);
        let mut flight = Flight::default();
        for sequence in &self.active {
            let slot = sequence.slot.unwrap_or_default();
            let (done, token_row) = before(sequence);
            let position = sequence.position() + done as u32;
            let mut part = Part {
                id: sequence.id,
                rows: 0,
                logits: None,
            };
            if decodes(sequence) {
                self.rows.push(Row {
                    token: sequence.decode_token().unwrap_or_default(),
                    slot,
                    position,
                    wants_logits: true,
                });
                self.follows.push(token_row.unwrap_or(GIVEN));
                part.rows = 1;
                part.logits = Some(flight.logits);
            } else if token_row.is_none() {
                let left = sequence.prompt_after(done);
                part.rows = left.len().min(prefill);
                prefill -= part.rows;
                let last = part.rows == left.len() && part.rows > 0;
                let first_token = last && sequence.wants_first_token();
                let rows = (0u32..).zip(&left[..part.rows]);
                self.rows.extend(rows.map(|(i, &token)| Row {
                    token,
                    slot,
                    position: position + i,
                    wants_logits: first_token && i as usize + 1 == left.len(),
                }));
                self.follows.resize(self.rows.len(), GIVEN);
                part.logits = first_token.then_some(flight.logits);
            }
            flight.logits += u32::from(part.logits.is_some());
            flight.parts.push(part);
        }
        flight
    }

    /// The next token of each request whose last row has logits: from the largest logits where the device sorts them out and
    /// they decide it, else from all. Samplers are independent of each other, so they run on whatever threads the executor
    /// has. With a step behind it there are only the largest.
    pub(super) fn sample(&mut self, flight: &Flight, followed: bool) -> Result<Sampled, Error> {
        let executor = &mut self.executor;
        let mut sampled = Sampled {
            tokens: vec![None; flight.logits as usize],
            foreseen: Foreseen::Rightly,
        };
        let with_logits = |s: &Sequence| flight.part(s.id).and_then(|part| part.logits);
        let waiting = self.active.iter_mut();
        let mut waiting: Vec<(usize, &mut Sequence)> = waiting
            .filter_map(|s| Some((with_logits(s)? as usize, s)))
            .collect();
        for (row, sequence) in &mut waiting {
            if !sequence.takes_candidates() {
                continue;
            }
            let Some(candidates) = executor.candidates(*row)? else {
                break;
            };
            let token = sequence.choose_among(&candidates);
            sampled.tokens[*row] = token;
            if token.is_some() && token != candidates.ids.first().copied() {
                sampled.foreseen = Foreseen::Wrongly;
            }
        }
        waiting.retain(|(row, _)| sampled.tokens[*row].is_none());
        if waiting.is_empty() {
            return Ok(sampled);
        }
        if followed {
            sampled.foreseen = Foreseen::Undecided;
            return Ok(sampled);
        }
        if waiting.len() == sampled.tokens.len() {
            // Each lock is taken once, by the one who visits its row.
            let locked: Vec<_> = waiting
                .into_iter()
                .map(|(_, s)| Mutex::new((s, None)))
                .collect();
            executor.visit_logits(locked.len(), &|row, logits| {
                let mut sampled = locked[row].lock().unwrap_or_else(PoisonError::into_inner);
                sampled.1 = Some(sampled.0.choose(logits));
            })?;
            let tokens = locked.into_iter().map(Mutex::into_inner);
            sampled.tokens = tokens
                .map(|token| token.unwrap_or_else(PoisonError::into_inner).1)
                .collect();
            return Ok(sampled);
        }
        for (row, sequence) in waiting {
            let logits = executor.logits(row)?;
            sampled.tokens[row] = Some(sequence.choose(logits));
        }
        Ok(sampled)
    }

    /// Moves every request of a step that is done, and tells what happened.
    pub(super) fn settle(&mut self, flight: &Flight, tokens: &[Option<u32>]) -> Vec<Event> {
        let mut events = std::mem::take(&mut self.pending);
        let mut running = Vec::with_capacity(self.active.len());
        for mut sequence in std::mem::take(&mut self.active) {
            let mut finished = None;
            if let Some(part) = flight.part(sequence.id).filter(|part| part.rows > 0) {
                let token = part.logits.and_then(|row| tokens[row as usize]);
                sequence.advance(part.rows, &mut events);
                if let Some(token) = token {
                    finished = sequence.take(token, self.tokenizer.as_ref(), &mut events);
                } else if sequence.prompt_left().is_empty() {
                    finished = Some(FinishReason::Length);
                }
            }
            match finished {
                Some(reason) => events.push(self.retire(sequence, reason)),
                None => running.push(sequence),
            }
        }
        self.active = running;
        events
    }
}
