//! Plans of a qwen3 model of any shapes: the predicted curve of a real one, and the smallest there are.

use super::options;
use crate::gguf::{GgufWriter, Value};
use crate::graph::OpGraph;
use crate::pass;
use crate::pass::tests::open;
use crate::plan::{Options, Plan, Work, build};
use crate::target::metal::{Candidates, MetalProfile};
use crate::target::{PRESETS, Target, cuda};
use coldpress_kernels::cpu::abi::KvType;
use coldpress_kernels::tensor_type::TensorType;
use coldpress_runtime::manifest::Stage;

/// Shapes of a qwen3 model.
struct Dims {
    layers: u64,
    hidden: u64,
    ffn: u64,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    vocab: u64,
    /// Experts and how many a row uses, each `ffn` wide.
    experts: Option<(u64, u64)>,
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
    experts: None,
};

/// Qwen3 8B, with fewer layers and tokens.
const QWEN3_8B: Dims = Dims {
    layers: 1,
    hidden: 4096,
    ffn: 12288,
    heads: 32,
    ..QWEN3
};

/// Experts of the width of Qwen3 30B-A3B's, but fewer.
const QWEN3_MOE: Dims = Dims {
    layers: 1,
    ffn: 768,
    vocab: 2048,
    experts: Some((32, 4)),
    ..QWEN3
};

/// The graph of a qwen3 model of these shapes after all passes, all matrices in `ty` and zero.
fn qwen3(dims: &Dims, ty: TensorType) -> OpGraph {
    let (hidden, ffn, head_dim) = (dims.hidden, dims.ffn, dims.head_dim);
    let (q, kv) = (dims.heads * head_dim, dims.kv_heads * head_dim);
    let mut writer = GgufWriter::new();
    let name = match dims.experts {
        Some(_) => "qwen3moe",
        None => "qwen3",
    };
    writer.add("general.architecture", Value::Str(name.into()));
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
        writer.add(format!("{name}.{suffix}"), Value::U32(value as u32));
    }
    if let Some((experts, used)) = dims.experts {
        for (suffix, value) in [
            ("expert_count", experts),
            ("expert_used_count", used),
            ("expert_feed_forward_length", ffn),
        ] {
            writer.add(format!("{name}.{suffix}"), Value::U32(value as u32));
        }
    }
    let eps = format!("{name}.attention.layer_norm_rms_epsilon");
    writer.add(eps, Value::F32(1e-6));
    let mut tensor = |name: String, dims: &[u64]| {
        let router = name.contains("ffn_gate_inp");
        let float = dims.len() == 1 || router;
        let ty = if float { TensorType::F32 } else { ty };
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
        ] {
            tensor(format!("blk.{layer}.{name}.weight"), dims);
        }
        for (name, n, k) in [
            ("ffn_gate", ffn, hidden),
            ("ffn_up", ffn, hidden),
            ("ffn_down", hidden, ffn),
        ] {
            match dims.experts {
                None => tensor(format!("blk.{layer}.{name}.weight"), &[k, n]),
                Some((experts, _)) => {
                    let name = format!("blk.{layer}.{name}_exps.weight");
                    tensor(name, &[k, n, experts]);
                }
            }
        }
        if let Some((experts, _)) = dims.experts {
            let name = format!("blk.{layer}.ffn_gate_inp.weight");
            tensor(name, &[hidden, experts]);
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
        experts: None,
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
                build(&graph, &Target::native(), o).expect("plans");
            }
        }
    }
}

/// Lowest fraction of a smaller batch's predicted tokens/s that the curve falls to, and where.
fn lowest(plan: &Plan) -> (f64, u32) {
    let (mut step, mut best, mut lowest) = (0.0, 0.0f64, (1.0f64, 1));
    let curve = plan.curve();
    assert_eq!(curve.len(), plan.limits.max_batch as usize);
    for point in curve {
        let rate = f64::from(point.batch) / point.predicted_seconds;
        assert!(
            point.predicted_seconds >= step,
            "batch {} is faster than a smaller one",
            point.batch
        );
        if rate / best < lowest.0 {
            lowest = (rate / best, point.batch);
        }
        (step, best) = (point.predicted_seconds, best.max(rate));
    }
    lowest
}

