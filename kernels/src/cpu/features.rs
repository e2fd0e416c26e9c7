//! What a CPU can execute, by the feature names that target profiles use, and the instruction sets that micro-kernels are
//! written for. Nothing here chooses a kernel.

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

/// Instruction set of a micro-kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Portable Rust.
    Scalar,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX2 with AVX-VNNI.
    AvxVnni,
    /// AVX-512 with VNNI.
    Avx512Vnni,
}

impl Isa {
    /// Every ISA, slowest first.
    pub const ALL: &[Isa] = &[Isa::Scalar, Isa::Avx2, Isa::AvxVnni, Isa::Avx512Vnni];

    /// The ISAs that have a numeric class of their own: micro-kernels other than matmuls exist for these.
    pub fn classes() -> impl Iterator<Item = Isa> {
        let all = Isa::ALL.iter().copied();
        all.filter(|isa| isa.numeric_class() == *isa)
    }

    /// Name inside symbols.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512Vnni => "avx512",
        }
    }

    /// The ISA whose matmul micro-kernels give the same bits for every row: stamps of one class may be mixed freely.
    pub const fn numeric_class(self) -> Isa {
        match self {
            Isa::Scalar => Isa::Scalar,
            Isa::Avx2 | Isa::AvxVnni => Isa::Avx2,
            Isa::Avx512Vnni => Isa::Avx512Vnni,
        }
    }

    /// CPU features its micro-kernels execute.
    pub const fn needs(self) -> &'static [&'static str] {
        match self {
            Isa::Scalar => &[],
            Isa::Avx2 => &["avx2", "fma", "f16c"],
            Isa::AvxVnni => &["avx2", "fma", "f16c", "avxvnni"],
            Isa::Avx512Vnni => &[
                "avx2",
                "fma",
                "f16c",
                "avx512f",
                "avx512bw",
                "avx512dq",
                "avx512vl",
                "avx512vnni",
            ],
        }
    }

    /// Whether a CPU with these features runs it, in this build.
    pub fn runs_on(self, features: &CpuFeatures) -> bool {
        self.needs().iter().all(|name| features.has(name))
    }

    /// Whether this CPU runs it.
    pub fn available(self) -> bool {
        self.runs_on(&detect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_isa_runs_where_all_it_needs_is_there() {
        let mut features = CpuFeatures(vec!["avx2", "fma"]);
        assert!(Isa::Scalar.runs_on(&CpuFeatures::default()));
        assert!(!Isa::Avx2.runs_on(&features));
        features.0.push("f16c");
        assert!(Isa::Avx2.runs_on(&features));
        assert!(!Isa::Avx512Vnni.runs_on(&features));
        assert_eq!(features.to_string(), "avx2,fma,f16c");
    }
}
