//! The engine over a stand-in whose logits are a pure function of what its slot has been fed. Any mistake in rows,
//! positions, slots or batching changes somebody's tokens.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

mod ahead;
mod candidates;

use super::*;
use crate::sampler::Sampling;
use crate::tokenizer::{Algorithm, Alphabet, BpeSpec, TokenKind, TokenizerSpec};

/// Tokens 0..=25 are letters, then these.
const E_ACUTE_1: u32 = 26;
const E_ACUTE_2: u32 = 27;
const BOS: u32 = 28;
const END: u32 = 29;
const VOCAB: u32 = 30;

/// What the steps were, for tests about scheduling.
type Log = Arc<Mutex<Vec<Vec<Row>>>>;

/// Logits that follow a hash of the slot's history; with a script, those that make the slot say the script's tokens in
/// turn, whatever came before.
struct HashModel {
    limits: Limits,
    slots: Vec<Option<Vec<u32>>>,
    logits: Vec<Vec<f32>>,
    script: Option<Vec<u32>>,
    prompt_len: usize,
    fail_next: Arc<AtomicBool>,
    log: Log,
}

impl Steps for HashModel {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn vocab_size(&self) -> u32 {
        VOCAB
    }

    fn acquire_slot(&mut self) -> Option<u32> {
        let free = self.slots.iter().position(Option::is_none)?;
        self.slots[free] = Some(Vec::new());
        Some(free as u32)
    }

    fn release_slot(&mut self, slot: u32) {
        assert!(
            self.slots[slot as usize].take().is_some(),
            "slot {slot} released twice"
        );
    }

    fn step(&mut self, rows: &[Row]) -> Result<(), Error> {
        if self.fail_next.swap(false, Relaxed) {
            return Err(failure());
        }
        assert!(!rows.is_empty() && rows.len() <= self.limits.max_rows as usize);
        self.log.lock().expect("no panic").push(rows.to_vec());
        self.logits.clear();
        for row in rows {
            let history = self.slots[row.slot as usize]
                .as_mut()
                .expect("the slot is in use");
            assert_eq!(
                row.position as usize,
                history.len(),
                "rows continue their slot"
            );
            assert!(row.position < self.limits.max_context);
            history.push(row.token);
            if row.wants_logits {
                let logits = match &self.script {
                    None => hashed_logits(history),
                    Some(script) => {
                        let mut logits = vec![0.0; VOCAB as usize];
                        logits[script[(history.len() - self.prompt_len) % script.len()] as usize] =
                            9.0;
                        logits
                    }
                };
                self.logits.push(logits);
            }
        }
        Ok(())
    }

    fn logits(&mut self, i: usize) -> Result<&[f32], Error> {
        Ok(&self.logits[i])
    }
}

fn failure() -> Error {
    Error::Device("the device failed".into())
}

fn hashed_logits(history: &[u32]) -> Vec<f32> {
    let mut state = history.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, &t| {
        (h ^ u64::from(t)).wrapping_mul(0x100_0000_01b3)
    });
    let mut logits: Vec<f32> = (0..VOCAB)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32 * 4.0
        })
        .collect();
    logits[END as usize] = -9.0;
    logits
}

fn tokenizer() -> Tokenizer {
    let mut tokens: Vec<String> = ('a'..='z').map(String::from).collect();
    // The two bytes of "é" in the byte-level alphabet.
    tokens.extend(["Ã", "©", "<s>", "</s>"].map(String::from));
    let mut kinds = vec![TokenKind::Normal; 28];
    kinds.extend([TokenKind::Control, TokenKind::Control]);
    Tokenizer::new(TokenizerSpec {
        tokens,
        kinds,
        algorithm: Algorithm::Bpe(BpeSpec {
            merges: Vec::new(),
            splits: Vec::new(),
            alphabet: Alphabet::ByteLevel,
            ignore_merges: false,
            whole_newline_runs: false,
        }),
        bos: Some(BOS),
        eos: Some(END),
        eot: None,
        eom: None,
        unk: None,
        pad: None,
        end_of_generation: vec![END],
        add_bos: true,
        add_eos: false,
        strip_left: Vec::new(),
        strip_right: Vec::new(),
        chat_template: None,
    })
    .expect("the test vocabulary is sound")
}

