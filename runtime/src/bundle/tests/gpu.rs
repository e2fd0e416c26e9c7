//! GPU plans: what is let in, and what a hostile one is refused for.

use super::*;
use crate::device::cuda::GpuInfo;
use crate::device::metal::MetalInfo;
use crate::manifest::{CandidatePlan, GpuPlan, Grid, GridArg, PlannedFor};

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

/// A plan for an Apple GPU, as the compiler makes it for a preset.
fn for_apple(target: &str, gpu: &str, family: u32, cores: u32) -> TargetPlan {
    let mut plan = sample::gpu_manifest().plans.remove(0);
    plan.requires.target = target.into();
    plan.requires.arch = "metal".into();
    plan.requires.features = vec!["apple7".into()];
    plan.requires.planned_for = Some(PlannedFor {
        gpu: gpu.into(),
        family,
        cores,
        memory_bytes: 16 << 30,
    });
    plan
}

fn apple(name: &str, family: u32, cores: u32) -> MetalInfo {
    MetalInfo {
        name: name.into(),
        family,
        cores: Some(cores),
        memory_bytes: 16 << 30,
    }
}

fn nvidia(name: &str) -> GpuInfo {
    GpuInfo {
        name: name.into(),
        capability: (9, 0),
        memory_bytes: 141 << 30,
        sms: 132,
        cuda: 13000,
        driver: None,
    }
}

fn machine() -> Machine {
    Machine {
        gpus: Err("no NVIDIA driver".into()),
        metal: Err("this is not a Mac".into()),
        arch: std::env::consts::ARCH.into(),
        features: Vec::new(),
        memory_bytes: 1 << 30,
        cores: 1,
    }
}

/// Why each plan but the one that runs does not.
fn refusals(bundle: &Bundle, machine: &Machine) -> Vec<String> {
    let picked = bundle.pick_plan(machine).expect("a plan runs");
    let others = bundle.manifest().plans.iter();
    let others = others.filter(|plan| plan.requires != picked.requires);
    others
        .map(|plan| machine.refusal(&plan.requires, &picked.requires).join("; "))
        .collect()
}

#[test]
fn a_gpu_is_preferred_and_its_absence_is_one_reason() {
    let directory = directory();
    let path = directory.path().join("m.press");
    let mut manifest = sample::manifest();
    manifest.plans.push(sample::gpu_manifest().plans.remove(0));
    manifest
        .plans
        .push(for_apple("metal:m4-max", "Apple M4 Max", 9, 40));
    sample::write(&path, &manifest).expect("writes");
    let bundle = Bundle::open(&path).expect("opens");
    let apple = apple("Apple M3", 9, 10);
    let mut machine = Machine {
        gpus: Ok(vec![nvidia("NVIDIA H200")]),
        ..machine()
    };
    let target = |machine: &Machine| {
        let plan = bundle.pick_plan(machine);
        plan.map(|plan| plan.requires.target.clone())
            .map_err(|e| e.exit_code())
    };
    assert_eq!(target(&machine), Ok("h200".into()));
    assert_eq!(bundle.passed_over(&machine), [""; 0]);
    let why = refusals(&bundle, &machine);
    assert!(
        why[0].contains("cpu:scalar runs here too, but h200 runs on the GPU"),
        "{why:?}"
    );
    assert!(why[1].contains("metal:m4-max needs a Mac"), "{why:?}");
    machine.gpus = Err("no NVIDIA driver".into());
    assert_eq!(target(&machine), Ok("cpu:scalar".into()));
    let why = refusals(&bundle, &machine);
    assert_eq!(bundle.passed_over(&machine), why);
    assert!(
        why[0].contains("h200 needs an NVIDIA GPU: no NVIDIA driver"),
        "{why:?}"
    );
    assert!(why[1].contains("this is not a Mac"), "{why:?}");
    machine.metal = Ok(apple.clone());
    assert_eq!(target(&machine), Ok("metal:m4-max".into()));
    let why = refusals(&bundle, &machine);
    assert!(
        why[0].contains("but metal:m4-max runs on the GPU"),
        "{why:?}"
    );
    assert!(why[1].contains("h200 needs an NVIDIA GPU"), "{why:?}");
    machine.metal = Ok(MetalInfo { family: 6, ..apple });
    machine.arch = "other".into();
    assert_eq!(target(&machine), Err(4));
    let lines = bundle.mismatches(&machine);
    for why in [
        "no NVIDIA driver",
        "Apple M3, apple6",
        "this machine is other",
    ] {
        assert!(lines.iter().any(|line| line.contains(why)), "{lines:?}");
    }
    // Bundles without a GPU plan do not start the driver.
    sample::write(&path, &sample::manifest()).expect("writes");
    let cpu = Bundle::open(&path).expect("opens").machine();
    assert_eq!(cpu.gpus, Err("nobody looked for one".into()));
}

