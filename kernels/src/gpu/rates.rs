//! What a GPU sustains, as cost models read it. Numbers of real cards belong to the compiler's target presets.

/// One GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GpuRates {
    /// Compute capability times 10, as in `sm_90`: 90; with its own features (`sm_90a`) or not. Of Apple GPUs see
    /// [`super::metal::FIRST_ARCH`].
    pub arch: u32,
    /// Multiprocessors.
    pub sms: u32,
    /// Clock under load, cycles per second.
    pub hz: f64,
    /// Memory bandwidth that reads achieve, bytes per second.
    pub bandwidth: f64,
    /// Bandwidth between L2 and all multiprocessors, bytes per second.
    pub l2_bandwidth: f64,
    /// Bytes of L2.
    pub l2_bytes: u64,
    /// Lane-instructions that a multiprocessor issues per cycle.
    pub issue_per_clk: f64,
    /// Additions and multiplications of halves, summed in f32, that `mma.sync` does per cycle on a multiprocessor.
    pub f16_tensor_flops_per_clk_sm: f64,
    /// The same for int8.
    pub i8_tensor_ops_per_clk_sm: f64,
    /// The same for halves by `wgmma`, or by `matmul2d` of Apple's; 0 where there is none.
    pub wgmma_flops_per_clk_sm: f64,
    /// Shared memory of a multiprocessor that thread blocks can have, bytes.
    pub smem_per_sm: u32,
    /// 32-bit registers of a multiprocessor.
    pub regs_per_sm: u32,
}

/// Shared memory that one thread block can have, bytes.
pub const fn shared_limit(arch: u32) -> u32 {
    1024 * match arch {
        0..80 => 64,
        80 | 87 => 163,
        86 | 89 => 99,
        90..120 => 227,
        1000.. => 32,
        _ => 99,
    }
}

/// Shared memory that the system takes of each thread block, bytes.
pub const fn shared_reserved(arch: u32) -> u32 {
    if arch < 80 || arch >= 1000 { 0 } else { 1024 }
}
