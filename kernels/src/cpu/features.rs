//! What the CPU that runs this process can execute, by the feature names that target profiles use. Which features a
//! kernel needs is the kernel family's business.

use std::fmt;

/// Names of CPU features, as rustc and cranelift spell them: `avx2`, `avx512vnni`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuFeatures(Vec<&'static str>);

impl CpuFeatures {
    /// Whether the feature is there.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains(&name)
    }

    /// All names, in a fixed order.
    pub fn names(&self) -> &[&'static str] {
        &self.0
    }
}

impl fmt::Display for CpuFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

/// Asks the CPU. Empty on architectures that have scalar micro-kernels only.
pub fn detect() -> CpuFeatures {
    macro_rules! present {
        ($($name:tt)*) => {{
            let mut names = Vec::new();
            $(if std::arch::is_x86_feature_detected!($name) {
                names.push($name);
            })*
            CpuFeatures(names)
        }};
    }
    #[cfg(target_arch = "x86_64")]
    return present!(
        "sse3" "ssse3" "sse4.1" "sse4.2" "popcnt" "avx" "avx2" "fma" "f16c" "bmi1" "bmi2" "lzcnt"
        "avx512f" "avx512bw" "avx512cd" "avx512dq" "avx512vl" "avx512vnni" "avx512bf16" "avx512vbmi" "avxvnni"
    );
    #[cfg(not(target_arch = "x86_64"))]
    CpuFeatures::default()
}
