//! One variant per matmul per bucket: query, candidates, cheapest legal one, and the reason in words.
//!
//! All buckets use the same micro-kernel family, whose stamps give identical bits for a row; only the cut of the rows
//! into stamps changes, so a row's result does not depend on the bucket it runs in.

use super::Stamp;
use crate::error::Error;
use crate::graph::Weight;
use crate::target::TargetProfile;
use coldpress_kernels::cpu::tile;
use coldpress_kernels::matmul::{self, Candidate, Cost, CpuRates, Query, Variant};
use coldpress_kernels::quant::{self, PackedLayout};
use std::cell::RefCell;
use std::collections::HashMap;

/// Chooses variants for one target.
pub struct Selector<'a> {
    target: &'a TargetProfile,
    workers: usize,
    /// Picks by (layout, n, k, rows): layers repeat their shapes.
    picked: RefCell<HashMap<(PackedLayout, usize, usize, usize), Pick>>,
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
            workers,
            picked: RefCell::default(),
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
        matmul::candidates(&Query {
            layout,
            n,
            k,
            rows,
            isas: self.target.isas,
            rates: &CpuRates {
                cores: self.workers,
                hz: self.target.hz,
                bytes_per_s_per_core: self.target.core_bandwidth,
                bytes_per_s: self.target.total_bandwidth,
            },
            measured: self.target.measured(layout, n, k),
        })
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

    /// Time of a launch whose data is in cache: a rendezvous of the workers and the bytes at L2 speed.
    pub fn light_seconds(&self, bytes: usize) -> f64 {
        const RENDEZVOUS: f64 = 0.5e-6;
        const L2_OVER_MEMORY: f64 = 2.0;
        RENDEZVOUS + bytes as f64 / (self.target.core_bandwidth * L2_OVER_MEMORY)
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
