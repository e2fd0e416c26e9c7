//! One variant per matmul per bucket: query, candidates, cheapest legal one, and the reason in words.
//!
//! All buckets use the same micro-kernel family, whose stamps give identical bits for a row; only the cut of the rows
//! into stamps changes, so a row's result does not depend on the bucket it runs in.

use super::Stamp;
use crate::error::Error;
use crate::graph::Weight;
use crate::target::TargetProfile;
use coldpress_kernels::cpu::tile;
use coldpress_kernels::experts::{self, rows_of_expert};
use coldpress_kernels::matmul::{self, Candidate, Cost, CpuRates, Query, Variant};
use coldpress_kernels::quant::{self, PackedLayout};
use std::cell::RefCell;
use std::collections::HashMap;

/// Chooses variants for one target.
pub struct Selector<'a> {
    target: &'a TargetProfile,
    rates: CpuRates,
    /// Picks by (layout, n, k, rows): layers repeat their shapes.
    picked: RefCell<HashMap<(PackedLayout, usize, usize, usize), Pick>>,
    /// The same of matmuls by expert, by (layout, n, k, experts, used, rows).
    by_expert: RefCell<HashMap<(PackedLayout, [usize; 5]), ExpertPick>>,
}

/// How matmuls by expert run.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertPick {
    /// Micro-kernel symbol.
    pub symbol: String,
    /// Predicted cost of all experts that a step uses.
    pub cost: Cost,
    /// How many experts that is, in the mean.
    pub distinct: f64,
    /// What reading a tile costs, in rows that meet it.
    pub read_cost: usize,
}

/// A chosen variant.
#[derive(Clone, Debug, PartialEq)]
pub struct Pick {
    /// The row of the table: the widest stamp.
    pub variant: &'static Variant,
    /// Rows cut into stamps.
    pub stamps: Vec<Stamp>,
    /// Predicted cost.
    pub cost: Cost,
    /// How many variants were legal.
    pub legal: usize,
}

impl<'a> Selector<'a> {
    /// A selector for `target` with `workers` instruction streams.
    pub fn new(target: &'a TargetProfile, workers: usize) -> Selector<'a> {
        Selector {
            target,
            rates: CpuRates {
                cores: workers,
                hz: target.hz,
                bytes_per_s_per_core: target.core_bandwidth,
                bytes_per_s: target.total_bandwidth,
            },
            picked: RefCell::default(),
            by_expert: RefCell::default(),
        }
    }

    /// Suffix of the symbols of micro-kernels that have no variants: the numeric class has all of them.
    pub fn isa_name(&self) -> &'static str {
        self.target.isa().numeric_class().name()
    }

    /// Every variant for `weight` at `rows`, with its cost or the reason it is not legal.
    pub fn candidates(&self, weight: &Weight, rows: usize) -> Result<Vec<Candidate>, Error> {
        let layout = packed_layout(weight)?;
        Ok(self.shape_candidates(layout, (weight.n, weight.k), rows))
    }

    /// As [`Selector::candidates`], for a matrix `[n, k]` of `layout`.
    pub fn shape_candidates(
        &self,
        layout: PackedLayout,
        (n, k): (usize, usize),
        rows: usize,
    ) -> Vec<Candidate> {
        matmul::candidates(&self.query(layout, (n, k), rows))
    }

