//! How many thread blocks of a kernel a multiprocessor holds at once. The rules and units are those of CUDA's occupancy
//! calculator (`cuda_occupancy.h`).

use super::CudaProfile;
use std::fmt;

const WARP: u32 = 32;
/// Threads of a thread block at most.
const MAX_THREADS: u32 = 1024;
/// Registers of a thread at most.
const MAX_REGISTERS: u32 = 256;
/// Registers are given to a warp in pieces of this many.
const REGISTER_UNIT: u32 = 256;
/// Parts of a multiprocessor with a scheduler and a share of the registers each; a warp lives in one.
const PARTITIONS: u32 = 4;

/// Resident thread blocks of one kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupancy {
    /// Thread blocks per multiprocessor; 0 if the kernel cannot be launched at all.
    pub blocks: u32,
    /// Warps per multiprocessor.
    pub warps: u32,
    /// What keeps more thread blocks out.
    pub limit: Limit,
}

/// What a multiprocessor runs out of first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Registers.
    Registers,
    /// Shared memory.
    Shared,
    /// Resident threads.
    Threads,
    /// Resident thread blocks.
    Blocks,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Limit::Registers => "registers",
            Limit::Shared => "shared memory",
            Limit::Threads => "threads",
            Limit::Blocks => "thread blocks",
        })
    }
}

impl CudaProfile {
    /// Occupancy of a kernel whose threads have `registers` each and whose thread blocks have `shared_bytes` of shared
    /// memory, static and dynamic, and `threads` threads.
    pub fn occupancy(&self, registers: u32, shared_bytes: u32, threads: u32) -> Occupancy {
        let warps = threads.div_ceil(WARP).max(1);
        let candidates = [
            (self.blocks_by_registers(registers, warps), Limit::Registers),
            (self.blocks_by_shared(shared_bytes), Limit::Shared),
            (self.blocks_by_threads(threads, warps), Limit::Threads),
            (self.max_blocks_per_sm, Limit::Blocks),
        ];
        let least = candidates.into_iter().min_by_key(|(blocks, _)| *blocks);
        let (blocks, limit) = least.unwrap_or((0, Limit::Blocks));
        Occupancy {
            blocks,
            warps: blocks * warps,
            limit,
        }
    }

    fn blocks_by_registers(&self, registers: u32, warps: u32) -> u32 {
        if registers > MAX_REGISTERS || warps > MAX_THREADS / WARP {
            return 0;
        }
        let warp = (registers.max(1) * WARP).next_multiple_of(REGISTER_UNIT);
        // A launch is refused as if every partition took the same number of its warps.
        if warp * warps.next_multiple_of(PARTITIONS) > self.registers_per_sm {
            return 0;
        }
        self.registers_per_sm / PARTITIONS / warp * PARTITIONS / warps
    }

    fn blocks_by_shared(&self, bytes: u32) -> u32 {
        if bytes > self.shared_per_block {
            return 0;
        }
        let taken = (bytes + self.shared_reserved).next_multiple_of(self.shared_unit);
        self.shared_per_sm.checked_div(taken).unwrap_or(u32::MAX)
    }

    fn blocks_by_threads(&self, threads: u32, warps: u32) -> u32 {
        if threads > MAX_THREADS {
            return 0;
        }
        self.max_threads_per_sm / WARP / warps
    }
}
