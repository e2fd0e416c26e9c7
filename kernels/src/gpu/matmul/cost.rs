//! What a variant costs: a roofline over bytes, tensor arithmetic and issued instructions, with thread blocks that do not
//! fill the GPU counted against it. It orders candidates, it promises nothing.

use std::fmt;

use super::{Class, Epilogue, Family, Query, Variant, kernel, steps};

use crate::gpu::metal;
use crate::gpu::rates::{GpuRates, shared_reserved};
use crate::gpu::tile::{self, TILE_N};
use crate::quant::{PackedLayout, Scale, Store};

/// Prediction for one launch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Predicted time without what starting the launch costs, seconds.
    pub seconds: f64,
    /// Of these, what does not grow with the work: launches that run side by side take it once, seconds.
    pub fixed_seconds: f64,
    /// Time of the bytes from memory, or of the rounds in which warps wait for them, seconds.
    pub memory_seconds: f64,
    /// Time of the bytes between L2 and multiprocessors, seconds.
    pub l2_seconds: f64,
    /// Time of tensor cores or multiply-add pipes, seconds.
    pub arithmetic_seconds: f64,
    /// Time to issue all instructions, seconds.
    pub issue_seconds: f64,
    /// Time of the bytes between a core's registers and its own cache and shared memory, where a GPU's is known; else 0,
    /// seconds.
    pub core_seconds: f64,
    /// Bytes from memory: weights, activations, results.
    pub bytes: u64,
    /// Lane-instructions per weight, each time it is read.
    pub instructions_per_weight: f64,
    /// Multiply-adds, padding included.
    pub macs: u64,
    /// Thread blocks that a multiprocessor holds at once.
    pub resident: u32,
}

impl Cost {
    /// What takes the most time, and how long, seconds.
    pub fn wall(&self) -> (&'static str, f64) {
        [
            ("memory", self.memory_seconds),
            ("L2", self.l2_seconds),
            ("arithmetic", self.arithmetic_seconds),
            ("issue", self.issue_seconds),
            ("core memory", self.core_seconds),
        ]
        .into_iter()
        .fold(("launch", 0.0), |worst, wall| match wall.1 > worst.1 {
            true => wall,
            false => worst,
        })
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (wall, seconds) = self.wall();
        write!(
            f,
            "model: {:.1} us, {wall} {:.1} us, {:.2} instructions per weight",
            self.seconds * 1e6,
            seconds * 1e6,
            self.instructions_per_weight
        )
    }
}

/// What the compiler reports of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Registers of a thread.
    pub registers: u32,
}

/// Seconds between asking memory for a byte and having it, under load.
const MEMORY_LATENCY: f64 = 0.8e-6;
/// The same when little else is asked for.
const LEAST_LATENCY: f64 = 0.5e-6;
/// Seconds from the first load to the first sum, and from the last sum to the result.
const FILL: f64 = 1.2e-6;
/// Seconds in which thread blocks that share k meet.
const SPLIT: f64 = 1.0e-6;
/// Rows whose pending norm a warp finishes at once, and sums of squares of each that one round of loads brings.
const FACTORS_AT_ONCE: u32 = 8;
const SQUARES_AT_ONCE: usize = 128;
/// Seconds between asking L2 for what has just been written and having it.
const L2_LATENCY: f64 = 0.3e-6;
/// Seconds that the rows of a norm add to those of their residual: sums over lanes, one more store.
const NORM: f64 = 0.1e-6;
/// Bytes per cycle that one multiprocessor takes from L2 at most.
const INGEST_PER_CLK: f64 = 64.0;
/// Threads of a multiprocessor.
const THREADS_PER_SM: u32 = 1536;
/// Thread blocks of a multiprocessor.
const BLOCKS_PER_SM: u32 = 16;

/// Bytes that one matrix and one row take, whatever GPU multiplies them.
pub(in crate::gpu) struct Sizes {
    /// Packed weights of one matrix, or of one expert's.
    pub matrix: u64,
    /// A row of activations as it is read.
    pub act: u64,
    /// A row of results as it is left.
    pub result: u64,
    /// Whether results are left with their norm pending, too.
    pub normed: bool,
}

