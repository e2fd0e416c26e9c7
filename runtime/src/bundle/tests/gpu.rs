//! GPU plans: what is let in, and what a hostile one is refused for.

use super::*;
use crate::device::cuda::GpuInfo;
use crate::device::metal::MetalInfo;
use crate::manifest::{CandidatePlan, GpuPlan, Grid, GridArg};

#[test]
fn gpu_plans_out_of_bounds() {
    type Change = fn(&mut Manifest);
    fn gpu(m: &mut Manifest) -> &mut GpuPlan {
        m.plans[0].gpu.as_mut().expect("a GPU plan")
    }
    fn grid(m: &mut Manifest) -> &mut Grid {
        let launch = &mut m.plans[0].programs[3].launches[1];
        launch.grid.as_mut().expect("a grid")
    }
    fn candidates(count: u32, values_offset: u64) -> Option<CandidatePlan> {
        Some(CandidatePlan {
            count,
            ids_offset: 512,
            values_offset,
        })
    }
    let changes: &[(&str, Change)] = &[
        ("architecture", |m| m.plans[0].gpu = None),
        ("architecture", |m| {
            m.plans[0].requires.arch = "x86_64".into()
        }),
        ("step block", |m| gpu(m).step.max_rows = 3),
        ("step block", |m| gpu(m).step.max_rows = u32::MAX),
        ("step block", |m| gpu(m).step.slots = u32::MAX),
        ("step block", |m| gpu(m).step.pages_per_slot = 3),
        ("zeroed", |m| gpu(m).zeroed_bytes = 4097),
        ("candidates of a row", |m| {
            gpu(m).candidates = candidates(0, 0)
        }),
        ("candidates of 2", |m| {
            gpu(m).candidates = candidates(64, 3900)
        }),
        ("candidates of 2", |m| {
            gpu(m).candidates = candidates(64, u64::MAX);
        }),
        ("candidates of 2", |m| gpu(m).candidates = candidates(64, 2)),
        ("source section 1", |m| gpu(m).source_section = 1),
        ("source section 9", |m| gpu(m).source_section = 9),
        ("worker", |m| m.plans[0].symbols.push("barrier".into())),
        ("worker", |m| m.plans[0].workers = 2),
        ("entry", |m| m.plans[0].programs[0].entries.push(0)),
        ("kernels is 0", |m| gpu(m).kernels.clear()),
        ("symbol", |m| gpu(m).kernels[0].name = "a\0b".into()),
        ("symbol", |m| gpu(m).kernels[0].name.clear()),
        ("of code", |m| gpu(m).kernels[1].code = (0, 0)),
        ("of code", |m| gpu(m).kernels[1].code = (u64::MAX, 2)),
        ("of code", |m| gpu(m).kernels[1].code = (70, 90)),
        ("of source", |m| gpu(m).kernels[1].source = (11, 2)),
        ("threads", |m| gpu(m).kernels[2].threads = 0),
        ("threads", |m| gpu(m).kernels[2].threads = 1025),
        ("launches", |m| m.plans[0].programs[1].launches.clear()),
        ("no kernel", |m| {
            m.plans[0].programs[1].launches[0].grid = None;
        }),
        ("kernel is 3", |m| grid(m).kernel = 3),
        ("along y", |m| grid(m).grid = [1, 65536, 1]),
        ("along x", |m| grid(m).grid = [0, 1, 1]),
        ("shared", |m| grid(m).shared_bytes = u32::MAX),
        ("arguments", |m| grid(m).args = vec![GridArg::Const(0); 513]),
        ("argument 0", |m| grid(m).args[0] = GridArg::Step(u64::MAX)),
        ("argument 1", |m| grid(m).args[1] = GridArg::Arena(4096)),
        ("argument 2", |m| grid(m).args[2] = GridArg::Kv(1 << 44)),
        ("argument 4", |m| grid(m).args[4] = GridArg::Weights(100)),
        ("memory", |m| {
            m.plans[0].requires.memory_bytes = 4096 + 1536 + 99
        }),
    ];
    let directory = directory();
    let path = directory.path().join("hostile.press");
    sample::write(&path, &sample::gpu_manifest()).expect("writes");
    Bundle::open(&path).expect("opens");
    for (index, (what, change)) in changes.iter().enumerate() {
        let mut manifest = sample::gpu_manifest();
        change(&mut manifest);
        sample::write(&path, &manifest).expect("writes");
        match Bundle::open(&path) {
            Ok(_) => panic!("{index} {what}: opened"),
            Err(e) if e.to_string().contains(what) => {}
            Err(e) => panic!("{index} {what}: {e}"),
        }
    }
    let mut manifest = sample::manifest();
    manifest.plans[0].programs[0].launches =
        sample::gpu_manifest().plans[0].programs[0].launches.clone();
    sample::write(&path, &manifest).expect("writes");
    let error = Bundle::open(&path).expect_err("launches in a CPU plan");
    assert!(error.to_string().contains("without a GPU"), "{error}");
}

#[test]
fn a_gpu_is_preferred_and_its_absence_is_one_reason() {
    let directory = directory();
    let path = directory.path().join("m.press");
    let mut manifest = sample::manifest();
    manifest.plans.push(sample::gpu_manifest().plans.remove(0));
    let mut metal = sample::gpu_manifest().plans.remove(0);
    metal.requires.target = "metal:m4-max".into();
    metal.requires.arch = "metal".into();
    metal.requires.features = vec!["apple7".into()];
    manifest.plans.push(metal);
    sample::write(&path, &manifest).expect("writes");
    let bundle = Bundle::open(&path).expect("opens");
    let apple = MetalInfo {
        name: "Apple M3".into(),
        family: 9,
        cores: Some(10),
        memory_bytes: 16 << 30,
    };
    let gpu = GpuInfo {
        name: "NVIDIA H200".into(),
        capability: (9, 0),
        memory_bytes: 141 << 30,
        sms: 132,
        cuda: 13000,
        driver: None,
    };
    let mut machine = Machine {
        gpus: Ok(vec![gpu]),
        metal: Err("this is not a Mac".into()),
        arch: std::env::consts::ARCH.into(),
        features: Vec::new(),
        memory_bytes: 1 << 30,
        cores: 1,
    };
    let target = |machine: &Machine| {
        let plan = bundle.pick_plan(machine);
        plan.map(|plan| plan.requires.target.clone())
            .map_err(|e| e.exit_code())
    };
    assert_eq!(target(&machine), Ok("h200".into()));
    machine.gpus = Err("no NVIDIA driver".into());
    assert_eq!(target(&machine), Ok("cpu:scalar".into()));
    machine.metal = Ok(apple.clone());
    assert_eq!(target(&machine), Ok("metal:m4-max".into()));
    machine.metal = Ok(MetalInfo { family: 6, ..apple });
    machine.arch = "other".into();
    assert_eq!(target(&machine), Err(4));
    let lines = bundle.mismatches(&machine);
    for why in [
        "no NVIDIA driver",
        "Apple M3 is apple6",
        "this machine is other",
    ] {
        assert!(lines.iter().any(|line| line.contains(why)), "{lines:?}");
    }
    // Bundles without a GPU plan do not start the driver.
    sample::write(&path, &sample::manifest()).expect("writes");
    let cpu = Bundle::open(&path).expect("opens").machine();
    assert_eq!(cpu.gpus, Err("nobody looked for one".into()));
}
