//! What is decided about a model as a whole: the numeric class of every matmul, which all buckets share so that a row's bits
//! do not depend on its company, and with it the form of every activation; then the cheapest variant of the class for each
//! bucket.

use super::adapt;
use crate::error::Error;
use crate::explain::CandidateNote;
use crate::graph::{Activation, DType, Op, OpGraph, Part, Value, Weight};
use crate::plan::Options;
use crate::plan::select::packed_layout;
use crate::target::cuda::CudaProfile;
use crate::target::{Compiled, CudaTarget};
use coldpress_kernels::gpu::abi::{ActForm, StepLayout};
use coldpress_kernels::gpu::matmul::{
    self, Class, Cost, Epilogue, Gate, Query, Reason, Resources, VARIANTS, Variant,
};
use coldpress_kernels::gpu::rates::GpuRates;
use coldpress_kernels::gpu::tile;
use coldpress_kernels::quant::{PackedLayout, Scale};
use petgraph::stable_graph::NodeIndex;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

/// Decode batches up to this each get a program, so that padding costs none of them anything.
const DENSE: usize = 64;
/// Row counts that get one where they are larger than that, or than any decode batch.
const COARSE: [usize; 13] = [16, 32, 64, 80, 96, 112, 128, 192, 256, 384, 512, 768, 1024];
/// int8 activations are taken where matmuls take this share of the time they take with f16: they cost accuracy, and gated
/// products in int8 need wide thread blocks.
const WORTH: f64 = 0.75;

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

/// What the cost model reads of a profile.
fn rates(profile: &CudaProfile) -> GpuRates {
    GpuRates {
        arch: profile.sm(),
        sms: profile.sms,
        hz: profile.hz,
        bandwidth: profile.bandwidth,
        l2_bandwidth: profile.l2_bandwidth,
        l2_bytes: profile.l2_bytes,
        issue_per_clk: 128.0,
        f16_tensor_flops_per_clk_sm: profile.f16_tensor * profile.mma_share,
        i8_tensor_ops_per_clk_sm: profile.i8_tensor * profile.mma_share,
        wgmma_flops_per_clk_sm: match profile.arch {
            "sm_90a" => profile.f16_tensor,
            _ => 0.0,
        },
        smem_per_sm: profile.shared_per_sm,
        regs_per_sm: profile.registers_per_sm,
    }
}

