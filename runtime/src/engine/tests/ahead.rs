//! A device that feeds back what it finds and is always one step ahead: nobody's tokens change.

use super::*;
use crate::device::Candidates;
use crate::executor::GIVEN;
use std::collections::VecDeque;
use std::sync::atomic::AtomicUsize;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Queued { follows: bool },
    Collected,
    Undone,
    Alone,
}

/// The model with steps that are run when they are queued, as a device would in the end.
struct Ahead {
    model: HashModel,
    /// Rows and logits of each step that nobody has collected.
    queued: VecDeque<(Vec<Row>, Vec<Vec<f32>>)>,
    /// Of the step collected last.
    collected: (Vec<Row>, Vec<Vec<f32>>),
    count: usize,
    ids: Vec<u32>,
    largest: Vec<f32>,
    asked: Arc<Mutex<Vec<Asked>>>,
    /// Steps until collecting one fails; far away at first.
    lives: Arc<AtomicUsize>,
}

fn ranked(logits: &[f32]) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..VOCAB).collect();
    ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
    ids
}

impl Ahead {
    fn note(&self, asked: Asked) {
        self.asked.lock().expect("no panic").push(asked);
    }

    fn undo(&mut self, rows: &[Row]) {
        for row in rows.iter().rev() {
            // Its request may have left, and another be in the slot.
            if let Some(history) = &mut self.model.slots[row.slot as usize] {
                history.truncate(row.position as usize);
            }
        }
    }
}

impl Steps for Ahead {
    fn limits(&self) -> Limits {
        self.model.limits()
    }

    fn vocab_size(&self) -> u32 {
        VOCAB
    }

    fn acquire_slot(&mut self) -> Option<u32> {
        self.model.acquire_slot()
    }

    fn release_slot(&mut self, slot: u32) {
        self.model.release_slot(slot);
    }

    fn step(&mut self, rows: &[Row]) -> Result<(), Error> {
        assert!(self.queued.is_empty(), "steps are queued");
        self.note(Asked::Alone);
        self.model.step(rows)?;
        self.collected = (rows.to_vec(), std::mem::take(&mut self.model.logits));
        Ok(())
    }

    fn ahead(&self) -> Option<u32> {
        Some(self.model.limits.max_batch)
    }

    fn queue(&mut self, rows: &[Row], follows: &[u32]) -> Result<(), Error> {
        assert!(self.queued.len() < 2 && !rows.is_empty() && rows.len() == follows.len());
        let before = self.queued.back().map(|step| &step.1);
        let fed: Vec<Row> = rows
            .iter()
            .zip(follows)
            .map(|(&row, &from)| match from {
                GIVEN => row,
                from => {
                    let logits = &before.expect("a step before")[from as usize];
                    let token = ranked(logits)[0];
                    Row { token, ..row }
                }
            })
            .collect();
        let follows = follows.iter().any(|&from| from != GIVEN);
        self.note(Asked::Queued { follows });
        self.model.step(&fed)?;
        let logits = std::mem::take(&mut self.model.logits);
        self.queued.push_back((rows.to_vec(), logits));
        Ok(())
    }

    fn collect(&mut self) -> Result<(), Error> {
        self.note(Asked::Collected);
        self.collected = self.queued.pop_front().expect("a queued step");
        if self.lives.fetch_sub(1, Relaxed) == 1 {
            self.lives.store(usize::MAX, Relaxed);
            self.retract();
            return Err(failure());
        }
        Ok(())
    }

    fn abandon(&mut self) {
        while let Some((rows, _)) = self.queued.pop_back() {
            self.note(Asked::Undone);
            self.undo(&rows);
        }
    }

    fn retract(&mut self) {
        self.abandon();
        self.note(Asked::Undone);
        let rows = std::mem::take(&mut self.collected.0);
        self.undo(&rows);
    }

    fn logits(&mut self, i: usize) -> Result<&[f32], Error> {
        assert!(self.queued.is_empty(), "the logits are overwritten");
        Ok(&self.collected.1[i])
    }

    fn candidates(&mut self, i: usize) -> Result<Option<Candidates<'_>>, Error> {
        let logits = &self.collected.1[i];
        self.ids = ranked(logits);
        self.ids.truncate(self.count);
        self.largest = self.ids.iter().map(|&id| logits[id as usize]).collect();
        Ok(Some(Candidates {
            ids: &self.ids,
            logits: &self.largest,
            all: self.count > VOCAB as usize,
        }))
    }
}

type Notes = Arc<Mutex<Vec<Asked>>>;

fn ahead(setup: Setup, count: usize) -> (Engine, Notes, Arc<AtomicUsize>) {
    let (asked, lives) = (Notes::default(), Arc::new(AtomicUsize::new(usize::MAX)));
    let options = setup.options;
    let steps = Ahead {
        model: setup.model(),
        queued: VecDeque::new(),
        collected: Default::default(),
        count,
        ids: Vec::new(),
        largest: Vec::new(),
        asked: Arc::clone(&asked),
        lives: Arc::clone(&lives),
    };
    let engine = Engine::with_steps(Box::new(steps), Some(tokenizer()), options);
    (engine, asked, lives)
}

fn greedy(prompt: &[u32], max_tokens: u32) -> Request {
    Request {
        sampling: Sampling::greedy(),
        ..request(prompt, max_tokens, 0)
    }
}