struct Setup {
    slots: u32,
    rows: u32,
    context: u32,
    options: EngineOptions,
    script: Option<Vec<u32>>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            slots: 4,
            rows: 8,
            context: 64,
            options: EngineOptions::default(),
            script: None,
        }
    }
}

impl Setup {
    fn engine(self) -> (Engine, Log, Arc<AtomicBool>) {
        let (options, model) = (self.options, self.model());
        let (log, fail_next) = (Arc::clone(&model.log), Arc::clone(&model.fail_next));
        let engine = Engine::with_steps(Box::new(model), Some(tokenizer()), options);
        (engine, log, fail_next)
    }

    fn model(self) -> HashModel {
        HashModel {
            limits: Limits {
                max_batch: self.slots,
                max_context: self.context,
                max_rows: self.rows,
            },
            slots: vec![None; self.slots as usize],
            logits: Vec::new(),
            script: self.script,
            prompt_len: 1,
            fail_next: Arc::default(),
            log: Log::default(),
        }
    }
}

fn request(prompt: &[u32], max_tokens: u32, seed: u64) -> Request {
    let sampling = Sampling {
        seed: Some(seed),
        ..Sampling::default()
    };
    Request {
        max_tokens: Some(max_tokens),
        sampling,
        ..Request::tokens(prompt)
    }
}

fn mixed_requests() -> Vec<Request> {
    let mut requests: Vec<Request> = (0..9u32)
        .map(|i| {
            let prompt: Vec<u32> = (0..1 + i * 5 % 23).map(|j| (i * 7 + j * 3) % 26).collect();
            request(&prompt, 3 + i * 4 % 17, u64::from(i))
        })
        .collect();
    requests[2].sampling = Sampling::greedy();
    requests[3].sampling.penalties.repeat = 1.5;
    requests[4].sampling.top_k = 0;
    requests[5].ignore_eos = true;
    requests
}

/// Tokens of a request that has the engine to itself.
fn alone(request: Request) -> Completion {
    let (mut engine, ..) = Setup::default().engine();
    engine.submit(request).expect("a valid request");
    engine.run_to_end().expect("the stand-in works").remove(0)
}

/// The text of a scripted generation with its request adjusted by `change`.
fn scripted(script: &[u32], change: impl FnOnce(&mut Request)) -> (Completion, Vec<Event>) {
    let (mut engine, ..) = Setup {
        script: Some(script.to_vec()),
        ..Setup::default()
    }
    .engine();
    let mut request = Request {
        sampling: Sampling::greedy(),
        ..Request::tokens([0])
    };
    change(&mut request);
    engine.submit(request).expect("a valid request");
    let mut events = Vec::new();
    let mut done = Completion {
        id: RequestId(0),
        tokens: Vec::new(),
        text: String::new(),
        reason: FinishReason::Cancelled,
        stats: Stats::default(),
    };
    while !engine.is_idle() {
        events.extend(engine.step().expect("the stand-in works"));
    }
    for event in &events {
        match event {
            Event::Prefill { .. } => {}
            Event::Token { token, text, .. } => {
                done.tokens.push(*token);
                done.text.push_str(text);
            }
            Event::Finished {
                reason,
                text,
                stats,
                ..
            } => {
                done.text.push_str(text);
                (done.reason, done.stats) = (*reason, *stats);
            }
        }
    }
    (done, events)
}

fn letters(text: &str) -> Vec<u32> {
    text.bytes().map(|b| u32::from(b - b'a')).collect()
}

