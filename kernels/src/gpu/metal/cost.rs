//! What a matmul variant costs on an Apple GPU: bytes from memory, bytes from the cache that all cores share, bytes that a
//! core's registers take, and issued instructions, which products are part of. It orders candidates, it promises nothing: no
//! Apple GPU has been measured.

use super::{REGISTERS, k_warps, keeps, registers, row_warps, shares, tensor_rows, warps};
use crate::gpu::abi::TILE_K;
use crate::gpu::matmul::{Class, Cost, Family, Query, Sizes, Variant, geometry};
use crate::gpu::rates::GpuRates;
use crate::gpu::tile::{self, TILE_N};
use crate::quant::{PackedLayout, Scale, Store};

/// Seconds from the first load to the first sum, and from the last sum to the result.
const FILL: f64 = 2.0e-6;
/// Seconds between asking memory for a byte and having it: M2 Pro by chipsandcheese.com.
const LATENCY: f64 = 0.35e-6;
/// Bytes that a core must have asked for to be served at its full share of the bandwidth.
const UNDER_WAY: f64 = 12e3;
/// Bytes that a warp has asked for: a load of 16 bytes by each lane, twice.
const WARP_BYTES: f64 = 1024.0;
/// Warps that a core holds.
const WARPS_PER_CORE: u32 = 24;
/// Threadgroup memory of a core; this, the next and [`REGISTERS`] by the same microbenchmarks.
const SHARED_PER_CORE: f64 = 60.0 * 1024.0;
/// Bytes per cycle that all lanes of a core together take from its cache and threadgroup memory, or bring there.
const CORE_BYTES_PER_CLK: f64 = 64.0;
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
    let work = Work::of(variant, query, columns);

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
    let by_registers = REGISTERS / (32 * registers(variant, &layout, epilogue));
    let by_warps = by_registers.min(WARPS_PER_CORE) / warps(variant, class, epilogue);
    let resident = by_shared.min(f64::from(by_warps)).max(1.0);
    // What the fullest core computes, in thread blocks.
    let most = (blocks / cores).ceil();
    let k_warps = f64::from(k_warps(variant, class, epilogue));
    // Warps that share weights ask for one tile of each stream at a time.
    let asked = match work.in_step {
        false => WARP_BYTES,
        true => (tile::unit_bytes(&layout) * 64 / tile::unit_k(&layout)) as f64,
    };
    let under_way = resident.min(most) * k_warps * work.streams * asked;
    let share = (blocks.min(cores) / cores) * (under_way / UNDER_WAY).min(1.0);
    let memory_seconds = bytes as f64 / (rates.bandwidth * share);
    let l2_seconds = l2 as f64 / (rates.l2_bandwidth * blocks.min(cores) / cores);

    let padded_k = tile::units(&layout, k) * tile::unit_k(&layout);
    let padded_n: usize = outputs.iter().map(|n| n.next_multiple_of(TILE_N)).sum();
    let macs = ((padded_n * padded_k) as f64 * work.rows) as u64;
    // Of the fullest core.
    let weights = (padded_n * padded_k) as f64 * columns / blocks * most;
    let of_rows = work.rows / columns;
    let instructions_per_weight = work.instructions_per_weight(&layout, of_rows);
    let clock = rates.issue_per_clk * rates.hz * FILLED;
    let issue_seconds = instructions_per_weight * weights / clock;
    // A matrix product issues once for 16 multiply-adds of a lane, and keeps the pipes as busy as those would.
    let arithmetic_seconds = match variant.family {
        Family::Matrix => {
            let flops = 2.0 * macs as f64 / blocks * most;
            flops / (rates.f16_tensor_flops_per_clk_sm * rates.hz * FILLED)
        }
        Family::Tensor | Family::Tensor32 => {
            let flops = 2.0 * macs as f64 / blocks * most;
            flops / (rates.wgmma_flops_per_clk_sm * rates.hz * FILLED)
        }
        _ => 0.0,
    };
    // Rows that are not there are not read, but for those of matrices of eight.
    let read = match variant.family {
        Family::Matrix => of_rows,
        _ => rows as f64 / columns,
    };
    let moved = work.bytes_per_weight(&layout, read) * weights;
    let core_seconds = moved / (CORE_BYTES_PER_CLK * rates.hz);
    let mut computed = match variant.family {
        // Pipes of their own, while other thread blocks make halves.
        Family::Tensor | Family::Tensor32 if resident.min(most) > 1.0 => {
            issue_seconds.max(arithmetic_seconds)
        }
        _ => issue_seconds + arithmetic_seconds,
    };
    if work.in_step {
        // Warps that share weights wait for each tile together, while other thread blocks of the core compute.
        let rounds = (padded_k / TILE_K) as f64 / k_warps;
        let waiting = (blocks / (cores * resident)).ceil() * rounds * LATENCY;
        computed = computed.max(computed / resident.min(most) + waiting);
    }
    let wall = memory_seconds.max(l2_seconds).max(core_seconds);
    Cost {
        seconds: wall.max(computed) + FILL,
        fixed_seconds: FILL,
        memory_seconds,
        l2_seconds,
        arithmetic_seconds,
        issue_seconds,
        core_seconds,
        bytes,
        instructions_per_weight,
        macs,
        resident: resident as u32,
    }
}

