//! `bench --profile`: where the time of a decode step goes, in kernels and outside of them. Runs whole requests through
//! the engine, so that sampling, text and bookkeeping count. Which launch a call belongs to is `parts`'s business.

mod parts;
mod show;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rand_pcg::Pcg64;
use rand_pcg::rand_core::{Rng, SeedableRng};

use crate::bundle::{Bundle, SectionKind};
use crate::device::{Candidates, Timeline};
use crate::engine::{Engine, EngineOptions, Event, Request, Steps};
use crate::error::Error;
use crate::executor::{Executor, Row};
use crate::manifest::Limits;
use crate::sampler::Sampling;
use crate::tokenizer::{Tokenizer, TokenizerSpec};
use parts::{Parts, StepTimes};
pub(super) use show::show;

/// Where the steps of one configuration went.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Profile {
    pub(super) batch: u32,
    /// Prompt tokens of each sequence.
    pub(super) prompt: u32,
    /// `greedy` or `default`.
    pub(super) sampling: &'static str,
    /// Steps that were averaged.
    pub(super) steps: usize,
    /// Seconds of a step, and of a step while no times were kept.
    pub(super) step: f64,
    pub(super) untimed: f64,
    /// What a step consists of; seconds add up to `step`.
    pub(super) parts: Vec<Part>,
    /// Kernel calls whose times nobody kept.
    pub(super) lost: u64,
}

/// One line of a profile: seconds per step.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Part {
    pub(super) group: Group,
    pub(super) name: String,
    /// Mean over the workers.
    pub(super) seconds: f64,
    /// Of the workers that spent the least and the most.
    pub(super) range: (f64, f64),
    /// Bytes of weights and activations per step; 0 where that is not known of single calls.
    pub(super) bytes: f64,
}

/// What kind of work a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Group {
    /// Inside a micro-kernel, or a loop emitted between two.
    Kernels,
    /// At a barrier, or at the end of a program, for other workers.
    Waiting,
    /// Everything else a step takes.
    Outside,
}

impl Profile {
    /// Seconds of a step in the parts of `group`.
    pub(super) fn total(&self, group: Group) -> f64 {
        let own = self.parts.iter().filter(|part| part.group == group);
        own.map(|part| part.seconds).sum()
    }
}

/// Profiles `generated` decode steps of `batch` requests, `repetitions` times, with greedy and with default sampling.
///
/// # Errors
/// The device keeps no times, or a step failed.
pub(super) fn profile(
    bundle: &Arc<Bundle>,
    cases: &[(u32, u32, u32)],
    repetitions: u32,
    mut progress: impl FnMut(),
) -> Result<Vec<Profile>, Error> {
    let executor = Executor::new(Arc::clone(bundle), super::options())?;
    let plan = &bundle.manifest().plans[executor.plan()];
    let parts = Parts::new(plan);
    let vocab = executor.vocab_size();
    let shared = Arc::new(Mutex::new(Shared::default()));
    let probe = Probe {
        executor,
        timing: false,
        shared: Arc::clone(&shared),
    };
    let spec: Option<TokenizerSpec> = bundle.optional_value(SectionKind::Tokenizer)?;
    let tokenizer = spec.map(Tokenizer::new).transpose();
    let tokenizer = tokenizer.map_err(|error| Error::Tokenizer(Box::new(error)))?;
    let mut engine = Engine::with_steps(Box::new(probe), tokenizer, EngineOptions::default());
    let mut profiles = Vec::new();
    for &(prompt, generated, batch) in cases {
        for (name, sampling) in [
            ("greedy", Sampling::greedy()),
            ("default", Sampling::default()),
        ] {
            let (mut untimed, mut timed) = (Vec::new(), Vec::new());
            // In turn, so that both see the same machine.
            for _ in 0..repetitions {
                for timing in [false, true] {
                    lock(&shared).wanted = timing;
                    let prompts = prompts(batch, prompt, vocab);
                    let times = run(&mut engine, &shared, prompts, generated, &sampling)?;
                    if timing { &mut timed } else { &mut untimed }.extend(times);
                }
                progress();
            }
            let steps = quiet(timed);
            let untimed = quiet(untimed);
            let mean = |steps: &[StepTimes]| {
                steps.iter().map(|s| s.wall).sum::<f64>() / steps.len().max(1) as f64
            };
            profiles.push(Profile {
                batch,
                prompt,
                sampling: name,
                steps: steps.len(),
                step: mean(&steps),
                untimed: mean(&untimed),
                lost: steps
                    .iter()
                    .flat_map(|s| &s.timelines)
                    .map(|t| t.lost)
                    .sum(),
                parts: parts.of(&steps),
            });
        }
    }
    Ok(profiles)
}

