//! Memory as timing needs it: aligned buffers, caches that forget, threads that start together, and how fast all of them
//! read.

use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// A cache line: rows and tiles begin at one, as in a bundle.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line([u8; 64]);

pub(super) fn lines(bytes: usize) -> Vec<Line> {
    vec![Line([0; 64]); bytes.div_ceil(64)]
}

pub(super) fn bytes(lines: &[Line]) -> &[u8] {
    // SAFETY: a line is 64 initialised bytes without padding.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * 64) }
}

pub(super) fn bytes_mut(lines: &mut [Line]) -> &mut [u8] {
    // SAFETY: as above, and any bytes make a line.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 64) }
}

/// Bytes per second that `workers` threads read together from memory: the best of many short passes, so that other work
/// on the machine does not count.
pub fn read_bandwidth(workers: usize) -> f64 {
    const BYTES: usize = 8 << 20;
    const PASSES: usize = 40;
    let start = Rendezvous::new(workers.max(1));
    let pass = || {
        let mut buffer = lines(BYTES);
        // Written, or every page would be the system's one page of zeros.
        bytes_mut(&mut buffer).fill(1);
        (0..PASSES)
            .map(|_| {
                evict(bytes(&buffer));
                start.wait();
                let begin = Instant::now();
                black_box(sum(bytes(&buffer)));
                begin.elapsed().as_secs_f64()
            })
            .collect::<Vec<f64>>()
    };
    let times: Vec<Vec<f64>> = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..workers.max(1)).map(|_| scope.spawn(pass)).collect();
        readers.into_iter().filter_map(|r| r.join().ok()).collect()
    });
    let slowest = |pass: usize| times.iter().map(|t| t[pass]).fold(0.0, f64::max);
    let best = (0..PASSES).map(slowest).fold(f64::INFINITY, f64::min);
    (BYTES * times.len()) as f64 / best
}

/// The sum of all whole words, as fast as memory gives them: sixteen independent sums, so that the loads bind, and what
/// comes later is prefetched as by the kernels that stream weights.
pub fn sum(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    let (groups, rest) = words.as_chunks::<16>();
    let mut sums = [0u64; 16];
    for group in groups {
        prefetch(group.as_ptr().cast::<u8>().wrapping_add(AHEAD));
        prefetch(group.as_ptr().cast::<u8>().wrapping_add(AHEAD + 64));
        for (sum, word) in sums.iter_mut().zip(group) {
            *sum = sum.wrapping_add(u64::from_le_bytes(*word));
        }
    }
    let rest = rest.iter().map(|word| u64::from_le_bytes(*word));
    sums.into_iter().chain(rest).fold(0, u64::wrapping_add)
}

/// Bytes between what is summed and what is prefetched.
const AHEAD: usize = 8192;

/// Has the CPU fetch a line into its caches, where the address is one.
fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: every x86-64 CPU has the instruction; a prefetch may point anywhere.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Makes all caches forget `bytes`.
#[cfg(target_arch = "x86_64")]
pub(super) fn evict(bytes: &[u8]) {
    use std::arch::x86_64::{_mm_clflush, _mm_mfence};
    for line in bytes.chunks(64) {
        // SAFETY: the address is that of a byte of the slice; every x86-64 CPU has the instruction.
        unsafe { _mm_clflush(line.as_ptr()) };
    }
    // SAFETY: every x86-64 CPU has the instruction.
    unsafe { _mm_mfence() };
}

/// Fills the caches with something else.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn evict(_: &[u8]) {
    black_box(sum(&black_box(vec![1u8; 64 << 20])));
}

/// Where threads meet awake: they start within a fraction of a microsecond.
pub(super) struct Rendezvous {
    threads: usize,
    arrived: AtomicUsize,
}

impl Rendezvous {
    pub(super) fn new(threads: usize) -> Rendezvous {
        Rendezvous {
            threads,
            arrived: AtomicUsize::new(0),
        }
    }

    pub(super) fn wait(&self) {
        let round = self.arrived.fetch_add(1, Ordering::AcqRel) / self.threads;
        let all = (round + 1) * self.threads;
        let mut spins = 0u32;
        while self.arrived.load(Ordering::Acquire) < all {
            // More threads than cores: the one that is missing may need this core.
            match spins {
                0..10_000 => spin_loop(),
                _ => std::thread::yield_now(),
            }
            spins = spins.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_takes_every_word() {
        let words: Vec<u8> = (0..1000u64).flat_map(u64::to_le_bytes).collect();
        assert_eq!(sum(&words), 499_500);
    }

    #[test]
    fn bandwidth_is_a_rate() {
        let rate = read_bandwidth(2);
        assert!(rate.is_finite() && rate > 0.0);
    }
}
