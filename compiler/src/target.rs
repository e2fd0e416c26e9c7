//! Target profiles: what a machine has and how fast it is, as numbers the planner reads. Presets, parsing of `--target`,
//! and detection of this machine. Only `plan` and `codegen` may look at a profile; passes never do.

pub mod cuda;
pub mod metal;

use crate::error::Error;
use coldpress_kernels::matmul::{Isa, Timing};
use coldpress_kernels::quant::PackedLayout;
use coldpress_runtime::manifest::PlannedFor;
use cuda::CudaProfile;
use metal::MetalProfile;
use std::collections::BTreeMap;

/// A machine to compile for.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// Micro-kernels and machine code.
    Cpu(TargetProfile),
    /// Compiled CUDA kernels.
    Cuda(CudaTarget),
    /// Sources of Metal kernels.
    Metal(MetalProfile),
}

/// A GPU to compile for, and what is known of the kernels that were compiled for it.
#[derive(Clone, Debug, PartialEq)]
pub struct CudaTarget {
    /// The card.
    pub profile: CudaProfile,
    /// What the assembler said of kernels, by name; estimates stand in for all others.
    pub compiled: BTreeMap<String, Compiled>,
}

/// What the assembler said of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of registers that a thread keeps in memory.
    pub spill_bytes: u32,
}

/// The order of a packed weight matrix: tiles of 16 outputs, all of k, in one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TileOrder {
    /// `coldpress_kernels::cpu::tile`.
    Cpu,
    /// `coldpress_kernels::gpu::tile`.
    Gpu,
}

impl Target {
    /// What `--target` accepts and `inspect` prints.
    pub fn name(&self) -> &'static str {
        match self {
            Target::Cpu(profile) => profile.name,
            Target::Cuda(target) => target.profile.name,
            Target::Metal(profile) => profile.name,
        }
    }

    /// What the bundle asks of a machine: its kind, and what it must be able to do.
    pub fn requires(&self) -> (String, Vec<String>) {
        match self {
            Target::Cpu(profile) => (profile.arch.to_string(), profile.features()),
            Target::Cuda(target) => ("cuda".into(), vec![target.profile.arch.to_string()]),
            Target::Metal(profile) => ("metal".into(), vec![profile.needs().into()]),
        }
    }

    /// The GPU whose numbers the plan is made with, where one plan runs on several.
    pub fn planned_for(&self) -> Option<PlannedFor> {
        match self {
            Target::Cpu(_) | Target::Cuda(_) => None,
            Target::Metal(profile) => Some(profile.planned_for()),
        }
    }

    /// How its kernels read weight matrices.
    pub fn order(&self) -> TileOrder {
        match self {
            Target::Cpu(_) => TileOrder::Cpu,
            Target::Cuda(_) | Target::Metal(_) => TileOrder::Gpu,
        }
    }

    /// The CPU, if it is one.
    pub fn cpu(&self) -> Option<&TargetProfile> {
        match self {
            Target::Cpu(profile) => Some(profile),
            Target::Cuda(_) | Target::Metal(_) => None,
        }
    }

    /// The target `name` stands for.
    ///
    /// # Errors
    /// `Unsupported` with the names that exist.
    pub fn parse(name: &str) -> Result<Target, Error> {
        if let Some(profile) = MetalProfile::named(name) {
            return Ok(Target::Metal(profile));
        }
        match CudaProfile::named(name) {
            Some(profile) => Ok(Target::Cuda(CudaTarget {
                profile,
                compiled: BTreeMap::new(),
            })),
            None => TargetProfile::parse(name).map(Target::Cpu),
        }
    }
}

impl Target {
    /// The best preset this machine can run.
    pub fn native() -> Target {
        Target::Cpu(TargetProfile::native())
    }
}

impl From<TargetProfile> for Target {
    fn from(profile: TargetProfile) -> Target {
        Target::Cpu(profile)
    }
}

/// A CPU to compile for.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetProfile {
    /// `cpu:avx512`; what `--target` accepts and `inspect` prints.
    pub name: &'static str,
    /// `x86_64` or `aarch64`; `any` resolves to the machine that compiles.
    pub arch: &'static str,
    /// Micro-kernel families the machine can run, best first.
    pub isas: &'static [Isa],
    /// Sustained read bandwidth of one core, bytes per second.
    pub core_bandwidth: f64,
    /// Sustained read bandwidth of the whole machine, bytes per second.
    pub total_bandwidth: f64,
    /// Sustained clock under vector load, cycles per second.
    pub hz: f64,
    /// L2 bytes of one core: how much of a weight matrix stays close while several sub-batches use it.
    pub l2_bytes: usize,
    /// One line for `coldpress targets`.
    pub about: &'static str,
    /// Matmul shapes that were timed on the machine; the numbers above stand in for all others.
    pub measured: Vec<MeasuredShape>,
}

