//! Bad input through the command line: one clear line, the right exit code, nothing half-written.

use crate::harness::*;
use coldpress_compiler::gguf::{Array, GgufWriter, Value};
use coldpress_kernels::tensor_type::TensorType;
use coldpress_runtime::bundle::{Bundle, BundleWriter, SectionKind};
use coldpress_runtime::manifest::Manifest;
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

#[test]
fn models_that_cannot_be_read() {
    let dir = tempdir().expect("temporary folder");
    let path = model(&dir);
    let bytes = std::fs::read(&path).expect("model");
    let damaged = dir.path().join("damaged.gguf");
    let check = |bytes: &[u8], code, says: &[&str]| {
        std::fs::write(&damaged, bytes).expect("written");
        refuses(&dir, &damaged, code, says);
    };
    check(&bytes[..3], 1, &["damaged.gguf"]);
    check(&bytes[..bytes.len() / 2], 1, &["damaged.gguf"]);
    check(
        b"PK\x03\x04 not a model at all, but long enough",
        1,
        &["damaged.gguf"],
    );
    let mut version = bytes.clone();
    version[4] = 9;
    check(&version, 1, &["version 9"]);
    let mut counts = bytes.clone();
    counts[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    check(&counts, 1, &["damaged.gguf"]);
    refuses(&dir, &dir.path().join("absent.gguf"), 1, &["absent.gguf"]);
}

#[test]
fn models_that_are_not_supported() {
    let dir = tempdir().expect("temporary folder");
    let path = dir.path().join("odd.gguf");
    let write = |w: &GgufWriter| w.write(&path).expect("written");
    let mut w = GgufWriter::new();
    w.add("general.architecture", Value::Str("mamba9".into()));
    write(&w);
    refuses(&dir, &path, 3, &["mamba9", "llama"]);

    let mut shape = Shape::small();
    shape.extra = vec![(
        "qwen3.rope.scaling.type".into(),
        Value::Str("spiral".into()),
    )];
    write(&shape.writer(1));
    refuses(&dir, &path, 3, &["spiral"]);
}

/// Edits one tensor (name, type, dimensions, bytes) of a model, or drops it by returning false.
type Change = dyn Fn(&str, &mut TensorType, &mut Vec<u64>, &mut Vec<u8>) -> bool;

#[test]
fn tensors_that_are_wrong() {
    let dir = tempdir().expect("temporary folder");
    let path = dir.path().join("odd.gguf");
    let rewritten = |change: &Change| {
        // Reads a good model and writes it again tensor by tensor; `change` edits one or drops it.
        let good = dir.path().join("good.gguf");
        Shape {
            hidden: 256,
            ..Shape::small()
        }
        .write(&good, 1);
        let gguf = coldpress_compiler::gguf::Gguf::open(&good).expect("opens");
        let mut w = GgufWriter::new();
        for (key, value) in gguf.keys() {
            w.add(key, value.clone());
        }
        for t in gguf.tensors() {
            let (mut ty, mut dims, mut bytes) = (t.ty, t.dims.clone(), gguf.data(t).to_vec());
            if change(&t.name, &mut ty, &mut dims, &mut bytes) {
                w.tensor(t.name.clone(), ty, &dims, bytes);
            }
        }
        w.write(&path).expect("written");
    };
    rewritten(&|name, _, _, _| name != "blk.1.ffn_up.weight");
    refuses(&dir, &path, 1, &["blk.1.ffn_up.weight"]);
    rewritten(&|name, _, dims, bytes| {
        if name == "blk.0.attn_k.weight" {
            dims[1] /= 2;
            bytes.truncate(bytes.len() / 2);
        }
        true
    });
    refuses(&dir, &path, 1, &["blk.0.attn_k.weight", "32", "64"]);
    rewritten(&|name, ty, _, bytes| {
        if name == "blk.0.ffn_gate.weight" {
            *ty = TensorType::IQ1_S;
            bytes.resize(TensorType::IQ1_S.block_bytes() as usize * 96, 0);
        }
        true
    });
    refuses(&dir, &path, 3, &["blk.0.ffn_gate.weight", "IQ1_S", "Q4_K"]);
}

#[test]
fn tokenizers_that_are_unknown() {
    let dir = tempdir().expect("temporary folder");
    let path = dir.path().join("vocab.gguf");
    let write = |model: &str, pre: &str| {
        let mut w = GgufWriter::new();
        w.add("general.architecture", Value::Str("llama".into()));
        w.add("tokenizer.ggml.model", Value::Str(model.into()));
        w.add("tokenizer.ggml.pre", Value::Str(pre.into()));
        w.add(
            "tokenizer.ggml.tokens",
            Value::Array(Array::Str(vec!["a".into(), "b".into()])),
        );
        w.add("tokenizer.ggml.merges", Value::Array(Array::Str(vec![])));
        w.write(&path).expect("written");
    };
    write("runes", "gpt-2");
    fail(&["tokenize", arg(&path), "ab"], 3, &["runes"]);
    write("gpt2", "elvish");
    fail(&["tokenize", arg(&path), "ab"], 3, &["elvish"]);
}

#[test]
fn bundles_that_are_damaged() {
    let dir = tempdir().expect("temporary folder");
    let good = bundle(&dir);
    let bytes = std::fs::read(&good).expect("bundle");
    let bad = dir.path().join("bad.press");
    let check = |bytes: &[u8], what: &str| {
        std::fs::write(&bad, bytes).expect("written");
        let out = coldpress(&["run", arg(&bad), "-p", "a", "-n", "1"]);
        let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(
            matches!(out.status.code(), Some(1 | 4)),
            "{what}: {:?}\n{stderr}",
            out.status.code()
        );
        assert_eq!(
            stderr.lines().filter(|l| l.starts_with("error:")).count(),
            1,
            "{what}:\n{stderr}"
        );
    };
    for cut in [
        0,
        1,
        7,
        8,
        15,
        16,
        31,
        63,
        64,
        100,
        200,
        4095,
        4096,
        bytes.len() - 1,
    ] {
        check(&bytes[..cut.min(bytes.len() - 1)], &format!("cut at {cut}"));
    }
    let mut random = Random(17);
    for _ in 0..24 {
        let at = random.below(bytes.len());
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << random.below(8);
        // Padding between sections is the only place no checksum covers.
        let out = {
            std::fs::write(&bad, &flipped).expect("written");
            coldpress(&["run", arg(&bad), "-p", "a", "-n", "1", "--temp", "0"])
        };
        if out.status.success() {
            assert_eq!(
                bytes[at], 0,
                "a flip at {at} went unnoticed outside padding"
            );
        }
    }
}

/// Writes the bundle `good` again at `out` with a changed manifest; every checksum is right.
fn remade(good: &Path, out: &Path, change: impl FnOnce(&mut Manifest)) {
    let bundle = Bundle::open(good).expect("opens");
    let mut writer = BundleWriter::create(out).expect("creates");
    for (index, section) in bundle.file_header().sections.iter().enumerate() {
        if section.kind != SectionKind::Manifest {
            let bytes = bundle.section_bytes(index as u32).expect("section");
            writer.write_section(section.kind, bytes).expect("written");
        }
    }
    let mut manifest = bundle.manifest().clone();
    change(&mut manifest);
    writer
        .write_value(SectionKind::Manifest, &manifest)
        .expect("written");
    let requires: Vec<_> = manifest.plans.iter().map(|p| p.requires.clone()).collect();
    writer.finish("another", &requires).expect("finished");
}

#[test]
fn bundles_for_another_machine() {
    let dir = tempdir().expect("temporary folder");
    let good = bundle(&dir);
    let other = dir.path().join("other.press");
    remade(&good, &other, |manifest| {
        let requires = &mut manifest.plans[0].requires;
        requires
            .features
            .extend(["avx9000".into(), "abacus".into()]);
    });
    // Every mismatch at once, and what to do.
    let says = ["avx9000", "abacus", "--target"];
    fail(&["run", arg(&other), "-p", "a"], 4, &says);
    let text = succeed(&["inspect", arg(&other)]);
    for word in says {
        assert!(
            text.contains(word),
            "inspect should mention {word}:\n{text}"
        );
    }
    remade(&good, &other, |manifest| {
        manifest.plans[0].requires.arch = "vax".into();
    });
    fail(&["run", arg(&other), "-p", "a"], 4, &["vax", "--target"]);
    remade(&good, &other, |manifest| {
        manifest.plans[0]
            .symbols
            .push("matmul_of_the_future".into());
    });
    fail(
        &["run", arg(&other), "-p", "a"],
        4,
        &["matmul_of_the_future"],
    );

    let mut bytes = std::fs::read(&good).expect("bundle");
    bytes[0] ^= 0xff;
    std::fs::write(&other, &bytes).expect("written");
    fail(&["run", arg(&other), "-p", "a"], 1, &["other.press"]);
    bytes[0] ^= 0xff;
    bytes[8] = 77;
    std::fs::write(&other, &bytes).expect("written");
    fail(&["run", arg(&other), "-p", "a"], 4, &["77"]);
}

#[test]
fn requests_beyond_what_was_compiled() {
    let dir = tempdir().expect("temporary folder");
    let bundle = bundle(&dir);
    let long = "x".repeat(100);
    fail(&["run", arg(&bundle), "-p", &long, "-n", "4"], 2, &["64"]);
    let out = dir.path().join("o.npy");
    let three = ["--tokens", "1,2", "--tokens", "3,4", "--tokens", "5,6"];
    fail(
        &[&["logits", arg(&bundle), "-o", arg(&out)], &three[..]].concat(),
        2,
        &["2"],
    );
    fail(
        &[
            "logits",
            arg(&bundle),
            "--tokens",
            "1,2,999999",
            "-o",
            arg(&out),
        ],
        2,
        &["999999"],
    );
    fail(
        &[
            "logits",
            arg(&bundle),
            "--tokens",
            "1,2",
            "--tokens",
            "3",
            "-o",
            arg(&out),
        ],
        2,
        &[],
    );
    assert!(!out.exists());
}

#[test]
fn memory_that_is_not_there() {
    let dir = tempdir().expect("temporary folder");
    let path = model(&dir);
    fail(
        &["compile", arg(&path), "--fit", "1KiB", "--dry-run"],
        5,
        &["--fit"],
    );
}

#[test]
fn a_full_disk_leaves_nothing() {
    let dir = tempdir().expect("temporary folder");
    let path = model(&dir);
    // A limit on the size of files this command may write stands in for a disk that fills.
    let out = dir.path().join("full.press");
    let script = format!(
        "trap '' XFSZ; ulimit -f 64; exec {} compile {} -o {}",
        env!("CARGO_BIN_EXE_coldpress"),
        arg(&path),
        arg(&out)
    );
    let run = std::process::Command::new("bash")
        .args(["-c", &script])
        .output()
        .expect("bash");
    let stderr = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("error:") && stderr.contains("full.press"),
        "{stderr}"
    );
    let left: Vec<_> = std::fs::read_dir(dir.path())
        .expect("folder")
        .map(|e| e.expect("entry").file_name())
        .collect();
    assert_eq!(left, [std::ffi::OsString::from("model.gguf")]);
}

