//! Steps on a device that records what it is asked, and one on real code.

use super::*;
use crate::bundle::sample;
use crate::manifest::StatePlan;
use std::sync::Mutex;

/// Program, tokens, logits rows.
type Run = (usize, Vec<u32>, Vec<u32>);

/// Logits row l is the token of logits row l, repeated. Fails where the token is 6.
struct Recorder {
    runs: Arc<Mutex<Vec<Run>>>,
    logits: Vec<Vec<f32>>,
}

impl Device for Recorder {
    fn run(&mut self, program: usize, step: &StepInput<'_>) -> Result<(), Error> {
        let run = (program, step.tokens.to_vec(), step.logit_rows.to_vec());
        self.runs.lock().expect("not poisoned").push(run);
        if step.tokens.contains(&6) {
            return Err(Error::Device("six".into()));
        }
        let token = |&row: &u32| vec![step.tokens[row as usize] as f32; sample::VOCAB as usize];
        self.logits = step.logit_rows.iter().map(token).collect();
        Ok(())
    }

    fn logits(&mut self, row: usize) -> Result<&[f32], Error> {
        Ok(&self.logits[row])
    }
}

fn recording() -> (Executor, Arc<Mutex<Vec<Run>>>) {
    let runs = Arc::new(Mutex::new(Vec::new()));
    let device = Recorder {
        runs: runs.clone(),
        logits: Vec::new(),
    };
    let executor = Executor::with_device(&sample::manifest(), Box::new(device));
    (executor.expect("has programs"), runs)
}

fn row(token: u32, slot: u32, position: u32, wants_logits: bool) -> Row {
    Row {
        token,
        slot,
        position,
        wants_logits,
    }
}

fn logits(executor: &mut Executor, i: usize) -> Vec<f32> {
    executor.logits(i).expect("in memory").to_vec()
}

