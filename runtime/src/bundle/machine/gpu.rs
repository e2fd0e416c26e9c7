//! Which GPU runs a plan's kernels, and what every GPU lacks for it, in words.

use super::short_of_memory;
use crate::device::cuda::{GpuInfo, OLDEST_CUDA, OLDEST_DRIVER};
use crate::manifest::Requirements;

/// Presets of the compiler by a part of what the driver calls a GPU; the first that is in the name.
pub const TARGETS_BY_NAME: &[(&str, &str)] = &[
    ("H200", "h200"),
    ("H100", "h100"),
    ("B200", "b200"),
    ("A100", "a100"),
    ("L40", "l40s"),
    ("RTX 5090", "rtx5090"),
    ("RTX 4090", "rtx4090"),
    ("RTX 4070 Ti", "rtx4070ti"),
    ("RTX 3090", "rtx3090"),
    ("T4", "t4"),
];

/// Presets for any GPU of a compute capability.
pub const TARGETS_BY_CAPABILITY: &[(&str, (u32, u32))] = &[
    ("sm_75", (7, 5)),
    ("sm_80", (8, 0)),
    ("sm_86", (8, 6)),
    ("sm_86", (8, 7)),
    ("sm_89", (8, 9)),
    ("sm_90a", (9, 0)),
    ("sm_100a", (10, 0)),
    ("sm_120", (12, 0)),
    ("sm_120", (12, 1)),
];

/// Features of a cubin's name: `sm_90a` is 9, 0 and that nothing else runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Architecture {
    major: u32,
    minor: u32,
    exact: bool,
}

impl Architecture {
    fn parse(feature: &str) -> Option<Self> {
        let text = feature.strip_prefix("sm_")?;
        let digits = text.trim_end_matches(['a', 'f']);
        let number: u32 = digits.parse().ok().filter(|_| digits.len() < 4)?;
        Some(Self {
            major: number / 10,
            minor: number % 10,
            exact: match &text[digits.len()..] {
                "" | "f" => false,
                "a" => true,
                _ => return None,
            },
        })
    }

    /// Machine code runs on later GPUs of the same major number, unless it uses what only one has.
    fn runs_on(self, (major, minor): (u32, u32)) -> bool {
        major == self.major && (minor == self.minor || (minor > self.minor && !self.exact))
    }
}

/// The first of `gpus` that lacks nothing, and how much memory it has. Memory decides only among those.
pub(super) fn pick(gpus: &[GpuInfo], requires: &Requirements) -> Option<usize> {
    let able = |gpu: &GpuInfo| lacks(gpu, requires).is_empty();
    let mut able = (0..gpus.len()).filter(|&i| able(&gpus[i])).peekable();
    let first = *able.peek()?;
    let roomy = able.find(|&i| gpus[i].memory_bytes >= requires.memory_bytes);
    Some(roomy.unwrap_or(first))
}

/// Everything that keeps each of `gpus` from running the plan, memory aside; empty if one does.
pub(super) fn mismatches(
    gpus: &Result<Vec<GpuInfo>, String>,
    requires: &Requirements,
) -> Vec<String> {
    let target = &requires.target;
    let gpus = match gpus {
        Ok(gpus) => gpus,
        Err(why) => {
            return vec![format!(
                "target {target} needs an NVIDIA GPU: {why}; install NVIDIA driver {OLDEST_DRIVER} or later, or recompile \
                 with --target native"
            )];
        }
    };
    let lines: Vec<Vec<String>> = gpus.iter().map(|gpu| lacks(gpu, requires)).collect();
    if lines.iter().any(Vec::is_empty) {
        return Vec::new();
    }
    let mut lines = lines.concat();
    // Equal GPUs lack the same.
    let mut seen = std::collections::HashSet::new();
    lines.retain(|line| seen.insert(line.clone()));
    lines
}

fn lacks(gpu: &GpuInfo, requires: &Requirements) -> Vec<String> {
    let mut lines = Vec::new();
    let (target, name) = (&requires.target, &gpu.name);
    if gpu.cuda < OLDEST_CUDA {
        let version = gpu.driver.as_deref().unwrap_or("of unknown version");
        lines.push(format!(
            "target {target} needs NVIDIA driver {OLDEST_DRIVER} or later (CUDA {}.{}), {name} has driver {version} (CUDA {}); \
             install NVIDIA driver {OLDEST_DRIVER} or later",
            OLDEST_CUDA / 1000,
            OLDEST_CUDA % 1000 / 10,
            gpu.cuda_version()
        ));
    }
    let runs = |feature: &&String| {
        Architecture::parse(feature).is_some_and(|arch| arch.runs_on(gpu.capability))
    };
    let missing: Vec<&str> = requires
        .features
        .iter()
        .filter(|f| !runs(f))
        .map(String::as_str)
        .collect();
    if !missing.is_empty() {
        lines.push(format!(
            "target {target} was compiled for {}, {name} has compute capability {}.{}; recompile with --target {}",
            missing.join(", "),
            gpu.capability.0,
            gpu.capability.1,
            target_for(gpu)
        ));
    }
    lines
}

