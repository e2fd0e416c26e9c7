//! On a GPU of host memory: what is uploaded, in which order things run, what addresses launches get, what is sent per
//! step, and that contradictions and failures are errors.

mod candidates;
mod fake;

use super::*;
use crate::bundle::sample;
use crate::kv_cache::KvCache;
use crate::manifest::{Grid, GridArg};
use fake::{APART, Asked, Fake, Log, fake};
use std::sync::Mutex;

const CODE: [u8; 64] = [0x90; 64];

fn load(change: impl FnOnce(&mut Manifest)) -> Result<(GpuDevice<Fake>, Log), Error> {
    let mut manifest = sample::gpu_manifest();
    change(&mut manifest);
    let sections = Sections {
        weights: &sample::WEIGHTS,
        code: &CODE,
        source: sample::SOURCE,
    };
    let (fake, log) = fake();
    GpuDevice::from_sections(&manifest, 0, sections, fake).map(|device| (device, log))
}

fn kv() -> KvCache {
    let mut kv = KvCache::new(&sample::gpu_manifest().plans[0].kv, 3);
    while let Some(slot) = kv.acquire_slot() {
        kv.ensure(slot, 64).expect("room");
    }
    kv
}

fn step(kv: &KvCache) -> StepInput<'_> {
    StepInput {
        tokens: &[3, 5, 7],
        positions: &[0, 1, 0],
        slots: &[0, 0, 1],
        logit_rows: &[],
        follows: &[],
        kv,
    }
}

fn taken(log: &Log) -> Vec<Asked> {
    std::mem::take(&mut log.lock().expect("not poisoned"))
}

#[test]
fn loading_allocates_uploads_zeroes_and_prepares() {
    let (device, log) = load(|_| ()).expect("loads");
    let step_bytes = sample::gpu_manifest().plans[0]
        .gpu
        .as_ref()
        .map(|g| g.step.bytes());
    let names = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
    let head = || Asked::Prepare(names(&["gather", "output"]));
    let trunk = || Asked::Prepare(names(&["token_embd"]));
    assert_eq!(
        taken(&log),
        [
            Asked::Allocate("weights".into(), 100),
            Asked::Allocate("activation arena".into(), 4096),
            Asked::Allocate("KV pool".into(), 1536),
            Asked::Allocate("step block".into(), step_bytes.expect("a GPU plan")),
            Asked::Write(APART, 100),
            Asked::Zero(2 * APART, 256),
            Asked::Zero(3 * APART, 1536),
            Asked::Load(names(&["embed", "gather", "head"])),
            trunk(),
            trunk(),
            trunk(),
            head(),
            head(),
            Asked::Synchronise,
        ]
    );
    let kernel = &device.accelerator.kernels[1];
    assert_eq!(
        (&kernel.1[..], &kernel.2[..]),
        (&CODE[16..24], &b"two "[..])
    );
    // The larger of its launches' shared memory.
    assert_eq!((kernel.3, kernel.4), (64, 512));
    let bound = &device.programs[4].recorded[1];
    assert_eq!(
        bound.args,
        [4 * APART, 2 * APART, 2 * APART + 512, 64, APART + 1]
    );
    assert_eq!((bound.grid, bound.threads), ([2, 1, 1], 128));
}

#[test]
fn a_step_computes_logits_that_are_read_when_asked_for() {
    let (mut device, log) = load(|_| ()).expect("loads");
    let kv = kv();
    for _ in 0..3 {
        device.run(2, &step(&kv)).expect("runs");
        let logit_rows = &[2, 1][..];
        let head = StepInput {
            logit_rows,
            ..step(&kv)
        };
        device.run(4, &head).expect("runs");
        device.finish().expect("runs");
        let reads = |log: &Log| {
            let all = taken(log).into_iter();
            all.filter(|a| matches!(a, Asked::Read(..))).count()
        };
        assert_eq!(reads(&log), 0);
        let row = |token: f32| [0, 1, 2, 3, 4, 5, 6, 7].map(|id| token + 7.0 * id as f32);
        assert_eq!(device.logits(1).expect("reads"), row(5.0));
        assert_eq!(device.logits(1).expect("reads"), row(5.0));
        assert_eq!(taken(&log), [Asked::Read(2 * APART + 576, 32)]);
        let seen = Mutex::new(Vec::new());
        let visit = |i, logits: &[f32]| seen.lock().expect("no panic").push((i, logits.to_vec()));
        device.visit_logits(2, &visit).expect("reads");
        let seen = seen.into_inner().expect("no panic");
        assert_eq!(seen, [(0, row(7.0).to_vec()), (1, row(5.0).to_vec())]);
        // Both rows in one piece, the stride between them included.
        assert_eq!(taken(&log), [Asked::Read(2 * APART + 512, 96)]);
        device
            .visit_logits(0, &|_, _| panic!("no row"))
            .expect("nothing");
    }
}