/// How far predicted tokens/s may fall below a smaller batch's. Nothing may where every row count has a stamp of its own:
/// up to 32 rows with AVX-512. Beyond the widest stamp that pays, a batch is cut in two, and unpacks every weight twice;
/// above 64 sequences there are up to three rows of padding. Portable kernels have no stamps of 2 and 3 rows.
fn tolerated(target: &Target, max_batch: usize) -> f64 {
    match (target.name(), max_batch) {
        ("cpu:avx512", ..=32) => 1.0 - 1e-9,
        ("cpu:avx512", _) => 0.93,
        ("cpu:avx2", _) => 0.94,
        _ => 0.87,
    }
}

#[test]
fn no_batch_size_is_a_cliff() {
    for ty in [TensorType::Q8_0, TensorType::Q4_K] {
        let graph = qwen3(&QWEN3, ty);
        for target in PRESETS {
            let target = Target::parse(target.name).expect("a preset");
            for workers in [1, 2, 8] {
                for max_batch in [8, 32, 33, 64, 100, 200] {
                    let plan = build(&graph, &target, options(workers, max_batch)).expect("plans");
                    let (least, batch) = lowest(&plan);
                    assert!(
                        least >= tolerated(&target, max_batch),
                        "{ty} {} {workers} workers, batch {batch} of {max_batch}: {least} of a smaller one's",
                        target.name()
                    );
                }
            }
        }
    }
}

/// The more sequences, the more experts a step reads, but never as many more.
#[test]
fn no_batch_size_is_a_cliff_for_experts() {
    let graph = qwen3(&QWEN3_MOE, TensorType::Q4_K);
    for target in PRESETS {
        let target = Target::parse(target.name).expect("a preset");
        for (workers, max_batch) in [(1, 8), (2, 64), (8, 200)] {
            let plan = build(&graph, &target, options(workers, max_batch)).expect("plans");
            let (least, batch) = lowest(&plan);
            assert!(
                least >= tolerated(&target, max_batch),
                "{} {workers} workers, batch {batch} of {max_batch}: {least} of a smaller one's",
                target.name()
            );
            // 4, and in the mean 21 of 32 experts.
            let ratio = expert_bytes(&plan, 8) as f64 / expert_bytes(&plan, 1) as f64;
            assert!(
                (ratio - 5.25).abs() < 0.01,
                "{ratio} times the bytes at batch 8"
            );
        }
    }
}

/// On Apple GPUs eight rows give at least four times as much as one, whatever binds them. From 17 rows on warps divide the rows
/// and share what they make of weights, which a row more must first repay; from 33 on some weights are made numbers twice. On M5
/// `matmul2d` takes up to 32 rows in the time of one; where there are more, a row more is 16 or 32.
#[test]
fn little_is_lost_as_batches_grow_on_apple_gpus() {
    for (dims, ty) in [
        (&QWEN3, TensorType::Q8_0),
        (&QWEN3, TensorType::Q4_K),
        (&QWEN3_8B, TensorType::Q8_0),
        (&QWEN3_8B, TensorType::Q4_K),
        (&QWEN3_8B, TensorType::Q6_K),
        (&QWEN3_8B, TensorType::F16),
    ] {
        let graph = qwen3(dims, ty);
        for name in ["metal:m1", "metal:m3-pro", "metal:m4-max", "metal:m5"] {
            let target = Target::parse(name).expect("a preset");
            let (cut, many) = match name {
                "metal:m5" => (1.0 - 1e-9, 0.75),
                _ => (0.97, 0.93),
            };
            for (max_batch, tolerated) in [(8, 1.0 - 1e-9), (32, cut), (64, many)] {
                let plan = build(&graph, &target, options(1, max_batch)).expect("plans");
                let what = format!("{ty} {name} of {max_batch}");
                let (least, batch) = lowest(&plan);
                assert!(
                    least >= tolerated,
                    "{what}, batch {batch}: {least} of a smaller one's"
                );
                let curve = plan.curve();
                let rate = |b: usize| b as f64 / curve[b - 1].predicted_seconds;
                let gain = rate(8) / rate(1);
                let eight = plan.bound_by(8);
                assert!(
                    gain >= 4.0,
                    "{what}: eight rows give {gain} times one's, bound by {eight:?}"
                );
                // Where arithmetic allows eight times one's, memory binds both; where not, what does is named.
                let (wall, share) = eight.expect("a GPU's launches say what binds them");
                assert!((0.3..=1.0).contains(&share), "{what}: {wall} {share}");
                assert!(gain >= 7.0 || wall != "memory", "{what}: {wall}, {gain}");
            }
        }
    }
}

