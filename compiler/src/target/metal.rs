//! Apple GPUs as numbers. A preset is one row.

mod candidates;
mod presets;

use coldpress_runtime::manifest::PlannedFor;

pub use candidates::Candidates;
pub use presets::PRESETS;

/// An Apple GPU to compile for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MetalProfile {
    /// `metal:m4-max`; what `--target` accepts and `inspect` prints.
    pub name: &'static str,
    /// Number of the GPU family: 7 is that of M1.
    pub family: u32,
    /// Cores of the largest configuration.
    pub cores: u32,
    /// Clock, cycles per second.
    pub hz: f64,
    /// Bytes per second of memory by the data sheet.
    pub peak_bandwidth: f64,
    /// Bytes that the cores' common cache holds.
    pub l2_bytes: u64,
    /// Bytes of the largest memory, which the CPU shares.
    pub memory_bytes: u64,
    /// Whether `matmul2d` of Metal 4 has pipes of its own.
    pub neural: bool,
    /// One line for `coldpress targets`: what the driver calls the GPU.
    pub about: &'static str,
    /// Matmul variants that plans choose from.
    pub candidates: Candidates,
}

impl MetalProfile {
    /// What kernels ask of a GPU: matrices of simdgroups, addresses as arguments; those planned for pipes of `matmul2d` ask
    /// for them.
    pub fn needs(&self) -> &'static str {
        match self.neural {
            true => "apple10",
            false => "apple7",
        }
    }

    /// The preset `name`.
    pub fn named(name: &str) -> Option<MetalProfile> {
        PRESETS.iter().find(|p| p.name == name).copied()
    }

    /// What a machine compares with its own GPU to find the plan that fits best.
    pub fn planned_for(&self) -> PlannedFor {
        PlannedFor {
            gpu: self.about.into(),
            family: self.family,
            cores: self.cores,
            memory_bytes: self.memory_bytes,
        }
    }

    /// Bytes per second that reads of memory reach: single-stream decoders of float weights come to 83 to 90 % of the data
    /// sheet on M1 to M4.
    pub fn bandwidth(&self) -> f64 {
        0.87 * self.peak_bandwidth
    }

    /// What the GPU family is called in a bundle's requirements: `apple9`.
    pub fn feature(&self) -> String {
        format!("apple{}", self.family)
    }

    /// Floating-point operations per second of all cores, an fma counting twice.
    pub fn flops(&self) -> f64 {
        f64::from(self.cores) * 256.0 * self.hz
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_have_names_of_their_own_and_sensible_numbers() {
        for (i, p) in PRESETS.iter().enumerate() {
            assert_eq!(MetalProfile::named(p.name), Some(*p));
            assert!(PRESETS[..i].iter().all(|other| other.name != p.name));
            assert!(p.name.starts_with("metal:m"), "{}", p.name);
            assert!((7..=10).contains(&p.family), "{}", p.name);
            // From 2 to 40 TFLOPS, 60 to 900 GB/s, and more of both than the chip before it in the same class.
            assert!((2e12..40e12).contains(&p.flops()), "{}", p.name);
            assert!((60e9..900e9).contains(&p.peak_bandwidth), "{}", p.name);
        }
        assert_eq!(
            MetalProfile::named("metal:m4-max").map(|p| p.cores),
            Some(40)
        );
        assert_eq!(MetalProfile::named("m4-max"), None);
    }
}
