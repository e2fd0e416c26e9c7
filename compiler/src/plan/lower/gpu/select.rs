//! Kernels of one shape: its numeric class, which all buckets share so that a row's bits do not depend on its company, then
//! the cheapest variant of the class for each bucket. What shapes a model has is not known here.

use super::machine::Machine;
use crate::error::Error;
use crate::explain::CandidateNote;
use crate::graph::Weight;
use crate::plan::select::{matrix_of, packed_layout};
use crate::target::Compiled;
use crate::target::metal::Candidates;
use coldpress_kernels::gpu::abi::ActForm;
use coldpress_kernels::gpu::experts::Routed;
use coldpress_kernels::gpu::matmul::{
    self, Class, Cost, Epilogue, Query, Reason, Resources, VARIANTS, Variant,
};
use coldpress_kernels::gpu::metal;
use coldpress_kernels::gpu::rates::GpuRates;
use coldpress_kernels::gpu::tile;
use coldpress_kernels::quant::PackedLayout;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

/// Decode batches up to this each get a program, so that padding costs none of them anything.
const DENSE: usize = 64;
/// Row counts that get one where they are larger than that, or than any decode batch.
const COARSE: [usize; 13] = [16, 32, 64, 80, 96, 112, 128, 192, 256, 384, 512, 768, 1024];

/// Row counts up to `most`: every decode batch up to `batch`, steps of many rows in larger strides.
pub(super) fn buckets(batch: usize, most: usize) -> Vec<usize> {
    let coarse = COARSE
        .into_iter()
        .filter(|&r| r > batch.min(DENSE) && r < most);
    let mut rows: Vec<usize> = (1..=batch.min(DENSE)).chain(coarse).collect();
    rows.extend([batch, most]);
    rows.sort_unstable();
    rows.dedup();
    rows
}

/// Packed bytes of a weight, which is so many equally large matrices.
pub(super) fn matrix_bytes(weight: &Weight, matrices: usize) -> Result<Option<u64>, Error> {
    let one = matrix_of(weight, matrices);
    let bytes = tile::matrix_bytes(&packed_layout(&one)?, one.n, one.k);
    Ok(bytes.and_then(|bytes| (bytes as u64).checked_mul(matrices as u64)))
}

/// Matrices that one launch multiplies with the same rows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) layout: PackedLayout,
    pub(super) outputs: Vec<usize>,
    pub(super) k: usize,
    pub(super) epilogue: Epilogue,
    /// Whether the norm of the rows is pending.
    pub(super) pending: bool,
    /// How rows meet experts, if each matrix is one for each expert; outputs are those of one.
    pub(super) routed: Option<Routed>,
}

/// The variant of a launch.
#[derive(Clone, Debug)]
pub(super) struct Pick {
    pub(super) variant: &'static Variant,
    pub(super) class: Class,
    pub(super) cost: Cost,
    /// How many variants of the class were legal.
    pub(super) legal: usize,
}

/// The best class of a shape, if there is one, and the time it takes over all decode batches, seconds; on Apple GPUs a
/// mean of logarithms.
type Judged = Option<(Class, f64)>;

/// The classes of two shapes that can be one launch, if there are any.
type Classes = Option<[Class; 2]>;

/// Chooses variants for one GPU.
pub struct Selector {
    rates: GpuRates,
    pub(super) target: &'static str,
    compiled: BTreeMap<String, Compiled>,
    pub(super) candidates: Candidates,
    /// Decode batches that a class is judged by.
    batches: Vec<usize>,
    classes: RefCell<HashMap<(Shape, ActForm), Judged>>,
    pairs: RefCell<HashMap<(Shape, Shape, ActForm), Classes>>,
}

impl Selector {
    /// A selector for `machine`, judging by decode batches up to `max_batch`.
    pub fn new(machine: &Machine, max_batch: usize) -> Selector {
        Selector {
            rates: machine.rates,
            target: machine.name,
            compiled: machine.compiled.clone(),
            candidates: machine.candidates,
            batches: buckets(max_batch, max_batch),
            classes: RefCell::default(),
            pairs: RefCell::default(),
        }
    }

