//! What the GPU was given, in order: one command buffer is filled at a time, with everything until somebody waits or asks
//! that it begins, and those committed are waited for. Nothing waits for ever: a GPU that is silent for [`PATIENCE`] is
//! reported and given up. Plain Rust: how commands are encoded is `commands`' business.

use crate::error::Error;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long the GPU may take for what it was given: a thousand times the longest step.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the caller waits awake: longer than a decode step, whose end must not be missed by a timer's resolution.
const AWAKE: Duration = Duration::from_millis(20);
/// Parts of a command buffer that an error names.
const MOST_NAMED: usize = 4;

/// How far a command buffer is.
pub(super) enum Progress {
    /// Not done.
    Running,
    /// Done, after so many seconds on the GPU.
    Done(f64),
    /// It failed, in the framework's words.
    Failed(String),
}

/// What takes command buffers. Buffers are done in the order in which they were committed.
pub(super) trait Queue {
    /// One command buffer.
    type Commands;

    /// An empty one, or why there is none.
    fn begin(&self) -> Result<Self::Commands, String>;

    /// Gives it to the GPU; nothing is encoded into it afterwards.
    fn commit(&self, commands: &mut Self::Commands);

    /// How far it is.
    fn progress(&self, commands: &Self::Commands) -> Progress;
}

/// A queue, the command buffer that is being filled, and those that have not been seen to be done.
pub(super) struct Steps<Q: Queue> {
    queue: Q,
    open: Option<Given<Q>>,
    /// Committed, the oldest first.
    under_way: VecDeque<Given<Q>>,
    /// Command buffers that have been seen to be done.
    done: u64,
    /// Why the GPU can no longer be used.
    lost: Option<String>,
    patience: Duration,
}

struct Given<Q: Queue> {
    commands: Q::Commands,
    /// What it runs, for messages.
    parts: Vec<String>,
}

impl<Q: Queue> Steps<Q> {
    pub(super) fn new(queue: Q) -> Self {
        Self {
            queue,
            open: None,
            under_way: VecDeque::new(),
            done: 0,
            lost: None,
            patience: PATIENCE,
        }
    }

    /// The command buffer being filled, behind everything before; `part` is what will be put into it, if errors shall
    /// name it.
    pub(super) fn open(&mut self, part: Option<String>) -> Result<&mut Q::Commands, Error> {
        if let Some(why) = &self.lost {
            return Err(Error::Device(why.clone()));
        }
        if self.open.is_none() {
            let commands = self.queue.begin().map_err(Error::Device)?;
            self.open = Some(Given {
                commands,
                parts: Vec::new(),
            });
        }
        match &mut self.open {
            Some(open) => {
                open.parts.extend(part);
                Ok(&mut open.commands)
            }
            None => Err(Error::Device("there is no command buffer".into())),
        }
    }

    /// The ticket of the command buffer being filled, or of the next.
    pub(super) fn ticket(&self) -> u64 {
        self.done + self.under_way.len() as u64 + 1
    }

    /// Tickets up to this one have been seen to be done.
    pub(super) fn done(&self) -> u64 {
        self.done
    }

    /// Has the GPU begin with what was encoded.
    pub(super) fn submit(&mut self) {
        if let Some(mut open) = self.open.take() {
            self.queue.commit(&mut open.commands);
            self.under_way.push_back(open);
        }
    }

    /// Whether the GPU has nothing left to do, and nothing waits to be given to it.
    pub(super) fn are_done(&mut self) -> Result<bool, Error> {
        if let Some(why) = &self.lost {
            return Err(Error::Device(why.clone()));
        }
        while let Some(oldest) = self.under_way.front() {
            match self.queue.progress(&oldest.commands) {
                Progress::Running => return Ok(false),
                Progress::Done(_) | Progress::Failed(_) => self.wait(self.done + 1)?,
            };
        }
        Ok(self.open.is_none())
    }

    /// Waits for everything.
    pub(super) fn wait_for_all(&mut self) -> Result<(), Error> {
        self.submit();
        self.wait(self.ticket() - 1).map(drop)
    }

    /// Waits for the command buffer of a ticket and all before it; how long that one took on the GPU, seconds, 0 if it was
    /// done before.
    pub(super) fn wait(&mut self, ticket: u64) -> Result<f64, Error> {
        if let Some(why) = &self.lost {
            return Err(Error::Device(why.clone()));
        }
        if ticket == self.ticket() {
            self.submit();
        }
        let mut seconds = 0.0;
        while self.done < ticket {
            let Some(oldest) = self.under_way.pop_front() else {
                return Err(Error::Device("nothing is under way to wait for".into()));
            };
            match self.end_of(&oldest.commands) {
                Ok(took) => seconds = took,
                Err(why) => {
                    let what = described(&oldest.parts);
                    let why = format!(
                        "running {what}: {why} (COLDPRESS_METAL_SYNC=1 in the environment names the launch that fails); \
                         the GPU cannot be used by this process any more"
                    );
                    self.lost = Some(why.clone());
                    return Err(Error::Device(why));
                }
            }
            self.done += 1;
        }
        Ok(seconds)
    }

