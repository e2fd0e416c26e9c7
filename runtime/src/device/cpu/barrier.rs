//! The barrier that emitted programs call between launches. Waiting burns about ten microseconds of pauses first, since
//! that is how long workers usually differ, then yields: with more workers than free cores the late one needs ours.

use std::sync::atomic::{AtomicU32, Ordering};

/// Pauses before the first yield, here and where the caller waits for the end of a program.
pub(super) const SPINS: u32 = 256;

/// Keeps two values off each other's cache line (and its prefetched neighbour).
#[repr(align(128))]
pub(super) struct Padded<T>(pub(super) T);

/// Centralised barrier; whoever arrives last opens it by advancing the phase.
pub(super) struct Barrier {
    workers: u32,
    arrived: Padded<AtomicU32>,
    phase: Padded<AtomicU32>,
}

impl Barrier {
    pub(super) fn new(workers: u32) -> Self {
        Self {
            workers,
            arrived: Padded(AtomicU32::new(0)),
            phase: Padded(AtomicU32::new(0)),
        }
    }

    /// Returns when all workers have called it equally often. What each wrote before is visible to all after.
    pub(super) fn wait(&self) {
        if self.workers == 1 {
            return;
        }
        // The phase cannot advance before this worker arrives, so a relaxed read is current.
        let phase = self.phase.0.load(Ordering::Relaxed);
        if self.arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == self.workers {
            self.arrived.0.store(0, Ordering::Relaxed);
            self.phase.0.store(phase.wrapping_add(1), Ordering::Release);
            return;
        }
        spin_until(|| self.phase.0.load(Ordering::Acquire) != phase);
    }
}

/// Pauses, then yields, until `done`.
pub(super) fn spin_until(done: impl Fn() -> bool) {
    let mut spins = 0;
    while !done() {
        if spins < SPINS {
            spins += 1;
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}

/// The symbol `barrier`.
///
/// # Safety
/// `barrier` points to a live [`Barrier`] of as many workers as call this.
pub(super) unsafe extern "C" fn barrier_symbol(barrier: *const u8) {
    // SAFETY: the caller's promise.
    unsafe { &*barrier.cast::<Barrier>() }.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_runs_ahead() {
        for workers in 1..=4u32 {
            let barrier = Barrier::new(workers);
            let counts: Vec<AtomicU32> = (0..workers).map(|_| AtomicU32::new(0)).collect();
            std::thread::scope(|scope| {
                for me in 0..workers as usize {
                    let (barrier, counts) = (&barrier, &counts);
                    scope.spawn(move || {
                        for round in 1..=2000 {
                            counts[me].store(round, Ordering::Relaxed);
                            barrier.wait();
                            for count in counts {
                                assert_eq!(count.load(Ordering::Relaxed), round);
                            }
                            barrier.wait();
                        }
                    });
                }
            });
        }
    }
}
