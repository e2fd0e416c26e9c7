//! Apple GPUs: what this machine has, and on Apple's systems the Metal framework as an [`super::accelerator::Accelerator`].
//! Elsewhere only what needs no framework exists: a bundle can say what it lacks here, and tests see the rest.

#[cfg(any(target_vendor = "apple", test))]
mod archive;
#[cfg(target_vendor = "apple")]
mod bandwidth;
#[cfg(target_vendor = "apple")]
mod commands;
#[cfg(target_vendor = "apple")]
mod cores;
#[cfg(target_vendor = "apple")]
mod gpu;
#[cfg(target_vendor = "apple")]
mod pipelines;
#[cfg(any(target_vendor = "apple", test))]
mod spares;
#[cfg(any(target_vendor = "apple", test))]
mod steps;

#[cfg(target_vendor = "apple")]
pub use gpu::Metal;

use crate::manifest::PlannedFor;

/// The first GPU family whose GPUs have what kernels use: that of M1.
pub const OLDEST_FAMILY: u32 = 7;

/// A page of the machines that have these GPUs.
#[cfg(target_vendor = "apple")]
const PAGE_BYTES: usize = crate::bundle::header::SECTION_ALIGN as usize;

/// The GPU of an Apple machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetalInfo {
    /// `Apple M4 Max`.
    pub name: String,
    /// Its GPU family: 7 is that of M1.
    pub family: u32,
    /// Its cores, if its driver tells.
    pub cores: Option<u32>,
    /// Bytes that it may use of the machine's memory.
    pub memory_bytes: u64,
}

/// How far a GPU is from the one that a plan was made for: the least fits best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Distance {
    /// 0 if it is that one, 1 if it has other cores, 2 if it is of the same family, then one more per family between.
    kind: u32,
    /// Thousandths by which the larger number of cores is more than the smaller.
    cores: u64,
    /// The same of memory; drivers keep some of it for themselves, so it comes last.
    memory: u64,
}

impl MetalInfo {
    /// How far this GPU is from `other`. One whose driver does not tell its cores is taken to have as many.
    pub fn distance(&self, other: &PlannedFor) -> Distance {
        let ratio = |a: u64, b: u64| a.max(b).saturating_mul(1000) / a.min(b).max(1);
        let cores = self.cores.unwrap_or(other.cores);
        let kind = match (self.name == other.gpu, self.family.abs_diff(other.family)) {
            (true, _) => u32::from(cores != other.cores),
            (false, families) => families.saturating_add(2),
        };
        Distance {
            kind,
            cores: ratio(cores.into(), other.cores.into()),
            memory: ratio(self.memory_bytes, other.memory_bytes),
        }
    }
}

impl std::fmt::Display for MetalInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let gib = self.memory_bytes as f64 / (1u64 << 30) as f64;
        write!(f, "{}, apple{}, ", self.name, self.family)?;
        if let Some(cores) = self.cores {
            write!(f, "{cores} cores, ")?;
        }
        write!(f, "{gib:.1} GiB")
    }
}

/// The GPU of this machine.
///
/// # Errors
/// Why there is none that can run anything, in words.
pub fn detect() -> Result<MetalInfo, String> {
    #[cfg(target_vendor = "apple")]
    return gpu::detect();
    #[cfg(not(target_vendor = "apple"))]
    Err("this is not a Mac".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_own_plan_is_nearest_then_its_family_then_the_next() {
        let plan = |gpu: &str, family, cores| PlannedFor {
            gpu: gpu.into(),
            family,
            cores,
            memory_bytes: 64 << 30,
        };
        let gpu = MetalInfo {
            name: "Apple M4 Max".into(),
            family: 9,
            cores: Some(32),
            memory_bytes: 48 << 30,
        };
        let nearest_first = [
            plan("Apple M4 Max", 9, 32),
            plan("Apple M4 Max", 9, 40),
            plan("Apple M3 Max", 9, 40),
            plan("Apple M4 Pro", 9, 20),
            plan("Apple M3 Ultra", 9, 80),
            plan("Apple M4", 9, 10),
            plan("Apple M2 Max", 8, 38),
            plan("Apple M5", 10, 10),
            plan("Apple M1 Max", 7, 32),
        ];
        let distances = nearest_first.each_ref().map(|plan| gpu.distance(plan));
        assert!(distances.is_sorted_by(|a, b| a < b), "{distances:?}");
        // Without its cores, its name is what counts, then memory.
        let silent = MetalInfo {
            cores: None,
            ..gpu.clone()
        };
        assert_eq!(silent.distance(&nearest_first[1]).kind, 0);
        let small = PlannedFor {
            memory_bytes: 16 << 30,
            ..plan("Apple M3", 9, 10)
        };
        assert!(silent.distance(&nearest_first[2]) < silent.distance(&small));
        let odd = plan("", u32::MAX, 0);
        assert!(gpu.distance(&odd) > distances[8]);
    }

    #[test]
    fn a_gpu_says_what_it_is() {
        let gpu = |cores| MetalInfo {
            name: "Apple M3".into(),
            family: 9,
            cores,
            memory_bytes: 12 << 30,
        };
        assert_eq!(
            gpu(Some(10)).to_string(),
            "Apple M3, apple9, 10 cores, 12.0 GiB"
        );
        assert_eq!(gpu(None).to_string(), "Apple M3, apple9, 12.0 GiB");
    }
}