/// Times of the stamps of one matmul shape, measured on one machine with as many workers as the plan has.
#[derive(Clone, Debug, PartialEq)]
pub struct MeasuredShape {
    /// Layout of the packed weights.
    pub layout: PackedLayout,
    /// Outputs.
    pub n: usize,
    /// Reduction length.
    pub k: usize,
    /// One per stamp.
    pub timings: Vec<Timing>,
}

/// Presets, best first: detection takes the first this machine can run.
pub const PRESETS: &[TargetProfile] = &[
    TargetProfile {
        name: "cpu:avx512",
        arch: "x86_64",
        isas: &[Isa::Avx512Vnni, Isa::Avx2, Isa::Scalar],
        core_bandwidth: 15e9,
        total_bandwidth: 30e9,
        hz: 3e9,
        l2_bytes: 1 << 20,
        about: "x86-64 with AVX-512 F/BW/VL/DQ and VNNI (Ice Lake, Zen 4 and later)",
        measured: Vec::new(),
    },
    TargetProfile {
        name: "cpu:avxvnni",
        arch: "x86_64",
        isas: &[Isa::AvxVnni, Isa::Avx2, Isa::Scalar],
        core_bandwidth: 15e9,
        total_bandwidth: 30e9,
        hz: 3e9,
        l2_bytes: 1 << 20,
        about: "x86-64 with AVX2 and AVX-VNNI (Alder Lake and later)",
        measured: Vec::new(),
    },
    TargetProfile {
        name: "cpu:avx2",
        arch: "x86_64",
        isas: &[Isa::Avx2, Isa::Scalar],
        core_bandwidth: 15e9,
        total_bandwidth: 30e9,
        hz: 3e9,
        l2_bytes: 512 << 10,
        about: "x86-64 with AVX2, FMA and F16C (Haswell, Zen and later)",
        measured: Vec::new(),
    },
    TargetProfile {
        name: "cpu:scalar",
        arch: "any",
        isas: &[Isa::Scalar],
        core_bandwidth: 8e9,
        total_bandwidth: 20e9,
        hz: 3e9,
        l2_bytes: 256 << 10,
        about: "any 64-bit x86 or ARM machine, portable kernels",
        measured: Vec::new(),
    },
];

impl TargetProfile {
    /// The preset named `name`; `cpu`, `native` and `cpu:native` mean the best this machine can run.
    pub fn parse(name: &str) -> Result<TargetProfile, Error> {
        if matches!(name, "cpu" | "native" | "cpu:native") {
            return Ok(TargetProfile::native());
        }
        PRESETS
            .iter()
            .find(|p| p.name == name)
            .cloned()
            .map(TargetProfile::resolved)
            .ok_or_else(|| {
                let known: Vec<&str> = PRESETS.iter().map(|p| p.name).collect();
                Error::Unsupported {
                    what: format!("--target {name}"),
                    why: format!("no such target (supported: native, {})", known.join(", ")),
                }
            })
    }

    /// The best preset this machine can run.
    pub fn native() -> TargetProfile {
        PRESETS
            .iter()
            .cloned()
            .map(TargetProfile::resolved)
            .find(|p| p.arch == std::env::consts::ARCH && p.isas[0].available())
            .unwrap_or_else(|| PRESETS[PRESETS.len() - 1].clone().resolved())
    }

    /// CPU features the compiled code needs, by the names the standard library detects.
    pub fn features(&self) -> Vec<String> {
        self.isas[0].needs().iter().map(|f| f.to_string()).collect()
    }

    /// Suffix of micro-kernel symbols of the best family.
    pub fn isa(&self) -> Isa {
        self.isas[0]
    }

    /// What was measured for a matrix `[n, k]` of `layout`.
    pub fn measured(&self, layout: PackedLayout, n: usize, k: usize) -> &[Timing] {
        let mut shapes = self.measured.iter();
        let found = shapes.find(|s| (s.layout, s.n, s.k) == (layout, n, k));
        found.map_or(&[], |s| &s.timings)
    }

    fn resolved(mut self) -> TargetProfile {
        if self.arch == "any" {
            self.arch = std::env::consts::ARCH;
        }
        self
    }
}

impl TargetProfile {
    /// Whether fused multiply-add exists (decides how inline loops are emitted).
    pub fn has_fma(&self) -> bool {
        self.isas[0].needs().contains(&"fma")
    }
}
