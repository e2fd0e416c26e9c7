//! How fast this machine reads memory: the yardstick beside every decode speed. A sum over a buffer no cache holds.

use coldpress_kernels::cpu::read_all;
use memmap2::MmapMut;
use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

/// Bytes per second that `threads` threads read together, the best of three passes; 0 where there is no room for the buffer.
pub(super) fn read_bandwidth(threads: usize) -> f64 {
    let threads = threads.max(1);
    let words = buffer_bytes() / size_of::<u64>() / threads;
    let map = |_| MmapMut::map_anon(words * size_of::<u64>());
    let Ok(mut buffers) = (0..threads).map(map).collect::<Result<Vec<_>, _>>() else {
        return 0.0;
    };
    let barrier = Barrier::new(threads);
    let pass = |buffer: &[u8]| {
        barrier.wait();
        // Each thread takes its own time: no other thread need be awake at the right moment.
        let started = Instant::now();
        black_box(read_all(buffer));
        (started, Instant::now())
    };
    let read = |buffer: &mut MmapMut| {
        // In large pages, as weights are.
        #[cfg(target_os = "linux")]
        let _ = buffer.advise(memmap2::Advice::HugePage);
        // Written by the thread that reads it, so that it lies in that thread's memory.
        buffer.fill(1);
        (0..PASSES).map(|_| pass(buffer)).collect()
    };
    let times: Vec<Vec<(Instant, Instant)>> = std::thread::scope(|scope| {
        let readers: Vec<_> = buffers
            .iter_mut()
            .map(|buffer| scope.spawn(|| read(buffer)))
            .collect();
        readers
            .into_iter()
            .filter_map(|reader| reader.join().ok())
            .collect()
    });
    let bytes = (words * threads * size_of::<u64>()) as f64;
    let seconds = |pass: usize| {
        let started = times.iter().map(|t| t[pass].0).min()?;
        let ended = times.iter().map(|t| t[pass].1).max()?;
        Some((ended - started).as_secs_f64())
    };
    (0..PASSES)
        .filter_map(seconds)
        .map(|seconds| bytes / seconds)
        .fold(0.0, f64::max)
}

const PASSES: usize = 3;

/// Four times the last cache level, within 256 MiB and 2 GiB.
fn buffer_bytes() -> usize {
    const MIB: usize = 1 << 20;
    let size = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index3/size")
        .unwrap_or_default();
    let kib: usize = size.trim().trim_end_matches('K').parse().unwrap_or(0);
    (4 * kib * 1024).clamp(256 * MIB, 2048 * MIB)
}