/// The compiler's preset for a GPU: its own, or that of its architecture.
pub fn target_for(gpu: &GpuInfo) -> &'static str {
    let own = TARGETS_BY_NAME
        .iter()
        .find(|(part, _)| gpu.name.contains(part));
    let same = |(_, capability): &&(&str, (u32, u32))| *capability == gpu.capability;
    let architecture = || TARGETS_BY_CAPABILITY.iter().find(same);
    let architecture = || architecture().map(|&(preset, _)| preset);
    own.map(|&(_, preset)| preset)
        .or_else(architecture)
        .unwrap_or("native")
}

/// Whether the plan was made for the GPU that would run it, as far as presets tell GPUs apart.
pub(super) fn is_preset(gpus: &Result<Vec<GpuInfo>, String>, requires: &Requirements) -> bool {
    let gpus = gpus.as_deref().unwrap_or_default();
    let gpu = pick(gpus, requires).and_then(|index| gpus.get(index));
    gpu.is_some_and(|gpu| target_for(gpu) == requires.target)
}

/// The line that says the memory of every able GPU is short, if it is.
pub(super) fn memory_mismatch(gpus: &[GpuInfo], requires: &Requirements) -> Option<String> {
    let able = pick(gpus, requires);
    let largest = || gpus.iter().max_by_key(|gpu| gpu.memory_bytes);
    let gpu = able.map_or_else(largest, |i| gpus.get(i))?;
    short_of_memory(requires, "allocates", gpu.memory_bytes, |gib| {
        format!("{} has {gib}", gpu.name)
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A GPU with a recent driver and 24 GiB.
    pub(in super::super) fn gpu(name: &str, capability: (u32, u32)) -> GpuInfo {
        GpuInfo {
            name: name.into(),
            capability,
            memory_bytes: 24 << 30,
            sms: 128,
            cuda: 13000,
            driver: Some("580.65.06".into()),
        }
    }

    fn requires(feature: &str) -> Requirements {
        Requirements {
            target: "h200".into(),
            arch: "cuda".into(),
            features: vec![feature.into()],
            memory_bytes: 20 << 30,
            planned_for: None,
        }
    }

    #[test]
    fn machine_code_runs_where_the_driver_says() {
        let runs = |feature, capability| {
            Architecture::parse(feature).is_some_and(|arch| arch.runs_on(capability))
        };
        for (feature, capability) in [
            ("sm_75", (7, 5)),
            ("sm_80", (8, 0)),
            ("sm_80", (8, 6)),
            ("sm_80", (8, 9)),
            ("sm_90a", (9, 0)),
            ("sm_100f", (10, 3)),
            ("sm_120", (12, 1)),
        ] {
            assert!(runs(feature, capability), "{feature} {capability:?}");
        }
        for (feature, capability) in [
            ("sm_75", (8, 0)),
            ("sm_86", (8, 0)),
            ("sm_89", (9, 0)),
            ("sm_90a", (9, 1)),
            ("sm_100a", (10, 3)),
            ("sm_90", (10, 0)),
            ("sm_9x", (9, 0)),
            ("sm_", (0, 0)),
            ("sm_90aa", (9, 0)),
            ("sm_4294967295", (429496729, 5)),
            ("avx2", (9, 0)),
        ] {
            assert!(!runs(feature, capability), "{feature} {capability:?}");
        }
    }

    #[test]
    fn every_reason_is_listed_with_what_helps() {
        let mut old = gpu("NVIDIA GeForce RTX 4090", (8, 9));
        old.cuda = 12080;
        old.driver = Some("570.86.15".into());
        let lines = mismatches(&Ok(vec![old.clone(), old]), &requires("sm_90a"));
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].contains("570.86.15 (CUDA 12.8)"), "{}", lines[0]);
        assert!(lines[0].contains("install NVIDIA driver 580"));
        assert!(lines[1].contains("sm_90a") && lines[1].contains("8.9"));
        assert!(lines[1].ends_with("--target rtx4090"), "{}", lines[1]);
        for (capability, target) in [((8, 7), "sm_86"), ((10, 3), "native")] {
            let other = gpu("Someone's GPU", capability);
            let lines = mismatches(&Ok(vec![other]), &requires("sm_90a"));
            assert!(
                lines[0].ends_with(&format!("--target {target}")),
                "{}",
                lines[0]
            );
        }
        let lines = mismatches(&Err("no NVIDIA driver".into()), &requires("sm_90a"));
        assert!(lines[0].contains("no NVIDIA driver") && lines[0].contains("install"));
    }

    #[test]
    fn one_able_gpu_is_enough() {
        let small = GpuInfo {
            memory_bytes: 8 << 30,
            ..gpu("NVIDIA H100", (9, 0))
        };
        let ada = gpu("NVIDIA L40S", (8, 9));
        let large = gpu("NVIDIA H200", (9, 0));
        let needs = requires("sm_90a");
        let gpus = vec![ada.clone(), small.clone(), large];
        assert_eq!(pick(&gpus, &needs), Some(2));
        assert_eq!(memory_mismatch(&gpus, &needs), None);
        assert_eq!(mismatches(&Ok(gpus), &needs), [""; 0]);
        let gpus = vec![ada.clone(), small];
        assert_eq!(pick(&gpus, &needs), Some(1));
        let line = memory_mismatch(&gpus, &needs).expect("too small");
        assert!(
            line.contains("20.00 GiB, NVIDIA H100 has 8.00 GiB"),
            "{line}"
        );
        assert_eq!(pick(&[ada], &needs), None);
        assert_eq!(memory_mismatch(&[], &needs), None);
    }
}