#[test]
fn nobody_depends_on_who_else_is_in_the_batch() {
    let expected: Vec<Vec<u32>> = mixed_requests()
        .into_iter()
        .map(|r| alone(r).tokens)
        .collect();
    for (slots, rows, chunk, gap) in [
        (1, 1, None, 0),
        (2, 3, None, 1),
        (4, 8, Some(1), 2),
        (9, 64, None, 0),
        (3, 4, Some(2), 5),
    ] {
        let options = EngineOptions {
            prefill_chunk: chunk,
            max_batch: None,
        };
        let (mut engine, log, _) = Setup {
            slots,
            rows,
            options,
            ..Setup::default()
        }
        .engine();
        let mut tokens = vec![Vec::new(); expected.len()];
        let mut arrivals = mixed_requests().into_iter();
        let mut waiting = true;
        while waiting || !engine.is_idle() {
            // A new request joins every few steps, in the middle of the others.
            for _ in 0..if gap == 0 { expected.len() } else { 1 } {
                match arrivals.next() {
                    Some(request) => {
                        engine.submit(request).expect("a valid request");
                    }
                    None => waiting = false,
                }
            }
            for _ in 0..gap.max(1) {
                for event in engine.step().expect("the stand-in works") {
                    if let Event::Token { id, token, .. } = event {
                        tokens[id.0 as usize].push(token);
                    }
                }
            }
        }
        assert_eq!(
            tokens, expected,
            "{slots} slots, {rows} rows, chunk {chunk:?}"
        );
        let widest = log.lock().expect("no panic").iter().map(Vec::len).max();
        assert!(widest <= Some(rows as usize));
    }
}

#[test]
fn more_requests_than_slots_are_served_in_order() {
    let (mut engine, ..) = Setup {
        slots: 2,
        ..Setup::default()
    }
    .engine();
    for i in 0..7 {
        engine.submit(request(&[i], 4, 1)).expect("a valid request");
    }
    engine.step().expect("the stand-in works");
    assert_eq!((engine.running(), engine.waiting()), (2, 5));
    let done = engine.run_to_end().expect("the stand-in works");
    assert_eq!(done.len(), 7);
    assert!(
        done.iter()
            .enumerate()
            .all(|(i, c)| c.id.0 == i as u64 && c.reason == FinishReason::Length)
    );
    assert!(done[6].stats.queued >= done[0].stats.queued);
}

#[test]
fn max_batch_bounds_the_batch() {
    let options = EngineOptions {
        max_batch: Some(3),
        ..EngineOptions::default()
    };
    let (mut engine, ..) = Setup {
        options,
        ..Setup::default()
    }
    .engine();
    for i in 0..4 {
        engine.submit(request(&[i], 9, 1)).expect("a valid request");
    }
    engine.step().expect("the stand-in works");
    assert_eq!((engine.running(), engine.waiting()), (3, 1));
}

#[test]
fn prefill_never_stalls_decode() {
    let options = EngineOptions {
        prefill_chunk: Some(3),
        ..EngineOptions::default()
    };
    let (mut engine, log, _) = Setup {
        options,
        ..Setup::default()
    }
    .engine();
    let talker = engine
        .submit(request(&[1], 40, 1))
        .expect("a valid request");
    engine.step().expect("the stand-in works");
    let long: Vec<u32> = (0..20).collect();
    let first = engine
        .submit(request(&long, 4, 1))
        .expect("a valid request");
    let second = engine
        .submit(request(&long[..5], 4, 1))
        .expect("a valid request");
    let mut finished_prompts = Vec::new();
    for _ in 0..9 {
        let events = engine.step().expect("the stand-in works");
        assert!(
            events
                .iter()
                .any(|e| matches!(e, Event::Token { id, .. } if *id == talker)),
            "{events:?}"
        );
        finished_prompts.extend(events.iter().filter_map(|e| match e {
            Event::Prefill { id, done, total } if done == total => Some(*id),
            _ => None,
        }));
    }
    assert_eq!(
        finished_prompts,
        [first, second],
        "first come, first served"
    );
    for rows in log.lock().expect("no panic")[1..8].iter() {
        assert!(
            rows.len() <= 1 + 3 + 1,
            "at most two decoding and a chunk of three: {rows:?}"
        );
        assert!(rows.iter().filter(|r| r.wants_logits).count() <= 3);
    }
    // The seventh step ends the long prompt (20 = 6 x 3 + 2) and begins the short one.
    assert_eq!(log.lock().expect("no panic")[7].len(), 4);
    assert_eq!(
        log.lock().expect("no panic")[7]
            .iter()
            .filter(|r| r.wants_logits)
            .count(),
        2
    );
}