#[test]
fn weights_that_are_no_numbers() {
    let dir = tempdir().expect("temporary folder");
    let (path, bundle) = (dir.path().join("nan.gguf"), dir.path().join("nan.press"));
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 0.0] {
        for tensor in ["output_norm.weight", "blk.0.ffn_norm.weight"] {
            for (ty, hidden) in [(TensorType::F16, 64), (TensorType::Q4_K, 256)] {
                let shape = Shape {
                    hidden,
                    types: vec![ty],
                    ..Shape::small()
                };
                let good = dir.path().join("good.gguf");
                shape.write(&good, 1);
                let gguf = coldpress_compiler::gguf::Gguf::open(&good).expect("opens");
                let mut w = GgufWriter::new();
                for (key, v) in gguf.keys() {
                    w.add(key, v.clone());
                }
                for t in gguf.tensors() {
                    let mut bytes = gguf.data(t).to_vec();
                    if t.name == tensor {
                        bytes[8..12].copy_from_slice(&value.to_le_bytes());
                    }
                    w.tensor(t.name.clone(), t.ty, &t.dims, bytes);
                }
                w.write(&path).expect("written");
                let out = coldpress(&[
                    "compile",
                    arg(&path),
                    "-o",
                    arg(&bundle),
                    "-np",
                    "2",
                    "-t",
                    "1",
                ]);
                let said = String::from_utf8_lossy(&out.stderr).into_owned();
                assert!(matches!(out.status.code(), Some(0 | 1)), "{value} {said}");
                if !out.status.success() {
                    assert!(said.contains("error:"), "{said}");
                    continue;
                }
                for temperature in ["0", "0.8"] {
                    let run = ["run", arg(&bundle), "-p", "ab", "-n", "3", "-q"];
                    let out = coldpress(&[&run[..], &["--temp", temperature]].concat());
                    let said = String::from_utf8_lossy(&out.stderr).into_owned();
                    assert!(
                        matches!(out.status.code(), Some(0 | 1)) && !said.contains("panicked"),
                        "{value} in {tensor}, {ty:?}, temperature {temperature}: {said}"
                    );
                }
                let out = coldpress(&["verify", arg(&bundle)]);
                assert!(
                    matches!(out.status.code(), Some(0 | 6)),
                    "{value} in {tensor}: {}",
                    String::from_utf8_lossy(&out.stderr)
                );
            }
        }
    }
}