#[test]
fn of_several_plans_for_apple_the_nearest_runs() {
    let directory = directory();
    let path = directory.path().join("m.press");
    let mut manifest = sample::gpu_manifest();
    manifest.plans = vec![
        for_apple("metal:m1", "Apple M1", 7, 8),
        for_apple("metal:m3-max", "Apple M3 Max", 9, 40),
        for_apple("metal:m4-max", "Apple M4 Max", 9, 40),
        for_apple("metal:m4", "Apple M4", 9, 10),
        for_apple("metal:m5", "Apple M5", 10, 10),
    ];
    // What only the family of M5 has.
    manifest.plans[4].requires.features = vec!["apple10".into()];
    sample::write(&path, &manifest).expect("writes");
    let bundle = Bundle::open(&path).expect("opens");
    assert_eq!(*bundle.manifest(), manifest);
    let on = |gpu| Machine {
        metal: Ok(gpu),
        ..machine()
    };
    for (gpu, target) in [
        (apple("Apple M4 Max", 9, 40), "metal:m4-max"),
        (apple("Apple M4 Max", 9, 32), "metal:m4-max"),
        (apple("Apple M4", 9, 8), "metal:m4"),
        (apple("Apple M4 Pro", 9, 14), "metal:m4"),
        (apple("Apple M3 Ultra", 9, 80), "metal:m3-max"),
        (apple("Apple M2 Pro", 8, 19), "metal:m4"),
        (apple("Apple M1 Max", 7, 32), "metal:m1"),
        (apple("Apple M5 Max", 10, 40), "metal:m5"),
    ] {
        let name = gpu.name.clone();
        let picked = bundle.pick_plan(&on(gpu)).expect("all of them run one");
        assert_eq!(picked.requires.target, target, "{name}");
    }
    let why = refusals(&bundle, &on(apple("Apple M4 Max", 9, 40)));
    let closer = "target metal:m1 was planned for Apple M1, apple7, 8 cores; metal:m4-max is closer to Apple M4 Max, apple9, 40";
    assert!(why[0].starts_with(closer), "{why:?}");
    assert!(why[3].contains("metal:m5 needs apple10"), "{why:?}");
    // One that needs more memory than there is does not run, however near.
    manifest.plans[2].requires.memory_bytes = 20 << 30;
    sample::write(&path, &manifest).expect("writes");
    let bundle = Bundle::open(&path).expect("opens");
    let machine = on(apple("Apple M4 Max", 9, 40));
    let picked = bundle.pick_plan(&machine).expect("another runs");
    assert_eq!(picked.requires.target, "metal:m3-max");
    let why = refusals(&bundle, &machine);
    assert!(
        why[1].contains("uses with its weights 20.00 GiB"),
        "{why:?}"
    );
}

#[test]
fn of_several_plans_for_nvidia_the_gpus_own_runs() {
    let directory = directory();
    let path = directory.path().join("m.press");
    let mut manifest = sample::gpu_manifest();
    let plan = manifest.plans[0].clone();
    manifest.plans = ["h100", "h200", "sm_90a"]
        .map(|target| {
            let mut plan = plan.clone();
            plan.requires.target = target.into();
            plan
        })
        .to_vec();
    sample::write(&path, &manifest).expect("writes");
    let bundle = Bundle::open(&path).expect("opens");
    for (gpu, target) in [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA GH200 480GB", "h200"),
        ("Someone's GPU", "sm_90a"),
    ] {
        let machine = Machine {
            gpus: Ok(vec![nvidia(gpu)]),
            ..machine()
        };
        let picked = bundle.pick_plan(&machine).expect("all of them run one");
        assert_eq!(picked.requires.target, target, "{gpu}");
        let why = refusals(&bundle, &machine);
        let line = format!("but {target} was planned for this GPU");
        assert!(why.iter().all(|why| why.contains(&line)), "{why:?}");
    }
}