/// A plan chooses from what it is left.
#[test]
fn matmuls_of_apple_gpus_have_the_rows_and_tiles_that_are_asked_for() {
    let graph = qwen3(&QWEN3, TensorType::Q4_K);
    let Some(mut profile) = MetalProfile::named("metal:m4-max") else {
        panic!("a preset");
    };
    profile.candidates = Candidates::of(&[8], &[1]).expect("exist");
    let plan = build(&graph, &Target::Metal(profile), options(1, 32)).expect("plans");
    let launches = plan.programs.iter().flat_map(|p| &p.launches);
    let names = launches
        .map(|l| l.kernel())
        .filter(|n| n.starts_with("matmul_"));
    let mut found = 0;
    for name in names {
        assert!(name.contains("_n8_m1_"), "{name}");
        found += 1;
    }
    assert!(found > 0);
}

/// Bytes of experts' weights that a trunk of `rows` rows reads.
fn expert_bytes(plan: &Plan, rows: usize) -> u64 {
    let mut programs = plan.programs.iter();
    let program = programs.find(|p| p.stage == Stage::Trunk && p.rows == rows);
    let launches = program.expect("a bucket").launches.iter();
    let experts = launches.filter(|l| match &l.work {
        Work::Experts(_) => true,
        Work::Grid(grid) => grid.weights.iter().any(|w| w.ends_with("_exps")),
        _ => false,
    });
    experts.map(|l| l.bytes).sum()
}

/// Experts of gpt-oss: rows of 2880 fill neither tiles of 64 outputs nor units of 256; 4-bit floats.
#[test]
fn experts_have_kernels_on_every_gpu() {
    let gpt_oss = Dims {
        hidden: 2880,
        ffn: 2880,
        heads: 64,
        head_dim: 64,
        experts: Some((4, 2)),
        ..QWEN3_MOE
    };
    for (dims, ty) in [
        (&QWEN3_MOE, TensorType::Q4_K),
        (&gpt_oss, TensorType::MXFP4),
    ] {
        let graph = qwen3(dims, ty);
        let (experts, used) = dims.experts.expect("experts");
        for preset in cuda::PRESETS {
            let target = Target::parse(preset.name).expect("a preset");
            let plan = build(&graph, &target, options(1, 8)).expect(preset.name);
            // Of the experts, those that 8 rows use in the mean.
            let missed = (1.0 - used as f64 / experts as f64).powi(8);
            let more = (1.0 - missed) * experts as f64 / used as f64;
            let ratio = expert_bytes(&plan, 8) as f64 / expert_bytes(&plan, 1) as f64;
            assert!((ratio - more).abs() < 0.01, "{}: {ratio}", preset.name);
        }
    }
}

/// On a GPU a fall of 3 % is left where one row more needs tensor cores for eight and these bind: no cut of the rows avoids it.
#[test]
fn no_batch_size_is_a_cliff_on_a_gpu() {
    for (dims, ty) in [
        (&QWEN3, TensorType::Q8_0),
        (&QWEN3, TensorType::Q4_K),
        (&QWEN3_8B, TensorType::Q8_0),
        (&QWEN3_8B, TensorType::Q4_K),
        (&QWEN3_MOE, TensorType::Q4_K),
    ] {
        let graph = qwen3(dims, ty);
        for name in ["h200", "rtx4090", "rtx4070ti"] {
            let target = Target::parse(name).expect("a preset");
            for max_batch in [17, 32, 64] {
                let plan = build(&graph, &target, options(1, max_batch)).expect("plans");
                let (least, batch) = lowest(&plan);
                let tolerated = match max_batch {
                    ..=32 => 1.0 - 1e-9,
                    _ => 0.98,
                };
                assert!(
                    least >= tolerated,
                    "{ty} {name}, batch {batch} of {max_batch}: {least} of a smaller one's"
                );
            }
        }
    }
}