#[test]
fn only_what_changed_is_sent() {
    let (mut device, log) = load(|_| ()).expect("loads");
    let layout = sample::gpu_manifest().plans[0]
        .gpu
        .as_ref()
        .expect("a GPU plan")
        .step;
    let block = 4 * APART;
    let kv = kv();
    let writes = |log: &Log| -> Vec<Asked> {
        let all = taken(log).into_iter();
        all.filter(|a| matches!(a, Asked::Write(..))).collect()
    };
    writes(&log);
    device.run(2, &step(&kv)).expect("runs");
    assert_eq!(writes(&log), [Asked::Write(block, layout.bytes() as usize)]);
    device.run(2, &step(&kv)).expect("runs");
    assert_eq!(writes(&log), []);
    let tokens = &[3, 6, 7][..];
    device
        .run(
            2,
            &StepInput {
                tokens,
                ..step(&kv)
            },
        )
        .expect("runs");
    assert_eq!(writes(&log), [Asked::Write(block + layout.tokens() + 4, 4)]);
    // The head: live logits rows and their list, in one piece.
    let logit_rows = &[2][..];
    let head = StepInput {
        tokens,
        logit_rows,
        ..step(&kv)
    };
    device.run(3, &head).expect("runs");
    let end = layout.logit_rows() + 4;
    assert_eq!(writes(&log), [Asked::Write(block + 4, end as usize - 4)]);
    // The same step again: nothing, for neither.
    let trunk = StepInput {
        tokens,
        ..step(&kv)
    };
    device.run(2, &trunk).expect("runs");
    device.run(3, &head).expect("runs");
    assert_eq!(writes(&log), []);
    // Page 1 of slot 1 is sent when a row first looks at it.
    let positions = &[0, 1, 33][..];
    device
        .run(
            2,
            &StepInput {
                tokens,
                positions,
                ..step(&kv)
            },
        )
        .expect("runs");
    let table = layout.page_table(0) as usize + 4 * 2;
    let held = |device: &mut GpuDevice<Fake>| {
        let bytes = device.accelerator.bytes(block + table as u64, 8).to_vec();
        [bytes[0], bytes[4]].map(u32::from)
    };
    assert_eq!(held(&mut device), kv.page_table()[2..4]);
    assert_eq!(writes(&log).len(), 1);
}

#[test]
fn distant_changes_are_sent_apart() {
    let layout = coldpress_kernels::gpu::abi::StepLayout {
        max_rows: 4096,
        slots: 1,
        pages_per_slot: 1,
        tables: 1,
    };
    let mut block = StepBlock::new(layout, &[]).expect("possible");
    let mut sent = Vec::new();
    let send = |block: &mut StepBlock, sent: &mut Vec<(u64, usize)>| {
        block.send(|offset, bytes| {
            sent.push((offset, bytes.len()));
            Ok(())
        })
    };
    send(&mut block, &mut sent).expect("sends");
    assert_eq!(sent, [(0, layout.bytes() as usize)]);
    sent.clear();
    let plan = crate::manifest::KvPlan {
        pages_per_slot: 1,
        ..sample::gpu_manifest().plans[0].kv.clone()
    };
    let kv = KvCache::new(&plan, 1);
    let step = StepInput {
        tokens: &[9],
        positions: &[4],
        slots: &[0],
        logit_rows: &[],
        follows: &[],
        kv: &kv,
    };
    block.fill(&step, 32).expect("fits");
    send(&mut block, &mut sent).expect("sends");
    // Live rows and the token are neighbours; positions are 16 KiB away.
    assert_eq!(sent, [(0, 20), (layout.positions(), 4)]);
    let outside = StepInput {
        positions: &[32],
        ..step
    };
    assert!(block.fill(&outside, 32).is_err());
}