/// What a thread block does for each of its weights; from the templates' text, no compiler's output has been counted.
struct Work {
    family: Family,
    /// Tiles of 16 outputs of a warp.
    streams: f64,
    /// Warps that share the making of halves; 1 where they share nothing.
    sharers: u32,
    /// Whether all warps of a thread block take each tile together.
    in_step: bool,
    /// How many of them load halves that one of them has made.
    loaders: u32,
    /// How many times as long that takes as if all had as much to make.
    uneven: f64,
    /// Rows that are multiplied, those of the whole launch.
    rows: f64,
}

impl Work {
    fn of(variant: &Variant, query: &Query, columns: f64) -> Work {
        let streams = variant.tiles * query.epilogue.abreast();
        let sharers = row_warps(variant, query.epilogue);
        // 32 k of 16 outputs each.
        let parts = 2 * streams;
        let rows = query.rows * query.routed.map_or(1, |routed| routed.used);
        let together = match variant.family {
            Family::Matrix => 8,
            family => tensor_rows(family).max(1),
        };
        Work {
            family: variant.family,
            streams: f64::from(streams),
            sharers,
            in_step: shares(variant) || tensor_rows(variant.family) > 0,
            loaders: sharers - u32::from(keeps(variant, query.epilogue)),
            uneven: f64::from(parts.div_ceil(sharers) * sharers) / f64::from(parts),
            rows: match query.routed {
                None => rows.next_multiple_of(together as usize) as f64,
                Some(_) => {
                    let stamped = columns * f64::from(variant.stamp);
                    stamped.min(rows as f64 + f64::from(together - 1) * columns)
                }
            },
        }
    }

    /// Lane-instructions per weight and time that it is read, for so many rows. Operands that are halves cost f32
    /// instructions nothing.
    fn instructions_per_weight(&self, layout: &PackedLayout, rows: f64) -> f64 {
        let group = f64::from(layout.group);
        let integers = layout.int_bits().is_some();
        // To numbers: masks and shifts of a word of four, then a conversion each; of halves loads alone.
        let numbers = match layout.store {
            Store::Int(8) => 1.1,
            Store::Int(4) => 1.5,
            Store::Int(2) => 1.6,
            Store::Int(_) => 2.2,
            Store::Code(_) => 4.0,
            Store::F16 => 0.2,
            Store::Bf16 => 1.2,
            Store::F32 => 0.3,
        };
        // A lane has a quarter of the weights of a scale group.
        let scale = match layout.scale {
            Scale::None => 0.0,
            Scale::F16 | Scale::E8 => 3.0,
            Scale::U8F16 | Scale::I8F16 | Scale::U4F16 => 6.0,
        };
        let scales = 4.0 * scale / group * if layout.min { 1.7 } else { 1.0 };
        // Times scale, less zero or min; then to halves.
        let halves = match (self.family, layout.store) {
            (Family::SimdF32, _) | (_, Store::F16) => 0.0,
            _ if integers => 2.0,
            _ => 1.0,
        };
        let unpack = numbers + scales + halves;
        // A row's eight activations are found and loaded once for all outputs of the lane.
        let row = 1.0 + 3.0 / (16.0 * self.streams);
        match self.family {
            // Stores of halves; 16 loads of a tile's 1024 weights, rows shared by streams.
            Family::Matrix => unpack + 0.6 + rows * (0.12 / self.streams + 0.0125),
            // Eight weights are stored at a time; barriers, counting and tensors' extents by each warp, for each tile.
            Family::Tensor | Family::Tensor32 => {
                let counted = f64::from(self.sharers) * 30.0 / (32.0 * self.streams);
                self.uneven * unpack + 1.0 / 8.0 + counted
            }
            _ if self.sharers > 1 => {
                // Eight weights are stored or loaded at a time; barriers and counting by each warp, for each tile.
                let moved = f64::from(1 + self.loaders) / 8.0;
                let counted = f64::from(self.sharers) * 10.0 / (32.0 * self.streams);
                self.uneven * unpack + moved + counted + rows * row
            }
            _ => unpack + rows * row,
        }
    }

    /// Bytes per weight and time that it is read that lanes load and store, for so many rows.
    fn bytes_per_weight(&self, layout: &PackedLayout, rows: f64) -> f64 {
        let packed = tile::unit_bytes(layout) as f64 / (tile::unit_k(layout) * TILE_N) as f64;
        packed
            + match self.family {
                // Halves to shared memory and from there; rows likewise, for all streams of a warp.
                Family::Matrix => 4.0 + rows * 0.375 / self.streams,
                // Halves to shared memory, and from there by each warp; its rows for all streams.
                Family::Tensor | Family::Tensor32 => {
                    2.0 + 2.0 * f64::from(self.sharers) + rows * 0.125 / self.streams
                }
                // Eight activations for 16 weights of each stream.
                Family::SimdF32 => rows * 2.0 / self.streams,
                _ if self.sharers > 1 => 2.0 + 2.0 * f64::from(self.loaders) + rows / self.streams,
                _ => rows / self.streams,
            }
    }
}
