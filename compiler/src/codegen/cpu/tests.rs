//! Runs generated code here: every element-wise loop against plain f32 arithmetic, for every number of workers.

use super::generate;
use crate::graph::Activation;
use crate::plan::{Access, Buffer, Elementwise, Launch, Plan, ProgramPlan, Space, Split, Work};
use crate::target::{PRESETS, TargetProfile};
use coldpress_kernels::cpu::abi::{KvType, WorkerContext};
use coldpress_runtime::manifest::{KvPlan, Limits, Stage};

const NOTHING: Access = Access {
    space: Space::Arena,
    value: None,
    offset: 0,
    stride: 0,
    rows: 0,
    width: 0,
    write: false,
    split: Split::Whole,
};

fn plan(target: TargetProfile, workers: usize, work: Work) -> Plan {
    let launch = Launch {
        label: "test".into(),
        work,
        barrier: false,
        accesses: vec![],
        reason: String::new(),
        bytes: 0,
        macs: 0,
        seconds: 0.0,
    };
    Plan {
        target: target.into(),
        reserved_bytes: 0,
        zeroed_bytes: 0,
        candidates: None,
        workers,
        limits: Limits {
            max_batch: 1,
            max_context: 1,
            max_rows: 1,
        },
        weights: vec![],
        weight_bytes: 0,
        arena_bytes: 0,
        hidden: NOTHING,
        logits: NOTHING,
        kv: KvPlan {
            kv_type: KvType::F16,
            page_tokens: 32,
            pages: 1,
            pages_per_slot: 1,
            windows: Vec::new(),
            bytes: 0,
            layers: vec![],
            states: vec![],
        },
        programs: vec![ProgramPlan {
            stage: Stage::Trunk,
            rows: 3,
            launches: vec![launch],
        }],
    }
}

/// Runs all workers of program 0 one after the other on `arena`.
fn run(plan: &Plan, arena: &mut [f32]) {
    let code = generate(plan, plan.target.cpu().expect("a CPU"), || ()).expect("generates");
    assert!(code.symbols.is_empty(), "element-wise work calls nothing");
    let mut map = memmap2::MmapMut::map_anon(code.bytes.len()).expect("memory");
    map.copy_from_slice(&code.bytes);
    let map = map.make_exec().expect("executable");
    let context = WorkerContext {
        arena: arena.as_mut_ptr().cast(),
        weights: std::ptr::null(),
        kv: std::ptr::null_mut(),
        step: std::ptr::null(),
        symbols: std::ptr::null(),
        barrier: std::ptr::null(),
    };
    for &entry in &code.entries[0] {
        // SAFETY: the code was generated for this signature and touches only `arena`, which holds every buffer.
        unsafe {
            let f: extern "C" fn(*const WorkerContext) =
                std::mem::transmute(map.as_ptr().add(entry as usize));
            f(&context);
        }
    }
}

fn expected(op: Elementwise, a: f32, b: f32) -> f64 {
    let (a, b) = (f64::from(a), f64::from(b));
    let activate = |act: Activation, x: f64| match act {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Activation::ClampedSwish => {
            let x = x.min(7.0);
            x / (1.0 + (-1.702 * x).exp())
        }
        Activation::GeluTanh => {
            0.5 * x
                * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
        }
    };
    match op {
        Elementwise::Add => a + b,
        Elementwise::Mul => a * b,
        Elementwise::Act(act) => activate(act, a),
        Elementwise::GatedAct(act @ Activation::ClampedSwish) => {
            activate(act, a) * (b.clamp(-7.0, 7.0) + 1.0)
        }
        Elementwise::GatedAct(act) => activate(act, a) * b,
        Elementwise::Scale(f) => a * f64::from(f),
        Elementwise::Softcap(c) => f64::from(c) * (a / f64::from(c)).tanh(),
    }
}

#[test]
fn every_elementwise_loop_matches_plain_arithmetic() {
    let ops = [
        Elementwise::Add,
        Elementwise::Mul,
        Elementwise::Act(Activation::Silu),
        Elementwise::Act(Activation::GeluTanh),
        Elementwise::Act(Activation::Sigmoid),
        Elementwise::GatedAct(Activation::Silu),
        Elementwise::GatedAct(Activation::Sigmoid),
        Elementwise::GatedAct(Activation::ClampedSwish),
        Elementwise::Scale(-2.5),
        Elementwise::Softcap(30.0),
    ];
    let (rows, width, stride) = (3usize, 37usize, 48usize);
    for target in PRESETS {
        let target = TargetProfile::parse(target.name).expect("preset");
        if target.arch != std::env::consts::ARCH || !target.isas[0].available() {
            eprintln!("skipped: {} does not run here", target.name);
            continue;
        }
        for op in ops {
            let buffer = |i: usize| Buffer {
                offset: i * rows * stride * 4,
                stride: stride * 4,
            };
            let inputs: Vec<Buffer> = (0..op.arity()).map(buffer).collect();
            for (workers, output) in [(1, buffer(2)), (2, buffer(2)), (4, buffer(0))] {
                let work = Work::Elementwise {
                    op,
                    inputs: inputs.clone(),
                    output,
                    width,
                    rows,
                };
                // Small values, large ones and both signs; 89 covers arguments where exp would overflow.
                let mut arena: Vec<f32> = (0..3 * rows * stride)
                    .map(|i| ((i * 7919) % 1783) as f32 / 10.0 - 89.0)
                    .collect();
                let before = arena.clone();
                run(&plan(target.clone(), workers, work), &mut arena);
                for r in 0..rows {
                    for i in 0..width {
                        let at = |b: Buffer| b.offset / 4 + r * stride + i;
                        let (a, b) = (before[at(buffer(0))], before[at(buffer(1))]);
                        let (got, want) = (f64::from(arena[at(output)]), expected(op, a, b));
                        let tolerance =
                            3e-6 * want.abs().max(1e-3) + 2e-6 * (b.abs() as f64).min(1.0);
                        assert!(
                            (got - want).abs() <= tolerance,
                            "{} {op:?} of {a}, {b}: {got}, expected {want}",
                            target.name
                        );
                    }
                }
            }
        }
    }
}