/// A device that works ahead, and notes what makes it begin.
struct Ahead(Recorder, Arc<Mutex<Vec<&'static str>>>);

impl Ahead {
    fn note(&self, word: &'static str) {
        self.1.lock().expect("not poisoned").push(word);
    }
}

impl Device for Ahead {
    fn run(&mut self, program: usize, step: &StepInput<'_>) -> Result<(), Error> {
        self.note("run");
        self.0.run(program, step)
    }

    fn logits(&mut self, row: usize) -> Result<&[f32], Error> {
        self.0.logits(row)
    }

    fn feeds_back(&self) -> bool {
        true
    }

    fn submit(&mut self) -> Result<(), Error> {
        self.note("submit");
        Ok(())
    }

    fn queue_candidates(&mut self) -> Result<(), Error> {
        self.note("queue");
        Ok(())
    }
}

#[test]
fn a_queued_step_begins_whether_or_not_it_wants_logits() {
    let (runs, noted) = (Arc::default(), Arc::new(Mutex::new(Vec::new())));
    let recorder = Recorder {
        runs,
        logits: Vec::new(),
    };
    let device = Box::new(Ahead(recorder, noted.clone()));
    let mut executor = Executor::with_device(&sample::manifest(), device).expect("has programs");
    let slot = executor.acquire_slot().expect("a slot");
    executor
        .queue(&[row(1, slot, 0, false)], &[GIVEN])
        .expect("queues");
    executor
        .queue(&[row(2, slot, 1, true)], &[GIVEN])
        .expect("queues");
    let noted = noted.lock().expect("not poisoned");
    assert_eq!(*noted, ["run", "submit", "run", "run", "queue"]);
}

#[test]
fn trunk_then_head_in_the_smallest_buckets() {
    let (mut executor, runs) = recording();
    let (a, b) = (
        executor.acquire_slot().unwrap(),
        executor.acquire_slot().unwrap(),
    );
    let rows = [row(1, a, 0, false), row(2, a, 1, true), row(3, b, 0, true)];
    executor.step(&rows).expect("runs");
    assert_eq!(
        *runs.lock().unwrap(),
        [(2, vec![1, 2, 3], vec![]), (4, vec![1, 2, 3], vec![1, 2])]
    );
    assert_eq!(
        (logits(&mut executor, 0)[7], logits(&mut executor, 1)[0]),
        (2.0, 3.0)
    );
    let stats = *executor.stats();
    assert_eq!(
        (stats.rows, stats.bucket, stats.logits_rows, stats.head_runs),
        (3, 4, 2, 1)
    );
    assert_eq!((executor.kv().tokens(a), executor.kv().tokens(b)), (2, 1));
    executor.step(&[row(4, a, 2, false)]).expect("runs");
    assert_eq!(executor.stats().head_runs, 0);
    assert_eq!(runs.lock().unwrap().len(), 3);
    executor.step(&[]).expect("nothing to do");
    assert_eq!(executor.stats().rows, 0);
}

#[test]
fn more_logits_than_one_head_computes() {
    let (mut executor, runs) = recording();
    let a = executor.acquire_slot().unwrap();
    let rows: Vec<Row> = (0..3).map(|i| row(i + 1, a, i, true)).collect();
    assert_eq!(executor.max_head_rows(), 2);
    executor.step(&rows).expect("runs");
    for i in 0..3 {
        assert_eq!(logits(&mut executor, i), [i as f32 + 1.0; 8]);
    }
    assert_eq!(executor.stats().head_runs, 2);
    assert_eq!(runs.lock().unwrap()[2], (3, vec![1, 2, 3], vec![2]));
    executor.step(&[row(5, a, 3, true)]).expect("runs");
    assert_eq!(logits(&mut executor, 0), [5.0; 8]);
}

#[test]
fn refused_steps_change_nothing() {
    let (mut executor, runs) = recording();
    let a = executor.acquire_slot().unwrap();
    executor.step(&[row(1, a, 0, false)]).expect("runs");
    let before = runs.lock().unwrap().len();
    let bad: [&[Row]; 7] = [
        &[row(8, a, 1, true)],
        &[row(1, 2, 0, true)],
        &[row(1, 9, 0, true)],
        &[row(1, a, 2, true)],
        &[row(1, a, 0, true)],
        &[row(1, a, 1, true), row(1, a, 1, true)],
        &[row(1, a, 1, true); 5],
    ];
    for rows in bad {
        let error = executor.step(rows).expect_err("refused");
        assert!(matches!(error, Error::Step(_)), "{error}");
    }
    assert_eq!(runs.lock().unwrap().len(), before);
    let free = executor.kv().free_pages();
    let failing = [row(1, a, 1, true), row(6, a, 2, true)];
    assert!(matches!(executor.step(&failing), Err(Error::Device(_))));
    assert_eq!(
        (executor.kv().tokens(a), executor.kv().free_pages()),
        (1, free)
    );
    executor.step(&[row(1, a, 1, true)]).expect("continues");
}

#[test]
fn recurrent_states_take_no_rows_after_a_step_that_failed() {
    let mut manifest = sample::manifest();
    manifest.plans[0].kv.states = vec![StatePlan {
        offset: 0,
        slot_bytes: 64,
    }];
    let device = Recorder {
        runs: Arc::default(),
        logits: Vec::new(),
    };
    let mut executor = Executor::with_device(&manifest, Box::new(device)).expect("has programs");
    let (a, b) = (
        executor.acquire_slot().unwrap(),
        executor.acquire_slot().unwrap(),
    );
    executor
        .step(&[row(1, a, 0, true), row(1, b, 0, true)])
        .expect("runs");
    let refused = [&[row(1, a, 2, true)][..], &[row(9, a, 1, true)]];
    for rows in refused {
        assert!(executor.step(rows).is_err());
    }
    executor
        .step(&[row(1, a, 1, true)])
        .expect("what was refused changes nothing");
    let failing = [row(1, a, 2, true), row(6, a, 3, true)];
    assert!(matches!(executor.step(&failing), Err(Error::Device(_))));
    assert_eq!(executor.kv().tokens(a), 2);
    let error = executor.step(&[row(1, a, 2, true)]).expect_err("is ahead");
    assert!(matches!(error, Error::Step(_)), "{error}");
    assert!(
        error.to_string().contains("start the sequence again"),
        "{error}"
    );
    executor
        .step(&[row(1, b, 1, true)])
        .expect("was in no step that failed");
    assert!(executor.truncate(b, 1).is_err());
    executor.truncate(a, 0).expect("the beginning");
    executor.step(&[row(1, a, 0, true)]).expect("begins again");
    assert_eq!(executor.ahead(), None);
}

#[test]
fn context_and_slots_end_where_the_bundle_says() {
    let (mut executor, _) = recording();
    let slots: Vec<u32> = std::iter::from_fn(|| executor.acquire_slot()).collect();
    assert_eq!(slots.len(), 3);
    for position in 0..64 {
        executor.step(&[row(1, 0, position, false)]).expect("runs");
    }
    assert!(executor.step(&[row(1, 0, 64, false)]).is_err());
    executor.truncate(0, 10).expect("all of it is there");
    executor.step(&[row(1, 0, 10, false)]).expect("runs");
    executor.release_slot(0);
    assert_eq!(executor.acquire_slot(), Some(0));
    assert_eq!(executor.kv().tokens(0), 0);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn runs_a_bundle() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("m.press");
    sample::write(&path, &sample::manifest()).expect("writes");
    let bundle = Bundle::open(&path).expect("opens");
    let mut executor = Executor::new(bundle, ExecutorOptions::default()).expect("loads");
    let a = executor.acquire_slot().unwrap();
    let rows: Vec<Row> = (0..4).map(|i| row(i + 2, a, i, true)).collect();
    executor.step(&rows).expect("runs");
    let first: Vec<f32> = (0..4).map(|i| logits(&mut executor, i)[0]).collect();
    assert_eq!(first, [2.0, 3.0, 4.0, 5.0]);
}
