//! Graph nodes to grid launches: which kernel a node or a group of nodes becomes, with its arguments, and what it touches.
//! Only this module knows both the ops and the GPU kernels' arguments; what kernels compute is in `templates`, how
//! they are called in `coldpress_kernels::gpu`.

mod adapt;
mod attention;
mod choices;
mod delta;
mod experts;
mod logits;
mod machine;
mod matmul;
mod metal;
mod rope;
mod rows;
mod select;

use super::{Backend, Context};
use crate::error::Error;
use crate::graph::{DType, Op, OpGraph, Value, Weight};
use crate::plan::{Access, Grid, Launch, Options, ProgramPlan, Scratch, Split, Work};
use attention::Attentions;
use choices::Choices;
use coldpress_kernels::gpu::abi::{ActForm, StepLayout};
use coldpress_kernels::gpu::experts::{ROUTE_COUNTERS, Routes};
use coldpress_kernels::gpu::matmul::Family;
use coldpress_kernels::gpu::{Geometry, Kernel};
use coldpress_runtime::manifest::{CandidatePlan, GridArg, Stage};
use logits::Sorted;
use petgraph::stable_graph::NodeIndex;
use std::ops::Deref;

pub use machine::Machine;
pub use select::Selector;

/// A GPU that runs CUDA or Metal kernels.
pub struct Gpu {
    machine: Machine,
    options: Options,
    step: StepLayout,
    /// Bytes of counters.
    zeroed: usize,
    choices: Choices,
    attentions: Attentions,
    /// Largest logits of each row, after the plans of attention.
    candidates: Option<Sorted>,
}

impl Gpu {
    /// The graph as the GPU runs it, and what is decided about it as a whole: the numeric class of every matrix, the form
    /// of every activation, how attention is divided.
    ///
    /// # Errors
    /// `Unsupported` naming the weight that no kernel multiplies.
    pub fn new(
        graph: &OpGraph,
        machine: Machine,
        options: Options,
        step: StepLayout,
    ) -> Result<(OpGraph, Gpu), Error> {
        let graph = adapt::adapt(
            graph,
            machine.is_metal() || Family::MmaF16.exists_on(machine.rates.arch),
        )?;
        let choices = Choices::new(&graph, &machine, options, step)?;
        let attentions = Attentions::new(&graph, &machine, options, step);
        // Every launch leaves the counters it used at zero, so all launches share them.
        let is_router = |node: NodeIndex| matches!(graph.nodes[node].op, Op::Route(_));
        let router = graph.order().into_iter().any(is_router);
        let zeroed = choices.counter_bytes().max(attentions.counter_bytes(step));
        let zeroed = zeroed.max(if router { ROUTE_COUNTERS } else { 0 });
        let backend = Gpu {
            machine,
            options,
            step,
            candidates: Sorted::new(&graph, zeroed + attentions.plan_bytes(), options.max_batch),
            zeroed,
            choices,
            attentions,
        };
        Ok((graph, backend))
    }
}

impl Backend for Gpu {
    fn zeroed(&self) -> usize {
        self.zeroed
    }

    fn reserved(&self) -> usize {
        let candidates = self.candidates.map_or(0, |sorted| sorted.bytes());
        self.zeroed + self.attentions.plan_bytes() + candidates
    }

    fn matrix_bytes(&self, weight: &Weight, matrices: usize) -> Result<Option<u64>, Error> {
        select::matrix_bytes(weight, matrices)
    }

    fn buckets(&self, _: &OpGraph, stage: Stage, _: &[NodeIndex]) -> Result<Vec<usize>, Error> {
        let (batch, rows) = (self.options.max_batch, self.step.max_rows as usize);
        Ok(match stage {
            Stage::Trunk => select::buckets(batch, rows),
            Stage::Head => select::buckets(batch, batch),
        })
    }

    fn groups(&self, graph: &OpGraph, nodes: &[NodeIndex]) -> Vec<Vec<NodeIndex>> {
        adapt::groups(graph, nodes)
    }

