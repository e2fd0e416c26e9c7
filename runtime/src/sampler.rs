//! Turns one row of logits into one token: parameters, and the chain in llama.cpp's order with llama.cpp's defaults.
//! Each request owns its sampler and its random numbers, so what it draws never depends on who else is in the batch.
//! No text, no stop conditions (`engine` has those).

mod candidates;
mod penalties;
#[cfg(test)]
mod tests;

use crate::device::Candidates;
use candidates::Candidate;
pub use candidates::argmax;
pub use penalties::Penalties;
use rand_pcg::Pcg64;
use rand_pcg::rand_core::{Rng, SeedableRng};

/// How tokens are chosen. The defaults are llama.cpp's.
///
/// Chain: logit bias, penalties, top-k, top-p, min-p, temperature, draw. With `temperature` 0 the largest logit wins
/// (the lowest id among equals) and nothing is drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 (or less) is greedy.
    pub temperature: f32,
    /// Keep the k largest logits; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of most probable tokens whose probabilities add up to at least this; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this probable relative to the most probable one; 0 keeps all.
    pub min_p: f32,
    /// What repetition costs.
    pub penalties: Penalties,
    /// Added to the logits of these token ids; `f32::NEG_INFINITY` forbids a token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of this request's random numbers; `None` draws one (`Sampler::seed` tells which).
    pub seed: Option<u64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            penalties: Penalties::default(),
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

impl Sampling {
    /// Always the most probable token.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            ..Self::default()
        }
    }

    /// The first parameter outside its range, if any.
    pub fn invalid_parameter(&self) -> Option<InvalidParameter> {
        let p = &self.penalties;
        let checks = [
            (
                "temperature",
                self.temperature,
                self.temperature.is_finite(),
                "a finite number",
            ),
            (
                "top_p",
                self.top_p,
                (0.0..=1.0).contains(&self.top_p),
                "between 0 and 1",
            ),
            (
                "min_p",
                self.min_p,
                (0.0..=1.0).contains(&self.min_p),
                "between 0 and 1",
            ),
            (
                "repeat_penalty",
                p.repeat,
                p.repeat.is_finite() && p.repeat > 0.0,
                "a finite number above 0",
            ),
            (
                "frequency_penalty",
                p.frequency,
                p.frequency.is_finite(),
                "a finite number",
            ),
            (
                "presence_penalty",
                p.presence,
                p.presence.is_finite(),
                "a finite number",
            ),
        ];
        let biases = self
            .logit_bias
            .iter()
            .map(|&(_, bias)| ("logit_bias", bias, !bias.is_nan(), "a number"));
        checks
            .into_iter()
            .chain(biases)
            .find(|&(_, _, valid, _)| !valid)
            .map(|(name, value, _, expected)| InvalidParameter {
                name,
                value,
                expected,
            })
    }
}

/// A sampling parameter outside its range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InvalidParameter {
    /// Field of [`Sampling`] or [`Penalties`].
    pub name: &'static str,
    /// What was given.
    pub value: f32,
    /// What is allowed.
    pub expected: &'static str,
}

impl std::fmt::Display for InvalidParameter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} is {}, expected {}",
            self.name, self.value, self.expected
        )
    }
}

/// One request's sampler: parameters, the tokens it has seen, and its random numbers.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: Sampling,
    seen: penalties::Window,
    rng: Pcg64,
    seed: u64,
    // Scratch, kept so that a decode step allocates nothing.
    adjusted: Vec<f32>,
    kept: Vec<Candidate>,
}

impl Sampler {
    /// A sampler for `params`; `context` bounds the penalty window when `last_n` is `u32::MAX`.
    pub fn new(params: Sampling, context: u32) -> Self {
        let seed = params.seed.unwrap_or_else(fresh_seed);
        Self {
            seen: penalties::Window::new(params.penalties.last_n.min(context)),
            rng: Pcg64::seed_from_u64(seed),
            seed,
            adjusted: Vec::new(),
            kept: Vec::new(),
            params,
        }
    }

    /// The seed in use, given or drawn.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Counts a token of the sequence (prompt or generated) for the penalties.
    pub fn accept(&mut self, token: u32) {
        self.seen.push(token);
    }

