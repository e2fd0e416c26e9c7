//! Candidates for a query: for every variant the cheapest cut of the rows into stamps, found by dynamic programming over
//! row counts. All stamps of a numeric class give a row the same bits, so any cut is as good as another but for its time.
//!
//! The first stamp of a cut meets weights that come from memory (*cold*), the others weights that the first has just
//! brought into L2 (*warm*). Both times are measured where a tune cache has them. Otherwise a warm stamp takes its
//! arithmetic, and a cold one a norm of memory and arithmetic ([`overlapped`]): they overlap, but not perfectly.

use super::{Candidate, Cost, Isa, Query, Reason, SubBatch, Timing, VARIANTS, Variant, VariantId};
use crate::cpu::abi::TILE_N;
use crate::cpu::tile::tile_bytes;
use crate::quant::FORMATS;

/// Every variant with its verdict, in table order.
pub fn candidates(query: &Query) -> Vec<Candidate> {
    let steps = steps(query);
    VARIANTS
        .iter()
        .map(|variant| candidate(variant, query, &steps))
        .collect()
}

/// The legal candidate with the least predicted time; of equals, the one with the larger stamp.
pub fn cheapest<'a>(candidates: impl IntoIterator<Item = &'a Candidate>) -> Option<&'a Candidate> {
    let mut best: Option<(&Candidate, f64)> = None;
    for candidate in candidates {
        if let Ok(cost) = &candidate.verdict
            && best.is_none_or(|(_, least)| cost.seconds <= least)
        {
            best = Some((candidate, cost.seconds));
        }
    }
    best.map(|(candidate, _)| candidate)
}

/// A stamp that is legal for a query, with its times over the whole matrix on all cores.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) variant: &'static Variant,
    /// Seconds as the first stamp of a cut.
    pub(super) cold: f64,
    /// Seconds as any later stamp.
    pub(super) warm: f64,
    /// Arithmetic by the table, seconds.
    pub(super) arithmetic: f64,
    pub(super) measured: bool,
}

/// What one core and all cores share of a query's matrix, or why its k does not fit.
fn tiles_and_bytes(query: &Query) -> Result<(usize, usize), Reason> {
    let (layout, k) = (query.layout, query.k);
    let multiple = layout.k_multiple();
    let tile = tile_bytes(&layout, k).ok_or(Reason::KMultiple { k, multiple })?;
    let tiles = query.n.div_ceil(TILE_N);
    Ok((tiles, tiles * tile))
}

fn memory_seconds(query: &Query, bytes: usize) -> f64 {
    let rates = query.rates;
    let cores = rates.bytes_per_s_per_core * rates.cores as f64;
    bytes as f64 / rates.bytes_per_s.min(cores)
}

/// Whether the variant's kernel exists and the target runs it.
fn exists(variant: &Variant, query: &Query) -> Result<f64, Reason> {
    if !query.isas.contains(&variant.isa) {
        return Err(Reason::Isa(variant.isa));
    }
    tiles_and_bytes(query)?;
    let known = FORMATS.iter().any(|fmt| fmt.layout == query.layout);
    let rate = variant.macs_per_cycle(&query.layout).filter(|_| known);
    rate.ok_or(Reason::NoStamp(VariantId {
        layout: query.layout,
        isa: variant.isa,
        stamp: variant.stamp,
    }))
}

/// Every stamp that exists for the query, whatever its rows, in table order.
pub(super) fn steps(query: &Query) -> Vec<Step> {
    let Ok((tiles, bytes)) = tiles_and_bytes(query) else {
        return Vec::new();
    };
    let memory = memory_seconds(query, bytes);
    let rates = query.rates;
    let cycles_per_second = rates.hz * rates.cores as f64;
    let macs_per_row = (tiles * TILE_N * query.k) as f64;
    let mut steps: Vec<Step> = VARIANTS
        .iter()
        .filter_map(|variant| {
            let rate = exists(variant, query).ok()?;
            let arithmetic = macs_per_row * variant.stamp as f64 / rate / cycles_per_second;
            Some(Step {
                variant,
                cold: overlapped(variant.isa, memory, arithmetic),
                warm: arithmetic,
                arithmetic,
                measured: false,
            })
        })
        .collect();
    apply_measured(&mut steps, query.measured);
    steps
}

/// Seconds of a stamp whose weights come from memory. With AVX-512, whose prefetches are spread over rows, the norm is
/// cubic: at 8 rows of 4-bit weights one core reads 10.5 GB/s from cache, memory gives it 18, and 9.8 are seen. With the
/// others it is the Euclidean one: 11.5, 15 and 9.
fn overlapped(isa: Isa, memory: f64, arithmetic: f64) -> f64 {
    match isa.numeric_class() {
        Isa::Avx512Vnni => (memory.powi(3) + arithmetic.powi(3)).cbrt(),
        _ => memory.hypot(arithmetic),
    }
}

/// Replaces predictions by measurements. A stamp that was not measured keeps its place among those of its class: its
/// prediction is scaled as theirs turned out, or the cheaper of two sources of numbers would win by being the wrong one.
fn apply_measured(steps: &mut [Step], measured: &[Timing]) {
    let timing = |step: &Step| {
        let of = |t: &&Timing| (t.isa, t.stamp) == (step.variant.isa, step.variant.stamp);
        measured.iter().find(of).copied()
    };
    let found: Vec<(Step, Timing)> = steps
        .iter()
        .filter_map(|s| timing(s).map(|t| (*s, t)))
        .collect();
    for step in steps {
        if let Some(t) = timing(step) {
            (step.cold, step.warm) = (t.cold_seconds, t.warm_seconds);
            step.measured = true;
            continue;
        }
        let class = step.variant.isa.numeric_class();
        let peers = || {
            found
                .iter()
                .filter(|(s, _)| s.variant.isa.numeric_class() == class)
        };
        step.cold *= median(peers().map(|(s, t)| t.cold_seconds / s.cold));
        step.warm *= median(peers().map(|(s, t)| t.warm_seconds / s.warm));
    }
}

