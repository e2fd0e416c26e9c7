//! The table of chips. Cores, memory and bandwidth are those of Apple's technical specifications, of the largest
//! configuration of each chip; clocks follow from published single-precision rates (128 fused multiply-adds per core and
//! clock); GPU families are those of the Metal feature set tables.

use super::{Candidates, MetalProfile};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

const fn m1(
    name: &'static str,
    cores: u32,
    gb: f64,
    gib: u64,
    cache: u64,
    about: &'static str,
) -> MetalProfile {
    chip(name, 7, (cores, 1.278e9), gb, gib, cache, about)
}

const fn m2(
    name: &'static str,
    cores: u32,
    gb: f64,
    gib: u64,
    cache: u64,
    about: &'static str,
) -> MetalProfile {
    chip(name, 8, (cores, 1.398e9), gb, gib, cache, about)
}

const fn m3(
    name: &'static str,
    cores: u32,
    gb: f64,
    gib: u64,
    cache: u64,
    about: &'static str,
) -> MetalProfile {
    chip(name, 9, (cores, 1.38e9), gb, gib, cache, about)
}

const fn m4(
    name: &'static str,
    cores: u32,
    gb: f64,
    gib: u64,
    cache: u64,
    about: &'static str,
) -> MetalProfile {
    chip(name, 9, (cores, 1.58e9), gb, gib, cache, about)
}

const fn m5(
    name: &'static str,
    cores: u32,
    gb: f64,
    gib: u64,
    cache: u64,
    about: &'static str,
) -> MetalProfile {
    chip(name, 10, (cores, 1.62e9), gb, gib, cache, about)
}

const fn chip(
    name: &'static str,
    family: u32,
    (cores, hz): (u32, f64),
    gb: f64,
    gib: u64,
    cache: u64,
    about: &'static str,
) -> MetalProfile {
    MetalProfile {
        name,
        family,
        cores,
        hz,
        peak_bandwidth: gb * 1e9,
        l2_bytes: cache * MIB,
        memory_bytes: gib * GIB,
        neural: family >= 10,
        about,
        candidates: Candidates::ALL,
    }
}

/// Every preset; the last number is the system-level cache in MiB.
pub const PRESETS: &[MetalProfile] = &[
    m1("metal:m1", 8, 68.25, 16, 8, "Apple M1"),
    m1("metal:m1-pro", 16, 204.8, 32, 24, "Apple M1 Pro"),
    m1("metal:m1-max", 32, 409.6, 64, 48, "Apple M1 Max"),
    m1("metal:m1-ultra", 64, 819.2, 128, 96, "Apple M1 Ultra"),
    m2("metal:m2", 10, 102.4, 24, 8, "Apple M2"),
    m2("metal:m2-pro", 19, 204.8, 32, 24, "Apple M2 Pro"),
    m2("metal:m2-max", 38, 409.6, 96, 48, "Apple M2 Max"),
    m2("metal:m2-ultra", 76, 819.2, 192, 96, "Apple M2 Ultra"),
    m3("metal:m3", 10, 102.4, 24, 8, "Apple M3"),
    m3("metal:m3-pro", 18, 153.6, 36, 12, "Apple M3 Pro"),
    m3("metal:m3-max", 40, 409.6, 128, 48, "Apple M3 Max"),
    m3("metal:m3-ultra", 80, 819.2, 512, 96, "Apple M3 Ultra"),
    m4("metal:m4", 10, 120.0, 32, 8, "Apple M4"),
    m4("metal:m4-pro", 20, 273.0, 64, 24, "Apple M4 Pro"),
    m4("metal:m4-max", 40, 546.0, 128, 48, "Apple M4 Max"),
    m5("metal:m5", 10, 153.6, 32, 8, "Apple M5"),
    m5("metal:m5-pro", 20, 307.0, 64, 24, "Apple M5 Pro"),
    m5("metal:m5-max", 40, 614.0, 128, 48, "Apple M5 Max"),
];