#[test]
fn several_prompts_share_a_step() {
    let (mut engine, log, _) = Setup {
        rows: 16,
        ..Setup::default()
    }
    .engine();
    for _ in 0..4 {
        engine
            .submit(request(&[1, 2, 3], 2, 1))
            .expect("a valid request");
    }
    engine.step().expect("the stand-in works");
    assert_eq!(log.lock().expect("no panic")[0].len(), 12);
    assert_eq!(
        log.lock().expect("no panic")[0]
            .iter()
            .filter(|r| r.wants_logits)
            .count(),
        4
    );
}

#[test]
fn cancelling_frees_the_slot_at_once() {
    let (mut engine, ..) = Setup {
        slots: 1,
        ..Setup::default()
    }
    .engine();
    let running = engine
        .submit(request(&[1], 50, 1))
        .expect("a valid request");
    let next = engine.submit(request(&[2], 3, 1)).expect("a valid request");
    let never = engine.submit(request(&[3], 3, 1)).expect("a valid request");
    engine.step().expect("the stand-in works");
    assert!(engine.cancel(running));
    assert!(engine.cancel(never), "also while it waits");
    assert!(!engine.cancel(running), "only once");
    assert!(!engine.is_idle());
    let events = engine.step().expect("the stand-in works");
    let cancelled = |id| {
        events.iter().any(|e| {
        matches!(e, Event::Finished { id: i, reason: FinishReason::Cancelled, .. } if *i == id)
    })
    };
    assert!(cancelled(running) && cancelled(never), "{events:?}");
    assert!(
        events
            .iter()
            .any(|e| matches!(e, Event::Token { id, .. } if *id == next))
    );
    let expected = alone(request(&[2], 3, 1)).tokens;
    let rest = engine.run_to_end().expect("the stand-in works");
    assert_eq!(rest[0].tokens, expected[1..]);
    assert!(engine.is_idle());
}

#[test]
fn a_full_context_ends_the_sequence() {
    let setup = || {
        Setup {
            context: 10,
            ..Setup::default()
        }
        .engine()
        .0
    };
    let mut engine = setup();
    engine
        .submit(request(&[1, 2, 3, 4], 99, 1))
        .expect("a valid request");
    let done = engine.run_to_end().expect("the stand-in works").remove(0);
    assert_eq!(done.reason, FinishReason::Context);
    assert_eq!(
        done.tokens.len(),
        7,
        "6 more positions, and the token after the last"
    );
    let mut engine = setup();
    engine
        .submit(request(&[1; 10], 99, 1))
        .expect("a prompt as long as the context");
    assert_eq!(
        engine.run_to_end().expect("the stand-in works")[0]
            .tokens
            .len(),
        1
    );
    let refused = setup()
        .submit(request(&[1; 11], 1, 1))
        .map_err(|e| e.to_string());
    assert!(
        matches!(&refused, Err(e) if e.contains("11 tokens") && e.contains("context of 10")),
        "{refused:?}"
    );
}

