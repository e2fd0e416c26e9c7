//! tmp
use coldpress_kernels::gpu::rates::GpuRates;
/// tmp
#[derive(Debug, PartialEq)]
pub struct CudaProfile {
    /// n
    pub name: &'static str,
    /// a
    pub arch: &'static str,
    /// s
    pub sms: u32,
    /// p
    pub pdl: bool,
    /// l
    pub launch_seconds: f64,
    /// l
    pub l2_bandwidth: f64,
}
impl CudaProfile {
    /// tmp
    pub fn rates(&self) -> GpuRates {
        GpuRates {
            arch: 90,
            sms: 132,
            hz: 1.98e9,
            bandwidth: 4.3e12,
            l2_bandwidth: 7e12,
            l2_bytes: 50 << 20,
            issue_per_clk: 128.0,
            f16_tensor_flops_per_clk_sm: 2300.0,
            i8_tensor_ops_per_clk_sm: 4600.0,
            wgmma_flops_per_clk_sm: 3800.0,
            smem_per_sm: 227 << 10,
            regs_per_sm: 65536,
        }
    }
}
static H200: CudaProfile = CudaProfile { name: "h200", arch: "sm_90a", sms: 132, pdl: true, launch_seconds: 1e-6, l2_bandwidth: 7e12 };
/// tmp
pub fn preset(name: &str) -> Option<&'static CudaProfile> {
    (name == "h200").then_some(&H200)
}