    fn query(&self, layout: PackedLayout, (n, k): (usize, usize), rows: usize) -> Query<'_> {
        Query {
            layout,
            n,
            k,
            rows,
            isas: self.target.isas,
            rates: &self.rates,
            measured: self.target.measured(layout, n, k),
        }
    }

    /// The candidates that may run a matrix. One numeric class per matrix: only the target's best family, whatever the row
    /// count.
    pub fn in_class<'c>(
        &self,
        candidates: &'c [Candidate],
    ) -> impl Iterator<Item = &'c Candidate> + use<'c> {
        let class = self.target.isa().numeric_class();
        candidates
            .iter()
            .filter(move |c| c.variant.isa.numeric_class() == class)
    }

    /// The cheapest legal candidate of the target's class; of equals the one with the widest stamp.
    pub fn pick(&self, weight: &Weight, rows: usize) -> Result<Pick, Error> {
        let key = (packed_layout(weight)?, weight.n, weight.k, rows);
        if let Some(pick) = self.picked.borrow().get(&key) {
            return Ok(pick.clone());
        }
        let pick = self.cheapest(weight, rows)?;
        self.picked.borrow_mut().insert(key, pick.clone());
        Ok(pick)
    }

    fn cheapest(&self, weight: &Weight, rows: usize) -> Result<Pick, Error> {
        let candidates = self.candidates(weight, rows)?;
        let best = matmul::cheapest(self.in_class(&candidates));
        let Some((chosen, &cost)) = best.and_then(|c| Some((c, c.verdict.as_ref().ok()?))) else {
            let why: Vec<String> = candidates
                .iter()
                .filter_map(|c| {
                    c.verdict
                        .as_ref()
                        .err()
                        .map(|r| format!("{} n{}: {r}", c.variant.isa.name(), c.variant.stamp))
                })
                .collect();
            return Err(Error::Unsupported {
                what: weight.name.clone(),
                why: format!(
                    "no legal matmul variant for {} [{}, {}] at {rows} rows on {} ({})",
                    weight.ty.name(),
                    weight.n,
                    weight.k,
                    self.target.name,
                    why.join("; ")
                ),
            });
        };
        let mut first = 0;
        let stamps = chosen
            .batches
            .iter()
            .map(|batch| {
                let stamp = Stamp {
                    first,
                    rows: batch.rows,
                    symbol: batch.kernel.to_string(),
                };
                first += batch.rows;
                stamp
            })
            .collect();
        let legal = self.in_class(&candidates);
        Ok(Pick {
            variant: chosen.variant,
            stamps,
            cost,
            legal: legal.filter(|c| c.verdict.is_ok()).count(),
        })
    }

    /// How a row of the step meets those experts of `weight` that it uses, `used` of `experts`, in a step of `rows` rows.
    /// Routers are taken to have no preference among experts; what is predicted is the mean.
    pub fn experts(
        &self,
        weight: &Weight,
        (experts, used): (usize, usize),
        rows: usize,
    ) -> Result<ExpertPick, Error> {
        let one = matrix_of(weight, experts);
        let layout = packed_layout(&one)?;
        let key = (layout, [one.n, one.k, experts, used, rows]);
        if let Some(pick) = self.by_expert.borrow().get(&key) {
            return Ok(pick.clone());
        }
        // One row is the least an expert meets, and the stamp every ISA has if it has any.
        self.pick(&one, 1)?;
        let candidates = self.candidates(&one, 1)?;
        let legal = self.in_class(&candidates).filter(|c| c.verdict.is_ok());
        let isa = legal.map(|c| c.variant.isa).max();
        let isa = isa.unwrap_or(self.target.isa().numeric_class());
        let cost = |rows: usize| {
            let cost = matmul::widest_first(&self.query(layout, (one.n, one.k), rows), isa);
            cost.map_err(|why| Error::Unsupported {
                what: weight.name.clone(),
                why: why.to_string(),
            })
        };
        let mut total = Cost {
            measured: true,
            ..Cost::default()
        };
        let mut distinct = 0.0;
        for (n, chance) in rows_of_expert(rows, experts, used).into_iter().enumerate() {
            if n == 0 || chance < 1e-9 {
                continue;
            }
            let (times, cost) = (chance * experts as f64, cost(n)?);
            distinct += times;
            total.seconds += times * cost.seconds;
            total.memory_seconds += times * cost.memory_seconds;
            total.arithmetic_seconds += times * cost.arithmetic_seconds;
            total.measured &= cost.measured;
            total.macs += (times * cost.macs as f64) as u64;
        }
        let single = cost(1)?;
        total.bytes = (distinct * single.bytes as f64) as u64;
        let wide = cost(8)?;
        let read_cost = single.memory_seconds / (wide.arithmetic_seconds / 8.0);
        let pick = ExpertPick {
            symbol: experts::symbol(&layout, isa),
            cost: total,
            distinct,
            read_cost: (read_cost.round() as usize).clamp(1, 1 << 10),
        };
        self.by_expert.borrow_mut().insert(key, pick.clone());
        Ok(pick)
    }

    /// Time of a launch whose data is in cache: a rendezvous of the workers and the bytes at L2 speed.
    pub fn light_seconds(&self, bytes: usize) -> f64 {
        const RENDEZVOUS: f64 = 0.5e-6;
        const L2_OVER_MEMORY: f64 = 2.0;
        RENDEZVOUS + bytes as f64 / (self.target.core_bandwidth * L2_OVER_MEMORY)
    }
}

/// One of `matrices` equally large ones that are stacked in `weight`, under the same name.
pub fn matrix_of(weight: &Weight, matrices: usize) -> Weight {
    Weight {
        n: weight.n / matrices,
        ..weight.clone()
    }
}

/// The packed layout kernels read for a weight matrix, or why there is none.
pub fn packed_layout(weight: &Weight) -> Result<PackedLayout, Error> {
    quant::format(weight.ty).map(|f| f.layout).ok_or_else(|| {
        let supported: Vec<&str> = quant::FORMATS.iter().map(|f| f.ty.name()).collect();
        Error::Unsupported {
            what: weight.name.clone(),
            why: format!(
                "no kernel reads {} (supported: {})",
                weight.ty.name(),
                supported.join(", ")
            ),
        }
    })
}

/// Bytes of one tile of a weight matrix in `layout`.
pub fn tile_bytes(layout: &PackedLayout, weight: &Weight) -> Result<usize, Error> {
    tile::tile_bytes(layout, weight.k).ok_or_else(|| Error::Model {
        what: weight.name.clone(),
        why: format!(
            "{} rows of {} elements cannot be packed",
            weight.ty.name(),
            weight.k
        ),
    })
}