#[test]
fn places_that_cannot_be_read_or_written() {
    let dir = tempdir().expect("temporary folder");
    let bundle = bundle(&dir);
    let (model, folder) = (dir.path().join("model.gguf"), dir.path().join("folder"));
    std::fs::create_dir(&folder).expect("created");
    let absent = dir.path().join("absent").join("out.press");
    let broken = dir.path().join("broken.txt");
    std::fs::write(&broken, b"a\xff\xfeb").expect("written");
    let run = |path| ["run", arg(&bundle), "-f", path];
    fail(&["compile", arg(&folder)], 1, &["folder"]);
    // What is there and is no bundle stays: folders, devices, and the model above all.
    let before = std::fs::read(&model).expect("model");
    let link = dir.path().join("link.gguf");
    std::os::unix::fs::symlink(&model, &link).expect("linked");
    for out in [folder.as_path(), &model, &link, Path::new("/dev/null")] {
        let compile = ["compile", arg(&model), "-o", arg(out)];
        fail(&compile, 2, &["--output", arg(out)]);
        fail(&[&compile[..], &["--exe"]].concat(), 2, &["--output"]);
    }
    assert!(std::fs::read(&model).expect("model") == before);
    let out = ["--tokens", "1", "-o", arg(&bundle)];
    fail(
        &[&["logits", arg(&bundle)], &out[..]].concat(),
        2,
        &["--output"],
    );
    fail(
        &["compile", arg(&model), "-o", arg(&absent)],
        1,
        &["absent"],
    );
    fail(&["run", arg(&folder), "-p", "a"], 1, &["folder"]);
    fail(&["logits", arg(&model), "--tokens", "1", "-o", "x"], 1, &[]);
    fail(&run(arg(&folder)), 1, &["folder"]);
    fail(&run(arg(&broken)), 1, &["broken.txt", "UTF-8"]);
    fail(
        &["tokenize", arg(&bundle), "-f", arg(&broken)],
        1,
        &["broken.txt"],
    );
    // Every command that prints says so when nobody can take what it prints.
    for command in [
        vec!["run", arg(&bundle), "-p", "a", "-n", "2"],
        vec!["tokenize", arg(&bundle), "abc"],
        vec!["inspect", arg(&bundle)],
        vec!["explain", arg(&bundle), "output"],
        vec!["verify", arg(&bundle)],
        vec!["targets"],
        vec!["compile", arg(&model), "--dry-run"],
    ] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
        let Ok(full) = full else { return };
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_coldpress"))
            .args(&command)
            .stdout(full)
            .output()
            .expect("starts");
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{command:?}: {said}");
        assert!(
            said.contains("error: writing stdout"),
            "{command:?}: {said}"
        );
    }
}