/// Packed bytes of a weight matrix.
pub(super) fn matrix_bytes(weight: &Weight) -> Result<Option<u64>, Error> {
    let layout = packed_layout(weight)?;
    Ok(tile::matrix_bytes(&layout, weight.n, weight.k).map(|bytes| bytes as u64))
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

/// The best class of a shape, if there is one, and the time it takes over all decode batches, seconds.
type Judged = Option<(Class, f64)>;

/// Chooses variants for one GPU.
pub struct Selector {
    rates: GpuRates,
    target: &'static str,
    compiled: BTreeMap<String, Compiled>,
    /// Decode batches that a class is judged by.
    batches: Vec<usize>,
    classes: RefCell<HashMap<(Shape, ActForm), Judged>>,
}

impl Selector {
    /// A selector for `target`, judging by decode batches up to `max_batch`.
    pub fn new(target: &CudaTarget, max_batch: usize) -> Selector {
        Selector {
            rates: rates(&target.profile),
            target: target.profile.name,
            compiled: target.compiled.clone(),
            batches: buckets(max_batch, max_batch),
            classes: RefCell::default(),
        }
    }

    fn query<'a>(&self, shape: &'a Shape, rows: usize) -> Query<'a> {
        Query {
            layout: shape.layout,
            outputs: &shape.outputs,
            k: shape.k,
            rows,
            epilogue: shape.epilogue,
            pending: shape.pending,
            arch: self.rates.arch,
        }
    }

    /// The class that reads `form` and takes the least time over all decode batches, with that time.
    fn class(&self, shape: &Shape, form: ActForm) -> Judged {
        let key = (shape.clone(), form);
        if let Some(known) = self.classes.borrow().get(&key) {
            return *known;
        }
        let classes = matmul::classes(&self.query(shape, 1));
        let of_form = classes.into_iter().filter(|c| c.family.act() == form);
        let judged = of_form.filter_map(|class| {
            let seconds = self.batches.iter().map(|&rows| {
                let best = self.cheapest(shape, class, rows)?;
                Some(best.cost.seconds)
            });
            Some((class, seconds.sum::<Option<f64>>()?))
        });
        let best = judged.min_by(|a, b| a.1.total_cmp(&b.1));
        self.classes.borrow_mut().insert(key, best);
        best
    }

    fn cheapest(&self, shape: &Shape, class: Class, rows: usize) -> Option<Pick> {
        let query = self.query(shape, rows);
        let legal: Vec<Pick> = matmul::variants(class, &query)
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
        let seconds = |p: &Pick| p.cost.seconds;
        let best = legal
            .into_iter()
            .min_by(|a, b| seconds(a).total_cmp(&seconds(b)))?;
        Some(Pick {
            legal: count,
            ..best
        })
    }

    /// The cost of a legal variant, by what the assembler said of its kernel if it is known; a kernel that spills is none.
    fn cost(&self, variant: &Variant, class: Class, query: &Query<'_>) -> Result<Cost, String> {
        let kernel = matmul::kernel(variant, class, &query.layout, query.epilogue);
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
        };
        let query = self.query(&shape, rows);
        let mut notes = Vec::new();
        for form in [ActForm::F32, ActForm::F16, ActForm::Q8] {
            let Some((class, _)) = self.class(&shape, form) else {
                continue;
            };
            for variant in VARIANTS.iter().filter(|v| v.family.act() == form) {
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

/// The decisions about one graph.
pub(super) struct Choices {
    selector: Selector,
    forms: BTreeMap<Value, ActForm>,
    counters: usize,
}

impl Choices {
    pub(super) fn new(
        graph: &OpGraph,
        target: &CudaTarget,
        options: Options,
        step: StepLayout,
    ) -> Result<Choices, Error> {
        let mut choices = Choices {
            selector: Selector::new(target, options.max_batch),
            forms: BTreeMap::new(),
            counters: 0,
        };
        let mut readers: BTreeMap<Value, Vec<&[Part]>> = BTreeMap::new();
        for node in graph.order() {
            if let Op::MatMul { parts, .. } = &graph.nodes[node].op {
                let x = graph.inputs(node)[0];
                if graph.value_type(x).dtype == DType::Q8 {
                    readers.entry(x).or_default().push(parts);
                }
            }
        }
        for (value, parts) in readers {
            let form = choices.cheapest_form(graph, &parts)?;
            choices.forms.insert(value, form);
        }
        let rows = step.max_rows as usize;
        for node in graph.order() {
            let Op::MatMul { parts, .. } = &graph.nodes[node].op else {
                continue;
            };
            for (shape, _) in choices.shapes(graph, node, parts)? {
                let form = choices.read_form(graph, graph.inputs(node)[0]);
                for rows in buckets(options.max_batch, rows) {
                    let pick = choices.pick(graph, parts, &shape, form, rows)?;
                    let query = choices.selector.query(&shape, rows);
                    let counters = matmul::counters(pick.variant, pick.class, &query);
                    choices.counters = choices.counters.max(counters as usize * 4);
                }
            }
        }
        Ok(choices)
    }

    /// The form that makes all launches that read an activation fastest.
    fn cheapest_form(&self, graph: &OpGraph, readers: &[&[Part]]) -> Result<ActForm, Error> {
        let mut all = Vec::new();
        for parts in readers {
            all.extend(shapes(graph, parts, Epilogue::Store, false)?);
        }
        let time = |form: ActForm| {
            let each = all
                .iter()
                .map(|(shape, _)| Some(self.selector.class(shape, form)?.1));
            each.sum::<Option<f64>>()
        };
        // Groups of 32 on both sides leave nothing of the error that a format's own rounding allows.
        let spare = all.iter().all(|(shape, _)| {
            matches!(
                shape.layout.scale,
                Scale::U8F16 | Scale::I8F16 | Scale::U4F16
            )
        });
        match (time(ActForm::F16), time(ActForm::Q8)) {
            (Some(f16), Some(q8)) if spare && q8 < f16 * WORTH => Ok(ActForm::Q8),
            (Some(_), _) => Ok(ActForm::F16),
            (None, Some(_)) => Ok(ActForm::Q8),
            (None, None) => Err(self.no_kernel(graph, readers[0], &all[0].0, ActForm::F16)),
        }
    }

    fn no_kernel(&self, graph: &OpGraph, parts: &[Part], shape: &Shape, form: ActForm) -> Error {
        let weight = graph.weight(parts[0].weight);
        let query = self.selector.query(shape, 1);
        let class = Class {
            family: matmul::Family::MmaF16,
            warps: 4,
            k_split: 1,
        };
        let mut why: Vec<String> = Vec::new();
        for variant in VARIANTS {
            let class = Class {
                family: variant.family,
                ..class
            };
            if let Err(reason) = matmul::legal(variant, class, &query) {
                let line = format!("{}: {reason}", variant.family.name());
                if !why.contains(&line) {
                    why.push(line);
                }
            }
        }
        Error::Unsupported {
            what: weight.name.clone(),
            why: format!(
                "no legal matmul variant for {} [{}, {}] reading {} on {} ({})",
                weight.ty.name(),
                weight.n,
                weight.k,
                form.name(),
                self.selector.target,
                why.join("; ")
            ),
        }
    }

    /// The form in which a value is stored.
    pub(super) fn form(&self, value: Value) -> ActForm {
        // Quantised but read by no matmul: nothing reads it at all.
        self.forms.get(&value).copied().unwrap_or(ActForm::F16)
    }

    /// The form in which a matmul reads its input.
    pub(super) fn read_form(&self, graph: &OpGraph, value: Value) -> ActForm {
        match graph.value_type(value).dtype {
            DType::Q8 => self.form(value),
            _ => ActForm::F32,
        }
    }

    /// The cheapest variant for a launch of `shape`, of which `parts` are.
    pub(super) fn pick(
        &self,
        graph: &OpGraph,
        parts: &[Part],
        shape: &Shape,
        form: ActForm,
        rows: usize,
    ) -> Result<Pick, Error> {
        let class = self.selector.class(shape, form);
        let pick = class.and_then(|(class, _)| self.selector.cheapest(shape, class, rows));
        pick.ok_or_else(|| self.no_kernel(graph, parts, shape, form))
    }

    pub(super) fn query<'a>(&self, shape: &'a Shape, rows: usize) -> Query<'a> {
        self.selector.query(shape, rows)
    }

    /// The launches that the matmul at `node` becomes, with the places of their parts.
    pub(super) fn shapes(
        &self,
        graph: &OpGraph,
        node: NodeIndex,
        parts: &[Part],
    ) -> Result<Vec<(Shape, Vec<usize>)>, Error> {
        let pending = adapt::pending_norm(graph, graph.inputs(node)[0]).is_some();
        shapes(graph, parts, self.epilogue(graph, node), pending)
    }

    /// What the matmul at `node` does with its sums.
    fn epilogue(&self, graph: &OpGraph, node: NodeIndex) -> Epilogue {
        let completed = adapt::completed_by(graph, node).map(|second| {
            let out = Value {
                node: second,
                port: 0,
            };
            (&graph.nodes[second].op, out)
        });
        let gated = |activation, form| match gate(activation) {
            Some(gate) => Epilogue::Gated(gate, form),
            // Refused when it is lowered.
            None => Epilogue::Store,
        };
        match (completed, &graph.nodes[node].op) {
            (Some((&Op::GatedAct(activation), _)), _) => gated(activation, ActForm::F32),
            (Some((&Op::GatedActQuantise(activation), out)), _) => {
                gated(activation, self.form(out))
            }
            (Some((Op::NormQuantise { .. }, out)), _) => Epilogue::ResidualNorm(self.form(out)),
            (_, Op::MatMul { residual: true, .. }) => Epilogue::Residual,
            _ => Epilogue::Store,
        }
    }

    /// u32 counters of all launches, zero between them, in bytes.
    pub(super) fn counter_bytes(&self) -> usize {
        self.counters.next_multiple_of(64)
    }

    /// Scratch memory of the matmul at `node`.
    pub(super) fn scratch_bytes(
        &self,
        graph: &OpGraph,
        node: NodeIndex,
        parts: &[Part],
        rows: usize,
    ) -> usize {
        let form = self.read_form(graph, graph.inputs(node)[0]);
        let shapes = self.shapes(graph, node, parts).unwrap_or_default();
        let bytes = shapes.iter().filter_map(|(shape, _)| {
            let pick = self.pick(graph, parts, shape, form, rows).ok()?;
            let query = self.query(shape, rows);
            Some(matmul::scratch_bytes(pick.variant, pick.class, &query) as usize)
        });
        bytes.max().unwrap_or(0).next_multiple_of(64)
    }
}

/// The launches that `parts` become, with the places of their parts: at most three of one layout.
fn shapes(
    graph: &OpGraph,
    parts: &[Part],
    epilogue: Epilogue,
    pending: bool,
) -> Result<Vec<(Shape, Vec<usize>)>, Error> {
    let mut shapes: Vec<(Shape, Vec<usize>)> = Vec::new();
    for (i, part) in parts.iter().enumerate() {
        let w = graph.weight(part.weight);
        let layout = packed_layout(w)?;
        let open = |s: &&mut (Shape, Vec<usize>)| s.0.layout == layout && s.1.len() < 3;
        match shapes.iter_mut().find(open) {
            Some((shape, places)) => {
                shape.outputs.push(w.n);
                places.push(i);
            }
            None => shapes.push((
                Shape {
                    layout,
                    outputs: vec![w.n],
                    k: w.k,
                    epilogue,
                    pending,
                },
                vec![i],
            )),
        }
    }
    Ok(shapes)
}

/// The gate of an activation, if matmuls have it.
pub(super) fn gate(activation: Activation) -> Option<Gate> {
    match activation {
        Activation::Silu => Some(Gate::Silu),
        Activation::GeluTanh => Some(Gate::Gelu),
        Activation::ClampedSwish => None,
    }
}
