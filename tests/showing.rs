//! Commands that show things: inspect, explain, verify, targets, `--emit`, `--dry-run`; and that the same input gives the
//! same bytes.

use crate::harness::*;
use coldpress_compiler::gguf::Value;
use coldpress_kernels::tensor_type::TensorType;
use std::path::PathBuf;
use tempfile::{TempDir, tempdir};

fn model(dir: &TempDir) -> PathBuf {
    let types = vec![TensorType::Q4_K, TensorType::Q6_K, TensorType::Q8_0];
    let path = dir.path().join("mixed.gguf");
    Shape {
        hidden: 256,
        ffn: 512,
        types,
        ..Shape::small()
    }
    .write(&path, 5);
    path
}

fn compiled(dir: &TempDir) -> PathBuf {
    let out = dir.path().join("mixed.press");
    succeed(&[
        "compile",
        arg(&model(dir)),
        "-o",
        arg(&out),
        "--max-batch",
        "4",
        "--ctx-size",
        "64",
    ]);
    out
}

#[test]
fn the_same_compile_gives_the_same_bytes() {
    let dir = tempdir().expect("temporary folder");
    let path = model(&dir);
    let (a, b) = (dir.path().join("a.press"), dir.path().join("b.press"));
    succeed(&["compile", arg(&path), "-o", arg(&a)]);
    succeed(&["compile", arg(&path), "-o", arg(&b)]);
    assert!(std::fs::read(a).expect("a") == std::fs::read(b).expect("b"));
}

#[test]
fn one_tensor_can_be_followed_to_machine_code() {
    let dir = tempdir().expect("temporary folder");
    let bundle = compiled(&dir);
    let text = succeed(&["explain", arg(&bundle), "blk.1.ffn_down.weight"]);
    for part in [
        "in the GGUF",
        "packed as",
        "bits per weight",
        "candidates",
        "<--",
        "graph:",
        "launches",
        "machine code",
        "call",
    ] {
        assert!(text.contains(part), "explain should show {part:?}:\n{text}");
    }
    // A weight inside a fused matmul, and one that embedding and output share, reach their code as well.
    for name in ["blk.0.attn_q", "blk.1.ffn_up.weight", "token_embd"] {
        let text = succeed(&["explain", arg(&bundle), name]);
        assert!(
            text.contains("machine code") && text.contains("<--"),
            "explain {name}:\n{text}"
        );
    }
    fail(
        &["explain", arg(&bundle), "blk.9.ffn_down"],
        1,
        &["blk.9.ffn_down"],
    );
    let text = succeed(&["inspect", arg(&bundle)]);
    for part in ["attn_", "matmul_", "cpu:", "kv", "qwen3"] {
        assert!(
            text.to_lowercase().contains(part),
            "inspect should show {part:?}:\n{text}"
        );
    }
    let json: serde_json::Value =
        serde_json::from_str(&succeed(&["inspect", arg(&bundle), "--json"])).expect("JSON");
    assert!(json.is_object());
}

#[test]
fn a_gguf_is_judged_before_it_is_compiled() {
    let dir = tempdir().expect("temporary folder");
    let path = model(&dir);
    let text = succeed(&["inspect", arg(&path)]);
    for part in ["qwen3", "Q4_K", "2 layers", "can be compiled"] {
        assert!(text.contains(part), "{part:?} in\n{text}");
    }
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
    let good = json(&succeed(&["inspect", arg(&path), "--json"]));
    assert_eq!(good["supported"], true);
    assert_eq!(good["model"]["vocab_size"], 300);

    let bad = dir.path().join("bad.gguf");
    let mut shape = Shape::small();
    shape.extra = vec![
        ("qwen3.expert_count".into(), Value::U32(8)),
        ("qwen3.attention.causal".into(), Value::Bool(false)),
    ];
    let mut writer = shape.writer(1);
    writer.tensor("odd", TensorType::I32, &[4], vec![0; 16]);
    writer.write(&bad).expect("written");
    fail(
        &["inspect", arg(&bad)],
        3,
        &["qwen3.attention.causal", "and 2 more"],
    );
    let shown = coldpress(&["inspect", arg(&bad), "--json"]);
    let shown = json(&String::from_utf8_lossy(&shown.stdout));
    assert_eq!(shown["supported"], false);
    assert_eq!(shown["missing"].as_array().map(Vec::len), Some(3));

    let models = succeed(&["targets", "--models"]);
    for part in ["llama", "gemma3", "phi3", "Q4_K", "F16"] {
        assert!(models.contains(part), "{part:?} in\n{models}");
    }
}

