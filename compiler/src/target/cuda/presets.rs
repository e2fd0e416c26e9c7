//! The table of cards. What all cards of an architecture share comes first, from the technical specifications per compute
//! capability of the CUDA programming guide and the throughput of arithmetic instructions there.
//!
//! Multiprocessors, clocks, memory and tensor rates are those of NVIDIA's data sheets and architecture white papers; tensor
//! rates are without sparsity, divided by multiprocessors and boost clock. Bandwidths that reads reach were measured by
//! gpu-benches (te42kyfo) on A100 80 GB, H100 PCIe and L40, and by published copies and streams on H100, H200, RTX 4070 Ti,
//! 4090 and 5090; others are 0.9 of the data sheet. L2 read rates are gpu-benches' on A100, H100 PCIe, H200 and L40, that of
//! the T4 by Jia et al. (arXiv 1903.07486), others scaled by multiprocessors and clock from the nearest relative. A graph
//! edge was published for H100 (1.3 us) and RTX 3090 (0.83 us); others follow their kind.

use super::CudaProfile;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
const KIB: u32 = 1 << 10;

/// A T4 stands for all.
const SM_75: CudaProfile = CudaProfile {
    name: "sm_75",
    arch: "sm_75",
    sms: 40,
    hz: 1.59e9,
    bandwidth: 0.256e12,
    peak_bandwidth: 0.320e12,
    l2_bytes: 4 * MIB,
    l2_bandwidth: 1.27e12,
    shared_per_sm: 64 * KIB,
    shared_per_block: 64 * KIB,
    shared_reserved: 0,
    shared_unit: 256,
    registers_per_sm: 1 << 16,
    max_threads_per_sm: 1024,
    max_blocks_per_sm: 16,
    memory_bytes: 48 * GIB,
    f16_tensor: 1024.0,
    i8_tensor: 2048.0,
    mma_share: 1.0,
    dp4a: 64.0,
    launch_seconds: 1.3e-6,
    pdl: false,
    about: "any Turing card, planned as a T4",
};

/// An A100 with 40 GB stands for all.
const SM_80: CudaProfile = CudaProfile {
    name: "sm_80",
    arch: "sm_80",
    sms: 108,
    hz: 1.41e9,
    bandwidth: 1.40e12,
    peak_bandwidth: 1.555e12,
    l2_bytes: 40 * MIB,
    l2_bandwidth: 5.4e12,
    shared_per_sm: 164 * KIB,
    shared_per_block: 163 * KIB,
    shared_reserved: KIB,
    shared_unit: 128,
    max_threads_per_sm: 2048,
    max_blocks_per_sm: 32,
    memory_bytes: 80 * GIB,
    f16_tensor: 2048.0,
    i8_tensor: 4096.0,
    about: "any data centre Ampere card, planned as an A100 40 GB",
    ..SM_75
};

/// An RTX 3060 stands for all. Consumer cards accumulate f16 products in f32 at half the rate.
const SM_86: CudaProfile = CudaProfile {
    name: "sm_86",
    arch: "sm_86",
    sms: 28,
    hz: 1.777e9,
    bandwidth: 0.324e12,
    peak_bandwidth: 0.360e12,
    l2_bytes: 3 * MIB,
    l2_bandwidth: 0.73e12,
    shared_per_sm: 100 * KIB,
    shared_per_block: 99 * KIB,
    max_threads_per_sm: 1536,
    max_blocks_per_sm: 16,
    memory_bytes: 48 * GIB,
    f16_tensor: 512.0,
    i8_tensor: 2048.0,
    launch_seconds: 0.9e-6,
    about: "any other Ampere card, planned as an RTX 3060",
    ..SM_80
};

/// An RTX 4060 Ti stands for all.
const SM_89: CudaProfile = CudaProfile {
    name: "sm_89",
    arch: "sm_89",
    sms: 34,
    hz: 2.535e9,
    bandwidth: 0.265e12,
    peak_bandwidth: 0.288e12,
    l2_bytes: 32 * MIB,
    l2_bandwidth: 1.25e12,
    max_blocks_per_sm: 24,
    about: "any Ada card, planned as an RTX 4060 Ti",
    ..SM_86
};

/// An H100 PCIe stands for all. Full tensor rate takes `wgmma`.
const SM_90A: CudaProfile = CudaProfile {
    name: "sm_90a",
    arch: "sm_90a",
    sms: 114,
    hz: 1.755e9,
    bandwidth: 1.97e12,
    peak_bandwidth: 2.04e12,
    l2_bytes: 50 * MIB,
    l2_bandwidth: 6.9e12,
    shared_per_sm: 228 * KIB,
    shared_per_block: 227 * KIB,
    memory_bytes: 139 * GIB,
    f16_tensor: 4096.0,
    i8_tensor: 8192.0,
    mma_share: 0.62,
    pdl: true,
    about: "any Hopper card, planned as an H100 PCIe",
    ..SM_80
};

