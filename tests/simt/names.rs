//! A kernel that runs here must compile for a GPU and the other way round: both files of intrinsics declare the same names.

use coldpress_compiler::codegen::cuda::render::INTRINSICS;
use std::collections::BTreeSet;

const SHIM: &str = include_str!("intrinsics.hpp");

/// Names that kernels may use: functions with their parameter counts, types, constants, macros.
fn names(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    // What the shim adds for itself.
    let mut private = 0;
    for line in text.lines() {
        if line == "namespace simt {" || line.starts_with("}  // namespace simt") {
            private = usize::from(line.starts_with("namespace"));
        }
        if private > 0 {
            continue;
        }
        let word = |rest: &str| -> String {
            let word = rest.trim_start().chars();
            word.take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect()
        };
        if let Some(rest) = line.strip_prefix("DEVICE ") {
            let (head, parameters) = rest.split_once('(').expect("a function");
            let name = head.rsplit([' ', '*']).next().expect("a name");
            // A line for messages is no parameter; nor is what stands inside brackets.
            let parameters = parameters.split(") {").next().expect("one part");
            let parameters = parameters.split(',').map(str::trim);
            let count = parameters
                .filter(|p| !p.is_empty() && *p != "SIMT_LINE")
                .count();
            names.insert(format!("{name}/{count}"));
        } else if let Some(rest) = line.strip_prefix("struct ") {
            names.insert(word(
                rest.trim_start_matches("alignas(16)")
                    .trim_start_matches("alignas(8)"),
            ));
        } else if let Some(rest) = line.strip_prefix("typedef ") {
            names.insert(rest.rsplit(' ').next().expect("a name").into());
        } else if let Some(rest) = line.strip_prefix("constexpr ") {
            names.insert(word(rest.split_once(' ').expect("type and name").1));
        } else if let Some(rest) = line.strip_prefix("#define ") {
            names.insert(word(rest));
        }
    }
    names
}

#[test]
fn both_files_declare_the_same() {
    let (gpu, mut cpu) = (names(INTRINSICS), names(SHIM));
    for known in [
        "sync_block/0",
        "mma_f16/3",
        "KERNEL",
        "U4",
        "Arg",
        "f16",
        "SM_ARCH",
        "copy_bulk/4",
        "u32;",
    ] {
        assert!(gpu.contains(known), "{known} is not found in {gpu:?}");
    }
    // Helpers of one side alone.
    let gpu_only = ["MMA_K32", "MMA_K16", "MMA_HALF", "ACC4", "ACC8", "ACC16"].map(String::from);
    let cpu_only = ["SIMT_ARCH", "SIMT_LINE", "__device__", "__forceinline__"].map(String::from);
    cpu.extend(gpu_only);
    let mut gpu = gpu;
    gpu.extend(cpu_only);
    let missing: Vec<_> = gpu.symmetric_difference(&cpu).collect();
    assert!(missing.is_empty(), "declared on one side only: {missing:?}");
}

#[test]
fn gpu_text_includes_nothing() {
    assert!(!INTRINSICS.contains("#include"));
}
