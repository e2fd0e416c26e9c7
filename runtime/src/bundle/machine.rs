//! What this machine is, and what a bundle asks that it does not have. Detection only; nothing here fails.

mod gpu;
mod metal;

use crate::device::metal::Distance;
pub use gpu::{TARGETS_BY_CAPABILITY, TARGETS_BY_NAME, target_for};

use crate::device::cuda::{self, GpuInfo};
use crate::device::metal::MetalInfo;
use crate::manifest::Requirements;
use coldpress_kernels::cpu;

/// The architecture of plans for NVIDIA GPUs.
const CUDA: &str = "cuda";
/// That of plans for Apple GPUs.
const METAL: &str = "metal";

/// How well a plan fits a machine that can run it: the least fits best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Fit {
    /// GPUs come first.
    on_cpu: bool,
    /// Whether it is not the preset of this NVIDIA GPU.
    other_preset: bool,
    /// How far the Apple GPU is that it was planned for.
    distance: Option<Distance>,
}

/// The machine the process runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// `x86_64`, `aarch64`.
    pub arch: String,
    /// CPU features by the names `is_x86_feature_detected!` uses.
    pub features: Vec<String>,
    /// Bytes that can be allocated now (free memory and cache, or what the control group leaves); `u64::MAX` if unknown.
    pub memory_bytes: u64,
    /// Logical cores this process may use.
    pub cores: u32,
    /// NVIDIA GPUs in the driver's order, or why there are none.
    pub gpus: Result<Vec<GpuInfo>, String>,
    /// The Apple GPU, or why there is none.
    pub metal: Result<MetalInfo, String>,
}

impl Machine {
    /// Asks the CPU, the operating system and the NVIDIA driver.
    pub fn detect() -> Self {
        Self {
            gpus: cuda::detect(),
            metal: crate::device::metal::detect(),
            ..Self::without_gpus()
        }
    }

    /// As [`Machine::detect`]; GPUs only if a plan is for one, since starting their driver takes a while.
    pub fn detect_for<'a>(plans: impl IntoIterator<Item = &'a Requirements>) -> Self {
        let arches: Vec<&str> = plans.into_iter().map(|p| p.arch.as_str()).collect();
        let mut machine = Self::without_gpus();
        if arches.contains(&CUDA) {
            machine.gpus = cuda::detect();
        }
        if arches.contains(&METAL) {
            machine.metal = crate::device::metal::detect();
        }
        machine
    }

    /// The GPU that runs a plan, by its place in `gpus`: of those that can, one with enough memory if there is one.
    pub fn gpu_for(&self, requires: &Requirements) -> Option<usize> {
        gpu::pick(self.gpus.as_deref().ok()?, requires)
    }

    /// Everything that keeps this machine from running a plan, memory included; each line ends with what helps.
    pub fn lacks(&self, requires: &Requirements) -> Vec<String> {
        let mut lines = self.platform_mismatches(requires);
        lines.extend(self.memory_mismatch(requires));
        lines
    }

    /// Why this machine does not run a plan when it runs the one that needs `picked`: what it lacks, or that the other fits
    /// better.
    pub fn refusal(&self, requires: &Requirements, picked: &Requirements) -> Vec<String> {
        let lines = self.lacks(requires);
        if !lines.is_empty() {
            return lines;
        }
        let (target, other) = (&requires.target, &picked.target);
        let (own, others) = (self.fit(requires), self.fit(picked));
        vec![match (&requires.planned_for, &self.metal) {
            _ if own.on_cpu && !others.on_cpu => {
                format!("target {target} runs here too, but {other} runs on the GPU")
            }
            (Some(planned), Ok(gpu)) if own > others => format!(
                "target {target} was planned for {}, apple{}, {} cores; {other} is closer to {gpu}",
                planned.gpu, planned.family, planned.cores
            ),
            _ if own > others => {
                format!("target {target} runs here too, but {other} was planned for this GPU")
            }
            _ => format!("target {target} runs here too, but {other} comes before it"),
        }]
    }

    /// How well a plan fits.
    pub(super) fn fit(&self, requires: &Requirements) -> Fit {
        let metal = self.metal.as_ref().ok();
        let planned = requires.planned_for.as_ref();
        Fit {
            on_cpu: ![CUDA, METAL].contains(&requires.arch.as_str()),
            other_preset: requires.arch == CUDA && !gpu::is_preset(&self.gpus, requires),
            distance: planned.and_then(|planned| Some(metal?.distance(planned))),
        }
    }

    fn without_gpus() -> Self {
        let names = cpu::detect();
        Self {
            arch: std::env::consts::ARCH.to_owned(),
            features: names.names().iter().map(|&name| name.to_owned()).collect(),
            memory_bytes: available_memory(),
            cores: u32::try_from(num_cpus::get()).unwrap_or(u32::MAX),
            gpus: Err("nobody looked for one".into()),
            metal: Err("nobody looked for one".into()),
        }
    }

    /// What of `requires` this machine is not or cannot do, memory aside; each line ends with what helps.
    pub(super) fn platform_mismatches(&self, requires: &Requirements) -> Vec<String> {
        let target = &requires.target;
        if requires.arch == CUDA {
            return gpu::mismatches(&self.gpus, requires);
        }
        if requires.arch == METAL {
            return metal::mismatches(&self.metal, requires);
        }
        if !target.starts_with("cpu") {
            return vec![format!(
                "target {target}: this runtime has no driver for it; recompile with --target native"
            )];
        }
        if requires.arch != self.arch {
            return vec![format!(
                "target {target} is for {}, this machine is {}; recompile with --target native",
                requires.arch, self.arch
            )];
        }
        let missing: Vec<&str> = requires
            .features
            .iter()
            .filter(|feature| !self.features.contains(feature))
            .map(String::as_str)
            .collect();
        if missing.is_empty() {
            return Vec::new();
        }
        vec![format!(
            "target {target} needs CPU features this machine lacks ({}); recompile with --target native",
            missing.join(", ")
        )]
    }

    /// The line that says memory is short, if it is.
    pub(super) fn memory_mismatch(&self, requires: &Requirements) -> Option<String> {
        if requires.arch == CUDA {
            return gpu::memory_mismatch(self.gpus.as_deref().unwrap_or_default(), requires);
        }
        if requires.arch == METAL {
            return metal::memory_mismatch(self.metal.as_ref().ok()?, requires);
        }
        short_of_memory(requires, "allocates", self.memory_bytes, |gib| {
            format!("{gib} are available")
        })
    }
}