/// A B200. Full tensor rate takes `tcgen05`; the share of `mma.sync` is an estimate.
const SM_100A: CudaProfile = CudaProfile {
    name: "sm_100a",
    arch: "sm_100a",
    sms: 148,
    hz: 1.85e9,
    bandwidth: 7.0e12,
    peak_bandwidth: 8.0e12,
    l2_bytes: 126 * MIB,
    l2_bandwidth: 10.2e12,
    memory_bytes: 178 * GIB,
    f16_tensor: 8192.0,
    i8_tensor: 16384.0,
    mma_share: 0.25,
    about: "any data centre Blackwell card, planned as a B200",
    ..SM_90A
};

/// An RTX 5070 stands for all.
const SM_120: CudaProfile = CudaProfile {
    name: "sm_120",
    arch: "sm_120",
    sms: 48,
    hz: 2.512e9,
    bandwidth: 0.622e12,
    peak_bandwidth: 0.672e12,
    l2_bytes: 48 * MIB,
    l2_bandwidth: 1.8e12,
    memory_bytes: 95 * GIB,
    pdl: true,
    about: "any other Blackwell card, planned as an RTX 5070",
    ..SM_89
};

/// Every GPU there is a profile for: cards, oldest architecture first, then what stands for any card of an architecture.
pub const PRESETS: &[CudaProfile] = &[
    CudaProfile {
        name: "t4",
        memory_bytes: 14 * GIB + 512 * MIB,
        about: "Tesla T4, 16 GB",
        ..SM_75
    },
    CudaProfile {
        name: "a100",
        bandwidth: 1.73e12,
        peak_bandwidth: 2.039e12,
        memory_bytes: 79 * GIB,
        about: "A100 SXM, 80 GB",
        ..SM_80
    },
    CudaProfile {
        name: "rtx3090",
        sms: 82,
        hz: 1.695e9,
        bandwidth: 0.843e12,
        peak_bandwidth: 0.936e12,
        l2_bytes: 6 * MIB,
        l2_bandwidth: 2.0e12,
        memory_bytes: 23 * GIB + 512 * MIB,
        launch_seconds: 0.83e-6,
        about: "GeForce RTX 3090, 24 GB",
        ..SM_86
    },
    CudaProfile {
        name: "rtx4070ti",
        sms: 60,
        hz: 2.61e9,
        bandwidth: 0.470e12,
        peak_bandwidth: 0.504e12,
        l2_bytes: 48 * MIB,
        l2_bandwidth: 2.3e12,
        memory_bytes: 11 * GIB + 512 * MIB,
        about: "GeForce RTX 4070 Ti, 12 GB",
        ..SM_89
    },
    CudaProfile {
        name: "rtx4090",
        sms: 128,
        hz: 2.52e9,
        bandwidth: 0.940e12,
        peak_bandwidth: 1.008e12,
        l2_bytes: 72 * MIB,
        l2_bandwidth: 4.7e12,
        memory_bytes: 23 * GIB + 512 * MIB,
        about: "GeForce RTX 4090, 24 GB",
        ..SM_89
    },
    CudaProfile {
        name: "l40s",
        sms: 142,
        hz: 2.52e9,
        bandwidth: 0.796e12,
        peak_bandwidth: 0.864e12,
        l2_bytes: 96 * MIB,
        l2_bandwidth: 5.2e12,
        memory_bytes: 44 * GIB,
        f16_tensor: 1024.0,
        about: "L40S, 48 GB",
        ..SM_89
    },
    CudaProfile {
        name: "h100",
        sms: 132,
        hz: 1.98e9,
        bandwidth: 3.0e12,
        peak_bandwidth: 3.35e12,
        l2_bandwidth: 9.0e12,
        memory_bytes: 79 * GIB,
        about: "H100 SXM, 80 GB",
        ..SM_90A
    },
    CudaProfile {
        name: "h200",
        sms: 132,
        hz: 1.98e9,
        bandwidth: 4.3e12,
        peak_bandwidth: 4.8e12,
        l2_bandwidth: 9.7e12,
        about: "H200 SXM, 141 GB",
        ..SM_90A
    },
    CudaProfile {
        name: "b200",
        about: "B200, 180 GB",
        ..SM_100A
    },
    CudaProfile {
        name: "rtx5090",
        sms: 170,
        hz: 2.407e9,
        bandwidth: 1.675e12,
        peak_bandwidth: 1.792e12,
        l2_bytes: 96 * MIB,
        l2_bandwidth: 6.0e12,
        memory_bytes: 31 * GIB,
        launch_seconds: 1.0e-6,
        about: "GeForce RTX 5090, 32 GB",
        ..SM_120
    },
    SM_75,
    SM_80,
    SM_86,
    SM_89,
    SM_90A,
    SM_100A,
    SM_120,
];