    /// Chooses a token from `logits: [vocab]`. NaN counts as minus infinity; if nothing is above minus infinity the
    /// answer is token 0. Does not `accept` it.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        let penalise = self.params.penalties.active() && !self.seen.is_empty();
        if !penalise && self.params.logit_bias.is_empty() {
            return self.choose(logits);
        }
        let mut adjusted = std::mem::take(&mut self.adjusted);
        adjusted.clear();
        adjusted.extend_from_slice(logits);
        for &(token, bias) in &self.params.logit_bias {
            if let Some(logit) = adjusted.get_mut(token as usize) {
                *logit += bias;
            }
        }
        if penalise {
            self.seen.apply(&self.params.penalties, &mut adjusted);
        }
        let token = self.choose(&adjusted);
        self.adjusted = adjusted;
        token
    }

    /// Whether [`Sampler::sample_among`] may have an answer: not if penalties change logits, or all of them take part.
    pub fn takes_candidates(&self) -> bool {
        let penalise = self.params.penalties.active() && !self.seen.is_empty();
        let few = self.params.temperature <= 0.0 || self.params.top_k > 0;
        let forbids = |&(_, bias): &(u32, f32)| bias == f32::NEG_INFINITY;
        few && !penalise && self.params.logit_bias.iter().all(forbids)
    }

    /// Whether the largest logit alone decides, unless it is of a token that is forbidden.
    pub fn takes_largest(&self) -> bool {
        self.params.temperature <= 0.0 && self.takes_candidates()
    }

    /// The token that [`Sampler::sample`] would choose from all logits, if the largest ones decide it; else nothing has
    /// happened.
    pub fn sample_among(&mut self, largest: &Candidates<'_>) -> Option<u32> {
        if !self.takes_candidates() {
            return None;
        }
        let k = match self.params.temperature <= 0.0 {
            true => 1,
            false => self.params.top_k as usize,
        };
        let bias = &self.params.logit_bias;
        let forbidden = |id: u32| bias.iter().any(|&(token, _)| token == id);
        self.kept.clear();
        let pairs = largest.ids.iter().zip(largest.logits);
        let left = pairs.filter(|(id, _)| !forbidden(**id)).take(k);
        self.kept
            .extend(left.map(|(&id, &logit)| Candidate { id, logit }));
        if self.params.temperature <= 0.0 {
            return match self.kept.first() {
                // Their order tells the two zeros apart, which are equal.
                Some(best) => (best.logit != 0.0).then_some(best.id),
                None => largest.all.then_some(0),
            };
        }
        // Where top-k keeps everything, what is kept is in the order of ids.
        let more = !largest.all || largest.ids.len() > k;
        (self.kept.len() == k && more).then(|| self.draw(true))
    }

    fn choose(&mut self, logits: &[f32]) -> u32 {
        let Sampling {
            temperature, top_k, ..
        } = self.params;
        if temperature <= 0.0 {
            return candidates::argmax(logits);
        }
        let k = if top_k == 0 {
            logits.len()
        } else {
            (top_k as usize).min(logits.len())
        };
        let few = k < logits.len();
        if few {
            candidates::top_k(logits, k, &mut self.kept);
        } else {
            candidates::all(logits, &mut self.kept);
        }
        self.draw(few)
    }

    /// Filters what is kept and draws from it; `sorted`: it is, best first.
    fn draw(&mut self, sorted: bool) -> u32 {
        let Sampling {
            temperature,
            top_p,
            min_p,
            ..
        } = self.params;
        let kept = &mut self.kept;
        if top_p < 1.0 {
            let target = f64::from(top_p) * candidates::mass(kept, 1.0);
            if sorted {
                candidates::truncate_at_mass(kept, target);
            } else {
                candidates::sort_until_mass(kept, target);
            }
        }
        if min_p > 0.0 {
            candidates::min_p(kept, min_p);
        }
        if kept.len() < 2 {
            return kept.first().map_or(0, |c| c.id);
        }
        let unit = (self.rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64);
        candidates::draw(kept, temperature, unit)
    }
}

/// A seed nobody chose, from the randomness std seeds its hash maps with.
fn fresh_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0u8)
}