#[test]
fn stop_strings_are_found_across_tokens_and_not_shown() {
    let (done, events) = scripted(&letters("abcdefgh"), |r| {
        r.stop = vec!["cde".into(), "zz".into()]
    });
    assert_eq!(
        (done.text.as_str(), done.reason),
        ("ab", FinishReason::Stop)
    );
    assert_eq!(done.tokens, letters("abcde"));
    let shown: Vec<&str> = events
        .iter()
        .filter_map(|e| match e {
            Event::Token { text, .. } => Some(text.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(
        shown,
        ["a", "b", "", "", ""],
        "a possible stop string is held back"
    );
    let (done, _) = scripted(&letters("abcxyz"), |r| {
        r.stop = vec!["bcd".into()];
        r.max_tokens = Some(3);
    });
    assert_eq!(
        (done.text.as_str(), done.reason),
        ("abc", FinishReason::Length),
        "what was held back comes at the end"
    );
}

#[test]
fn characters_cut_by_tokens_arrive_whole() {
    let (done, events) = scripted(&[0, E_ACUTE_1, E_ACUTE_2], |r| r.max_tokens = Some(3));
    assert_eq!(done.text, "aé");
    assert!(
        events
            .iter()
            .any(|e| matches!(e, Event::Token { token: E_ACUTE_1, text, .. } if text.is_empty()))
    );
    let (cut, _) = scripted(&[0, E_ACUTE_1], |r| r.max_tokens = Some(2));
    assert_eq!(cut.text, "a\u{fffd}");
}

#[test]
fn an_end_token_ends_unless_ignored() {
    let script = [1, 2, END, 3];
    let (done, _) = scripted(&script, |_| {});
    assert_eq!(
        (done.text.as_str(), done.reason, done.stats.generated_tokens),
        ("bc", FinishReason::EndOfText, 2)
    );
    let (on, _) = scripted(&script, |r| {
        r.ignore_eos = true;
        r.max_tokens = Some(6);
    });
    assert_eq!(on.reason, FinishReason::Length);
    assert!(!on.tokens.contains(&END), "{:?}", on.tokens);
}

#[test]
fn no_tokens_wanted_means_prefill_only() {
    let (mut engine, log, _) = Setup::default().engine();
    engine
        .submit(request(&[1; 20], 0, 1))
        .expect("a valid request");
    let done = engine.run_to_end().expect("the stand-in works").remove(0);
    assert_eq!(
        (done.tokens.len(), done.reason, done.stats.prompt_tokens),
        (0, FinishReason::Length, 20)
    );
    assert!(
        log.lock()
            .expect("no panic")
            .iter()
            .flatten()
            .all(|row| !row.wants_logits)
    );
}

#[test]
fn text_prompts_get_a_begin_token() {
    let (mut engine, log, _) = Setup::default().engine();
    engine
        .submit(Request {
            max_tokens: Some(1),
            ..Request::text("cab")
        })
        .expect("a valid request");
    engine
        .submit(Request {
            max_tokens: Some(1),
            ..Request::text("")
        })
        .expect("the begin token stands in");
    engine.run_to_end().expect("the stand-in works");
    let tokens: Vec<u32> = log.lock().expect("no panic")[0]
        .iter()
        .map(|row| row.token)
        .collect();
    assert_eq!(tokens, [BOS, 2, 0, 1, BOS]);
}

#[test]
fn impossible_requests_are_refused_with_the_reason() {
    let (mut engine, ..) = Setup::default().engine();
    let refused = |engine: &mut Engine, request: Request| match engine.submit(request) {
        Ok(_) => "accepted".into(),
        Err(error) => error.to_string(),
    };
    let out_of_range = refused(&mut engine, request(&[1, 30], 1, 1));
    assert!(
        out_of_range.contains("token 30") && out_of_range.contains("30 tokens"),
        "{out_of_range}"
    );
    let stop = Request {
        stop: vec![String::new()],
        ..request(&[1], 1, 1)
    };
    assert!(refused(&mut engine, stop).contains("stop string is empty"));
    let bad = Request {
        sampling: Sampling {
            min_p: -1.0,
            ..Sampling::default()
        },
        ..request(&[1], 1, 1)
    };
    assert!(refused(&mut engine, bad).contains("min_p"));
    assert!(engine.is_idle());
}

#[test]
fn a_failed_step_can_be_repeated() {
    let (mut engine, _, fail_next) = Setup::default().engine();
    engine
        .submit(request(&[1, 2, 3], 8, 5))
        .expect("a valid request");
    engine.submit(request(&[4], 8, 6)).expect("a valid request");
    let mut tokens = [Vec::new(), Vec::new()];
    for turn in 0..40 {
        fail_next.store(turn % 3 == 1, Relaxed);
        for event in engine.step().unwrap_or_default() {
            if let Event::Token { id, token, .. } = event {
                tokens[id.0 as usize].push(token);
            }
        }
    }
    assert_eq!(tokens[0], alone(request(&[1, 2, 3], 8, 5)).tokens);
    assert_eq!(tokens[1], alone(request(&[4], 8, 6)).tokens);
}
