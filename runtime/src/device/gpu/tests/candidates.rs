//! The largest logits of each row: brought over once per step, in the sampler's order, and never more than there are.

use super::*;
use crate::device::GIVEN;
use crate::manifest::CandidatePlan;

fn with_candidates(count: u32, values_offset: u64) -> (GpuDevice<Fake>, Log) {
    let (device, log) = load(|manifest| {
        let plan = &mut manifest.plans[0];
        plan.arena_bytes = 1 << 19;
        for program in &mut plan.programs {
            if let [_, head] = &mut program.launches[..] {
                let args = &mut head.grid.as_mut().expect("a grid").args;
                let (ids, values) = (GridArg::Arena(1024), GridArg::Arena(values_offset));
                args.extend([ids, values, GridArg::Const(count.into())]);
            }
        }
        plan.gpu.as_mut().expect("a GPU plan").candidates = Some(CandidatePlan {
            count,
            ids_offset: 1024,
            values_offset,
        });
    })
    .expect("loads");
    (device, log)
}

fn run(device: &mut GpuDevice<Fake>) {
    let kv = kv();
    device.run(2, &step(&kv)).expect("runs");
    let logit_rows = &[2, 1][..];
    let head = StepInput {
        logit_rows,
        ..step(&kv)
    };
    device.run(4, &head).expect("runs");
    device.finish().expect("runs");
}

#[test]
fn they_come_with_the_end_of_a_step_and_without_the_logits() {
    for (values_offset, reads) in [(1152, 1), (800, 1), (400_000, 2)] {
        let (mut device, log) = with_candidates(3, values_offset);
        for _ in 0..2 {
            taken(&log);
            run(&mut device);
            let read = |asked: &&Asked| matches!(asked, Asked::Read(..));
            assert_eq!(taken(&log).iter().filter(read).count(), reads);
            let row = |device: &mut GpuDevice<Fake>, row| {
                let found = device.candidates(row).expect("reads").expect("planned");
                (found.ids.to_vec(), found.logits.to_vec(), found.all)
            };
            let largest = |token: f32| vec![token + 49.0, token + 42.0, token + 35.0];
            assert_eq!(row(&mut device, 0), (vec![7, 6, 5], largest(7.0), false));
            assert_eq!(row(&mut device, 1), (vec![7, 6, 5], largest(5.0), false));
            assert_eq!(taken(&log), []);
        }
    }
}

#[test]
fn they_can_be_on_their_way_while_the_next_step_runs() {
    let (mut device, log) = with_candidates(3, 1152);
    assert!(device.feeds_back());
    let kv = kv();
    let head = |logit_rows| StepInput {
        logit_rows,
        ..step(&kv)
    };
    device.run(2, &step(&kv)).expect("runs");
    device.run(4, &head(&[2, 1])).expect("runs");
    device.queue_candidates().expect("queues");
    let follows = StepInput {
        follows: &[1, GIVEN, 0],
        ..step(&kv)
    };
    device.run(2, &follows).expect("runs");
    let layout = sample::gpu_manifest().plans[0]
        .gpu
        .as_ref()
        .expect("a GPU plan")
        .step;
    let at = device.accelerator.address(&device.buffers.step) + layout.follows();
    let held = device.accelerator.bytes(at, 12).to_vec();
    let words = held
        .as_chunks::<4>()
        .0
        .iter()
        .map(|w| u32::from_le_bytes(*w));
    assert!(words.eq([1, GIVEN, 0]));
    device.run(4, &head(&[0])).expect("runs");
    device.queue_candidates().expect("queues");
    taken(&log);
    let first = |device: &mut GpuDevice<Fake>, row| {
        let found = device.candidates(row).expect("there").expect("planned");
        found.logits[0]
    };
    device.collect().expect("arrives");
    assert_eq!((first(&mut device, 0), first(&mut device, 1)), (56.0, 54.0));
    device.collect().expect("arrives");
    assert_eq!(first(&mut device, 0), 52.0);
    assert_eq!(taken(&log), [Asked::Arrived, Asked::Arrived]);
    assert!(device.collect().is_err());
    // The last head program had one row.
    let bad = StepInput {
        follows: &[1, GIVEN, GIVEN],
        ..step(&kv)
    };
    assert!(device.run(2, &bad).is_err());
    let short = StepInput {
        follows: &[0],
        ..step(&kv)
    };
    assert!(device.run(2, &short).is_err());
}

#[test]
fn a_step_reaches_the_device_in_one_piece() {
    // Ids and values that are read apart are still behind both programs.
    let (mut device, log) = with_candidates(3, 400_000);
    let kv = kv();
    taken(&log);
    device.run(2, &step(&kv)).expect("runs");
    let logit_rows = &[2, 1][..];
    let head = StepInput {
        logit_rows,
        ..step(&kv)
    };
    device.run(4, &head).expect("runs");
    assert!(!taken(&log).contains(&Asked::Submit));
    device.queue_candidates().expect("queues");
    let asked = taken(&log);
    assert!(matches!(
        asked[..],
        [Asked::ReadLater(..), Asked::ReadLater(..), Asked::Submit]
    ));
    // A step that leaves nothing to read begins all the same.
    device.run(2, &step(&kv)).expect("runs");
    device.submit().expect("begins");
    assert_eq!(taken(&log).last(), Some(&Asked::Submit));
}

#[test]
fn a_row_has_no_more_than_its_vocabulary() {
    let (mut device, _) = with_candidates(10, 1152);
    run(&mut device);
    let found = device.candidates(0).expect("reads").expect("planned");
    assert_eq!((found.ids.len(), found.all), (sample::VOCAB as usize, true));
}

#[test]
fn plans_without_them_have_none() {
    let (mut device, _) = load(|_| ()).expect("loads");
    run(&mut device);
    assert_eq!(device.candidates(0).expect("nothing to read"), None);
    let outside = load(|manifest| {
        let gpu = manifest.plans[0].gpu.as_mut().expect("a GPU plan");
        gpu.candidates = Some(CandidatePlan {
            count: 64,
            ids_offset: u64::MAX,
            values_offset: 0,
        });
    });
    let error = outside.err().expect("outside");
    assert!(error.to_string().contains("candidates"), "{error}");
}