#[test]
fn flags_that_are_out_of_range() {
    let dir = tempdir().expect("temporary folder");
    let bundle = bundle(&dir);
    let model = dir.path().join("model.gguf");
    for flags in [
        ["--temp", "nan"],
        ["--temp", "inf"],
        ["--top-p", "-1"],
        ["--top-p", "nan"],
        ["--min-p", "1.5"],
        ["--min-p", "-1"],
        ["--repeat-penalty", "0"],
        ["--repeat-penalty", "-2"],
        ["--frequency-penalty", "inf"],
        ["--logit-bias", "5+nan"],
        ["--logit-bias", "x"],
        ["--stop", ""],
        ["-n", "999999999999999999999999"],
        ["-np", "0"],
        ["-ub", "0"],
        ["--system", "without --chat"],
    ] {
        let run = ["run", arg(&bundle), "-p", "a"];
        fail(&[&run[..], &flags].concat(), 2, &[]);
    }
    for flags in [
        ["--top-k", "0"],
        ["--top-k", "-1"],
        ["--top-k", "99999999"],
        ["--temp", "-1"],
        ["--temp", "1e-30"],
        ["--temp", "1e30"],
        ["--top-p", "0"],
        ["--min-p", "1"],
        ["--repeat-last-n", "999999999999"],
        ["--repeat-penalty", "1e30"],
        ["--presence-penalty", "-1e30"],
        ["-np", "99"],
        ["-ub", "1"],
        ["-p", ""],
    ] {
        let run = ["run", arg(&bundle), "-p", "a", "-n", "3"];
        if flags == ["-p", ""] {
            // No begin token stands in here.
            fail(&[&run[..], &flags].concat(), 2, &["empty"]);
        } else {
            succeed(&[&run[..], &flags].concat());
        }
    }
    for flags in [
        ["--max-batch", "0"],
        ["--max-batch", "100000"],
        ["-c", "0"],
        ["-c", "100000000"],
        ["-t", "0"],
        ["-t", "5000"],
        ["--fit", "nan"],
        ["--kv-type", "q3"],
    ] {
        let compile = ["compile", arg(&model), "--dry-run"];
        fail(&[&compile[..], &flags].concat(), 2, &[]);
    }
    fail(&["explain", arg(&bundle), ""], 1, &["no such tensor"]);
}