    /// Polls until a command buffer is done, awake at first.
    fn end_of(&self, commands: &Q::Commands) -> Result<f64, String> {
        let started = Instant::now();
        loop {
            match self.queue.progress(commands) {
                Progress::Done(seconds) => return Ok(seconds),
                Progress::Failed(why) => return Err(why),
                Progress::Running => {}
            }
            let waited = started.elapsed();
            if waited > self.patience {
                return Err(format!("no answer for {} seconds", waited.as_secs()));
            }
            if waited > AWAKE {
                std::thread::sleep(Duration::from_micros(100));
            } else {
                std::hint::spin_loop();
            }
        }
    }
}

impl<Q: Queue> Drop for Steps<Q> {
    /// What the GPU still reads must not be unmapped under it. One that does not answer keeps what it has: the framework
    /// holds on to it until the process ends.
    fn drop(&mut self) {
        if self.lost.is_none() {
            let _ = self.wait_for_all();
        }
    }
}

/// The parts of a command buffer in words.
fn described(parts: &[String]) -> String {
    let named = &parts[..parts.len().min(MOST_NAMED)];
    match parts.len() - named.len() {
        0 if named.is_empty() => "copies".into(),
        0 => named.join(", then "),
        more => format!("{} and {more} more", named.join(", then ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    /// A queue whose buffers are lists of words; they are done when the test says so.
    #[derive(Clone, Default)]
    struct Words {
        committed: Rc<RefCell<Vec<String>>>,
        done: Rc<Cell<usize>>,
        fails: Rc<Cell<Option<usize>>>,
    }

    /// Its number among those committed, and the words.
    struct List(Option<usize>, Vec<&'static str>);

    impl Queue for Words {
        type Commands = List;

        fn begin(&self) -> Result<List, String> {
            Ok(List(None, Vec::new()))
        }

        fn commit(&self, commands: &mut List) {
            let mut committed = self.committed.borrow_mut();
            commands.0 = Some(committed.len());
            committed.push(commands.1.join(" "));
        }

        fn progress(&self, commands: &List) -> Progress {
            let number = commands.0.expect("committed");
            match number {
                n if self.fails.get() == Some(n) => Progress::Failed("page fault".into()),
                n if n < self.done.get() => Progress::Done(0.5),
                _ => Progress::Running,
            }
        }
    }

    fn steps() -> (Steps<Words>, Words) {
        let words = Words::default();
        let mut steps = Steps::new(words.clone());
        steps.patience = Duration::from_millis(5);
        (steps, words)
    }

    fn put(steps: &mut Steps<Words>, word: &'static str) {
        let part = Some(word.to_owned());
        steps.open(part).expect("a buffer").1.push(word);
    }

    #[test]
    fn a_step_is_one_command_buffer_that_begins_when_it_is_submitted() {
        let (mut steps, words) = steps();
        assert!(steps.are_done().expect("works"));
        put(&mut steps, "trunk");
        put(&mut steps, "head");
        let first = steps.ticket();
        assert!(!steps.are_done().expect("works"));
        assert!(words.committed.borrow().is_empty());
        steps.submit();
        steps.submit();
        put(&mut steps, "trunk again");
        assert_eq!(steps.ticket(), first + 1);
        assert_eq!(*words.committed.borrow(), ["trunk head"]);
        words.done.set(2);
        assert_eq!(steps.wait(first).expect("done"), 0.5);
        // Asked for before, done before.
        assert_eq!(steps.wait(first).expect("done"), 0.0);
        assert_eq!((steps.done(), words.committed.borrow().len()), (1, 1));
        // Nobody submitted it: waiting does.
        assert_eq!(steps.wait(first + 1).expect("done"), 0.5);
        assert_eq!(words.committed.borrow()[1], "trunk again");
        assert!(steps.are_done().expect("works"));
        assert!(steps.wait(first + 9).is_err());
    }

    #[test]
    fn a_failure_names_what_ran_and_stays() {
        let (mut steps, words) = steps();
        for part in ["token_embd to ffn_down", "norm to output"] {
            put(&mut steps, part);
        }
        words.fails.set(Some(0));
        steps.submit();
        let error = steps.are_done().expect_err("it failed").to_string();
        let what = "running token_embd to ffn_down, then norm to output: page fault";
        assert!(error.contains(what), "{error}");
        assert!(error.contains("COLDPRESS_METAL_SYNC=1"), "{error}");
        for again in [
            steps.wait_for_all(),
            steps.are_done().map(drop),
            steps.open(None).map(drop),
        ] {
            assert_eq!(again.expect_err("lost").to_string(), error);
        }
    }

    #[test]
    fn nothing_waits_for_ever() {
        let (mut steps, _) = steps();
        steps.open(None).expect("a buffer");
        let error = steps.wait_for_all().expect_err("silent").to_string();
        assert!(error.contains("running copies: no answer"), "{error}");
    }

    #[test]
    fn many_parts_are_counted() {
        let parts: Vec<String> = (0..6).map(|i| format!("p{i}")).collect();
        let words = "p0, then p1, then p2, then p3 and 2 more";
        assert_eq!(described(&parts), words);
        assert_eq!(described(&parts[..4]), words.replace(" and 2 more", ""));
    }

    #[test]
    fn what_is_dropped_is_done() {
        let (mut steps, words) = steps();
        put(&mut steps, "step");
        words.done.set(1);
        drop(steps);
        assert_eq!(*words.committed.borrow(), ["step"]);
    }
}