/// The faster half of the steps: what else runs on the machine delays some, and says nothing about the program.
fn quiet(mut steps: Vec<StepTimes>) -> Vec<StepTimes> {
    steps.sort_by(|a, b| a.wall.total_cmp(&b.wall));
    steps.truncate(steps.len().div_ceil(2));
    steps
}

/// Random prompts, the same for every run of a batch.
fn prompts(batch: u32, tokens: u32, vocab: u32) -> Vec<Vec<u32>> {
    let mut rng = Pcg64::seed_from_u64(u64::from(batch));
    let mut prompt = || (0..tokens.max(1)).map(|_| rng.next_u32() % vocab).collect();
    (0..batch).map(|_| prompt()).collect()
}

/// Runs one request per prompt to its end; the times of the steps in which all of them, and nothing else, decoded.
fn run(
    engine: &mut Engine,
    shared: &Mutex<Shared>,
    prompts: Vec<Vec<u32>>,
    generated: u32,
    sampling: &Sampling,
) -> Result<Vec<StepTimes>, Error> {
    let batch = prompts.len();
    for (seed, prompt) in prompts.into_iter().enumerate() {
        let request = Request {
            // The prompt's last row yields the first token, and is no decode step.
            max_tokens: Some(generated.saturating_add(1)),
            sampling: Sampling {
                seed: Some(seed as u64),
                ..sampling.clone()
            },
            ..Request::tokens(prompt)
        };
        let refused = |error| Error::Step(format!("a request of the profile: {error}"));
        engine.submit(request).map_err(refused)?;
    }
    let mut steps = Vec::new();
    while !engine.is_idle() {
        let started = Instant::now();
        let events = engine.step()?;
        let wall = started.elapsed().as_secs_f64();
        let mut times = std::mem::take(&mut lock(shared).last);
        times.wall = wall - times.aside;
        let tokens = |e: &&Event| matches!(e, Event::Token { .. });
        let prefill = events.iter().any(|e| matches!(e, Event::Prefill { .. }));
        if !prefill && events.iter().filter(tokens).count() == batch {
            steps.push(times);
        }
    }
    Ok(steps)
}

/// What the probe tells the loop around the engine.
#[derive(Default)]
struct Shared {
    /// Whether the next steps are timed call by call.
    wanted: bool,
    last: StepTimes,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An executor that notes how long the engine was with it.
struct Probe {
    executor: Executor,
    timing: bool,
    shared: Arc<Mutex<Shared>>,
}

impl Probe {
    /// Times what `work` takes, and then keeps the profile's own work apart.
    fn timed<T>(
        &mut self,
        work: impl FnOnce(&mut Executor) -> T,
        keep: impl FnOnce(&mut StepTimes, f64, Vec<Timeline>),
    ) -> T {
        let started = Instant::now();
        let result = work(&mut self.executor);
        let ended = Instant::now();
        let timelines = self.executor.take_timelines();
        let times = &mut lock(&self.shared).last;
        keep(times, (ended - started).as_secs_f64(), timelines);
        times.aside += ended.elapsed().as_secs_f64();
        result
    }
}

impl Steps for Probe {
    fn limits(&self) -> Limits {
        self.executor.limits()
    }

    fn vocab_size(&self) -> u32 {
        self.executor.vocab_size()
    }

    fn acquire_slot(&mut self) -> Option<u32> {
        self.executor.acquire_slot()
    }

    fn release_slot(&mut self, slot: u32) {
        self.executor.release_slot(slot);
    }

    fn step(&mut self, rows: &[Row]) -> Result<(), Error> {
        let started = Instant::now();
        let wanted = lock(&self.shared).wanted;
        if wanted != self.timing {
            self.executor.set_timing(wanted)?;
            self.timing = wanted;
        }
        lock(&self.shared).last.aside += started.elapsed().as_secs_f64();
        self.timed(
            |executor| executor.step(rows),
            |times, seconds, timelines| {
                times.executor = seconds;
                times.timelines = timelines;
            },
        )
    }

    fn logits(&mut self, i: usize) -> Result<&[f32], Error> {
        self.executor.logits(i)
    }

    fn candidates(&mut self, i: usize) -> Result<Option<Candidates<'_>>, Error> {
        let started = Instant::now();
        let found = self.executor.candidates(i);
        lock(&self.shared).last.sampling += started.elapsed().as_secs_f64();
        found
    }

    fn visit_logits(
        &mut self,
        count: usize,
        visit: &(dyn Fn(usize, &[f32]) + Sync),
    ) -> Result<(), Error> {
        self.timed(
            |executor| executor.visit_logits(count, visit),
            |times, seconds, _| times.sampling += seconds,
        )
    }
}
