//! What the pipeline promises about memory, cliffs and bytes.

use super::*;
use crate::graph::Source;
use crate::pass::tests::Tiny;
use coldpress_kernels::tensor_type::TensorType;
use coldpress_runtime::bundle::Bundle;

/// The plainest model as a file.
fn model_file() -> tempfile::TempPath {
    let path = tempfile::NamedTempFile::new()
        .expect("a file")
        .into_temp_path();
    Tiny::PLAIN.writer().write(&path).expect("written");
    path
}

fn options(max_batch: usize, max_context: usize) -> Options {
    Options {
        max_batch,
        max_context: Some(max_context),
        threads: Some(2),
        ..Options::new(Target::native())
    }
}

#[test]
fn fit_takes_the_largest_context_that_fits() {
    let path = model_file();
    let plan = |o: &Options| prepare(&path, o).map(|mut p| p.plans.remove(0));
    for max_batch in [1, 3, 8] {
        let least = plan(&options(max_batch, PAGE_TOKENS)).expect("plans");
        let (total, page) = (least.memory().total(), least.memory().kv);
        for wanted in [1, 32, 33, 1000] {
            for room in [0, 1, page - 1, page, page * 5 / 2, page * 100, u64::MAX / 2] {
                let limit = total + room;
                let fitted = plan(&Options {
                    fit: Some(limit),
                    ..options(max_batch, wanted)
                })
                .expect("fits");
                let context = fitted.limits.max_context as usize;
                assert!(fitted.memory().total() <= limit && context <= wanted);
                if context < wanted {
                    assert_eq!(context % PAGE_TOKENS, 0);
                    assert!(
                        fitted.memory().total() + page > limit,
                        "batch {max_batch}, {wanted} tokens, {room} bytes: a page more would fit"
                    );
                }
            }
            let error = plan(&Options {
                fit: Some(total - 1),
                ..options(max_batch, wanted)
            })
            .expect_err("nothing fits");
            assert_eq!(error.exit_code(), 5, "{error}");
        }
    }
}

/// Whether the graph of `prepared` has the table of these frequency factors.
fn has_factors(prepared: &Prepared, factors: &[f32]) -> bool {
    let weights = prepared.model.graph.weights.iter();
    weights.filter(|w| w.name.contains("inv_freq")).all(|w| {
        let Source::Computed(table) = &w.source else {
            return false;
        };
        let plain = (0..16).map(|i| 10_000f32.powf(-2.0 * i as f32 / 32.0));
        let expected = plain.zip(factors).map(|(plain, factor)| plain / factor);
        table
            .iter()
            .zip(expected)
            .all(|(a, b)| (a / b - 1.0).abs() < 1e-5)
    })
}

#[test]
fn the_context_decides_the_factors_of_longrope() {
    let phi3 = Tiny {
        architecture: "phi3",
        ..Tiny::PLAIN
    };
    let mut writer = phi3.writer();
    let (short, long) = ([1.5f32; 16], [3.0f32; 16]);
    let key = "phi3.rope.scaling.original_context_length";
    writer.add(key, crate::gguf::Value::U32(PAGE_TOKENS as u32));
    for (name, factors) in [("short", short), ("long", long)] {
        let bytes: Vec<u8> = factors.iter().flat_map(|f| f.to_le_bytes()).collect();
        let name = format!("rope_factors_{name}.weight");
        writer.tensor(name, TensorType::F32, &[16], bytes);
    }
    let path = tempfile::NamedTempFile::new()
        .expect("a file")
        .into_temp_path();
    writer.write(&path).expect("written");
    let within = prepare(&path, &options(2, PAGE_TOKENS)).expect("plans");
    assert!(has_factors(&within, &short));
    let beyond = prepare(&path, &options(2, PAGE_TOKENS + 1)).expect("plans");
    assert!(has_factors(&beyond, &long));
    // Memory that holds one page for each sequence only.
    let fitted = Options {
        fit: Some(within.plans[0].memory().total()),
        ..options(2, 10 * PAGE_TOKENS)
    };
    let fitted = prepare(&path, &fitted).expect("fits");
    assert_eq!(fitted.plans[0].limits.max_context as usize, PAGE_TOKENS);
    assert!(has_factors(&fitted, &short));
}

#[test]
fn fit_lowers_even_an_absurd_context() {
    let path = model_file();
    let absurd = Options {
        fit: Some(1 << 30),
        ..options(plan::MAX_BATCH, plan::MAX_CONTEXT)
    };
    let fitted = prepare(&path, &absurd).expect("fits").plans.remove(0);
    assert!(fitted.memory().total() <= 1 << 30);
    let refused = prepare(
        &path,
        &Options {
            fit: None,
            ..absurd
        },
    )
    .map(|_| ());
    assert_eq!(refused.expect_err("does not fit").exit_code(), 5);
}

#[test]
fn a_forced_cliff_is_denied() {
    let path = model_file();
    let mut denying = options(8, 32);
    denying.deny_cliffs = true;
    let mut plan = prepare(&path, &denying)
        .expect("no cliff in a small model")
        .plans
        .remove(0);
    for program in plan.programs.iter_mut().filter(|p| p.rows >= 5) {
        program.launches.iter_mut().for_each(|l| l.seconds *= 3.0);
    }
    assert_eq!(plan.cliffs()[0].0, 5);
    let error = deny_cliffs(&plan).expect_err("a cliff");
    assert_eq!(error.exit_code(), 8);
    assert!(error.to_string().contains("batch 5"), "{error}");
}

#[test]
fn the_model_is_never_written_over() {
    let path = model_file();
    let before = std::fs::read(&path).expect("bytes");
    let o = options(1, 32);
    for result in [
        compile(&path, &path, &o, &mut Silent).map(|_| ()),
        compile_exe(&path, &path, &o, &mut Silent).map(|_| ()),
    ] {
        assert_eq!(result.expect_err("refused").exit_code(), 2);
    }
    assert!(std::fs::read(&path).expect("bytes") == before);
}

fn fixture(name: &str) -> Option<PathBuf> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/fixtures");
    let root = std::env::var_os("COLDPRESS_FIXTURES").unwrap_or_else(|| default.into());
    let path = Path::new(&root).join("models").join(name);
    if path.exists() {
        return Some(path);
    }
    assert!(
        std::env::var_os("CI").is_none_or(|ci| ci != "true"),
        "fixtures not found"
    );
    println!("skipped: fixtures not found");
    None
}

#[test]
fn a_bundle_asks_for_the_planned_memory_and_is_the_same_every_time() {
    let Some(path) = fixture("qwen3-Q8_0.gguf") else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("model.press");
    let mut bytes: Vec<Vec<u8>> = Vec::new();
    for _ in 0..2 {
        let prepared = compile(&path, &out, &options(5, 100), &mut Silent).expect("compiles");
        let memory = prepared.plans[0].memory();
        let bundle = Bundle::open(&out).expect("opens");
        let plan = &bundle.manifest().plans[0];
        assert_eq!(plan.requires.memory_bytes, memory.arena + memory.kv);
        assert_eq!((plan.arena_bytes, plan.kv.bytes), (memory.arena, memory.kv));
        let weights = bundle.section_bytes(plan.weights_section).expect("weights");
        assert_eq!(weights.len() as u64, memory.weights);
        bytes.push(std::fs::read(&out).expect("bytes"));
    }
    assert!(bytes[0] == bytes[1], "same input, same bytes");
}