#[test]
fn emit_writes_every_stage() {
    let dir = tempdir().expect("temporary folder");
    let (out, emit) = (dir.path().join("e.press"), dir.path().join("emit"));
    succeed(&[
        "compile",
        arg(&model(&dir)),
        "-o",
        arg(&out),
        "--max-batch",
        "2",
        "-t",
        "1",
        "--emit",
        arg(&emit),
    ]);
    let mut names: Vec<String> = std::fs::read_dir(&emit)
        .expect("emitted")
        .map(|e| e.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert!(names[0].starts_with("00-built"), "{names:?}");
    for wanted in [
        "plan.txt",
        "code.bin",
        "symbols.txt",
        "trunk-1-worker0.clif",
        "head-2-worker0.clif",
    ] {
        assert!(names.iter().any(|n| n == wanted), "{wanted} in {names:?}");
    }
    let plan = std::fs::read_to_string(emit.join("plan.txt")).expect("plan");
    assert!(plan.contains("blk.1.ffn_down"));
}

#[test]
fn a_bundle_verifies_itself() {
    let dir = tempdir().expect("temporary folder");
    let bundle = compiled(&dir);
    assert!(!succeed(&["verify", arg(&bundle)]).is_empty());
}

#[test]
fn targets_name_this_machine() {
    let text = succeed(&["targets"]);
    assert!(text.contains("this machine"), "{text}");
    for gpu in coldpress_compiler::target::cuda::PRESETS {
        assert!(text.contains(gpu.about), "{text}");
    }
}

#[test]
fn a_dry_run_writes_nothing_and_fit_lowers_the_context() {
    let dir = tempdir().expect("temporary folder");
    let path = model(&dir);
    let out = dir.path().join("dry.press");
    let text = succeed(&[
        "compile",
        arg(&path),
        "-o",
        arg(&out),
        "--dry-run",
        "-c",
        "512",
    ]);
    assert!(text.contains("context 512") && !out.exists(), "{text}");
    let text = succeed(&[
        "compile",
        arg(&path),
        "--dry-run",
        "-c",
        "512",
        "--fit",
        "3MiB",
    ]);
    assert!(!text.contains("context 512"), "{text}");
}

#[test]
fn every_target_compiles_without_its_machine() {
    let dir = tempdir().expect("temporary folder");
    let path = model(&dir);
    for target in ["cpu:avx512", "cpu:avx2", "cpu:scalar"] {
        let out = dir.path().join("t.press");
        succeed(&[
            "compile",
            arg(&path),
            "-o",
            arg(&out),
            "--target",
            target,
            "-t",
            "2",
        ]);
        assert!(succeed(&["inspect", arg(&out)]).contains(target));
    }
    fail(
        &["compile", arg(&path), "--target", "abacus"],
        3,
        &["abacus", "cpu:avx2"],
    );
}

#[test]
fn an_executable_carries_its_bundle() {
    let dir = tempdir().expect("temporary folder");
    let out = dir.path().join("standalone");
    succeed(&[
        "compile",
        arg(&model(&dir)),
        "--exe",
        "-o",
        arg(&out),
        "--max-batch",
        "1",
        "-c",
        "64",
    ]);
    let run = std::process::Command::new(&out)
        .args(["-p", "ab", "-n", "3", "--temp", "0", "--ignore-eos"])
        .output()
        .expect("the executable starts");
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
    assert!(!run.stdout.is_empty());
}

#[test]
fn a_profile_names_every_kernel_call() {
    let dir = tempdir().expect("temporary folder");
    let bundle = compiled(&dir);
    let args = |rest: &[&'static str]| {
        let mut args = vec!["bench", arg(&bundle), "--profile", "-r", "1"];
        args.extend(rest);
        succeed(&args)
    };
    let text = args(&["-npp", "5", "-ntg", "4", "-npl", "1-3", "-o", "json"]);
    let profiles: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let profiles = profiles.as_array().expect("an array");
    // Three batches, greedy and default sampling.
    assert_eq!(profiles.len(), 6);
    for profile in profiles {
        let parts = profile["parts"].as_array().expect("parts");
        let names: Vec<&str> = parts.iter().filter_map(|p| p["part"].as_str()).collect();
        for wanted in [
            "matmul ffn_down",
            "matmul output",
            "attention",
            "barriers",
            "sampling",
        ] {
            assert!(names.contains(&wanted), "{wanted} in {names:?}");
        }
        assert!(!names.contains(&"other"), "{names:?}");
        assert_eq!(profile["untimed_calls"], 0);
        let shares: f64 = parts.iter().filter_map(|p| p["share"].as_f64()).sum();
        assert!((shares - 1.0).abs() < 1e-6, "{text}");
    }
    assert!(args(&["-npp", "3", "-ntg", "2", "-npl", "2"]).contains("**not in kernels**"));
    let bundle = arg(&bundle);
    fail(&["bench", bundle, "--profile", "-o", "svg"], 2, &["table"]);
    fail(
        &["bench", bundle, "-o", "svg", "-npp", "1,2"],
        2,
        &["one -npp"],
    );
    fail(&["bench", bundle, "-npl", "3-1"], 2, &["ranges ascend"]);
}

/// `examples/compare.sh`, with programs that print tables of their own.
#[cfg(unix)]
mod compare {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::process::{Command, Output};

    const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/compare.sh");

    fn program(dir: &Path, name: &str, script: &str) {
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/usr/bin/env bash\nset -eu\n{script}")).expect("written");
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&path, mode).expect("executable");
    }

    /// A program that notes its arguments and prints, the n-th time it measures, the n-th table. A table has a row
    /// (B, prompt tok/s, decode tok/s) for each batch.
    fn stand_in(dir: &Path, name: &str, tables: &[&[(u32, f64, f64)]]) {
        let mut script = format!("echo \"$*\" >> {name}.args\n[ \"$1\" = compile ] && exit 0\n");
        script += &format!("n=$(cat {name}.count 2>/dev/null || echo 0)\n");
        script +=
            &format!("echo $((n + 1)) > {name}.count\necho 'some | noise | 1 |'\ncase $n in\n");
        for (n, rows) in tables.iter().enumerate() {
            script += &format!("{n}) cat <<'TABLE'\n");
            script +=
                "|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |\n";
            script +=
                "|-------|--------|------|--------|----------|----------|----------|----------|\n";
            for (batch, prompt, decode) in *rows {
                script += &format!(
                    "|    16 |     24 | {batch:4} |    400 |    0.123 | {prompt:8.2} |    0.456 | {decode:8.2} |    1.0 |    99.9 | 8 | 12.50 | 40.0 |\n"
                );
            }
            script += "TABLE\n;;\n";
        }
        program(dir, name, &(script + "*) exit 9 ;;\nesac\n"));
    }

    fn compare(dir: &Path, coldpress: &Path, args: &[&str]) -> Output {
        Command::new("bash")
            .arg(SCRIPT)
            .args(args)
            .current_dir(dir)
            .env("COLDPRESS", coldpress)
            .output()
            .expect("bash starts")
    }

    #[test]
    fn ratios_are_medians_of_pairs() {
        let dir = tempdir().expect("temporary folder");
        let dir = dir.path();
        std::fs::write(dir.join("m.gguf"), "not read").expect("written");
        // Pairwise, B=8 decodes 4, 1 and 0.75 times as fast, while the medians' ratio is 1.5.
        let theirs: [&[_]; 3] = [
            &[(1, 100.0, 50.0), (8, 10.0, 10.0)],
            &[(1, 100.0, 50.0), (8, 10.0, 20.0)],
            &[(1, 100.0, 50.0), (8, 10.0, 40.0)],
        ];
        let ours: [&[_]; 3] = [
            &[(1, 200.0, 60.0), (8, 90.0, 40.0)],
            &[(1, 300.0, 60.0), (8, 30.0, 20.0)],
            &[(1, 400.0, 60.0), (8, 50.0, 30.0)],
        ];
        stand_in(dir, "llama-batched-bench", &theirs);
        stand_in(dir, "coldpress", &ours);
        let args = [
            "m.gguf", "--llama", ".", "-npl", "1,8", "--depth", "600", "--pairs", "3",
        ];
        let out = compare(
            dir,
            &dir.join("coldpress"),
            &[&args[..], &["-t", "2"]].concat(),
        );
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(
            out.status.success(),
            "{text}{}",
            String::from_utf8_lossy(&out.stderr)
        );
        let rows: Vec<&str> = text
            .lines()
            .filter(|l| l.starts_with("| "))
            .skip(2)
            .collect();
        assert_eq!(
            rows,
            [
                "| 1 | 50.0 | 60.0 | 1.20 | 12.5 (40) | 100.0 | 300.0 | 3.00 |",
                "| 8 | 20.0 | 30.0 | 1.00 | 12.5 (40) | 10.0 | 50.0 | 5.00 |",
            ]
        );
        assert!(
            text.starts_with("m.gguf, ") && text.contains("600 prompt and 24"),
            "{text}"
        );
        // 8 sequences of 624 tokens are more than 4096.
        let theirs = "-m m.gguf -c 4992 -npp 600 -ntg 24 -npl 1,8 -t 2";
        assert!(
            text.contains(&format!("llama-batched-bench {theirs}")),
            "{text}"
        );
        assert!(text.contains("coldpress bench model.press -npp 600 -ntg 24 -npl 1,8 -r 1"));
        let noted = |name: &str| std::fs::read_to_string(dir.join(name)).expect("arguments");
        assert_eq!(
            noted("llama-batched-bench.args").trim(),
            [theirs; 3].join("\n")
        );
        let ours = noted("coldpress.args");
        assert!(
            ours.starts_with("compile m.gguf --max-batch 8 -c 624 -t 2 -o "),
            "{ours}"
        );
        assert_eq!(ours.lines().count(), 4);
    }

    #[test]
    fn failures_name_the_tool_and_the_flag() {
        let dir = tempdir().expect("temporary folder");
        let dir = dir.path();
        std::fs::write(dir.join("m.gguf"), "not read").expect("written");
        stand_in(dir, "llama-batched-bench", &[&[(1, 1.0, 1.0)]]);
        stand_in(dir, "coldpress", &[&[(1, 1.0, 1.0)]]);
        let coldpress = dir.join("coldpress");
        let gone = dir.join("gone");
        for (coldpress, args, code, says) in [
            (&coldpress, &[][..], 2, "no model given"),
            (&coldpress, &["gone.gguf"], 1, "gone.gguf: no such file"),
            (
                &coldpress,
                &["m.gguf", "-npl", "1-8"],
                2,
                "no list of numbers",
            ),
            (
                &coldpress,
                &["m.gguf", "--pairs", "0"],
                2,
                "no number from 1",
            ),
            (
                &coldpress,
                &["m.gguf", "--pairs"],
                2,
                "--pairs needs a value",
            ),
            (
                &coldpress,
                &["m.gguf", "--nope"],
                2,
                "unknown option --nope",
            ),
            (
                &coldpress,
                &["m.gguf", "--llama", "gone"],
                1,
                "gone/llama-batched-bench",
            ),
            (
                &gone,
                &["m.gguf", "--llama", "."],
                1,
                "gone: no such program",
            ),
            // The table lacks a batch, as llama.cpp's does where the context is too short.
            (
                &coldpress,
                &["m.gguf", "--llama", ".", "-npl", "2", "--pairs", "1"],
                1,
                "llama-batched-bench printed no row for B=2",
            ),
            // The programs have run once before, and fail the second time.
            (
                &coldpress,
                &["m.gguf", "--llama", ".", "-npl", "1", "--pairs", "1"],
                1,
                "failed: ./llama-batched-bench",
            ),
        ] {
            let out = compare(dir, coldpress, args);
            let text = String::from_utf8_lossy(&out.stderr);
            assert_eq!(out.status.code(), Some(code), "{args:?}: {text}");
            assert!(
                text.contains("error: ") && text.contains(says),
                "{args:?}: {text}"
            );
        }
    }

    #[test]
    fn coldpress_itself_is_understood() {
        let dir = tempdir().expect("temporary folder");
        let model = model(&dir);
        stand_in(
            dir.path(),
            "llama-batched-bench",
            &[&[(1, 1.0, 1.0), (3, 1.0, 1.0)]],
        );
        let args = [
            "--llama", ".", "-npl", "1,3", "-npp", "4", "-ntg", "3", "--pairs", "1", "-t", "2",
        ];
        let coldpress = Path::new(env!("CARGO_BIN_EXE_coldpress"));
        let out = compare(dir.path(), coldpress, &[&[arg(&model)], &args[..]].concat());
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(
            out.status.success(),
            "{text}{}",
            String::from_utf8_lossy(&out.stderr)
        );
        for batch in [1, 3] {
            let row = text
                .lines()
                .find(|l| l.starts_with(&format!("| {batch} | 1.0 |")));
            let ratio = row.and_then(|r| r.split('|').nth(4)).expect("a ratio");
            assert!(
                ratio.trim().parse::<f64>().expect("a number") > 0.0,
                "{text}"
            );
        }
    }
}
