//! A sound plan passes; every way of breaking it that is listed here is found.

use super::*;
use crate::graph::Value;
use crate::pass::tests::Tiny;
use crate::plan::tests::planned;
use coldpress_runtime::manifest::Stage;

const TINY: Tiny = Tiny {
    architecture: "qwen3",
    heads: 4,
    kv_heads: 2,
    layers: 2,
    // What it reads is gated by an inline loop, everything else by calls.
    float: "ffn_down.weight",
    ..Tiny::PLAIN
};

fn plan() -> Plan {
    planned(&TINY, 3, 8)
}

/// The largest trunk program.
fn trunk(plan: &mut Plan) -> &mut ProgramPlan {
    let last = plan
        .programs
        .iter()
        .rposition(|p| p.stage == Stage::Trunk)
        .expect("a trunk");
    &mut plan.programs[last]
}

fn launch<'p>(plan: &'p mut Plan, wanted: &str) -> &'p mut Launch {
    trunk(plan)
        .launches
        .iter_mut()
        .find(|l| l.kernel().contains(wanted))
        .expect("such a launch")
}

fn args<'p>(plan: &'p mut Plan, wanted: &str) -> &'p mut Vec<Arg> {
    match &mut launch(plan, wanted).work {
        Work::Call { args, .. }
        | Work::Recurrent { args, .. }
        | Work::Attention(Attention { args, .. }) => args,
        other => panic!("{other:?} has no arguments"),
    }
}

/// The first launch of attention whose kernel is called like this, and its accesses.
fn attention<'p>(plan: &'p mut Plan, wanted: &str) -> (&'p mut Attention, &'p mut Vec<Access>) {
    let launch = launch(plan, wanted);
    match &mut launch.work {
        Work::Attention(attention) => (attention, &mut launch.accesses),
        other => panic!("{other:?} is no attention"),
    }
}

/// The first matmul of the trunk that satisfies `wanted`, and its accesses.
fn matmul(plan: &mut Plan, wanted: impl Fn(&Matmul) -> bool) -> (&mut Matmul, &mut Vec<Access>) {
    trunk(plan)
        .launches
        .iter_mut()
        .find_map(|l| match &mut l.work {
            Work::Matmul(m) if wanted(m) => Some((m, &mut l.accesses)),
            _ => None,
        })
        .expect("such a matmul")
}

/// Moves whatever lies at `from` in the largest trunk program to `to`, everywhere it is named.
fn relocate(program: &mut ProgramPlan, from: usize, to: usize) {
    let moved = |offset: &mut usize| {
        if *offset == from {
            *offset = to;
        }
    };
    for launch in &mut program.launches {
        launch
            .accesses
            .iter_mut()
            .for_each(|a| moved(&mut a.offset));
        match &mut launch.work {
            Work::Call { args, .. }
            | Work::Recurrent { args, .. }
            | Work::Attention(Attention { args, .. }) => {
                for arg in args {
                    if let Arg::Arena(offset) | Arg::ArenaAt { offset, .. } = arg {
                        moved(offset);
                    }
                }
            }
            Work::Matmul(m) => {
                moved(&mut m.input.offset);
                for part in &mut m.parts {
                    moved(&mut part.output.offset);
                    if let Init::Rows(rows) = &mut part.init {
                        moved(&mut rows.offset);
                    }
                }
            }
            Work::Grid(_) | Work::Experts(_) => {}
            Work::Elementwise { inputs, output, .. } => {
                inputs.iter_mut().for_each(|b| moved(&mut b.offset));
                moved(&mut output.offset);
            }
        }
    }
}

fn offset_of(plan: &mut Plan, kernel: &str) -> usize {
    let writes = |a: &&Access| a.write && a.space == Space::Arena;
    launch(plan, kernel)
        .accesses
        .iter()
        .find(writes)
        .expect("a write")
        .offset
}