#[test]
fn vocabularies_of_another_length_than_the_matrix() {
    let dir = tempdir().expect("temporary folder");
    let (good, path) = (dir.path().join("good.gguf"), dir.path().join("odd.gguf"));
    Shape::small().write(&good, 1);
    let gguf = coldpress_compiler::gguf::Gguf::open(&good).expect("opens");
    for length in [260, 299, 301, 400] {
        let mut w = GgufWriter::new();
        for (key, v) in gguf.keys() {
            let v = match (key, v) {
                ("tokenizer.ggml.tokens", Value::Array(Array::Str(tokens))) => {
                    let more = (tokens.len()..length).map(|i| format!("[MORE{i}]"));
                    let tokens = tokens.iter().cloned().chain(more).take(length);
                    Value::Array(Array::Str(tokens.collect()))
                }
                ("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds))) => {
                    let mut kinds = kinds.clone();
                    kinds.resize(length, 3);
                    Value::Array(Array::I32(kinds))
                }
                _ => v.clone(),
            };
            w.add(key, v);
        }
        for t in gguf.tensors() {
            w.tensor(t.name.clone(), t.ty, &t.dims, gguf.data(t).to_vec());
        }
        w.write(&path).expect("written");
        refuses(&dir, &path, 1, &["300", &length.to_string()]);
    }
}

#[test]
fn a_cached_bundle_that_was_cut_is_made_again() {
    let dir = tempdir().expect("temporary folder");
    let path = model(&dir);
    let run = || {
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_coldpress"))
            .args(["run", arg(&path), "-p", "a", "-n", "2", "--temp", "0"])
            .env("XDG_CACHE_HOME", dir.path().join("cache"))
            .output()
            .expect("starts");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{said}");
        (out.stdout, said.contains("compiling"))
    };
    let (first, compiled) = run();
    assert!(compiled);
    assert_eq!(run(), (first.clone(), false));
    let folder = dir.path().join("cache").join("coldpress");
    let kept: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("cache")
        .map(|e| e.expect("entry").path())
        .collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    let bytes = std::fs::read(&kept[0]).expect("bundle");
    std::fs::write(&kept[0], &bytes[..1000]).expect("cut");
    assert_eq!(run(), (first.clone(), true));
    assert_eq!(run(), (first, false));
}
