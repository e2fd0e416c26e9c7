//! Persistent worker threads. The caller is worker 0; the others wait for work by spinning for a while, so that steps
//! that follow each other start within about a microsecond, and then sleep, so that an idle engine uses no CPU.

use super::barrier::{Padded, spin_until};
use crate::error::Error;
use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Waiting workers keep their core this long; then they offer it to others between looks.
const BUSY: Duration = Duration::from_micros(50);

/// What all workers run next, given their number; `None` to stop.
type Job = Option<*const (dyn Fn(usize) + Sync)>;

struct Shared {
    /// Advances with every job. The caller writes `job` before and nobody reads it until the advance is seen.
    generation: Padded<AtomicU32>,
    /// Workers (the caller excluded) that have not finished the current job.
    running: Padded<AtomicU32>,
    job: Padded<UnsafeCell<Job>>,
    /// Per worker from 1: whether it may be asleep.
    asleep: Vec<Padded<AtomicBool>>,
    /// Threads of workers from 1, to wake them; set once, before the first job.
    threads: std::sync::OnceLock<Vec<std::thread::Thread>>,
    spin: Duration,
}

// SAFETY: `job` is written by the caller only while no job runs (`running` is 0, acquired) and read by workers only after
// they acquired the generation that published it; everything else is atomic or immutable.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer in `job` is only followed during a job, whose caller keeps it alive.
unsafe impl Send for Shared {}

/// The workers of one device.
pub(super) struct Team {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
}

impl Team {
    /// Starts `workers - 1` threads that spin for `spin` after each job before they sleep.
    pub(super) fn new(workers: u32, spin: Duration) -> Result<Self, Error> {
        let shared = Arc::new(Shared {
            generation: Padded(AtomicU32::new(0)),
            running: Padded(AtomicU32::new(0)),
            job: Padded(UnsafeCell::new(None)),
            asleep: (1..workers)
                .map(|_| Padded(AtomicBool::new(false)))
                .collect(),
            threads: std::sync::OnceLock::new(),
            spin,
        });
        let mut team = Self {
            shared: shared.clone(),
            handles: Vec::new(),
        };
        for worker in 1..workers as usize {
            let shared = shared.clone();
            // On failure the threads started so far are stopped by `Drop`.
            let handle = std::thread::Builder::new()
                .name(format!("worker-{worker}"))
                .spawn(move || shared.work(worker))
                .map_err(|e| {
                    Error::Device(format!("starting worker {worker} of {workers}: {e}"))
                })?;
            team.handles.push(handle);
        }
        let threads = team.handles.iter().map(|h| h.thread().clone()).collect();
        let _ = shared.threads.set(threads);
        Ok(team)
    }

    /// Runs `work(w)` on every worker w, the caller being worker 0, and returns when all are done.
    pub(super) fn run(&mut self, work: &(dyn Fn(usize) + Sync)) {
        let others = self.handles.len();
        if others > 0 {
            self.shared
                .running
                .0
                .store(others as u32, Ordering::Relaxed);
            // SAFETY: only the lifetime changes; this function does not return, nor unwind (`call`), while a worker runs.
            let work = unsafe {
                std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(
                    work,
                )
            };
            self.publish(Some(work));
            self.shared.wake_children(0);
        }
        call(work, 0);
        spin_until(|| self.shared.running.0.load(Ordering::Acquire) == 0);
    }

    fn publish(&mut self, job: Job) {
        // SAFETY: `&mut self` and `running` being 0 mean that no worker is between acquiring a generation and finishing.
        unsafe { *self.shared.job.0.get() = job };
        self.shared.generation.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.publish(None);
        for handle in self.handles.drain(..) {
            handle.thread().unpark();
            // Workers do not panic: a panic in a program aborts the process.
            let _ = handle.join();
        }
    }
}

impl Shared {
    fn work(&self, worker: usize) {
        let mut seen = 0;
        loop {
            seen = self.await_generation(worker, seen);
            // SAFETY: the generation was acquired; see the `Sync` invariant.
            let Some(work) = (unsafe { *self.job.0.get() }) else {
                return;
            };
            self.wake_children(worker);
            // SAFETY: `Team::run` keeps the closure alive until it returns, which it does not before `running` is 0.
            call(unsafe { &*work }, worker);
            self.running.0.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for a generation other than `seen`.
    fn await_generation(&self, worker: usize, seen: u32) -> u32 {
        let current = || self.generation.0.load(Ordering::SeqCst);
        let mut since: Option<Instant> = None;
        loop {
            for _ in 0..64 {
                if current() != seen {
                    return current();
                }
                std::hint::spin_loop();
            }
            let waited = since.get_or_insert_with(Instant::now).elapsed();
            if waited >= self.spin {
                break;
            }
            if waited >= BUSY {
                std::thread::yield_now();
            }
        }
        let asleep = &self.asleep[worker - 1].0;
        loop {
            // Whoever wakes reads the flag after the generation advanced, this reads the generation after setting the
            // flag: in the single order of these operations one of the two sees the other.
            asleep.store(true, Ordering::SeqCst);
            if current() != seen {
                asleep.store(false, Ordering::SeqCst);
                return current();
            }
            std::thread::park();
        }
    }

    /// Wakes the workers this one is responsible for, if they sleep: a tree, so that nobody wakes many.
    fn wake_children(&self, worker: usize) {
        let Some(threads) = self.threads.get() else {
            return;
        };
        for child in [2 * worker + 1, 2 * worker + 2] {
            if let Some(asleep) = self.asleep.get(child - 1)
                && asleep.0.swap(false, Ordering::SeqCst)
            {
                threads[child - 1].unpark();
            }
        }
    }
}

fn call(work: &(dyn Fn(usize) + Sync), worker: usize) {
    struct AbortOnUnwind;
    impl Drop for AbortOnUnwind {
        fn drop(&mut self) {
            std::process::abort();
        }
    }
    // A worker that unwound would leave the others waiting forever, and what they use would go away under them.
    let guard = AbortOnUnwind;
    work(worker);
    std::mem::forget(guard);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::barrier::Barrier;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn every_worker_runs_every_job_awake_or_asleep() {
        for (spin, jobs) in [(Duration::ZERO, 300), (Duration::from_micros(50), 1000)] {
            for workers in 1..=4 {
                let counters = [const { AtomicU64::new(0) }; 4];
                let barrier = Barrier::new(workers);
                let mut team = Team::new(workers, spin).expect("threads start");
                for job in 0..jobs {
                    if job % 100 == 99 {
                        // Long enough for all to fall asleep.
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    team.run(&|worker| {
                        counters[worker].fetch_add(1, Ordering::Relaxed);
                        barrier.wait();
                        let first = counters[0].load(Ordering::Relaxed);
                        barrier.wait();
                        assert_eq!(counters[worker].load(Ordering::Relaxed), first);
                    });
                }
                drop(team);
                let done = |c: &AtomicU64| c.load(Ordering::Relaxed) == jobs;
                assert!(counters[..workers as usize].iter().all(done));
            }
        }
    }

    #[test]
    fn stops_from_sleep_and_from_spinning() {
        drop(Team::new(3, Duration::ZERO).expect("threads start"));
        drop(Team::new(3, Duration::from_secs(1)).expect("threads start"));
        let team = Team::new(3, Duration::ZERO).expect("threads start");
        std::thread::sleep(Duration::from_millis(5));
        drop(team);
    }
}