    fn stride(&self, graph: &OpGraph, value: Value) -> usize {
        let ty = graph.value_type(value);
        match ty.dtype {
            DType::KvWritten => 0,
            DType::Routes => Routes::stride(ty.width),
            _ if adapt::passes_through(graph, value) => 0,
            DType::F32 => ActForm::F32.stride(ty.width),
            DType::Q8 => {
                let form = self.choices.form(value);
                match adapt::pending_norm(graph, value) {
                    Some(_) => form.pending_stride(ty.width),
                    None => form.stride(ty.width),
                }
            }
        }
    }

    fn scratch(&self, graph: &OpGraph, node: NodeIndex, rows: usize) -> Option<Scratch> {
        let bytes = match &graph.nodes[node].op {
            Op::Attention { .. } => self.attentions.scratch_bytes(graph, node, rows),
            Op::MatMul { parts, .. } | Op::ExpertMatMul { parts, .. } => {
                self.choices.scratch_bytes(graph, node, parts, rows)
            }
            Op::Logits => self
                .candidates
                .map_or(0, |sorted| sorted.scratch_bytes(rows)),
            _ => 0,
        };
        (bytes > 0).then(|| Scratch::piece(bytes))
    }

    fn launches(&self, context: &Context<'_>, group: &[NodeIndex]) -> Result<Vec<Launch>, Error> {
        let lowering = Lowering { context, gpu: self };
        let of_experts = |node: &NodeIndex| context.graph.nodes[*node].op == Op::ExpertSum;
        match *group {
            // A sum over experts with all that completes it.
            _ if group.iter().any(of_experts) => lowering.expert_sum(group),
            [node] => lowering.node(node),
            [first, second] => lowering.pair(first, second),
            [rotation, attention, conversion] => {
                let out = Value {
                    node: conversion,
                    port: 0,
                };
                lowering.attention(attention, Some(rotation), out)
            }
            _ => Err(Error::Internal(format!("a group of {} nodes", group.len()))),
        }
    }

    fn candidates(&self) -> Option<CandidatePlan> {
        self.candidates.map(|sorted| sorted.plan())
    }

    fn finish(&self, program: &mut ProgramPlan) {
        // Launches run one after the other; each sees all of what the one before it left.
        program.launches.iter_mut().for_each(|l| l.barrier = true);
    }
}

/// Everything lowering needs to know besides the nodes.
struct Lowering<'a> {
    context: &'a Context<'a>,
    gpu: &'a Gpu,
}

impl<'a> Deref for Lowering<'a> {
    type Target = Context<'a>;

    fn deref(&self) -> &Context<'a> {
        self.context
    }
}