    pub(super) fn query<'a>(&self, shape: &'a Shape, rows: usize) -> Query<'a> {
        Query {
            layout: shape.layout,
            outputs: &shape.outputs,
            k: shape.k,
            rows,
            epilogue: shape.epilogue,
            pending: shape.pending,
            routed: shape.routed,
            arch: self.rates.arch,
        }
    }

    /// The class that reads `form` and takes the least time over all decode batches, with that time.
    pub(super) fn class(&self, shape: &Shape, form: ActForm) -> Judged {
        let key = (shape.clone(), form);
        if let Some(known) = self.classes.borrow().get(&key) {
            return *known;
        }
        let judged = self.judged(shape, form).into_iter();
        let best = judged.min_by(|a, b| a.1.total_cmp(&b.1));
        self.classes.borrow_mut().insert(key, best);
        best
    }

    /// Every class that reads `form`, with the time it takes over all decode batches.
    fn judged(&self, shape: &Shape, form: ActForm) -> Vec<(Class, f64)> {
        let classes = matmul::classes(&self.query(shape, 1));
        let of_form = classes.into_iter().filter(|c| c.family.act() == form);
        let judged = of_form.filter_map(|class| {
            let at = |&rows: &usize| Some(self.cheapest(shape, class, rows)?.cost.seconds);
            let curve: Vec<f64> = self.batches.iter().map(at).collect::<Option<_>>()?;
            Some((class, self.judge(&curve)))
        });
        judged.collect()
    }

    /// What a class is worth that takes so long at every decode batch, less being better.
    fn judge(&self, curve: &[f64]) -> f64 {
        if !metal::is_metal(self.rates.arch) {
            return curve.iter().sum();
        }
        // Matrices take from few rows as much as they give to many: a share lost counts alike at 1 row, at 2 and 3, and at
        // all from 16 to 31 together; a fall by that share counts for two.
        let (mut mean, mut weights) = (0.0, 0.0);
        for (&rows, &seconds) in self.batches.iter().zip(curve) {
            mean += seconds.ln() / rows as f64;
            weights += 1.0 / rows as f64;
        }
        mean / weights + 2.0 * self.deepest_fall(curve)
    }

    /// Seconds of the launches of `shapes`, in the classes that read `form`, at every decode batch.
    pub(super) fn curve(&self, shapes: &[Shape], form: ActForm) -> Option<Vec<f64>> {
        let classes: Option<Vec<Class>> = shapes
            .iter()
            .map(|s| Some(self.class(s, form)?.0))
            .collect();
        let classes = classes?;
        let at = |rows: usize| {
            let each = shapes.iter().zip(&classes);
            each.map(|(shape, &class)| Some(self.cheapest(shape, class, rows)?.cost.seconds))
                .sum()
        };
        self.batches.iter().map(|&rows| at(rows)).collect()
    }

    /// How much fewer rows per second a curve gives at some decode batch than at a smaller one, as a share.
    pub(super) fn deepest_fall(&self, curve: &[f64]) -> f64 {
        let (mut best, mut deepest) = (0.0f64, 0.0f64);
        for (&rows, &seconds) in self.batches.iter().zip(curve) {
            let rate = rows as f64 / seconds;
            best = best.max(rate);
            deepest = deepest.max(1.0 - rate / best);
        }
        deepest
    }

    /// The classes in which two shapes that read the same rows can be one launch, and together take the least time.
    pub(super) fn pair(&self, a: &Shape, b: &Shape, form: ActForm) -> Classes {
        let key = (a.clone(), b.clone(), form);
        if let Some(known) = self.pairs.borrow().get(&key) {
            return *known;
        }
        let (first, second) = (self.judged(a, form), self.judged(b, form));
        let both = first
            .iter()
            .flat_map(|a| second.iter().map(move |b| (a, b)));
        let both = both.filter(|(a, b)| matmul::joinable(a.0, b.0));
        let best = both
            .min_by(|x, y| (x.0.1 + x.1.1).total_cmp(&(y.0.1 + y.1.1)))
            .map(|(a, b)| [a.0, b.0]);
        self.pairs.borrow_mut().insert(key, best);
        best
    }

    /// The cheapest variants of two classes whose common kernel does not spill; `None` where each does.
    pub(super) fn cheapest_pair(
        &self,
        [a, b]: [&Shape; 2],
        [of_a, of_b]: [Class; 2],
        rows: usize,
    ) -> Option<[Pick; 2]> {
        let (first, second) = (self.picks(a, of_a, rows), self.picks(b, of_b, rows));
        let seconds = |p: &[&Pick; 2]| p[0].cost.seconds + p[1].cost.seconds;
        let both = first
            .iter()
            .flat_map(|a| second.iter().map(move |b| [a, b]));
        let mut both: Vec<[&Pick; 2]> = both.collect();
        both.sort_by(|x, y| seconds(x).total_cmp(&seconds(y)));
        let (query_a, query_b) = (self.query(a, rows), self.query(b, rows));
        let spills = |picks: &[&Pick; 2]| {
            let halves = [
                &(picks[0].variant, picks[0].class, query_a),
                &(picks[1].variant, picks[1].class, query_b),
            ];
            let known = self.compiled.get(&matmul::pair_kernel(halves).name);
            known.is_some_and(|k| k.spill_bytes > 0)
        };
        let best = both.into_iter().find(|picks| !spills(picks))?;
        Some(best.map(|pick| pick.clone()))
    }

    pub(super) fn cheapest(&self, shape: &Shape, class: Class, rows: usize) -> Option<Pick> {
        let picks = self.picks(shape, class, rows).into_iter();
        picks.min_by(|a, b| a.cost.seconds.total_cmp(&b.cost.seconds))
    }

    /// Every legal variant of a class that is a candidate.
    fn picks(&self, shape: &Shape, class: Class, rows: usize) -> Vec<Pick> {
        let query = self.query(shape, rows);
        let mut legal: Vec<Pick> = matmul::variants(class, &query)
            .filter(|variant| self.candidates.allow(variant))
            .filter_map(|variant| {
                let cost = self.cost(variant, class, &query).ok()?;
                Some(Pick {
                    variant,
                    class,
                    cost,
                    legal: 0,
                })
            })
            .collect();
        let count = legal.len();
        legal.iter_mut().for_each(|pick| pick.legal = count);
        legal
    }

    /// The cost of a legal variant, by what the assembler said of its kernel if it is known; a kernel that spills is none.
    fn cost(&self, variant: &Variant, class: Class, query: &Query<'_>) -> Result<Cost, String> {
        let routed = query.routed.is_some();
        let kernel = matmul::kernel(variant, class, &query.layout, query.epilogue, routed);
        let known = self.compiled.get(&kernel.name);
        if let Some(spilled) = known.filter(|k| k.spill_bytes > 0) {
            return Err(format!("spills {} bytes of registers", spilled.spill_bytes));
        }
        let resources = known.map(|k| Resources {
            registers: k.registers,
        });
        Ok(matmul::cost(variant, class, query, &self.rates, resources))
    }

    /// Every variant for `weight` at `rows` with its cost or the reason it is not legal; `used` says which kernels the plan
    /// runs the weight with.
    pub fn notes(
        &self,
        weight: &Weight,
        rows: usize,
        used: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<CandidateNote>, Error> {
        let shape = Shape {
            layout: packed_layout(weight)?,
            outputs: vec![weight.n],
            k: weight.k,
            epilogue: Epilogue::Store,
            pending: false,
            routed: None,
        };
        let query = self.query(&shape, rows);
        let mut notes = Vec::new();
        for form in [ActForm::F32, ActForm::F16, ActForm::Q8] {
            let Some((class, _)) = self.class(&shape, form) else {
                continue;
            };
            for variant in VARIANTS.iter().filter(|v| {
                let own = v.family.is_metal() == metal::is_metal(query.arch);
                v.family.act() == form && own && self.candidates.allow(v)
            }) {
                let verdict = match matmul::legal(variant, class, &query) {
                    Err(Reason::Class(..)) => continue,
                    Err(reason) => Err(reason.to_string()),
                    Ok(()) => {
                        let cost = self.cost(variant, class, &query);
                        cost.map(|cost| (cost.seconds, cost.to_string()))
                    }
                };
                let (family, stamp) = (variant.family.name(), variant.stamp);
                let name = format!("{family} n{stamp} m{}", variant.tiles);
                let symbol = format!(
                    "matmul_{family}_{}_n{stamp}_m{}_",
                    shape.layout, variant.tiles
                );
                notes.push(CandidateNote {
                    variant: name,
                    cut: format!("{stamp}"),
                    verdict,
                    picked: used(&symbol),
                });
            }
        }
        Ok(notes)
    }
}