/// The line that says a plan needs more than `bytes`, if it does; `takes` says what the plan does with its memory, `there`
/// who has how much.
fn short_of_memory(
    requires: &Requirements,
    takes: &str,
    bytes: u64,
    there: impl Fn(&str) -> String,
) -> Option<String> {
    (requires.memory_bytes > bytes).then(|| {
        format!(
            "target {} {takes} {:.2} GiB, {}; \
             recompile with a smaller --max-batch, --ctx-size or --kv-type",
            requires.target,
            gib(requires.memory_bytes),
            there(&format!("{:.2} GiB", gib(bytes)))
        )
    })
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

/// `MemAvailable`, or what the control group (version 2) leaves, whichever is less.
fn available_memory() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free = parse_meminfo(&meminfo).unwrap_or(u64::MAX);
    let number =
        |path: &str| -> Option<u64> { std::fs::read_to_string(path).ok()?.trim().parse().ok() };
    // The limit file says `max` where there is no limit. Page cache counts as used, although it can be dropped, so the
    // limit itself is the bound, not what is left of it.
    free.min(number("/sys/fs/cgroup/memory.max").unwrap_or(u64::MAX))
}

fn parse_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            arch: "x86_64".into(),
            features: vec!["avx2".into()],
            memory_bytes: 1 << 30,
            cores: 4,
            gpus: Err("no NVIDIA driver".into()),
            metal: Err("this is not a Mac".into()),
        }
    }

    fn requires(target: &str, arch: &str, features: &[&str], memory_bytes: u64) -> Requirements {
        Requirements {
            target: target.into(),
            arch: arch.into(),
            features: features.iter().map(|&f| f.into()).collect(),
            memory_bytes,
            planned_for: None,
        }
    }

    #[test]
    fn names_every_missing_feature_at_once() {
        let lines = machine().platform_mismatches(&requires(
            "cpu:avx512",
            "x86_64",
            &["avx2", "avx512f", "avx512vl"],
            0,
        ));
        assert_eq!(lines.len(), 1);
        assert!(lines[0].contains("(avx512f, avx512vl)"), "{}", lines[0]);
        assert!(lines[0].contains("recompile with --target"));
    }

    #[test]
    fn names_arch_device_and_memory() {
        let arch = machine().platform_mismatches(&requires("cpu:neon", "aarch64", &["neon"], 0));
        assert!(arch[0].contains("is for aarch64, this machine is x86_64"));
        let gpu = machine().platform_mismatches(&requires("h200", "x86_64", &[], 0));
        assert!(gpu[0].contains("no driver"));
        let needs = requires("h200", "cuda", &["sm_90a"], 30 << 30);
        let none = machine().platform_mismatches(&needs);
        assert!(none[0].contains("no NVIDIA driver"), "{}", none[0]);
        let with_gpu = Machine {
            gpus: Ok(vec![gpu::tests::gpu("NVIDIA H100", (9, 0))]),
            ..machine()
        };
        assert!(with_gpu.platform_mismatches(&needs).is_empty());
        assert!(with_gpu.memory_mismatch(&needs).is_some());
        assert_eq!(with_gpu.gpu_for(&needs), Some(0));
        assert_eq!(machine().gpu_for(&needs), None);
        let fits = requires("cpu:avx2", "x86_64", &["avx2"], 1 << 30);
        assert!(machine().platform_mismatches(&fits).is_empty());
        assert_eq!(machine().memory_mismatch(&fits), None);
        let large = requires("cpu:avx2", "x86_64", &["avx2"], 3 << 30);
        let line = machine().memory_mismatch(&large).expect("too large");
        assert!(line.contains("3.00 GiB, 1.00 GiB are available"), "{line}");
    }

    #[test]
    fn reads_available_memory() {
        let text = "MemTotal:       100 kB\nMemAvailable:    64 kB\n";
        assert_eq!(parse_meminfo(text), Some(65536));
        assert_eq!(parse_meminfo("MemTotal: 100 kB\n"), None);
        assert!(Machine::detect().cores > 0);
        assert!(Machine::detect_for([]).gpus.is_err());
    }
}
