//! Whole plans: every small model at every bucket and number of workers verifies, sizes are what they should be, options
//! out of range are refused at once. `shapes` plans real and extreme shapes and looks at the predicted curve.

mod shapes;

use super::*;
use crate::graph::{Op, OpGraph, Source, Weight};
use crate::model::{ARCHITECTURES, Architecture};
use crate::pass;
use crate::pass::tests::{Random, Tiny};
use coldpress_kernels::cpu::abi::{KvType, PAGE_TOKENS};
use coldpress_kernels::tensor_type::TensorType;

pub(crate) fn options(workers: usize, max_batch: usize) -> Options {
    Options {
        max_batch,
        max_context: 600,
        kv_type: KvType::F16,
        workers,
    }
}

/// A small model after all passes.
fn fused(tiny: &Tiny) -> OpGraph {
    let mut graph = tiny.graph();
    pass::run_all(&mut graph, None).expect("passes");
    graph
}

/// The plan of a small model for the reference target.
pub(crate) fn planned(tiny: &Tiny, workers: usize, max_batch: usize) -> Plan {
    let target = Target::parse("cpu:avx2").expect("a preset");
    build(&fused(tiny), &target, options(workers, max_batch)).expect("plans")
}

#[test]
fn every_small_model_verifies() {
    for Architecture { name, .. } in ARCHITECTURES {
        let architecture = *name;
        for (ty, float) in [
            (TensorType::F32, "none"),
            (TensorType::Q8_0, "none"),
            (TensorType::Q8_0, "attn_v.weight"),
            (TensorType::Q8_0, "ffn_down.weight"),
        ] {
            for (heads, kv_heads) in [(1, 1), (4, 2), (8, 1)] {
                let tiny = Tiny {
                    architecture,
                    heads,
                    kv_heads,
                    layers: 2,
                    ty,
                    float,
                    biases: architecture == "llama",
                };
                let graph = fused(&tiny);
                for target in crate::target::PRESETS {
                    let target = Target::parse(target.name).expect("a preset");
                    for workers in [1, 2, 3, 5] {
                        for max_batch in [1, 7] {
                            let plan = build(&graph, &target, options(workers, max_batch));
                            if let Err(e) = plan {
                                panic!(
                                    "{architecture} {ty} {float} {heads}/{kv_heads}, {workers} workers, batch {max_batch}: {e}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn unfused_graphs_plan_too() {
    for architecture in ["llama", "qwen3"] {
        let tiny = Tiny {
            architecture,
            heads: 4,
            kv_heads: 2,
            layers: 2,
            ty: TensorType::F32,
            ..Tiny::PLAIN
        };
        for workers in [1, 3] {
            build(&tiny.graph(), &Target::native(), options(workers, 4)).expect("plans");
        }
    }
}

/// Random element-wise work between an embedding and logits, with random reuse of earlier values.
fn random_graph(random: &mut Random) -> OpGraph {
    let mut graph = OpGraph::default();
    let width = 32;
    let weight = graph.add_weight(Weight {
        name: "token_embd.weight".into(),
        ty: TensorType::F32,
        n: 8,
        k: width,
        source: Source::Gguf,
    });
    let mut below = |n: usize| ((random.next() + 1.0) / 2.0 * n as f32) as usize % n;
    let add = |graph: &mut OpGraph, op: Op, inputs: &[Value]| {
        let label = format!("n{}", graph.nodes.node_count());
        graph.add_one(op, label, inputs).expect("fits")
    };
    let mut last = add(&mut graph, Op::Embed { weight, scale: 1.0 }, &[]);
    for head in [false, true] {
        if head {
            last = add(&mut graph, Op::SelectRows, &[last]);
        }
        let mut values = vec![last];
        for _ in 0..2 + below(12) {
            let (a, b) = (values[below(values.len())], values[below(values.len())]);
            last = match below(4) {
                0 => add(&mut graph, Op::Add, &[a, b]),
                1 => add(&mut graph, Op::Mul, &[a, b]),
                2 => add(&mut graph, Op::Scale(0.5), &[a]),
                _ => add(&mut graph, Op::Act(Activation::Silu), &[a]),
            };
            values.push(last);
        }
    }
    graph.add(Op::Logits, "logits", &[last]).expect("fits");
    graph.remove_dead();
    graph
}

#[test]
fn random_lifetimes_verify() {
    let mut random = Random(11);
    for round in 0..60 {
        let graph = random_graph(&mut random);
        for workers in [1, 2, 3, 5] {
            if let Err(e) = build(&graph, &Target::native(), options(workers, 3)) {
                panic!(
                    "round {round}, {workers} workers: {e}\n{}",
                    crate::graph::dump::dump(&graph)
                );
            }
        }
    }
}

#[test]
fn tile_shares_cover_everything() {
    let part = |tiles: usize, tile_bytes: usize| MatmulPart {
        label: String::new(),
        weights: 0,
        tile_bytes,
        tiles,
        init: Init::Zero,
        output: Buffer {
            offset: 0,
            stride: 0,
        },
        stamps: vec![],
    };
    for tiles in [[1, 1, 1], [1, 7, 2], [9496, 1, 3], [128, 64, 64]] {
        for sizes in [[64, 64, 64], [17408, 64, 1088]] {
            let matmul = Matmul {
                input: Buffer {
                    offset: 0,
                    stride: 0,
                },
                k: 32,
                rows: 1,
                parts: tiles.iter().zip(sizes).map(|(&t, b)| part(t, b)).collect(),
            };
            let total: usize = matmul.parts.iter().map(|p| p.tiles * p.tile_bytes).sum();
            let largest = *sizes.iter().max().expect("sizes");
            for workers in [1, 2, 3, 5, 7, 64, 256] {
                let mut next = [0; 3];
                for w in 0..workers {
                    let mut bytes = 0;
                    for (i, range) in matmul.tile_shares(workers, w).into_iter().enumerate() {
                        assert!(range.start == next[i] || range.is_empty());
                        next[i] = next[i].max(range.end);
                        bytes += range.len() * sizes[i];
                    }
                    assert!(bytes <= total / workers + 2 * largest, "balanced");
                }
                assert_eq!(next, tiles, "{workers} workers");
            }
        }
    }
}

#[test]
fn kv_pool_holds_every_slot_at_full_context() {
    let tiny = Tiny {
        architecture: "qwen3",
        heads: 4,
        kv_heads: 2,
        layers: 3,
        ..Tiny::PLAIN
    };
    let graph = fused(&tiny);
    for (kv_type, max_context, max_batch) in [
        (KvType::F16, 1, 1),
        (KvType::F32, 32, 3),
        (KvType::Q8_0, 33, 8),
        (KvType::F16, 100, 5),
    ] {
        let sized = Options {
            kv_type,
            max_context,
            ..options(2, max_batch)
        };
        let plan = build(&graph, &Target::native(), sized).expect("plans");
        let slots = max_context.div_ceil(PAGE_TOKENS);
        assert_eq!(plan.kv.pages_per_slot as usize, slots);
        assert_eq!(plan.kv.pages as usize, slots * max_batch);
        let page = kv_type.page_bytes(2, 8) as u64;
        let pages = u64::from(plan.kv.pages);
        assert_eq!(plan.kv.bytes, 3 * page * pages);
        for (i, layer) in plan.kv.layers.iter().enumerate() {
            let expected = (page, i as u64 * page * pages);
            assert_eq!((layer.page_bytes, layer.offset), expected);
        }
    }
}

#[test]
fn windows_bound_the_pool() {
    let tiny = Tiny {
        layers: 4,
        ..Tiny::PLAIN
    };
    let mut graph = fused(&tiny);
    for (layer, window) in [(0, 40), (1, 40), (3, 4000)] {
        graph.kv[layer].window = Some(window);
    }
    let (max_context, max_batch) = (4096, 3);
    let sized = Options {
        max_context,
        ..options(2, max_batch)
    };
    for name in ["cpu:avx2", "h200"] {
        let target = Target::parse(name).expect("a preset");
        let plan = build(&graph, &target, sized).expect("plans");
        // A window near the context's length needs as many pages as no window.
        let [window] = plan.kv.windows[..] else {
            panic!("{:?}", plan.kv.windows);
        };
        assert_eq!(window.tokens, 40);
        // Whatever the first position, the window of the first row and the step's other rows lie in the ring.
        let rows = plan.limits.max_rows as usize;
        let touched =
            |first: usize| (first + 40 + rows - 2) / PAGE_TOKENS - first / PAGE_TOKENS + 1;
        let most = (0..PAGE_TOKENS).map(touched).max();
        assert_eq!(Some(window.ring as usize), most);
        let tables: Vec<u32> = plan.kv.layers.iter().map(|l| l.table).collect();
        assert_eq!(tables, [1, 1, 0, 0]);
        let page = plan.kv.layers[0].page_bytes;
        let pages = 2 * u64::from(window.ring) * 3 + 2 * 3 * 128;
        assert_eq!(plan.kv.bytes, page * pages);
        assert_eq!(plan.memory().kv_windows, 2 * page * u64::from(window.ring));
        let short = Options {
            max_context: 64,
            ..sized
        };
        let plan = build(&graph, &target, short).expect("plans");
        assert!(plan.kv.windows.is_empty() && plan.memory().kv_windows == 0);
    }
}

#[test]
fn every_slot_has_its_states_behind_the_pages() {
    let tiny = Tiny {
        architecture: "qwen35",
        heads: 4,
        kv_heads: 2,
        layers: 4,
        ..Tiny::PLAIN
    };
    let graph = fused(&tiny);
    let (max_batch, max_context) = (5, 100);
    let sized = Options {
        max_context,
        ..options(2, max_batch)
    };
    let plan = build(&graph, &Target::native(), sized).expect("plans");
    // Two layers attend; of two, each keeps two inputs of 128 channels and four matrices of 16 by 16.
    let page = plan.kv.layers[0].page_bytes;
    assert_eq!(plan.kv.layers.len(), 2);
    let pages = 2 * page * u64::from(plan.kv.pages);
    let (conv, matrices) = (2 * 128 * 4, 4 * 16 * 16 * 4);
    let mut offset = pages;
    for (i, state) in plan.kv.states.iter().enumerate() {
        let slot_bytes = [conv, matrices][i % 2];
        assert_eq!((state.offset, state.slot_bytes), (offset, slot_bytes));
        offset += slot_bytes * max_batch as u64;
    }
    assert_eq!(plan.kv.states.len(), 4);
    assert_eq!(plan.kv.bytes, offset);
    assert_eq!(plan.memory().states, 2 * (conv + matrices));
    assert_eq!(plan.memory().kv, offset);
    assert!(plan.kv.kept().ends_with(", 4 recurrent states"));
    let longer = Options {
        max_context: 1000,
        ..sized
    };
    let longer = build(&graph, &Target::native(), longer).expect("plans");
    assert_eq!(longer.memory().states, plan.memory().states);
    let gpu = build(&graph, &Target::parse("h200").expect("a preset"), sized).expect("plans");
    assert_eq!(gpu.kv, plan.kv);
}

#[test]
fn options_out_of_range_are_refused() {
    let graph = fused(&Tiny::PLAIN);
    let plan = |o: Options| build(&graph, &Target::native(), o);
    let good = options(1, 1);
    let code = |o: Options| plan(o).expect_err("refused").exit_code();
    for max_batch in [0, MAX_BATCH + 1, 1 << 24, usize::MAX] {
        assert_eq!(code(Options { max_batch, ..good }), 2);
    }
    for max_context in [0, MAX_CONTEXT + 1, usize::MAX] {
        let o = Options {
            max_context,
            ..good
        };
        assert_eq!(code(o), 2);
    }
    for workers in [0, MAX_WORKERS + 1, usize::MAX] {
        assert_eq!(code(Options { workers, ..good }), 2);
    }
    let huge = Options {
        max_batch: MAX_BATCH,
        max_context: MAX_CONTEXT,
        ..good
    };
    assert_eq!(code(huge), 5, "beyond any machine");
    plan(Options {
        workers: 61,
        max_batch: 200,
        ..good
    })
    .expect("large but sane");
}

#[test]
fn a_weight_beyond_any_machine_is_an_error() {
    let mut graph = fused(&Tiny::PLAIN);
    for (n, k) in [(usize::MAX / 32, 32), (1 << 40, 1 << 20)] {
        for w in 0..graph.weights.len() {
            let was = (graph.weights[w].n, graph.weights[w].k);
            (graph.weights[w].n, graph.weights[w].k) = (n, k);
            let result = build(&graph, &Target::native(), options(1, 1));
            assert!(result.is_err(), "{}", graph.weights[w].name);
            (graph.weights[w].n, graph.weights[w].k) = was;
        }
    }
}
