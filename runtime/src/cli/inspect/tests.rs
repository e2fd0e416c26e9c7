//! What the text and the JSON of a small made-up bundle show.

use super::*;
use crate::manifest::{KvLayerPlan, KvPlan, Program, Requirements};
use coldpress_kernels::cpu::abi::KvType;

fn plan() -> TargetPlan {
    TargetPlan {
        requires: Requirements {
            target: "cpu:avx512".into(),
            arch: "x86_64".into(),
            features: vec!["avx512f".into()],
            memory_bytes: 3 << 20,
            planned_for: None,
        },
        workers: 4,
        symbols: Vec::new(),
        weights_section: 0,
        code_section: 0,
        arena_bytes: 1 << 20,
        logits_offset: 0,
        logits_stride: 0,
        kv: KvPlan {
            kv_type: KvType::F16,
            page_tokens: 32,
            pages: 8,
            pages_per_slot: 4,
            windows: Vec::new(),
            bytes: 2 << 20,
            layers: vec![KvLayerPlan {
                table: 0,
                offset: 0,
                page_bytes: 1 << 18,
            }],
            states: Vec::new(),
        },
        programs: vec![Program {
            stage: Stage::Trunk,
            rows: 2,
            entries: Vec::new(),
            predicted_seconds: 0.004,
            launches: Vec::new(),
        }],
        curve: [(1, 1, 0.002), (2, 4, 0.005), (3, 4, 0.005)]
            .map(|(batch, rows, predicted_seconds)| BatchPrediction {
                batch,
                trunk_rows: rows,
                head_rows: rows,
                predicted_seconds,
            })
            .to_vec(),
        gpu: None,
    }
}

fn show(mismatches: &[String], json: bool) -> String {
    let manifest = Manifest {
        model: ModelCard {
            name: "tiny".into(),
            architecture: "any".into(),
            parameters: 1_500_000,
            vocab_size: 256,
            trained_context: 128,
            source_bytes: 6 << 20,
        },
        limits: Limits {
            max_batch: 2,
            max_context: 128,
            max_rows: 8,
        },
        plans: vec![plan()],
    };
    let header = Header {
        producer: "coldpress 0.1.0".into(),
        targets: vec![plan().requires],
        sections: Vec::new(),
        file_bytes: 7 << 20,
        header_bytes: 100,
    };
    let machine = Machine {
        arch: "x86_64".into(),
        features: vec!["avx2".into()],
        memory_bytes: 1 << 30,
        cores: 2,
        gpus: Err("nobody looked for one".into()),
        metal: Err("nobody looked for one".into()),
    };
    let picked = mismatches.is_empty().then(|| &manifest.plans[0]);
    let path = Path::new("tiny.press");
    let view = View {
        path,
        header: &header,
        manifest: &manifest,
        machine: &machine,
        mismatches,
        picked,
    };
    if json { view.json() } else { view.text() }
}

#[test]
fn text_has_every_part() {
    let text = show(&[], false);
    for part in [
        "tiny.press: 7.00 MiB",
        "1.5 M parameters",
        "2 sequences of 128",
        "this machine runs it",
        "cpu:avx512 (runs",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    for part in ["trunk 4, head 4", "2-3", "400.0-600.0", "falls from 500.0"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    for part in ["8.00 KiB per token", "8 pages of 32", "4.00 ms", "500.0"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn mismatches_are_all_listed() {
    let text = show(
        &["no avx512f; recompile".into(), "too little memory".into()],
        false,
    );
    assert!(
        text.contains("cannot run it")
            && text.contains("- no avx512f")
            && text.contains("- too little")
    );
    assert!(!text.contains("(runs on this machine)"));
    let json: serde_json::Value =
        serde_json::from_str(&show(&["x".into()], true)).expect("valid JSON");
    assert_eq!(json["runs_here"], false);
    assert_eq!(json["mismatches"][0], "x");
    assert_eq!(json["target"], serde_json::Value::Null);
    assert_eq!(json["manifest"]["limits"]["max_batch"], 2);
    assert_eq!(json["manifest"]["plans"][0]["curve"][1]["trunk_rows"], 4);
    assert_eq!(
        json["manifest"]["plans"][0]["requires"]["target"],
        "cpu:avx512"
    );
}

#[test]
fn launches_of_a_layer_are_counted_on_a_gpu() {
    let launch = |label: &str| crate::manifest::Launch {
        label: label.into(),
        kernel: String::new(),
        reason: String::new(),
        bytes: 0,
        macs: 0,
        predicted_seconds: 0.0,
        grid: Some(crate::manifest::Grid {
            kernel: 0,
            grid: [1; 3],
            shared_bytes: 0,
            args: vec![],
            overlaps: false,
        }),
    };
    let mut program = plan().programs.remove(0);
    let first = ["blk.0.attn_norm", "blk.0.attn_qkv", "blk.0.ffn_down"];
    let others = ["blk.10.attn_qkv", "blk.10.ffn_down", "blk.9.attn_qkv"];
    let all = ["token_embd"].iter().chain(&first).chain(&others);
    program.launches = all.map(|label| launch(label)).collect();
    // What the first layer does for all is not a layer's.
    assert_eq!(launches(&program), "7, 2 a layer");
    program.launches.iter_mut().for_each(|l| l.grid = None);
    assert_eq!(launches(&program), "7");
}

#[test]
fn weights_that_a_gpu_reads_in_place_are_counted_once() {
    let mut gpu = plan();
    gpu.gpu = crate::bundle::sample::gpu_manifest().plans[0].gpu.clone();
    // 3 MiB of arena and KV, 5 MiB of weights.
    gpu.requires.memory_bytes = 8 << 20;
    let limits = Limits {
        max_batch: 2,
        max_context: 128,
        max_rows: 8,
    };
    let line = |plan: &TargetPlan, what: &str| {
        let text = memory(plan, 5 << 20, limits).to_string();
        text.lines()
            .find(|l| l.contains(what))
            .unwrap_or_default()
            .to_owned()
    };
    gpu.requires.arch = "metal".into();
    assert!(line(&gpu, "weights ").contains("mapped from the bundle"));
    assert!(line(&gpu, "allocated").contains("3.00 MiB"));
    assert!(line(&gpu, "in all").contains("8.00 MiB"));
    gpu.requires.arch = "cuda".into();
    assert!(line(&gpu, "weights ").contains("copied to the GPU"));
    assert!(line(&gpu, "allocated").contains("8.00 MiB"));
    assert_eq!(line(&gpu, "in all"), "");
}

#[test]
fn a_plan_for_another_machine_says_what_it_needs() {
    let mut metal = plan();
    metal.requires.target = "metal:m4-max".into();
    metal.requires.arch = "metal".into();
    metal.requires.features = vec!["apple7".into()];
    metal.gpu = crate::bundle::sample::gpu_manifest().plans[0].gpu.clone();
    let said = super::needs(&metal);
    assert!(
        said.contains("a Mac whose GPU is apple7 or later"),
        "{said}"
    );
    let machine = crate::bundle::Machine::detect_for([]);
    let why = machine.lacks(&metal.requires);
    assert!(why[0].contains("metal:m4-max needs a Mac"), "{why:?}");
}
