//! A GPU as lowering sees it: NVIDIA's or Apple's.

use crate::target::cuda::CudaProfile;
use crate::target::metal::{Candidates, MetalProfile};
use crate::target::{Compiled, CudaTarget};
use coldpress_kernels::gpu::metal;
use coldpress_kernels::gpu::rates::GpuRates;
use std::collections::BTreeMap;

/// What lowering reads of a GPU.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Name of the target.
    pub name: &'static str,
    /// What cost models read.
    pub rates: GpuRates,
    /// Seconds from the end of one kernel to the start of the next that waits for it.
    pub launch_seconds: f64,
    /// Whether a kernel can start before the one it waits for has ended.
    pub overlaps: bool,
    /// What the assembler said of kernels, by name.
    pub compiled: BTreeMap<String, Compiled>,
    /// Matmul variants to choose from.
    pub candidates: Candidates,
}

impl Machine {
    /// Whether it is Apple's.
    pub fn is_metal(&self) -> bool {
        metal::is_metal(self.rates.arch)
    }
}

impl From<&CudaTarget> for Machine {
    fn from(target: &CudaTarget) -> Machine {
        Machine {
            name: target.profile.name,
            rates: rates(&target.profile),
            launch_seconds: target.profile.launch_seconds,
            overlaps: target.profile.pdl,
            compiled: target.compiled.clone(),
            candidates: Candidates::ALL,
        }
    }
}

fn rates(profile: &CudaProfile) -> GpuRates {
    GpuRates {
        arch: profile.sm(),
        sms: profile.sms,
        hz: profile.hz,
        bandwidth: profile.bandwidth,
        l2_bandwidth: profile.l2_bandwidth,
        l2_bytes: profile.l2_bytes,
        issue_per_clk: 128.0,
        f16_tensor_flops_per_clk_sm: profile.f16_tensor * profile.mma_share,
        i8_tensor_ops_per_clk_sm: profile.i8_tensor * profile.mma_share,
        wgmma_flops_per_clk_sm: match profile.arch {
            "sm_90a" => profile.f16_tensor,
            _ => 0.0,
        },
        smem_per_sm: profile.shared_per_sm,
        regs_per_sm: profile.registers_per_sm,
    }
}

/// Between dispatches of one encoder that wait for each other. Nobody has measured it here.
const DISPATCH_SECONDS: f64 = 2.0e-6;
/// Bytes per cycle that a core takes from the cache that all cores share.
const CACHE_BYTES_PER_CLK: f64 = 32.0;
/// Additions and multiplications per cycle of a core, by matrices of halves as by anything else.
const FLOPS_PER_CLK: f64 = 256.0;

/// The same by pipes of their own: Apple says of M5's GPU that it has over four times the peak compute of M4's for AI, and as
/// many cores.
const NEURAL_FLOPS_PER_CLK: f64 = 4.0 * FLOPS_PER_CLK;

impl From<&MetalProfile> for Machine {
    fn from(profile: &MetalProfile) -> Machine {
        let cores = f64::from(profile.cores);
        Machine {
            name: profile.name,
            rates: GpuRates {
                arch: metal::FIRST_ARCH - 7 + profile.family,
                sms: profile.cores,
                hz: profile.hz,
                bandwidth: profile.bandwidth(),
                l2_bandwidth: cores * CACHE_BYTES_PER_CLK * profile.hz,
                l2_bytes: profile.l2_bytes,
                issue_per_clk: 128.0,
                f16_tensor_flops_per_clk_sm: FLOPS_PER_CLK,
                i8_tensor_ops_per_clk_sm: 0.0,
                wgmma_flops_per_clk_sm: match profile.neural {
                    true => NEURAL_FLOPS_PER_CLK,
                    false => 0.0,
                },
                smem_per_sm: metal::SHARED_BYTES,
                regs_per_sm: 0,
            },
            launch_seconds: DISPATCH_SECONDS,
            overlaps: false,
            compiled: BTreeMap::new(),
            candidates: profile.candidates,
        }
    }
}
