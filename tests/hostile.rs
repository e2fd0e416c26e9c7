//! Bad input through the command line: one clear line, the right exit code, nothing half-written.

mod bundles;
mod commands;
mod models;

use crate::harness::*;
use std::path::{Path, PathBuf};
use tempfile::{TempDir, tempdir};

fn model(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("model.gguf");
    Shape::small().write(&path, 1);
    path
}

fn bundle(dir: &TempDir) -> PathBuf {
    let (model, out) = (model(dir), dir.path().join("model.press"));
    succeed(&[
        "compile",
        arg(&model),
        "-o",
        arg(&out),
        "--max-batch",
        "2",
        "--ctx-size",
        "64",
        "-t",
        "1",
    ]);
    out
}

/// Compiling `model` fails with `code`, mentions `says`, and leaves no file behind.
fn refuses(dir: &TempDir, model: &Path, code: i32, says: &[&str]) {
    let out = dir.path().join("out.press");
    fail(&["compile", arg(model), "-o", arg(&out)], code, says);
    let left: Vec<String> = std::fs::read_dir(dir.path())
        .expect("folder")
        .map(|e| e.expect("entry").file_name().to_string_lossy().into_owned())
        .filter(|name| !name.ends_with(".gguf"))
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}
