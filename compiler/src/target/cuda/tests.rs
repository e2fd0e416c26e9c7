//! Presets against what is known of them, occupancy against CUDA's own calculator.

use super::*;

#[test]
fn presets_are_found_by_name() {
    for (i, preset) in PRESETS.iter().enumerate() {
        assert_eq!(CudaProfile::named(preset.name), Some(*preset));
        assert_eq!(
            CudaProfile::named(&format!("cuda:{}", preset.name)),
            Some(*preset)
        );
        assert!(
            PRESETS[..i].iter().all(|p| p.name != preset.name),
            "{}",
            preset.name
        );
        let generic = CudaProfile::named(preset.arch).expect("its architecture has one");
        assert_eq!((generic.arch, generic.sm()), (preset.arch, preset.sm()));
        assert!(
            preset.memory_bytes <= generic.memory_bytes,
            "{}",
            preset.name
        );
        let limits = |p: &CudaProfile| {
            let shared = [
                p.shared_per_sm,
                p.shared_per_block,
                p.shared_reserved,
                p.shared_unit,
            ];
            let resident = [
                p.registers_per_sm,
                p.max_threads_per_sm,
                p.max_blocks_per_sm,
            ];
            (shared, resident, p.pdl)
        };
        assert_eq!(limits(preset), limits(&generic), "{}", preset.name);
        assert_eq!(preset.pdl, preset.sm() >= 90, "{}", preset.name);
    }
    assert_eq!(CudaProfile::named("h300"), None);
    assert_eq!(CudaProfile::named("sm_90a").map(|p| p.sm()), Some(90));
}

#[test]
fn figures_are_of_the_size_data_sheets_have() {
    for p in PRESETS {
        let share = p.bandwidth / p.peak_bandwidth;
        assert!((0.79..0.97).contains(&share), "{}: {share} of peak", p.name);
        let l2 = p.l2_bandwidth / p.bandwidth;
        assert!((1.3..8.0).contains(&l2), "{}: L2 {l2} times memory", p.name);
        assert!((1.4e9..2.7e9).contains(&p.hz), "{}", p.name);
        assert!(
            p.shared_per_block + p.shared_reserved <= p.shared_per_sm,
            "{}",
            p.name
        );
    }
    // Dense teraflops with f32 accumulation, and int8 teraops, of the data sheets (boost clock of those of H100: 1.83 GHz).
    for (name, f16, i8) in [
        ("t4", 65.0, 130.0),
        ("a100", 312.0, 624.0),
        ("rtx3090", 71.0, 284.0),
        ("rtx4090", 165.0, 660.0),
        ("l40s", 362.0, 733.0),
        ("b200", 2250.0, 4500.0),
        ("rtx5090", 209.0, 838.0),
    ] {
        let p = CudaProfile::named(name).expect(name);
        let tera = |per_clock: f64| per_clock * f64::from(p.sms) * p.hz / 1e12;
        assert!(
            (tera(p.f16_tensor) / f16 - 1.0).abs() < 0.02,
            "{name}: {}",
            tera(p.f16_tensor)
        );
        assert!(
            (tera(p.i8_tensor) / i8 - 1.0).abs() < 0.02,
            "{name}: {}",
            tera(p.i8_tensor)
        );
    }
}

/// Lane instructions per weight of 4.5 bits, as published for engines that are issue-bound there.
#[test]
fn budgets_of_four_bit_weights() {
    for (name, budget) in [
        ("a100", 6.3),
        ("h100", 6.3),
        ("h200", 4.4),
        ("b200", 2.8),
        ("rtx4070ti", 24.0),
        ("rtx4090", 24.7),
        ("rtx5090", 17.6),
    ] {
        let found = CudaProfile::named(name).expect(name).issue_budget(0.5625);
        assert!((found - budget).abs() < 0.06, "{name}: {found}");
    }
}

#[test]
fn occupancy_as_the_calculator_has_it() {
    use Limit::{Blocks, Registers, Shared, Threads};
    for (name, registers, shared, threads, blocks, limit) in [
        ("t4", 24, 4096, 1000, 1, Threads),
        ("t4", 128, 8192, 384, 1, Registers),
        ("t4", 168, 32768, 96, 2, Shared),
        ("t4", 96, 1, 32, 16, Blocks),
        ("a100", 24, 1024, 640, 3, Threads),
        ("a100", 40, 4096, 64, 24, Registers),
        ("a100", 65, 115712, 32, 1, Shared),
        ("a100", 56, 1, 1, 32, Blocks),
        ("rtx3090", 16, 0, 384, 4, Threads),
        ("rtx3090", 255, 9000, 32, 8, Registers),
        ("rtx3090", 1, 101376, 384, 1, Shared),
        ("rtx3090", 32, 0, 32, 16, Blocks),
        ("rtx4090", 1, 0, 768, 2, Threads),
        ("rtx4090", 96, 0, 32, 20, Registers),
        ("rtx4090", 160, 65537, 128, 1, Shared),
        ("rtx4090", 40, 1, 1, 24, Blocks),
        ("h200", 16, 1024, 640, 3, Threads),
        ("h200", 129, 0, 64, 6, Registers),
        ("h200", 16, 166912, 768, 1, Shared),
        ("h200", 32, 4096, 32, 32, Blocks),
        ("b200", 1, 0, 128, 16, Threads),
        ("b200", 63, 9000, 512, 2, Registers),
        ("b200", 56, 32768, 160, 6, Shared),
        ("b200", 33, 4096, 1, 32, Blocks),
        ("rtx5090", 1, 1024, 1024, 1, Threads),
        ("rtx5090", 96, 1, 256, 2, Registers),
        ("rtx5090", 40, 49152, 64, 2, Shared),
    ] {
        let found = CudaProfile::named(name)
            .expect(name)
            .occupancy(registers, shared, threads);
        assert_eq!(
            (found.blocks, found.limit),
            (blocks, limit),
            "{name} {registers} {shared} {threads}"
        );
        assert_eq!(
            found.warps,
            blocks * threads.div_ceil(32),
            "{name} {registers} {shared} {threads}"
        );
    }
}

#[test]
fn what_cannot_be_launched_has_no_block() {
    for p in PRESETS {
        for (registers, shared, threads, limit) in [
            (32, 0, 1025, Limit::Registers),
            (257, 0, 32, Limit::Registers),
            (255, 0, 1024, Limit::Registers),
            (32, p.shared_per_block + 1, 32, Limit::Shared),
            (32, u32::MAX, 32, Limit::Shared),
            (u32::MAX, 0, u32::MAX, Limit::Registers),
        ] {
            let found = p.occupancy(registers, shared, threads);
            assert_eq!((found.blocks, found.warps), (0, 0), "{}", p.name);
            assert_eq!(
                found.limit, limit,
                "{} {registers} {shared} {threads}",
                p.name
            );
        }
        assert!(p.occupancy(0, 0, 0).blocks > 0);
        let full = p.occupancy(32, 0, 256);
        assert_eq!(full.warps * 32, p.max_threads_per_sm, "{}", p.name);
    }
}