#[test]
fn refuses_steps_outside_the_plan() {
    let (mut device, log) = load(|_| ()).expect("loads");
    let kv = kv();
    let good = step(&kv);
    taken(&log);
    let bad = [
        (99, good),
        (1, good),
        (4, good),
        (
            2,
            StepInput {
                tokens: &[3, 5, sample::VOCAB],
                ..good
            },
        ),
        (
            2,
            StepInput {
                positions: &[0, 64, 0],
                ..good
            },
        ),
        (
            2,
            StepInput {
                slots: &[0, 3, 0],
                ..good
            },
        ),
        (
            4,
            StepInput {
                logit_rows: &[3],
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
    ];
    for (index, (program, step)) in bad.into_iter().enumerate() {
        assert!(device.run(program, &step).is_err(), "{index}");
    }
    assert_eq!(taken(&log), []);
    device.run(2, &good).expect("runs");
}

#[test]
fn contradictions_are_errors_that_say_where() {
    type Change = fn(&mut Manifest);
    fn grid(m: &mut Manifest) -> &mut Grid {
        let launch = &mut m.plans[0].programs[4].launches[1];
        launch.grid.as_mut().expect("a grid")
    }
    fn gpu(m: &mut Manifest) -> &mut GpuPlan {
        m.plans[0].gpu.as_mut().expect("a GPU plan")
    }
    let changes: &[(&str, Change)] = &[
        ("for no GPU", |m| m.plans[0].gpu = None),
        ("no plan", |m| m.plans.clear()),
        ("no kernel 3", |m| grid(m).kernel = 3),
        ("nothing", |m| grid(m).grid[1] = 0),
        ("argument 1", |m| grid(m).args[1] = GridArg::Arena(4096)),
        ("argument 2", |m| {
            grid(m).args[2] = GridArg::Weights(u64::MAX)
        }),
        ("KV pool", |m| grid(m).args[2] = GridArg::Kv(1536)),
        ("step block", |m| grid(m).args[2] = GridArg::Step(1 << 40)),
        ("names no kernel", |m| {
            m.plans[0].programs[0].launches[0].grid = None
        }),
        ("code", |m| gpu(m).kernels[2].code = (60, 5)),
        ("source", |m| gpu(m).kernels[2].source = (u64::MAX, 2)),
        ("contradicts", |m| gpu(m).zeroed_bytes = 4097),
        ("step block", |m| gpu(m).step.pages_per_slot = u32::MAX),
        ("logits", |m| m.plans[0].logits_offset = 4032),
        ("logits", |m| m.plans[0].logits_stride = 0),
        ("KV pool", |m| m.plans[0].kv.bytes = 1 << 30),
    ];
    for (index, (what, change)) in changes.iter().enumerate() {
        let error = load(change)
            .err()
            .unwrap_or_else(|| panic!("{index} {what}"));
        assert!(error.to_string().contains(what), "{index} {what}: {error}");
    }
}

#[test]
fn after_a_failure_memory_is_made_known_again() {
    let (mut device, log) = load(|_| ()).expect("loads");
    let kv = kv();
    device.run(2, &step(&kv)).expect("runs");
    // The second launch of the head fails: the first has left sums that are not zero.
    *device.accelerator.lives.lock().expect("not poisoned") = Some(1);
    let logit_rows = &[1][..];
    let head = StepInput {
        logit_rows,
        ..step(&kv)
    };
    let error = device.run(3, &head).expect_err("fails");
    assert!(error.to_string().contains("output"), "{error}");
    taken(&log);
    device.run(2, &step(&kv)).expect("runs");
    let asked = taken(&log);
    assert_eq!(asked[0], Asked::Zero(2 * APART, 256));
    assert!(matches!(asked[1], Asked::Write(at, bytes) if at == 4 * APART && bytes > 64));
    device.run(3, &head).expect("runs");
    assert_eq!(device.logits(0).expect("reads")[0], 5.0);
}

#[test]
fn times_are_those_of_the_launches() {
    let (mut device, _) = load(|_| ()).expect("loads");
    let kv = kv();
    let head = StepInput {
        logit_rows: &[0],
        ..step(&kv)
    };
    device.run(2, &step(&kv)).expect("runs");
    assert!(device.take_timelines().is_empty());
    device.set_timing(true).expect("can");
    device.run(2, &step(&kv)).expect("runs");
    device.run(3, &head).expect("runs");
    let timelines = device.take_timelines();
    let calls = |i: usize| timelines[i].workers[0].calls.clone();
    assert_eq!((timelines[0].program, calls(0)), (2, vec![(0, 1.0)]));
    assert_eq!(calls(1), [(1, 1.0), (2, 2.0)]);
    assert_eq!(
        (timelines[1].seconds, timelines[1].workers[0].ran),
        (3.0, 3.0)
    );
    assert_eq!(device.logits(0).expect("reads")[0], 3.0);
}

#[test]
fn a_bundle_is_loaded_from_its_sections() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("m.press");
    sample::write(&path, &sample::gpu_manifest()).expect("writes");
    let bundle = Bundle::open(&path).expect("opens");
    let device = GpuDevice::new(&bundle, 0, fake().0).expect("loads");
    assert_eq!(device.accelerator.kernels[2].2, b"tri ");
    assert_eq!(device.accelerator.memory[0], sample::WEIGHTS);
}

#[test]
fn weights_stay_where_they_are_mapped_if_kernels_read_the_hosts_memory() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("m.press");
    sample::write(&path, &sample::gpu_manifest()).expect("writes");
    let bundle = Arc::new(Bundle::open(&path).expect("opens"));
    let is_weights = |asked: &Asked| match asked {
        Asked::Allocate(what, _) | Asked::Map(what, _) => what == "weights",
        Asked::Write(at, _) => *at < 2 * APART,
        _ => false,
    };
    let weights = |maps| {
        let (mut fake, log) = fake();
        fake.maps = maps;
        let mut device = GpuDevice::in_place(&bundle, 0, fake).expect("loads");
        let asked: Vec<_> = taken(&log).into_iter().filter(is_weights).collect();
        let kv = kv();
        device.run(2, &step(&kv)).expect("runs");
        let logit_rows = &[1][..];
        let head = StepInput {
            logit_rows,
            ..step(&kv)
        };
        device.run(3, &head).expect("runs");
        // Token 5, and a weight of 7 per id.
        assert_eq!(device.logits(0).expect("reads")[..2], [5.0, 12.0]);
        asked
    };
    assert_eq!(weights(true), [Asked::Map("weights".into(), 100)]);
    let copied = [
        Asked::Allocate("weights".into(), 100),
        Asked::Write(APART, 100),
    ];
    assert_eq!(weights(false), copied);
}
