//! GPUs as numbers: what a multiprocessor holds, what the card sustains, and how many thread blocks of a kernel are resident.
//! A preset is one row; the generic profile of its architecture gives what all of its cards share.

mod occupancy;
mod presets;

pub use occupancy::{Limit, Occupancy};
pub use presets::PRESETS;

/// A GPU to compile for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CudaProfile {
    /// `h200`, or the architecture of a generic profile; what `--target` accepts and `inspect` prints.
    pub name: &'static str,
    /// What kernels are compiled for: `sm_90a`.
    pub arch: &'static str,
    /// Multiprocessors.
    pub sms: u32,
    /// Boost clock, cycles per second.
    pub hz: f64,
    /// Bytes per second that reads of memory reach.
    pub bandwidth: f64,
    /// Bytes per second of memory by its data sheet.
    pub peak_bandwidth: f64,
    /// L2 bytes.
    pub l2_bytes: u64,
    /// Bytes per second that reads of L2 reach.
    pub l2_bandwidth: f64,
    /// Shared memory of a multiprocessor, bytes.
    pub shared_per_sm: u32,
    /// Most shared memory of a thread block, bytes, when the launch asks for it.
    pub shared_per_block: u32,
    /// Shared memory a thread block takes besides its own, bytes.
    pub shared_reserved: u32,
    /// Shared memory is given in pieces of this many bytes.
    pub shared_unit: u32,
    /// 32-bit registers of a multiprocessor, which also is the most a thread block may have.
    pub registers_per_sm: u32,
    /// Resident threads of a multiprocessor.
    pub max_threads_per_sm: u32,
    /// Resident thread blocks of a multiprocessor.
    pub max_blocks_per_sm: u32,
    /// Device memory a program can have, bytes; of a generic profile the largest card's, so that none is refused for another.
    pub memory_bytes: u64,
    /// Floating-point operations per clock and multiprocessor of the tensor cores, f16 with f32 accumulation.
    pub f16_tensor: f64,
    /// The same for int8 with int32 accumulation.
    pub i8_tensor: f64,
    /// Share of both that `mma.sync` reaches; more needs the instructions of that architecture alone.
    pub mma_share: f64,
    /// Dot products of four bytes per clock and multiprocessor.
    pub dp4a: f64,
    /// Seconds from the end of one kernel to the start of the next that waits for it, in a graph.
    pub launch_seconds: f64,
    /// Whether a kernel can start before the one it waits for has ended.
    pub pdl: bool,
    /// One line for `coldpress targets`.
    pub about: &'static str,
}

impl CudaProfile {
    /// The preset or generic profile `name`, with or without `cuda:` before it.
    pub fn named(name: &str) -> Option<CudaProfile> {
        let name = name.strip_prefix("cuda:").unwrap_or(name);
        PRESETS.iter().find(|p| p.name == name).copied()
    }

    /// The number in the architecture's name: 90 of `sm_90a`.
    pub fn sm(&self) -> u32 {
        let digits = self.arch.trim_matches(|c: char| !c.is_ascii_digit());
        digits.parse().unwrap_or(0)
    }

    /// Lane instructions all multiprocessors issue per second: four warps of 32 lanes each clock.
    pub fn issue_rate(&self) -> f64 {
        f64::from(self.sms) * 128.0 * self.hz
    }

    /// Lane instructions there is time for while a weight of `bytes` (4.5 bits are 0.5625) is read at full bandwidth.
    pub fn issue_budget(&self, bytes: f64) -> f64 {
        self.issue_rate() * bytes / self.bandwidth
    }
}

#[cfg(test)]
mod tests;
