//! What a matmul variant costs on an Apple GPU: bytes from memory, bytes from the cache that all cores share, and issued
//! instructions, which products are part of. It orders candidates, it promises nothing: no Apple GPU has been measured.

use crate::gpu::matmul::{Class, Cost, Family, Query, Sizes, Variant, geometry};
use crate::gpu::rates::GpuRates;
use crate::gpu::tile::{self, TILE_N};
use crate::quant::{PackedLayout, Scale, Store};

/// Seconds from the first load to the first sum, and from the last sum to the result.
const FILL: f64 = 2.0e-6;
/// Bytes that a core must have asked for to be served at its full share of the bandwidth.
const UNDER_WAY: f64 = 12e3;
/// Bytes that a warp has asked for: a load of 16 bytes by each lane, twice.
const WARP_BYTES: f64 = 1024.0;
/// Warps that a core holds.
const WARPS_PER_CORE: f64 = 24.0;
/// Threadgroup memory of a core.
const SHARED_PER_CORE: f64 = 60.0 * 1024.0;
/// Share of issue slots that compiled code fills.
const FILLED: f64 = 0.8;

/// Cost of a legal query.
pub fn cost(variant: &Variant, class: Class, query: &Query, rates: &GpuRates) -> Cost {
    let Query {
        layout,
        outputs,
        k,
        rows,
        epilogue,
        routed,
        ..
    } = *query;
    let geometry = geometry(variant, class, query);
    let [_, x, _] = geometry.grid.map(f64::from);
    // Matrices that are read, and rows of thread blocks that have work, each of which reads one; of experts, in the mean.
    let (matrices, columns) = match routed {
        Some(routed) => routed.expected(rows, variant.stamp as usize),
        None => (1.0, rows.div_ceil(variant.stamp as usize) as f64),
    };
    let blocks = (x * columns).max(1.0);
    // Rows that are multiplied.
    let rows = rows * routed.map_or(1, |routed| routed.used);
    let streams = f64::from(variant.tiles * epilogue.abreast());

    let Sizes {
        matrix,
        act,
        result,
        ..
    } = Sizes::of(variant, query);
    let results = rows as u64 * result;
    // Thread blocks of the same weights start side by side: what one has read the others find in the cache.
    let bytes = (matrix as f64 * matrices) as u64 + act * rows as u64 + results;
    let l2 = (matrix as f64 * columns) as u64 + x as u64 * rows as u64 * act + results;

    let cores = f64::from(rates.sms);
    let by_shared = (SHARED_PER_CORE / f64::from(geometry.shared_bytes).max(1.0)).floor();
    let by_warps = (WARPS_PER_CORE / f64::from(class.warps)).floor();
    let resident = by_shared.min(by_warps).max(1.0);
    // What the fullest core computes, in thread blocks.
    let most = (blocks / cores).ceil();
    let under_way = resident.min(most) * f64::from(class.warps) * streams * WARP_BYTES;
    let share = (blocks.min(cores) / cores) * (under_way / UNDER_WAY).min(1.0);
    let memory_seconds = bytes as f64 / (rates.bandwidth * share);
    let l2_seconds = l2 as f64 / (rates.l2_bandwidth * blocks.min(cores) / cores);

    let padded_k = tile::units(&layout, k) * tile::unit_k(&layout);
    let padded_n: usize = outputs.iter().map(|n| n.next_multiple_of(TILE_N)).sum();
    let padded_rows = match (variant.family, routed) {
        (Family::Matrix, None) => rows.next_multiple_of(8) as f64,
        (Family::Matrix, Some(_)) => {
            let stamped = columns * f64::from(variant.stamp);
            stamped.min(rows as f64 + 7.0 * columns)
        }
        _ => rows as f64,
    };
    let macs = ((padded_n * padded_k) as f64 * padded_rows) as u64;
    let of_rows = padded_rows / columns;
    let instructions_per_weight = instructions_per_weight(variant, &layout, streams, of_rows);
    let per_core = instructions_per_weight * (padded_n * padded_k) as f64 * columns / blocks * most;
    let issue_seconds = per_core / (rates.issue_per_clk * rates.hz * FILLED);
    // A matrix product issues once for 16 multiply-adds of a lane, and keeps the pipes as busy as those would.
    let arithmetic_seconds = match variant.family {
        Family::Matrix => {
            let flops = 2.0 * macs as f64 / blocks * most;
            flops / (rates.f16_tensor_flops_per_clk_sm * rates.hz * FILLED)
        }
        _ => 0.0,
    };
    let computed = issue_seconds + arithmetic_seconds;
    Cost {
        seconds: memory_seconds.max(l2_seconds).max(computed) + FILL,
        fixed_seconds: FILL,
        memory_seconds,
        l2_seconds,
        arithmetic_seconds,
        issue_seconds,
        bytes,
        instructions_per_weight,
        macs,
        resident: resident as u32,
    }
}

/// Lane-instructions per weight and time that it is read, for so many rows; from the templates' text, no compiler's output
/// has been counted. Operands that are halves cost f32 instructions nothing.
fn instructions_per_weight(
    variant: &Variant,
    layout: &PackedLayout,
    streams: f64,
    rows: f64,
) -> f64 {
    let group = f64::from(layout.group);
    // To numbers: masks and shifts of a word of four, then a conversion each.
    let numbers = match layout.store {
        Store::Int(8) => 1.1,
        Store::Int(4) => 1.5,
        Store::Int(2) => 1.6,
        Store::Int(_) => 2.2,
        Store::Code(_) => 4.0,
        Store::F16 | Store::Bf16 => 1.2,
        Store::F32 => 0.3,
    };
    // A lane has a quarter of the weights of a scale group.
    let scale = match layout.scale {
        Scale::None => 0.0,
        Scale::F16 | Scale::E8 => 3.0,
        Scale::U8F16 | Scale::I8F16 | Scale::U4F16 => 6.0,
    };
    let scales = 4.0 * scale / group * if layout.min { 1.7 } else { 1.0 };
    match variant.family {
        Family::Matrix => {
            let halves = if layout.int_bits().is_some() {
                1.0
            } else {
                0.0
            };
            // Halves and their store; 16 loads of a tile's 1024 weights, rows shared by streams.
            numbers + scales + halves + 1.0 + 0.6 + rows * (0.12 / streams + 0.0125)
        }
        _ => {
            let fix = match layout.int_bits() {
                // Levels of 8 bits and codes come without their zero.
                Some(bits) if bits < 8 && !matches!(layout.store, Store::Code(_)) => 8.0 / group,
                Some(_) => 4.0 / group,
                None => 0.0,
            };
            // A row's eight activations are loaded and summed once for all outputs of the lane.
            let loads = 8.0 / (16.0 * streams);
            numbers + scales + rows * (1.0 + fix + loads)
        }
    }
}
