//! Apple GPUs: what this machine has, and on Apple's systems the Metal framework as an [`super::accelerator::Accelerator`].
//! Elsewhere only what needs no framework exists: a bundle can say what it lacks here, and tests see the rest.

#[cfg(any(target_vendor = "apple", test))]
mod archive;
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
