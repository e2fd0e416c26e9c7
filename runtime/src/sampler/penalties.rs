//! What repeating a token costs: the parameters, and the window of recent tokens they look at. Semantics of
//! llama.cpp's penalties sampler: every token of the window, prompt included, is penalised once, by its count.

use std::collections::{BTreeMap, VecDeque};

/// Penalties on tokens seen in the last `last_n` tokens of the sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Penalties {
    /// Divides positive logits and multiplies the others; 1 is off.
    pub repeat: f32,
    /// Subtracted once per occurrence; 0 is off.
    pub frequency: f32,
    /// Subtracted once if the token occurs; 0 is off.
    pub presence: f32,
    /// Tokens looked back at; 0 turns penalties off, `u32::MAX` is the whole context.
    pub last_n: u32,
}

impl Default for Penalties {
    fn default() -> Self {
        Self {
            repeat: 1.0,
            frequency: 0.0,
            presence: 0.0,
            last_n: 64,
        }
    }
}

impl Penalties {
    pub(super) fn active(&self) -> bool {
        self.last_n > 0 && (self.repeat != 1.0 || self.frequency != 0.0 || self.presence != 0.0)
    }
}

/// The last tokens of a sequence and how often each occurs among them.
#[derive(Clone, Debug)]
pub(super) struct Window {
    length: usize,
    tokens: VecDeque<u32>,
    counts: BTreeMap<u32, u32>,
}

impl Window {
    pub(super) fn new(length: u32) -> Self {
        Self {
            length: length as usize,
            tokens: VecDeque::new(),
            counts: BTreeMap::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    pub(super) fn push(&mut self, token: u32) {
        if self.length == 0 {
            return;
        }
        if self.tokens.len() == self.length
            && let Some(oldest) = self.tokens.pop_front()
            && let Some(count) = self.counts.get_mut(&oldest)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&oldest);
            }
        }
        self.tokens.push_back(token);
        *self.counts.entry(token).or_insert(0) += 1;
    }

    pub(super) fn apply(&self, penalties: &Penalties, logits: &mut [f32]) {
        for (&token, &count) in &self.counts {
            if let Some(logit) = logits.get_mut(token as usize) {
                if *logit <= 0.0 {
                    *logit *= penalties.repeat;
                } else {
                    *logit /= penalties.repeat;
                }
                *logit -= count as f32 * penalties.frequency + penalties.presence;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_of_the_window_is_penalised_by_its_count() {
        let mut window = Window::new(4);
        for token in [3, 0, 1, 1, 2] {
            window.push(token);
        }
        let penalties = Penalties {
            repeat: 2.0,
            frequency: 0.5,
            presence: 0.25,
            last_n: 4,
        };
        let mut logits = [4.0, 4.0, -1.0, 4.0];
        window.apply(&penalties, &mut logits);
        assert_eq!(logits, [1.25, 0.75, -2.75, 4.0]);
    }

    #[test]
    fn a_window_of_zero_remembers_nothing() {
        let mut window = Window::new(0);
        window.push(1);
        assert!(window.is_empty());
        assert!(
            !Penalties {
                repeat: 2.0,
                last_n: 0,
                ..Penalties::default()
            }
            .active()
        );
    }
}