#[test]
fn every_corruption_is_found() {
    type Corrupt = fn(&mut Plan);
    let corruptions: &[(&str, Corrupt)] = &[
        ("writes over", |p| {
            let up = matmul(p, |m| m.parts.len() == 2).0.parts[1].output.offset;
            let gate = matmul(p, |m| m.parts.len() == 2).0.parts[0].output.offset;
            relocate(trunk(p), up, gate);
        }),
        ("nothing says", |p| {
            matmul(p, |_| true).0.parts[0].output.offset += 64;
        }),
        ("not part of the work", |p| {
            matmul(p, |m| matches!(m.parts[0].init, Init::Rows(_)))
                .0
                .parts[0]
                .init = Init::Zero;
        }),
        ("nothing says", |p| {
            matmul(p, |_| true).1.retain(|a| a.write);
        }),
        ("is not covered", |p| {
            matmul(p, |_| true).0.parts[0].stamps.remove(0);
        }),
        ("rows covered", |p| {
            matmul(p, |_| true).0.parts[0].stamps.pop();
        }),
        ("rows covered", |p| {
            let (m, _) = matmul(p, |_| true);
            let again = m.parts[0].stamps[0].rows;
            m.parts[0].stamps[0].rows = again + 1;
            m.parts[0].stamps.truncate(1);
        }),
        ("not a weight's", |p| {
            matmul(p, |_| true).0.parts[0].tiles -= 1
        }),
        ("not a weight's", |p| {
            matmul(p, |_| true).0.parts[0].weights += 64
        }),
        ("of 64 rows", |p| matmul(p, |_| true).0.rows -= 1),
        ("weight", |p| p.weights[1].offset -= 64),
        ("weight", |p| p.weight_bytes -= 1),
        ("leaves the arena", |p| p.arena_bytes -= 1),
        ("units", |p| match &mut launch(p, "rope_heads").work {
            Work::Call { units, .. } => *units += 1,
            other => panic!("{other:?}"),
        }),
        ("nothing says", |p| {
            for arg in args(p, "rmsnorm") {
                if let Arg::ArenaAt { stride, .. } = arg {
                    *stride += 64;
                }
            }
        }),
        ("nothing says", |p| {
            for arg in args(p, "rope_heads") {
                if let Arg::Arena(offset) = arg {
                    *offset += 64;
                }
            }
        }),
        ("is not passed", |p| {
            let other = p.kv.layers[1].offset;
            for arg in args(p, "attention") {
                if let Arg::Kv(offset) = arg {
                    *offset = other;
                }
            }
        }),
        ("no weight begins", |p| {
            for arg in args(p, "rmsnorm") {
                if let Arg::Weights(offset) = arg {
                    *offset += 4;
                }
            }
        }),
        ("is not part of the work", |p| {
            match &mut launch(p, "inline").work {
                Work::Elementwise { inputs, .. } => inputs[1] = inputs[0],
                other => panic!("{other:?}"),
            }
        }),
        ("rows", |p| match &mut launch(p, "inline").work {
            Work::Elementwise { rows, .. } => *rows -= 1,
            other => panic!("{other:?}"),
        }),
        ("instead of", |p| {
            let launches = &mut trunk(p).launches;
            let at = launches
                .iter()
                .position(|l| l.kernel().contains("rope_heads"))
                .expect("a rotation");
            launches.remove(at);
        }),
        ("never written", |p| {
            trunk(p).launches.remove(0);
        }),
        ("at its end", |p| {
            let rows = trunk(p).rows;
            let (end, stride) = (p.arena_bytes, p.hidden.stride);
            p.arena_bytes += rows * stride;
            relocate(trunk(p), 0, end);
        }),
        ("instead of", |p| {
            let wrong = Value {
                port: 9,
                ..p.hidden.value.expect("a value")
            };
            launch(p, "embed").accesses[0].value = Some(wrong);
        }),
        ("belongs to no value", |p| {
            launch(p, "embed").accesses[0].value = None
        }),
        ("at its end", |p| p.logits.offset += 64),
        ("hidden rows", |p| p.hidden.rows -= 1),
        ("no Trunk of 64 rows", |p| {
            let rows = trunk(p).rows;
            p.programs.retain(|q| q.rows != rows);
        }),
        ("no Head of 8 rows", |p| {
            p.programs.pop();
        }),
        ("never written", |p| p.hidden.offset += 64),
        ("has no room", |p| {
            attention(p, "attention").0.scratch = None
        }),
        ("is too small", |p| {
            let (a, accesses) = attention(p, "attention");
            let scratch = a.scratch.as_mut().expect("several workers");
            scratch.slots -= 1;
            for access in accesses.iter_mut() {
                if access.offset == scratch.buffer.offset {
                    access.rows -= 1;
                }
            }
        }),
        ("is too small", |p| p.limits.max_context *= 2),
        ("is too small", |p| {
            let (a, _) = attention(p, "combine");
            a.scratch.as_mut().expect("several workers").cell -= 64;
        }),
        ("nothing says", |p| {
            let (a, _) = attention(p, "combine");
            a.scratch.as_mut().expect("several workers").cells += 1;
        }),
        ("workers may write the same bytes", |p| {
            for access in attention(p, "combine").1 {
                access.split = Split::Whole;
            }
        }),
        ("workers may write the same bytes", |p| {
            for access in attention(p, "attention").1 {
                if let Split::Live { bytes, .. } = &mut access.split {
                    *bytes += access.width;
                }
            }
        }),
        ("do not know their share", |p| {
            args(p, "attention").retain(|a| *a != Arg::Worker);
        }),
        // Attention leaves rows that are not complete.
        ("instead of", |p| {
            let launches = &mut trunk(p).launches;
            let combines = |l: &Launch| l.kernel().contains("combine");
            let at = launches.iter().position(combines).expect("a combine");
            launches.remove(at);
        }),
        ("races with another worker", |p| {
            let combine = launch(p, "combine");
            assert!(std::mem::take(&mut combine.barrier));
        }),
        ("races with another worker", |p| {
            let launches = &mut trunk(p).launches;
            let combines = |l: &Launch| l.kernel().contains("combine");
            let at = launches.iter().position(combines).expect("a combine");
            assert!(std::mem::take(&mut launches[at + 1].barrier));
        }),
        ("passed twice", |p| {
            let to = offset_of(p, "combine");
            let q = offset_of(p, "rope_heads");
            relocate(trunk(p), q, to);
        }),
    ];
    check(&plan()).expect("the plan is sound");
    for (i, (expected, corrupt)) in corruptions.iter().enumerate() {
        let mut plan = plan();
        corrupt(&mut plan);
        let error = match check(&plan) {
            Err(e) => e.to_string(),
            Ok(()) => panic!("corruption {i} ({expected}) was not found"),
        };
        assert!(
            error.contains(expected),
            "corruption {i} ({expected}): {error}"
        );
    }
}

