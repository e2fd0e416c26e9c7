//! What an Apple GPU lacks for a plan, in words.

use super::short_of_memory;
use crate::device::metal::MetalInfo;
use crate::manifest::Requirements;

/// Everything that keeps the GPU from running the plan, memory aside.
pub(super) fn mismatches(gpu: &Result<MetalInfo, String>, requires: &Requirements) -> Vec<String> {
    let target = &requires.target;
    let gpu = match gpu {
        Ok(gpu) => gpu,
        Err(why) => {
            return vec![format!(
                "target {target} needs a Mac with an Apple GPU (M1 or later): {why}; recompile with --target native"
            )];
        }
    };
    let family = |feature: &str| feature.strip_prefix("apple")?.parse::<u32>().ok();
    let missing: Vec<&str> = requires
        .features
        .iter()
        .map(String::as_str)
        .filter(|feature| family(feature).is_none_or(|f| f > gpu.family))
        .collect();
    if missing.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "target {target} needs {}, this is {gpu}; recompile with --target native",
        missing.join(", ")
    )]
}

/// The line that says memory is short, if it is.
pub(super) fn memory_mismatch(gpu: &MetalInfo, requires: &Requirements) -> Option<String> {
    short_of_memory(requires, "uses with its weights", gpu.memory_bytes, |gib| {
        format!("{} may use {gib}", gpu.name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_families_run_what_earlier_ones_run() {
        let gpu = |family| {
            Ok(MetalInfo {
                name: "Apple M3".into(),
                family,
                cores: Some(10),
                memory_bytes: 16 << 30,
            })
        };
        let requires = |feature: &str| Requirements {
            target: "metal:m3".into(),
            arch: "metal".into(),
            features: vec![feature.into()],
            memory_bytes: 20 << 30,
            planned_for: None,
        };
        assert_eq!(mismatches(&gpu(9), &requires("apple7")), [""; 0]);
        assert_eq!(mismatches(&gpu(9), &requires("apple9")), [""; 0]);
        for feature in ["apple10", "apple", "sm_90", "applex"] {
            let lines = mismatches(&gpu(9), &requires(feature));
            assert!(lines[0].contains(feature) && lines[0].contains("apple9"));
        }
        let none = mismatches(&Err("this is not a Mac".into()), &requires("apple7"));
        assert!(none[0].contains("this is not a Mac") && none[0].contains("--target native"));
        let short = memory_mismatch(&gpu(9).expect("a GPU"), &requires("apple7"));
        assert!(
            short
                .expect("too large")
                .contains("20.00 GiB, Apple M3 may use 16.00 GiB")
        );
    }
}