impl Sizes {
    /// Those of a query.
    pub fn of(variant: &Variant, query: &Query) -> Sizes {
        let matrices = query.outputs.iter();
        let matrices = matrices.filter_map(|&n| tile::matrix_bytes(&query.layout, n, query.k));
        let form = variant.family.act();
        let act = match query.pending {
            true => form.pending_stride(query.k),
            false => form.stride(query.k),
        };
        let n: usize = query.outputs.iter().sum();
        let normed = match query.epilogue {
            Epilogue::ResidualNorm(form) => form.pending_stride(n),
            Epilogue::Store | Epilogue::Residual | Epilogue::Gated(..) => 0,
        };
        Sizes {
            matrix: matrices.sum::<usize>() as u64,
            act: act as u64,
            result: (n * 4 + normed) as u64,
            normed: normed > 0,
        }
    }
}

/// Cost of a legal query; `resources` replace an estimate of registers.
pub fn cost(
    variant: &Variant,
    class: Class,
    query: &Query,
    rates: &GpuRates,
    resources: Option<Resources>,
) -> Cost {
    if variant.family.is_metal() {
        return metal::cost(variant, class, query, rates);
    }
    let Query {
        layout,
        outputs,
        k,
        rows,
        epilogue,
        pending,
        routed,
        ..
    } = *query;
    let geometry = kernel::geometry(variant, class, query);
    let [y, x, z] = geometry.grid.map(f64::from);
    // Matrices that are read, and rows of thread blocks that have work, each of which reads one; of experts, in the mean.
    let (matrices, columns) = match routed {
        Some(routed) => routed.expected(rows, variant.stamp as usize),
        None => (1.0, y),
    };
    let blocks = (x * columns * z).max(1.0);
    // Rows that are multiplied.
    let rows = rows * routed.map_or(1, |routed| routed.used);
    let streams = variant.tiles / variant.family.row_warps() * epilogue.abreast();

    let Sizes {
        matrix,
        act,
        result,
        normed,
    } = Sizes::of(variant, query);
    let results = rows as u64 * result;
    let scratch = 2.0 * kernel::scratch_bytes(variant, class, query) as f64 * columns / y;
    let asked = (matrix as f64 * columns) as u64;
    // Thread blocks of other rows ask for the same weights at the same time.
    let bytes = (matrix as f64 * matrices) as u64 + act * rows as u64 + results;
    // Every thread block reads its rows once; shares of k only their part.
    let l2 = asked + (x as u64) * rows as u64 * act + results + scratch as u64;

    let resident = resident(
        geometry.shared_bytes,
        class,
        resources,
        variant,
        streams,
        rates,
    );
    let busy = blocks.min(f64::from(rates.sms));
    // What the fullest multiprocessor computes, in thread blocks.
    let most = (blocks / f64::from(rates.sms)).ceil();
    // One of the ring's steps is being multiplied, the others are under way.
    let others = kernel::stages(variant, class, &layout, epilogue) - 1;
    let ring = (kernel::step_bytes(variant, class, &layout, epilogue) * others) as f64;
    // Those of other rows bring no more of them from memory at a time.
    let share = matrix as f64 / (x * z);
    let at_once = f64::from(resident * rates.sms);
    let distinct = (at_once * matrices / columns).max(1.0);
    let under_way = ring.min(share) * (x * z * matrices).min(distinct);
    let bandwidth = rates.bandwidth.min(under_way / MEMORY_LATENCY);
    let takers = class.warps / variant.family.row_warps() * class.k_split;
    let rounds = steps(&layout, k)
        .div_ceil(takers as usize)
        .div_ceil(others as usize);
    let waiting = (blocks / at_once).ceil() * rounds as f64 * LEAST_LATENCY;
    let ingest = most * (l2 as f64 / blocks) / (INGEST_PER_CLK * rates.hz);

    let padded_k = tile::units(&layout, k) * tile::unit_k(&layout);
    let padded_n: usize = outputs.iter().map(|n| n.next_multiple_of(TILE_N)).sum();
    let multiplied = (padded_n * padded_k) as f64 * columns;
    let stamped = columns * f64::from(variant.stamp);
    let padded_rows = match (variant.family, routed) {
        // Eights of rows that do not exist are left out.
        (Family::MmaI8 | Family::MmaF16, None) => rows.next_multiple_of(8) as f64,
        (Family::MmaI8 | Family::MmaF16, Some(_)) => stamped.min(rows as f64 + 7.0 * columns),
        _ => stamped,
    };
    let macs = ((padded_n * padded_k) as f64 * padded_rows) as u64;
    let instructions_per_weight = instructions_per_weight(variant, &layout, streams);
    let per_block = |work: f64| work / blocks * most;
    let instructions = instructions_per_weight * multiplied;
    let arithmetic_seconds = match arithmetic_per_clk(variant.family, rates) {
        Some(rate) => per_block(2.0 * macs as f64) / (rate * rates.hz),
        None => 0.0,
    };
    // Bytes of memory and of L2 flow while instructions issue; a thread block alone on its multiprocessor overlaps less.
    let memory_seconds = (bytes as f64 / bandwidth).max(waiting);
    let l2_seconds = (l2 as f64 / rates.l2_bandwidth * f64::from(rates.sms) / busy).max(ingest);
    let issue_seconds = per_block(instructions) / (rates.issue_per_clk * rates.hz);
    // Sums of squares are added up before the first product, while weights already come.
    let rounds = match pending {
        true => {
            let rows = variant.stamp.div_ceil(FACTORS_AT_ONCE * class.warps);
            rows as usize * (k / 16).div_ceil(SQUARES_AT_ONCE)
        }
        false => 0,
    };
    let after = rounds as f64 * L2_LATENCY;
    let computed = l2_seconds.max(arithmetic_seconds).max(issue_seconds);
    let wall = memory_seconds.max(after + computed);
    let split = if class.k_split > 1 { SPLIT } else { 0.0 };
    // An item says where its weights are, and nothing says so before the launch before has ended.
    let found = routed.map_or(0.0, |_| L2_LATENCY);
    let fixed_seconds = FILL + split + found + if normed { NORM } else { 0.0 };
    Cost {
        seconds: wall + fixed_seconds,
        fixed_seconds,
        memory_seconds,
        l2_seconds,
        arithmetic_seconds,
        issue_seconds,
        core_seconds: 0.0,
        bytes,
        instructions_per_weight,
        macs,
        resident,
    }
}

