//! Commands that show things: inspect, explain, verify, targets, `--emit`, `--dry-run`; and that the same input gives the
//! same bytes.

use crate::harness::*;
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
    assert!(succeed(&["targets"]).contains("this machine"));
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
