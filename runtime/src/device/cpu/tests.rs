//! Machine code from a bundle, run by real threads.
#![cfg(target_arch = "x86_64")]

use super::*;
use crate::bundle::sample;
use crate::kv_cache::KvCache;

fn load(change: impl Fn(&mut crate::manifest::Manifest)) -> Result<CpuDevice, Error> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("m.press");
    let mut manifest = sample::manifest();
    change(&mut manifest);
    sample::write(&path, &manifest)?;
    CpuDevice::new(Arc::new(Bundle::open(&path)?), 0, DEFAULT_SPIN, false)
}

fn first(device: &mut CpuDevice, row: usize) -> f32 {
    device.logits(row).expect("in memory")[0]
}

#[test]
fn runs_code_and_reads_logits() {
    let mut device = load(|_| ()).expect("loads");
    let kv = KvCache::new(&sample::manifest().plans[0].kv, 3);
    let step = StepInput {
        tokens: &[3, 5, 7],
        positions: &[0, 1, 0],
        slots: &[0, 0, 1],
        logit_rows: &[],
        follows: &[],
        kv: &kv,
    };
    for _ in 0..200 {
        device.run(2, &step).expect("runs");
        let logit_rows = &[2, 1][..];
        device
            .run(4, &StepInput { logit_rows, ..step })
            .expect("runs");
        assert_eq!((first(&mut device, 0), first(&mut device, 1)), (7.0, 5.0));
    }
    let row = device.logits(0).expect("in memory");
    assert_eq!(row.len(), sample::VOCAB as usize);
}

#[test]
fn refuses_steps_outside_the_plan() {
    let mut device = load(|_| ()).expect("loads");
    let kv = KvCache::new(&sample::manifest().plans[0].kv, 3);
    let good = StepInput {
        tokens: &[3, 5],
        positions: &[0, 1],
        slots: &[0, 0],
        logit_rows: &[],
        follows: &[],
        kv: &kv,
    };
    device.run(1, &good).expect("runs");
    let short = KvCache::new(
        &crate::manifest::KvPlan {
            pages_per_slot: 1,
            ..sample::manifest().plans[0].kv.clone()
        },
        3,
    );
    let bad = [
        (99, good),
        (0, good),
        (4, good),
        (
            1,
            StepInput {
                tokens: &[3, sample::VOCAB],
                ..good
            },
        ),
        (
            1,
            StepInput {
                positions: &[0, 64],
                ..good
            },
        ),
        (
            1,
            StepInput {
                positions: &[0],
                ..good
            },
        ),
        (
            1,
            StepInput {
                slots: &[0, 3],
                ..good
            },
        ),
        (
            3,
            StepInput {
                logit_rows: &[2],
                ..good
            },
        ),
        (
            3,
            StepInput {
                logit_rows: &[0, 1],
                ..good
            },
        ),
        (1, StepInput { kv: &short, ..good }),
    ];
    for (index, (program, step)) in bad.into_iter().enumerate() {
        assert!(device.run(program, &step).is_err(), "{index}");
    }
}

#[test]
fn lists_all_unresolved_symbols_and_reports_memory() {
    let error = load(|m| m.plans[0].symbols.extend(["gone".into(), "lost".into()])).err();
    let error = error.expect("unresolved");
    assert!(error.to_string().contains("(gone, lost)"), "{error}");
    assert_eq!(error.exit_code(), 4);
    let error = allocate("KV pool", 1 << 60, false).expect_err("too large");
    assert_eq!(error.exit_code(), 5);
    assert!(error.to_string().contains("KV pool"), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn code_is_never_writable_and_executable() {
    let device = load(|_| ()).expect("loads");
    let entry = device.programs[0].entries[0] as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").expect("reads");
    let line = maps.lines().find(|line| {
        let (range, _) = line.split_once(' ').unwrap_or_default();
        let (start, end) = range.split_once('-').unwrap_or_default();
        let address = |text| usize::from_str_radix(text, 16).unwrap_or(0);
        (address(start)..address(end)).contains(&entry)
    });
    let line = line.expect("mapped");
    assert!(line.contains(" r-xp "), "{line}");
}

#[test]
fn logits_are_visited_once_each_by_any_worker() {
    let mut device = load(|_| ()).expect("loads");
    let kv = KvCache::new(&sample::manifest().plans[0].kv, 3);
    let logit_rows = &[1, 0][..];
    let step = StepInput {
        tokens: &[3, 5],
        positions: &[0, 1],
        slots: &[0, 0],
        logit_rows,
        follows: &[],
        kv: &kv,
    };
    device.run(4, &step).expect("runs");
    for rows in 0..=2 {
        let seen = std::sync::Mutex::new(Vec::new());
        let visit = |row, logits: &[f32]| seen.lock().expect("no panic").push((row, logits[0]));
        device.visit_logits(rows, &visit).expect("in memory");
        let mut seen = seen.into_inner().expect("no panic");
        seen.sort_by_key(|s| s.0);
        assert_eq!(seen, [(0, 5.0), (1, 3.0)][..rows]);
    }
}

#[test]
fn times_are_kept_while_asked_for() {
    let mut device = load(|_| ()).expect("loads");
    let kv = KvCache::new(&sample::manifest().plans[0].kv, 3);
    let step = StepInput {
        tokens: &[3],
        positions: &[0],
        slots: &[0],
        logit_rows: &[],
        follows: &[],
        kv: &kv,
    };
    let run = |device: &mut CpuDevice| {
        for program in [0, 1, 0] {
            device.run(program, &step).expect("runs");
        }
        device.take_timelines()
    };
    assert!(run(&mut device).is_empty());
    for _ in 0..3 {
        device.set_timing(true).expect("x86-64 has a clock");
        let timelines = run(&mut device);
        let programs: Vec<usize> = timelines.iter().map(|t| t.program).collect();
        assert_eq!(programs, [0, 1, 0]);
        for timeline in timelines {
            assert_eq!((timeline.workers.len(), timeline.lost), (2, 0));
            for worker in &timeline.workers {
                // The sample's trunk programs call symbol 0, the barrier, and nothing else.
                let symbols: Vec<u32> = worker.calls.iter().map(|c| c.0).collect();
                assert_eq!(symbols, [0]);
                assert!(worker.calls[0].1 <= worker.ran && timeline.seconds > 0.0);
            }
        }
        device.set_timing(false).expect("stops");
        assert!(run(&mut device).is_empty());
    }
}