/// Additions and multiplications per cycle of a multiprocessor's special pipes; `None` where issue slots say it all.
fn arithmetic_per_clk(family: Family, rates: &GpuRates) -> Option<f64> {
    match family {
        Family::MmaI8 => Some(rates.i8_tensor_ops_per_clk_sm),
        Family::MmaF16 => Some(rates.f16_tensor_flops_per_clk_sm),
        Family::Wgmma => Some(rates.wgmma_flops_per_clk_sm),
        _ => None,
    }
}

/// Thread blocks that fit on a multiprocessor.
fn resident(
    shared_bytes: u32,
    class: Class,
    resources: Option<Resources>,
    variant: &Variant,
    streams: u32,
    rates: &GpuRates,
) -> u32 {
    let registers = match resources {
        Some(resources) => resources.registers,
        None => 40 + 24 * streams.min(4) + variant.family.sums(variant.stamp, streams),
    };
    let threads = class.warps * 32;
    // Registers are given out in eights.
    let by_registers = rates.regs_per_sm / (registers.next_multiple_of(8) * threads);
    let by_shared = rates.smem_per_sm / (shared_bytes + shared_reserved(rates.arch));
    by_registers
        .min(by_shared)
        .min(THREADS_PER_SM / threads)
        .clamp(1, BLOCKS_PER_SM)
}