#[test]
fn every_barrier_of_a_wide_program_is_needed_and_its_loss_found() {
    // Numbers that divide neither rows nor heads, so that shares of rows and of heads never coincide.
    for workers in [3, 5, 7] {
        let sound = planned(&TINY, workers, 8);
        let count = trunk(&mut sound.clone()).launches.len();
        let mut barriers = 0;
        for i in 0..count {
            let mut plan = sound.clone();
            let launch = &mut trunk(&mut plan).launches[i];
            if !std::mem::take(&mut launch.barrier) {
                continue;
            }
            barriers += 1;
            let label = launch.label.clone();
            assert!(check(&plan).is_err(), "{workers} workers, {label}");
        }
        assert!(barriers >= 10, "{barriers} barriers");
    }
}

#[test]
fn a_value_needed_throughout_cannot_share_memory() {
    let mut plan = plan();
    let table = offset_of(&mut plan, "rope_table");
    let mut offsets: Vec<usize> = trunk(&mut plan)
        .launches
        .iter()
        .flat_map(|l| &l.accesses)
        .filter(|a| a.space == Space::Arena && a.offset != table)
        .map(|a| a.offset)
        .collect();
    offsets.sort_unstable();
    offsets.dedup();
    assert!(offsets.len() >= 4);
    for to in offsets {
        let mut moved = plan.clone();
        relocate(trunk(&mut moved), table, to);
        assert!(check(&moved).is_err(), "arena+{to}");
    }
}

#[test]
fn shares_must_follow_each_other() {
    assert!(shared([0..2, 2..2, 2..5].iter(), 5).is_ok());
    for wrong in [[0..2, 3..5], [0..3, 2..5], [0..2, 2..4], [1..2, 2..5]] {
        assert!(shared(wrong.iter(), 5).is_err(), "{wrong:?}");
    }
}