#[test]
fn the_device_has_the_next_step_before_results_are_seen() {
    let (mut engine, asked, _) = ahead(Setup::default(), 6);
    engine.submit(greedy(&[1, 2, 3], 4)).expect("valid");
    let done = engine.run_to_end().expect("works");
    assert_eq!(done[0].tokens, alone(greedy(&[1, 2, 3], 4)).tokens);
    let (given, fed) = (
        Asked::Queued { follows: false },
        Asked::Queued { follows: true },
    );
    // The prompt, three tokens; after the fourth nothing is needed.
    let collected = Asked::Collected;
    let expected = [
        given, fed, collected, fed, collected, fed, collected, collected,
    ];
    assert_eq!(*asked.lock().expect("no panic"), expected);
}

#[test]
fn tokens_are_the_same_whoever_joins_and_leaves() {
    // Some greedy, some not, some that forbid what ends a text.
    let requests = || {
        let all = mixed_requests().into_iter().enumerate();
        all.map(|(i, r)| match i % 3 {
            0 => r,
            1 => Request {
                sampling: Sampling::greedy(),
                ..r
            },
            _ => Request {
                sampling: Sampling::greedy(),
                ignore_eos: true,
                ..r
            },
        })
    };
    for only_greedy in [false, true] {
        let requests = || {
            requests()
                .enumerate()
                .filter(|(i, _)| !only_greedy || i % 3 > 0)
        };
        let expected: Vec<Vec<u32>> = requests().map(|(_, r)| alone(r).tokens).collect();
        for (slots, rows, chunk, gap) in [
            (1, 1, None, 1),
            (2, 3, None, 1),
            (4, 8, Some(1), 2),
            (9, 64, None, 1),
            (3, 4, Some(2), 5),
        ] {
            let options = EngineOptions {
                prefill_chunk: chunk,
                max_batch: None,
            };
            let setup = Setup {
                slots,
                rows,
                options,
                ..Setup::default()
            };
            let (mut engine, asked, _) = ahead(setup, 6);
            let mut tokens = vec![Vec::new(); expected.len()];
            let mut arrivals = requests();
            let mut waiting = true;
            while waiting || !engine.is_idle() {
                match arrivals.next() {
                    Some((_, request)) => drop(engine.submit(request).expect("valid")),
                    None => waiting = false,
                }
                for _ in 0..gap {
                    for event in engine.step().expect("works") {
                        if let Event::Token { id, token, .. } = event {
                            tokens[id.0 as usize].push(token);
                        }
                    }
                }
            }
            assert_eq!(tokens, expected, "{slots} slots, {rows} rows, {chunk:?}");
            let asked = asked.lock().expect("no panic");
            assert!(asked.contains(&Asked::Queued { follows: true }));
        }
    }
}

#[test]
fn what_was_foreseen_wrongly_is_undone() {
    // The end of text is most likely each time, and forbidden.
    let script = vec![END];
    let forbidding = Request {
        ignore_eos: true,
        ..greedy(&[0], 5)
    };
    let plain = |count: usize| {
        let setup = Setup {
            script: Some(script.clone()),
            ..Setup::default()
        };
        let (mut engine, asked, _) = ahead(setup, count);
        engine.submit(forbidding.clone()).expect("valid");
        let done = engine.run_to_end().expect("works");
        let undone = asked.lock().expect("no panic").contains(&Asked::Undone);
        (done[0].tokens.clone(), undone)
    };
    // All others are zero, the lowest id wins: whole rows are needed to know it.
    for count in [1, 2, 64] {
        assert_eq!(plain(count), (vec![0; 5], true), "{count}");
    }
}

#[test]
fn a_failed_step_is_repeated() {
    let requests = [
        greedy(&[1, 2, 3], 9),
        greedy(&[4], 6),
        request(&[5, 6], 4, 1),
    ];
    let expected: Vec<Vec<u32>> = requests.iter().map(|r| alone(r.clone()).tokens).collect();
    for failing in 1..12 {
        let (mut engine, _, lives) = ahead(Setup::default(), 6);
        lives.store(failing, Relaxed);
        for request in requests.clone() {
            engine.submit(request).expect("valid");
        }
        let mut tokens = vec![Vec::new(); requests.len()];
        let mut failures = 0;
        while !engine.is_idle() {
            match engine.step() {
                Err(_) => failures += 1,
                Ok(events) => {
                    for event in events {
                        if let Event::Token { id, token, .. } = event {
                            tokens[id.0 as usize].push(token);
                        }
                    }
                }
            }
        }
        assert_eq!(tokens, expected, "{failing}");
        assert!(failures <= 1);
    }
}

#[test]
fn a_request_can_leave_while_its_row_is_on_its_way() {
    let (mut engine, ..) = ahead(
        Setup {
            slots: 1,
            ..Setup::default()
        },
        6,
    );
    let first = engine.submit(greedy(&[1, 2, 3], 20)).expect("valid");
    let second = engine.submit(greedy(&[7, 8], 5)).expect("valid");
    for _ in 0..3 {
        engine.step().expect("works");
    }
    assert!(engine.cancel(first));
    let done = engine.run_to_end().expect("works");
    let of = |id| done.iter().find(|c| c.id == id).expect("finished");
    assert_eq!(of(first).reason, FinishReason::Cancelled);
    assert_eq!(of(second).tokens, alone(greedy(&[7, 8], 5)).tokens);
}