/// Lane-instructions per weight, counted in the machine code of a few layouts and split into what they are for.
fn instructions_per_weight(variant: &Variant, layout: &PackedLayout, streams: u32) -> f64 {
    let (stamp, streams) = (f64::from(variant.stamp), f64::from(streams));
    let group = f64::from(layout.group);
    let unpack = match layout.store {
        Store::Int(8) => 0.0,
        Store::Int(2) => 0.45,
        Store::Int(4) => 0.4,
        Store::Int(3 | 5) => 0.9,
        Store::Int(_) => 0.85,
        Store::Code(_) => 1.7,
        Store::F16 | Store::Bf16 | Store::F32 => 0.0,
    };
    // Instructions that make one scale, times 4: a lane has 32 weights of each 64 k, in two rows.
    let one = match layout.scale {
        Scale::None => 0.0,
        Scale::F16 => 1.0,
        Scale::E8 => 4.0,
        Scale::U8F16 | Scale::I8F16 => 2.0,
        Scale::U4F16 => 2.5,
    };
    let scales = 4.0 * one / group * if layout.min { 2.0 } else { 1.0 };
    let blocks = stamp / 8.0;
    match variant.family {
        Family::MmaI8 => {
            let min = if layout.min { 1.0 } else { 0.0 };
            let fix = if group < 32.0 {
                1.25 + 0.5 * min + 0.3 * min / streams
            } else {
                0.75 + 0.25 * min
            };
            let products = 2.0 / group;
            unpack + scales + 1.2 * blocks * (fix + products + 0.15 / streams) + 1.2 / streams
        }
        Family::MmaF16 => {
            let halves = match layout.store {
                Store::F16 => 0.0,
                Store::Bf16 | Store::F32 => 1.5,
                Store::Int(_) | Store::Code(_) => 1.8 + 4.0 / group,
            };
            unpack + scales + halves + blocks * (0.2 + 0.1 / streams) + 0.8 / streams
        }
        // Besides halves, copies of activations: a quarter of an instruction and a store for each word.
        Family::Wgmma => {
            let halves = match layout.store {
                Store::F16 => 0.0,
                Store::Bf16 | Store::F32 => 1.5,
                Store::Int(_) | Store::Code(_) => 1.5 + 4.0 / group,
            };
            unpack + scales + halves + stamp * 0.01 / streams + 1.8
        }
        Family::Fma => 1.0 + stamp * (1.0 + 0.2 / streams) + 0.6 / streams,
        _ => {
            let fix = if layout.min { 4.0 } else { 3.0 } * 4.0 / group;
            unpack + scales + stamp * (0.25 + fix + 0.15 / streams) + 0.8 / streams
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{VARIANTS, classes, variants};
    use super::*;
    use crate::quant::{Q4_K, Q8_0};

    /// An H200 as published.
    const RATES: GpuRates = GpuRates {
        arch: 90,
        sms: 132,
        hz: 1.755e9,
        bandwidth: 4.2e12,
        l2_bandwidth: 7e12,
        l2_bytes: 50 << 20,
        issue_per_clk: 128.0,
        f16_tensor_flops_per_clk_sm: 2560.0,
        i8_tensor_ops_per_clk_sm: 5120.0,
        wgmma_flops_per_clk_sm: 4096.0,
        smem_per_sm: 228 << 10,
        regs_per_sm: 65536,
    };

    fn query(layout: PackedLayout, rows: usize) -> Query<'static> {
        Query {
            layout,
            outputs: &[14336],
            k: 4096,
            rows,
            epilogue: Epilogue::Store,
            pending: false,
            routed: None,
            arch: 90,
        }
    }

    fn best(query: &Query) -> Cost {
        let mut costs = vec![];
        for class in classes(query) {
            costs.extend(variants(class, query).map(|v| cost(v, class, query, &RATES, None)));
        }
        costs.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        costs[0]
    }

    #[test]
    fn few_rows_are_bound_by_memory_and_many_are_not() {
        let one = best(&query(Q4_K.layout, 1));
        assert!(one.memory_seconds >= one.issue_seconds, "{one}");
        let many = best(&query(Q4_K.layout, 64));
        let others = many.issue_seconds.max(many.l2_seconds);
        assert!(others > many.memory_seconds, "{many}");
    }

    #[test]
    fn costs_grow_with_rows_and_bytes() {
        let mut last = 0.0;
        for rows in [1, 8, 16, 32, 64, 128] {
            let cost = best(&query(Q8_0.layout, rows));
            assert!(cost.seconds >= last, "{rows} rows: {cost}");
            last = cost.seconds;
        }
        let (small, large) = (best(&query(Q4_K.layout, 1)), best(&query(Q8_0.layout, 1)));
        assert!(small.seconds < large.seconds);
    }

    #[test]
    fn every_cost_is_finite_and_positive() {
        for layout in [Q4_K.layout, Q8_0.layout] {
            for rows in [1, 7, 64, 1000] {
                let query = query(layout, rows);
                for class in classes(&query) {
                    for variant in variants(class, &query) {
                        let cost = cost(variant, class, &query, &RATES, None);
                        assert!(cost.seconds.is_finite() && cost.seconds > 0.0);
                        assert!(cost.resident >= 1 && cost.bytes > 0);
                    }
                }
            }
        }
        assert!(!VARIANTS.is_empty());
    }
}