/// What the check says of a plan, and what is done to it.
type Harm = (&'static str, fn(&mut Plan));

#[test]
fn broken_mixtures_of_experts_are_found() {
    let tiny = Tiny {
        architecture: "gpt-oss",
        ..TINY
    };
    let sound = planned(&tiny, 3, 8);
    check(&sound).expect("a sound plan");
    fn experts(plan: &mut Plan) -> (&mut Experts, &mut Vec<Access>) {
        let launch = launch(plan, "expert_matmul");
        match &mut launch.work {
            Work::Experts(experts) => (experts, &mut launch.accesses),
            other => panic!("{other:?} has no experts"),
        }
    }
    let broken: &[Harm] = &[
        ("its tiles are not", |p| experts(p).0.experts -= 1),
        ("its tiles are not", |p| experts(p).0.parts[0].weights += 64),
        ("its biases are not", |p| {
            experts(p).0.parts[0].bias = Some(0);
        }),
        ("every expert of every row", |p| experts(p).0.used = 1),
        ("6 of 5 experts", |p| experts(p).0.used = 6),
        ("rows of 2 experts", |p| experts(p).0.rows -= 1),
        ("nothing says", |p| {
            experts(p).0.parts[1].output.offset += 64
        }),
        ("nothing says", |p| experts(p).0.routes.offset += 64),
        ("nothing says", |p| {
            for access in experts(p).1.iter_mut().filter(|a| a.write) {
                access.split = Split::Rows;
            }
        }),
    ];
    for (says, harm) in broken {
        let mut plan = sound.clone();
        harm(&mut plan);
        let found = check(&plan).expect_err(says).to_string();
        assert!(found.contains(says), "{found} instead of {says}");
    }
    for wanted in ["gather_experts", "expert_matmul", "expert_sum"] {
        let mut plan = sound.clone();
        launch(&mut plan, wanted).barrier = false;
        let found = check(&plan).expect_err(wanted).to_string();
        assert!(
            found.contains("races with another worker"),
            "{wanted}: {found}"
        );
    }
}

#[test]
fn broken_recurrent_layers_are_found() {
    let tiny = Tiny {
        architecture: "qwen35",
        ..TINY
    };
    let sound = planned(&tiny, 3, 8);
    check(&sound).expect("a sound plan");
    let broken: &[Harm] = &[
        ("do not know their share", |p| {
            args(p, "short_conv").retain(|a| *a != Arg::Workers);
        }),
        ("workers may write the same bytes", |p| {
            for access in &mut launch(p, "delta_rule").accesses {
                if access.space == Space::Arena {
                    access.split = Split::Whole;
                }
            }
        }),
        ("workers may write the same bytes", |p| {
            for access in &mut launch(p, "short_conv").accesses {
                if let Split::Live { per_row, .. } = &mut access.split {
                    *per_row += 1;
                }
            }
        }),
        ("keeps no state", |p| {
            let launch = launch(p, "delta_rule");
            launch.accesses.retain(|a| a.space == Space::Arena);
        }),
        ("keeps no state", |p| {
            for access in &mut launch(p, "short_conv").accesses {
                access.write &= access.space == Space::Arena;
            }
        }),
        ("no state 2", |p| {
            let accesses = &mut launch(p, "short_conv").accesses;
            accesses.last_mut().expect("some").space = Space::State(2);
        }),
        // The other layer's state.
        ("is not passed", |p| {
            let other = p.kv.states[1].offset;
            for arg in args(p, "short_conv") {
                if let Arg::Kv(offset) = arg {
                    *offset = other;
                }
            }
        }),
        ("nothing says", |p| {
            if let Some(Arg::Arena(offset)) = args(p, "delta_rule").first_mut() {
                *offset += 64;
            }
        }),
        ("meets the state of", |p| {
            let of_state = |a: &&Access| matches!(a.space, Space::State(_));
            let conv = launch(p, "short_conv").accesses.clone();
            let state = *conv.iter().find(of_state).expect("a state");
            let rule = launch(p, "delta_rule");
            rule.barrier = false;
            rule.accesses.insert(0, state);
            let offset = p.kv.states[0].offset;
            args(p, "delta_rule").push(Arg::Kv(offset));
        }),
    ];
    for (says, harm) in broken {
        let mut plan = sound.clone();
        harm(&mut plan);
        let found = check(&plan).expect_err(says).to_string();
        assert!(found.contains(says), "{found} instead of {says}");
    }
    for wanted in ["short_conv", "delta_rule"] {
        let mut plan = sound.clone();
        assert!(std::mem::take(&mut launch(&mut plan, wanted).barrier));
        let found = check(&plan).expect_err(wanted).to_string();
        assert!(
            found.contains("races with another worker"),
            "{wanted}: {found}"
        );
    }
}
