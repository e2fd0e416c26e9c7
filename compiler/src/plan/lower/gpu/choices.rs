//! What is decided about a model as a whole: the form of every activation, the shapes that matmuls become, which of them
//! share a launch, and the memory that all of them need.

use super::adapt;
use super::machine::Machine;
use super::select::{Pick, Selector, Shape, buckets};
use crate::error::Error;
use crate::graph::{Activation, DType, Op, OpGraph, Part, Value};
use crate::plan::Options;
use crate::plan::select::{matrix_of, packed_layout};
use coldpress_kernels::gpu::abi::{ActForm, StepLayout};
use coldpress_kernels::gpu::experts::Routed;
use coldpress_kernels::gpu::matmul::{self, Class, Epilogue, Gate, Query, VARIANTS};
use coldpress_kernels::gpu::metal;
use coldpress_kernels::quant::Scale;
use petgraph::stable_graph::NodeIndex;
use std::collections::{BTreeMap, BTreeSet};

/// int8 activations are taken where matmuls take this share of the time they take with f16: they cost accuracy, and gated
/// products in int8 need wide thread blocks.
const WORTH: f64 = 0.75;
/// Rows per second that launches may lose against a smaller batch, as a share.
const FALL: f64 = 0.06;

/// A shape of a launch, the places of its parts, and its variant.
#[derive(Clone, Debug)]
pub(super) struct Chosen {
    pub(super) shape: Shape,
    pub(super) places: Vec<usize>,
    pub(super) pick: Pick,
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
        machine: &Machine,
        options: Options,
        step: StepLayout,
    ) -> Result<Choices, Error> {
        let mut choices = Choices {
            selector: Selector::new(machine, options.max_batch),
            forms: BTreeMap::new(),
            counters: 0,
        };
        let mut readers: BTreeMap<Value, Vec<NodeIndex>> = BTreeMap::new();
        for node in graph.order() {
            if parts(graph, node).is_some() {
                let x = graph.inputs(node)[0];
                if graph.value_type(x).dtype == DType::Q8 {
                    readers.entry(x).or_default().push(node);
                }
            }
        }
        for (value, nodes) in readers {
            let form = choices.cheapest_form(graph, &nodes)?;
            choices.forms.insert(value, form);
        }
        let rows = step.max_rows as usize;
        for node in graph.order() {
            let Some(parts) = parts(graph, node) else {
                continue;
            };
            for rows in buckets(options.max_batch, rows) {
                for launch in choices.launches(graph, node, parts, rows)? {
                    let counters = launch.iter().map(|own| choices.needs(own, rows).1);
                    choices.counters = choices.counters.max(counters.sum());
                }
            }
        }
        Ok(choices)
    }

    /// The form that makes all launches that read an activation fastest.
    fn cheapest_form(&self, graph: &OpGraph, readers: &[NodeIndex]) -> Result<ActForm, Error> {
        let mut all = Vec::new();
        for &node in readers {
            let shapes = shapes(graph, node, Epilogue::Store, false)?;
            all.extend(shapes.into_iter().map(|(shape, _)| shape));
        }
        // Groups of 32 on both sides leave nothing of the error that a format's own rounding allows.
        let spare = all.iter().all(|shape| {
            matches!(
                shape.layout.scale,
                Scale::U8F16 | Scale::I8F16 | Scale::U4F16
            )
        });
        let curve = |form| self.selector.curve(&all, form);
        match (curve(ActForm::F16), curve(ActForm::Q8)) {
            (Some(f16), Some(q8)) if spare && self.worth(&f16, &q8) => Ok(ActForm::Q8),
            (Some(_), _) => Ok(ActForm::F16),
            (None, Some(_)) => Ok(ActForm::Q8),
            (None, None) => {
                let parts = parts(graph, readers[0]).unwrap_or_default();
                Err(self.no_kernel(graph, parts, &all[0], ActForm::F16))
            }
        }
    }

    /// Whether int8 is worth its error, by what launches take at every decode batch: where it is much faster, or where
    /// halves meet the wall of tensor cores and fall behind a smaller batch, and int8 does not.
    fn worth(&self, f16: &[f64], q8: &[f64]) -> bool {
        let [f16_all, q8_all] = [f16, q8].map(|curve| curve.iter().sum::<f64>());
        let [f16_fall, q8_fall] = [f16, q8].map(|curve| self.selector.deepest_fall(curve));
        q8_all < f16_all * WORTH || q8_all < f16_all && f16_fall > FALL && q8_fall < FALL
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
            let own = variant.family.is_metal() == metal::is_metal(query.arch);
            let own = own && self.selector.candidates.allow(variant);
            if let Err(reason) = matmul::legal(variant, class, &query)
                && own
            {
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

    /// The launches that the matmul at `node` becomes in a step of `rows` rows: of one shape each, or of two that do not
    /// depend on each other.
    pub(super) fn launches(
        &self,
        graph: &OpGraph,
        node: NodeIndex,
        parts: &[Part],
        rows: usize,
    ) -> Result<Vec<Vec<Chosen>>, Error> {
        let form = self.read_form(graph, graph.inputs(node)[0]);
        let shapes = self.shapes(graph, node)?;
        if let [(a, of_a), (b, of_b)] = shapes.as_slice()
            && a.routed.is_none()
            && let Some(classes) = self.selector.pair(a, b, form)
        {
            // The classes are the pair's in every step, joined or not: bits must not depend on that.
            let chosen = |(shape, places): (&Shape, &Vec<usize>), pick: Pick| Chosen {
                shape: shape.clone(),
                places: places.clone(),
                pick,
            };
            if let Some([first, second]) = self.selector.cheapest_pair([a, b], classes, rows) {
                return Ok(vec![vec![
                    chosen((a, of_a), first),
                    chosen((b, of_b), second),
                ]]);
            }
            let alone = |shape: &Shape, class| {
                let pick = self.selector.cheapest(shape, class, rows);
                pick.ok_or_else(|| self.no_kernel(graph, parts, shape, form))
            };
            return Ok(vec![
                vec![chosen((a, of_a), alone(a, classes[0])?)],
                vec![chosen((b, of_b), alone(b, classes[1])?)],
            ]);
        }
        let launches = shapes.into_iter().map(|(shape, places)| {
            let pick = self.pick(graph, parts, &shape, form, rows)?;
            Ok(vec![Chosen {
                shape,
                places,
                pick,
            }])
        });
        launches.collect()
    }

    /// Bytes of scratch memory and of counters that a shape needs in a step of `rows` rows.
    pub(super) fn needs(&self, chosen: &Chosen, rows: usize) -> (usize, usize) {
        let (pick, query) = (&chosen.pick, self.query(&chosen.shape, rows));
        let scratch = matmul::scratch_bytes(pick.variant, pick.class, &query) as usize;
        let counters = matmul::counters(pick.variant, pick.class, &query) as usize * 4;
        (scratch.next_multiple_of(64), counters.next_multiple_of(64))
    }

    /// The cheapest variant for a launch of `shape`, of which `parts` are.
    fn pick(
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

    /// What the matmul at `node` multiplies, with the places of parts.
    fn shapes(&self, graph: &OpGraph, node: NodeIndex) -> Result<Vec<(Shape, Vec<usize>)>, Error> {
        let pending = adapt::pending_norm(graph, graph.inputs(node)[0]).is_some();
        shapes(graph, node, self.epilogue(graph, node), pending)
    }

    /// The stamps of the matmuls by expert that follow `routes` in a step of `rows` rows, ascending: one list of items each.
    pub(super) fn stamps(
        &self,
        graph: &OpGraph,
        routes: Value,
        rows: usize,
    ) -> Result<Vec<usize>, Error> {
        let mut stamps = BTreeSet::new();
        for (node, _) in graph.consumers(routes) {
            let Op::ExpertMatMul { parts, .. } = &graph.nodes[node].op else {
                continue;
            };
            let launches = self.launches(graph, node, parts, rows)?;
            let own = launches.concat().into_iter();
            stamps.extend(own.map(|chosen| chosen.pick.variant.stamp as usize));
        }
        Ok(stamps.into_iter().collect())
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
        let gated = |activation, form| {
            let gated = gate(activation).map(|gate| Epilogue::Gated(gate, form));
            gated.unwrap_or(Epilogue::Store)
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
        let launches = self.launches(graph, node, parts, rows).unwrap_or_default();
        let bytes = launches.iter().map(|launch| {
            let each = launch.iter().map(|own| self.needs(own, rows).0);
            each.sum::<usize>()
        });
        bytes.max().unwrap_or(0)
    }
}

/// The parts of a matmul, if `node` is one.
fn parts(graph: &OpGraph, node: NodeIndex) -> Option<&[Part]> {
    match &graph.nodes[node].op {
        Op::MatMul { parts, .. } | Op::ExpertMatMul { parts, .. } => Some(parts),
        _ => None,
    }
}

/// How the rows of the matmul at `node` meet experts, if they do.
pub(super) fn routed(graph: &OpGraph, node: NodeIndex) -> Option<Routed> {
    let Op::ExpertMatMul { experts, .. } = graph.nodes[node].op else {
        return None;
    };
    let used = graph.value_type(graph.inputs(node)[1]).width;
    Some(Routed { experts, used })
}

/// The launches that the matmul at `node` becomes, with the places of their parts: at most three of one layout.
fn shapes(
    graph: &OpGraph,
    node: NodeIndex,
    epilogue: Epilogue,
    pending: bool,
) -> Result<Vec<(Shape, Vec<usize>)>, Error> {
    let routed = routed(graph, node);
    let parts = parts(graph, node).unwrap_or_default();
    let mut shapes: Vec<(Shape, Vec<usize>)> = Vec::new();
    for (i, part) in parts.iter().enumerate() {
        let w = &matrix_of(
            graph.weight(part.weight),
            routed.map_or(1, |routed| routed.experts),
        );
        let layout = packed_layout(w)?;
        if let (Epilogue::Gated(..), [_]) = (epilogue, parts) {
            // Gate and value are halves of the part.
            let shape = Shape {
                layout,
                outputs: vec![w.n / 2; 2],
                k: w.k,
                epilogue,
                pending,
                routed,
            };
            return Ok(vec![(shape, vec![i])]);
        }
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
                    routed,
                },
                vec![i],
            )),
        }
    }
    Ok(shapes)
}

/// The gate of an activation, if matmuls have one.
pub(super) fn gate(activation: Activation) -> Option<Gate> {
    match activation {
        Activation::Silu => Some(Gate::Silu),
        Activation::GeluTanh => Some(Gate::Gelu),
        Activation::ClampedSwish => Some(Gate::Clamped),
        Activation::Sigmoid => None,
    }
}
