//! What may know what: crates, read from cargo's own view of the workspace, and files that state an architecture.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Names in the normal dependency tree of a package.
fn tree(package: &str) -> BTreeSet<String> {
    let out = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--locked",
            "-p",
            package,
            "-e",
            "normal",
            "--prefix",
            "none",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo tree runs");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let text = String::from_utf8_lossy(&out.stdout);
    text.lines()
        .filter_map(|l| l.split_whitespace().next())
        .map(str::to_string)
        .collect()
}

#[test]
fn the_runtime_contains_nothing_of_the_compiler() {
    let tree = tree("coldpress-runtime");
    assert!(
        tree.contains("coldpress-kernels") && tree.contains("memmap2"),
        "{tree:?}"
    );
    for banned in [
        "petgraph",
        "tera",
        "cranelift-codegen",
        "coldpress-compiler",
    ] {
        assert!(!tree.contains(banned), "runtime depends on {banned}");
    }
}

#[test]
fn kernels_depend_on_almost_nothing() {
    let tree = tree("coldpress-kernels");
    assert!(tree.contains("half"));
    for banned in [
        "coldpress-runtime",
        "coldpress-compiler",
        "memmap2",
        "clap",
        "tokenizers",
    ] {
        assert!(!tree.contains(banned), "kernels depend on {banned}");
    }
}

/// Model architectures and quant formats are words of the compiler and of `kernels/src/quant`.
#[test]
fn the_runtime_hears_no_model_or_format_name() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../runtime/src");
    let mut files = vec![std::path::PathBuf::from(root)];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(
                std::fs::read_dir(&path)
                    .expect("folder")
                    .map(|e| e.expect("entry").path()),
            );
            continue;
        }
        let text = std::fs::read_to_string(&path)
            .expect("source")
            .to_lowercase();
        let code: String = text
            .split("#[cfg(test)]")
            .next()
            .unwrap_or_default()
            .to_string();
        for line in code.lines().filter(|l| !l.trim_start().starts_with("//")) {
            for name in [
                "llama", "qwen", "gemma", "q4_k", "q6_k", "ggml", "rmsnorm", "matmul",
            ] {
                assert!(
                    !line.contains(name),
                    "{} says {name}: {line}",
                    path.display()
                );
            }
        }
    }
}

/// An architecture is one file and a line: nothing but the list in `model.rs` knows its module, and the runtime hears no
/// model's name.
#[test]
fn a_model_architecture_is_one_file_and_a_line() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let sources = |folder: &str| {
        let mut found = Vec::new();
        let mut folders = vec![root.join(folder)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => found.push(path),
                }
            }
        }
        let text = |path: PathBuf| (std::fs::read_to_string(&path).ok(), path);
        found
            .into_iter()
            .map(text)
            .filter_map(|(text, path)| Some((path, text?)))
            .collect::<Vec<_>>()
    };
    let compiler = sources("compiler/src");
    let others = [
        sources("runtime/src"),
        sources("kernels/src"),
        sources("templates"),
    ]
    .concat();
    for architecture in coldpress_compiler::model::ARCHITECTURES {
        let stated = format!("name: \"{}\",", architecture.name);
        let own: Vec<_> = compiler
            .iter()
            .filter(|(_, text)| text.contains(&stated))
            .collect();
        let [(path, _)] = own[..] else {
            panic!("{}: {} files", architecture.name, own.len());
        };
        let module = path.file_stem().expect("a name").to_string_lossy();
        let used = format!("{module}::");
        let users = compiler
            .iter()
            .filter(|(other, text)| other != path && text.contains(&used));
        let lines: Vec<String> = users
            .flat_map(|(_, text)| text.lines().filter(|line| line.contains(&used)))
            .map(|line| line.trim().to_string())
            .collect();
        assert_eq!(
            lines,
            [format!("{module}::ARCHITECTURE,")],
            "{}",
            path.display()
        );
        let heard = others.iter().find(|(_, text)| text.contains(&stated));
        assert!(
            heard.is_none(),
            "{}: {:?}",
            architecture.name,
            heard.map(|h| &h.0)
        );
    }
}