impl Lowering<'_> {
    /// Launches of `first` with `second`, which completes its work.
    fn pair(&self, first: NodeIndex, second: NodeIndex) -> Result<Vec<Launch>, Error> {
        let (a, b) = (&self.graph.nodes[first], &self.graph.nodes[second]);
        let out = Value {
            node: second,
            port: 0,
        };
        match (&a.op, &b.op) {
            (
                Op::MatMul { parts, .. } | Op::ExpertMatMul { parts, .. },
                Op::GatedAct(_) | Op::GatedActQuantise(_),
            ) => self.gated_matmul(&b.label, first, parts, out),
            (&Op::RmsNorm { weight, eps }, Op::Quantise) => {
                let x = self.graph.inputs(first)[0];
                let plain = Value {
                    node: first,
                    port: 0,
                };
                self.norm(&a.label, (weight, eps), x, out, Some(plain))
            }
            (Op::MatMul { parts, .. }, &Op::NormQuantise { weight, .. }) => {
                self.matmul(&a.label, first, parts, Some((weight, out)))
            }
            (Op::Attention { .. }, Op::Quantise) => self.attention(first, None, out),
            (Op::DeltaRule { .. }, &Op::HeadNorm { norm, .. }) => {
                self.delta_rule(first, Some(norm), out)
            }
            (Op::RopeAppend { .. }, Op::Attention { .. }) => {
                self.attention(second, Some(first), out)
            }
            (one, other) => Err(Error::Internal(format!(
                "{}: {one:?} joined with {other:?}",
                a.label
            ))),
        }
    }

    /// Launches of a node by itself.
    fn node(&self, node: NodeIndex) -> Result<Vec<Launch>, Error> {
        let inputs = self.graph.inputs(node);
        let n = &self.graph.nodes[node];
        let label = n.label.as_str();
        let out = Value { node, port: 0 };
        match &n.op {
            Op::Embed { weight, scale } => self.embed(label, *weight, *scale, out),
            Op::RopeTable { inv_freq, mscale } => self.rope_table(label, *inv_freq, *mscale, out),
            Op::RmsNorm { weight, eps } | Op::NormQuantise { weight, eps } => {
                self.norm(label, (*weight, *eps), inputs[0], out, None)
            }
            Op::MatMul { parts, .. } | Op::ExpertMatMul { parts, .. } => {
                self.matmul(label, node, parts, None)
            }
            Op::Route(routing) => self.route(label, *routing, inputs[0], out),
            Op::ExpertScale { factors } => self.expert_scale(label, *factors, &inputs, out),
            Op::GateRows => self.gate_rows(label, &inputs, out),
            Op::HeadNorm { norm, heads } if self.buffer(inputs[0])? != self.buffer(out)? => {
                self.norm_heads(label, (norm, *heads), inputs[0], out)
            }
            Op::HeadNorm { norm, heads } => {
                let head_dim = self.graph.value_type(out).width / heads;
                self.head_norm(label, inputs[0], out, (*norm, *heads, head_dim))
            }
            Op::Rope { heads, shape } => self.rope(label, &inputs, out, (*heads, *shape)),
            Op::KvAppend { layer } => self.kv_append(label, &inputs, *layer),
            Op::RopeAppend {
                layer,
                heads,
                shape,
                q_norm,
                k_norm,
            } => {
                let norms = (*q_norm, *k_norm);
                self.rope_append(label, &inputs, out, *layer, (*heads, *shape), norms)
            }
            Op::Attention { .. } => self.attention(node, None, out),
            // Its rows lie in those it is a view of.
            Op::Columns { .. } => Ok(Vec::new()),
            Op::ShortConv { state, weight } => {
                self.short_conv(label, (*state, *weight), inputs[0], out)
            }
            Op::DeltaRule { .. } => self.delta_rule(node, None, out),
            Op::SelectRows => self.select_rows(label, out),
            Op::Logits => self.sort_logits(label, inputs[0], node),
            op => self.elementwise(label, op, &inputs, out),
        }
    }

    /// A launch that moves `bytes` outside of weights; what it touches is `accesses`.
    fn grid(
        &self,
        label: &str,
        (kernel, geometry): (Kernel, Geometry),
        args: Vec<GridArg>,
        accesses: Vec<Access>,
        bytes: u64,
    ) -> Launch {
        let machine = &self.gpu.machine;
        Launch {
            label: label.to_string(),
            work: Work::Grid(Grid {
                kernel,
                geometry,
                args,
                overlaps: machine.overlaps,
                weights: Vec::new(),
                main_loop: None,
                bound_by: "launch",
            }),
            barrier: false,
            accesses,
            reason: String::new(),
            bytes: 0,
            macs: 0,
            seconds: machine.launch_seconds + bytes as f64 / machine.rates.l2_bandwidth,
        }
    }

    /// The form in which a value's rows are stored.
    fn form(&self, value: Value) -> ActForm {
        match self.graph.value_type(value).dtype {
            DType::Q8 => self.gpu.choices.form(value),
            _ => ActForm::F32,
        }
    }

    fn arena(&self, value: Value) -> Result<GridArg, Error> {
        Ok(GridArg::Arena(self.buffer(value)?.offset as u64))
    }

    fn row_stride(&self, value: Value) -> Result<GridArg, Error> {
        Ok(number(self.buffer(value)?.stride))
    }

    fn reads(&self, value: Value) -> Result<Access, Error> {
        self.read(value, Split::Whole)
    }

    fn writes(&self, value: Value) -> Result<Access, Error> {
        self.write(value, Split::Whole)
    }
}

/// The live rows and live logits rows.
const LIVE: GridArg = GridArg::Step(StepLayout::LIVE);
/// No address.
const NULL: GridArg = GridArg::Const(0);

fn number(value: usize) -> GridArg {
    GridArg::Const(value as u64)
}

fn bits(value: f32) -> GridArg {
    GridArg::Const(u64::from(value.to_bits()))
}

/// No kernel for this op.
fn refused(label: &str, why: impl std::fmt::Display) -> Error {
    Error::Unsupported {
        what: label.to_string(),
        why: format!("no GPU kernel: {why}"),
    }
}
