//! Whole plans: every small model at every bucket and number of workers verifies, sizes are what they should be, options
//! out of range are refused at once.

use super::*;
use crate::gguf::{GgufWriter, Value as Gv};
use crate::graph::{Op, OpGraph, Source, Weight};
use crate::pass;
use crate::pass::tests::{Random, Tiny, open};
use coldpress_kernels::cpu::abi::{KvType, PAGE_TOKENS};
use coldpress_kernels::tensor_type::TensorType;

pub(crate) fn options(workers: usize, max_batch: usize) -> Options {
    Options {
        max_batch,
        max_context: 64,
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
    let target = TargetProfile::parse("cpu:avx2").expect("a preset");
    build(&fused(tiny), &target, options(workers, max_batch)).expect("plans")
}

#[test]
fn every_small_model_verifies() {
    for architecture in ["llama", "qwen2", "qwen3"] {
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
                    let target = TargetProfile::parse(target.name).expect("a preset");
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
            build(&tiny.graph(), &TargetProfile::native(), options(workers, 4)).expect("plans");
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
            if let Err(e) = build(&graph, &TargetProfile::native(), options(workers, 3)) {
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
        let plan = build(&graph, &TargetProfile::native(), sized).expect("plans");
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
fn options_out_of_range_are_refused() {
    let graph = fused(&Tiny::PLAIN);
    let plan = |o: Options| build(&graph, &TargetProfile::native(), o);
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
            let result = build(&graph, &TargetProfile::native(), options(1, 1));
            assert!(result.is_err(), "{}", graph.weights[w].name);
            (graph.weights[w].n, graph.weights[w].k) = was;
        }
    }
}

/// Shapes of a qwen3 model.
struct Dims {
    layers: u64,
    hidden: u64,
    ffn: u64,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    vocab: u64,
}

/// Qwen3 0.6B, with fewer layers and tokens.
const QWEN3: Dims = Dims {
    layers: 2,
    hidden: 1024,
    ffn: 3072,
    heads: 16,
    kv_heads: 8,
    head_dim: 128,
    vocab: 8192,
};

/// The graph of a qwen3 model of these shapes after all passes, all matrices in `ty` and zero.
fn qwen3(dims: &Dims, ty: TensorType) -> OpGraph {
    let (hidden, ffn, head_dim) = (dims.hidden, dims.ffn, dims.head_dim);
    let (q, kv) = (dims.heads * head_dim, dims.kv_heads * head_dim);
    let mut writer = GgufWriter::new();
    writer.add("general.architecture", Gv::Str("qwen3".into()));
    for (suffix, value) in [
        ("block_count", dims.layers),
        ("context_length", 40960),
        ("embedding_length", hidden),
        ("feed_forward_length", ffn),
        ("attention.head_count", dims.heads),
        ("attention.head_count_kv", dims.kv_heads),
        ("attention.key_length", head_dim),
        ("attention.value_length", head_dim),
    ] {
        writer.add(format!("qwen3.{suffix}"), Gv::U32(value as u32));
    }
    writer.add("qwen3.attention.layer_norm_rms_epsilon", Gv::F32(1e-6));
    let mut tensor = |name: String, dims: &[u64]| {
        let ty = if dims.len() == 1 { TensorType::F32 } else { ty };
        let rows: u64 = dims[1..].iter().product();
        let bytes = ty.row_bytes(dims[0]).expect("whole rows") * rows;
        writer.tensor(name, ty, dims, vec![0; bytes as usize]);
    };
    tensor("token_embd.weight".into(), &[hidden, dims.vocab]);
    tensor("output_norm.weight".into(), &[hidden]);
    for layer in 0..dims.layers {
        for (name, dims) in [
            ("attn_norm", &[hidden][..]),
            ("attn_q", &[hidden, q]),
            ("attn_k", &[hidden, kv]),
            ("attn_v", &[hidden, kv]),
            ("attn_q_norm", &[head_dim]),
            ("attn_k_norm", &[head_dim]),
            ("attn_output", &[q, hidden]),
            ("ffn_norm", &[hidden]),
            ("ffn_gate", &[hidden, ffn]),
            ("ffn_up", &[hidden, ffn]),
            ("ffn_down", &[ffn, hidden]),
        ] {
            tensor(format!("blk.{layer}.{name}.weight"), dims);
        }
    }
    let mut graph = crate::model::build(&open(&writer)).expect("a model").graph;
    pass::run_all(&mut graph, None).expect("passes");
    graph
}

#[test]
fn the_smallest_shapes_plan() {
    let least = Dims {
        layers: 1,
        hidden: 32,
        ffn: 32,
        heads: 1,
        kv_heads: 1,
        head_dim: 32,
        vocab: 1,
    };
    let odd = Dims {
        hidden: 6,
        ffn: 1,
        heads: 3,
        head_dim: 2,
        vocab: 17,
        ..least
    };
    for (dims, ty) in [
        (&least, TensorType::Q8_0),
        (&least, TensorType::F32),
        (&odd, TensorType::F32),
    ] {
        let graph = qwen3(dims, ty);
        for kv_type in [KvType::F32, KvType::F16, KvType::Q8_0] {
            for workers in [1, 4] {
                let o = Options {
                    kv_type,
                    ..options(workers, 3)
                };
                build(&graph, &TargetProfile::native(), o).expect("plans");
            }
        }
    }
}

/// How far predicted tokens/s may stay below a smaller batch's. Stamps of four or six rows are the fastest per row, so a
/// compute-bound batch of one row more than a whole number of them loses that row's share, and a padded batch its padding.
fn tolerated(target: &TargetProfile, max_batch: usize) -> f64 {
    match (target.name, max_batch) {
        ("cpu:avx512", 8) => 0.999,
        ("cpu:avx512", 9..=64) => 0.98,
        ("cpu:scalar", _) => 0.87,
        _ => 0.9,
    }
}

#[test]
fn no_batch_size_is_a_cliff() {
    for ty in [TensorType::Q8_0, TensorType::Q4_K] {
        let graph = qwen3(&QWEN3, ty);
        for target in crate::target::PRESETS {
            let target = TargetProfile::parse(target.name).expect("a preset");
            for workers in [1, 2, 8] {
                for max_batch in [8, 32, 33, 64, 100, 200] {
                    let plan = build(&graph, &target, options(workers, max_batch)).expect("plans");
                    let (mut step, mut best) = (0.0, 0.0f64);
                    for batch in 1..=max_batch {
                        let seconds = plan.predicted_step(batch).expect("a bucket");
                        let rate = batch as f64 / seconds;
                        assert!(
                            seconds >= step,
                            "batch {batch} is faster than a smaller one"
                        );
                        assert!(
                            rate >= best * tolerated(&target, max_batch),
                            "{ty} {} {workers} workers, batch {batch} of {max_batch}: {rate} after {best}",
                            target.name
                        );
                        (step, best) = (seconds, best.max(rate));
                    }
                }
            }
        }
    }
}
