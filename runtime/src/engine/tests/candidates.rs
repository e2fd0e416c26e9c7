//! A device that sorts out the largest logits: nobody's tokens change, and whole rows are asked for only where they decide.

use super::*;
use crate::device::Candidates;
use crate::sampler::Penalties;
use std::sync::atomic::AtomicUsize;

/// The model, and the largest `count` logits of each row.
struct Sorting {
    model: HashModel,
    count: usize,
    ids: Vec<u32>,
    largest: Vec<f32>,
    /// Rows of logits that were asked for.
    whole: Arc<AtomicUsize>,
}

impl Steps for Sorting {
    fn limits(&self) -> Limits {
        self.model.limits()
    }

    fn vocab_size(&self) -> u32 {
        self.model.vocab_size()
    }

    fn acquire_slot(&mut self) -> Option<u32> {
        self.model.acquire_slot()
    }

    fn release_slot(&mut self, slot: u32) {
        self.model.release_slot(slot);
    }

    fn step(&mut self, rows: &[Row]) -> Result<(), Error> {
        self.model.step(rows)
    }

    fn logits(&mut self, i: usize) -> Result<&[f32], Error> {
        self.whole.fetch_add(1, Relaxed);
        self.model.logits(i)
    }

    fn candidates(&mut self, i: usize) -> Result<Option<Candidates<'_>>, Error> {
        let logits = self.model.logits(i)?;
        self.ids = (0..VOCAB).collect();
        let logit = |id: u32| logits[id as usize];
        self.ids.sort_by(|&a, &b| logit(b).total_cmp(&logit(a)));
        self.ids.truncate(self.count);
        self.largest = self.ids.iter().map(|&id| logit(id)).collect();
        Ok(Some(Candidates {
            ids: &self.ids,
            logits: &self.largest,
            all: self.count > VOCAB as usize,
        }))
    }
}

fn requests() -> Vec<(Request, bool)> {
    let sampling = |change: fn(&mut Sampling)| {
        let mut sampling = Sampling {
            seed: Some(9),
            ..Sampling::default()
        };
        change(&mut sampling);
        sampling
    };
    let request = |sampling| Request {
        max_tokens: Some(12),
        sampling,
        ..Request::tokens([1, 2, 3])
    };
    // Whether the largest six decide.
    vec![
        (request(Sampling::greedy()), true),
        (request(sampling(|s| s.top_k = 4)), true),
        (request(sampling(|s| s.top_k = 6)), true),
        (request(sampling(|s| s.top_k = 7)), false),
        (request(sampling(|s| s.top_k = 0)), false),
        (
            request(sampling(|s| {
                s.top_k = 4;
                s.penalties = Penalties {
                    repeat: 1.3,
                    ..Penalties::default()
                };
            })),
            false,
        ),
        (
            Request {
                ignore_eos: true,
                ..request(sampling(|s| s.top_k = 5))
            },
            true,
        ),
    ]
}

#[test]
fn tokens_are_the_same_and_rows_stay_where_they_are() {
    let run = |requests: Vec<Request>, count| {
        let model = Setup::default().model();
        let whole = Arc::new(AtomicUsize::new(0));
        let sorting = Sorting {
            model,
            count,
            ids: Vec::new(),
            largest: Vec::new(),
            whole: Arc::clone(&whole),
        };
        let options = EngineOptions::default();
        let mut engine = Engine::with_steps(Box::new(sorting), Some(tokenizer()), options);
        for request in requests {
            engine.submit(request).expect("a valid request");
        }
        let done = engine.run_to_end().expect("the stand-in works");
        let tokens: Vec<Vec<u32>> = done.into_iter().map(|c| c.tokens).collect();
        (tokens, whole.load(Relaxed))
    };
    for (request, decided) in requests() {
        let expected = alone(request.clone()).tokens;
        let (tokens, whole) = run(vec![request.clone()], 6);
        assert_eq!(tokens[0], expected, "{:?}", request.sampling);
        assert_eq!(whole == 0, decided, "{:?}", request.sampling);
        // Everything there is, where there is nothing else.
        assert_eq!(run(vec![request], 64).0[0], expected);
    }
    let all: Vec<Request> = requests().into_iter().map(|(request, _)| request).collect();
    let expected: Vec<Vec<u32>> = all.iter().map(|r| alone(r.clone()).tokens).collect();
    assert_eq!(run(all, 6).0, expected);
}