/// The median, 1 of nothing.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(1.0)
}

fn candidate(variant: &'static Variant, query: &Query, steps: &[Step]) -> Candidate {
    match plan(variant, query, steps) {
        Ok((batches, cost)) => Candidate {
            variant,
            batches,
            verdict: Ok(cost),
        },
        Err(reason) => Candidate {
            variant,
            batches: Vec::new(),
            verdict: Err(reason),
        },
    }
}

fn plan(
    variant: &'static Variant,
    query: &Query,
    steps: &[Step],
) -> Result<(Vec<SubBatch>, Cost), Reason> {
    exists(variant, query)?;
    let (rows, stamp) = (query.rows, variant.stamp);
    if stamp > rows {
        return Err(Reason::Rows { stamp, rows });
    }
    let class = variant.isa.numeric_class();
    let mut usable: Vec<&Step> = steps
        .iter()
        .filter(|s| s.variant.isa.numeric_class() == class && s.variant.stamp <= stamp)
        .collect();
    // Of equally cheap cuts the one with the widest stamps: the fewest calls.
    usable.sort_by_key(|s| std::cmp::Reverse(s.variant.stamp));
    let cut = cheapest_cut(&usable, variant, rows).ok_or(Reason::Uncovered { rows })?;
    let (tiles, bytes) = tiles_and_bytes(query)?;
    let cost = Cost {
        seconds: cut[0].cold + cut[1..].iter().map(|s| s.warm).sum::<f64>(),
        memory_seconds: memory_seconds(query, bytes),
        arithmetic_seconds: cut.iter().map(|s| s.arithmetic).sum(),
        bytes: bytes as u64,
        macs: (tiles * TILE_N * query.k) as u64 * rows as u64,
        measured: cut.iter().all(|s| s.measured),
    };
    let batches = cut.iter().map(|step| SubBatch {
        rows: step.variant.stamp,
        kernel: VariantId {
            layout: query.layout,
            isa: step.variant.isa,
            stamp: step.variant.stamp,
        },
    });
    Ok((batches.collect(), cost))
}

/// Predicted cost when the stamps of one ISA take the rows widest first, as matmuls by expert do.
///
/// # Errors
/// Why no stamp of the ISA takes a single row of the query.
pub fn widest_first(query: &Query, isa: Isa) -> Result<Cost, Reason> {
    let mut steps = steps(query);
    steps.retain(|step| step.variant.isa == isa);
    steps.sort_by_key(|step| step.variant.stamp);
    let (tiles, bytes) = tiles_and_bytes(query)?;
    let mut cost = Cost {
        memory_seconds: memory_seconds(query, bytes),
        bytes: bytes as u64,
        macs: (tiles * TILE_N * query.k) as u64 * query.rows as u64,
        measured: true,
        ..Cost::default()
    };
    let mut left = query.rows;
    while left > 0 {
        let widest = steps.iter().rev().find(|step| step.variant.stamp <= left);
        let step = widest.ok_or(Reason::Uncovered { rows: left })?;
        cost.seconds += match left == query.rows {
            true => step.cold,
            false => step.warm,
        };
        cost.arithmetic_seconds += step.arithmetic;
        cost.measured &= step.measured;
        left -= step.variant.stamp;
    }
    Ok(cost)
}

fn same(a: &Variant, b: &Variant) -> bool {
    (a.isa, a.stamp) == (b.isa, b.stamp)
}

/// The cheapest cut of exactly `rows` rows that uses `must` at least once: a cold step, then warm ones, widest first.
/// `None` when no steps add up to the rows.
pub(super) fn cheapest_cut<'s>(
    steps: &[&'s Step],
    must: &Variant,
    rows: usize,
) -> Option<Vec<&'s Step>> {
    // Least time of r rows in warm steps, and the step that comes last in them.
    let mut warm: Vec<(f64, Option<&Step>)> = vec![(f64::INFINITY, None); rows + 1];
    warm[0].0 = 0.0;
    for r in 1..=rows {
        for &step in steps.iter().filter(|s| s.variant.stamp <= r) {
            let seconds = warm[r - step.variant.stamp].0 + step.warm;
            if seconds < warm[r].0 {
                warm[r] = (seconds, Some(step));
            }
        }
    }
    let must = *steps.iter().find(|s| same(s.variant, must))?;
    let mut best: (f64, Vec<&Step>, usize) = (f64::INFINITY, Vec::new(), 0);
    for &first in steps {
        let mut head = vec![first];
        let mut seconds = first.cold;
        if !same(first.variant, must.variant) {
            head.push(must);
            seconds += must.warm;
        }
        let taken: usize = head.iter().map(|s| s.variant.stamp).sum();
        let Some(left) = rows.checked_sub(taken) else {
            continue;
        };
        seconds += warm[left].0;
        if seconds < best.0 {
            best = (seconds, head, left);
        }
    }
    let (_, mut cut, mut left) = best;
    if cut.is_empty() {
        return None;
    }
    while let Some(step) = warm[left].1 {
        cut.push(step);
        left -= step.variant.stamp;
    }
    cut[1..].sort_by_key(|s| std::cmp::Reverse(s.variant.stamp));
    Some(cut)
}
