//! Graph nodes to micro-kernel calls: which a node becomes, with their arguments, and what they touch. Only this module
//! knows both the ops and the micro-kernels' signatures; what it says a launch touches is what `schedule` and `verify`
//! go by.

mod attention;
mod experts;
mod matmul;
mod recurrent;
mod rows;

use super::{Backend, Context};
use crate::error::Error;
use crate::graph::{Op, OpGraph, RopeShape, RopeStyle, Value, Weight};
use crate::plan::memory::stride;
use crate::plan::select::{Selector, packed_layout, tile_bytes};
use crate::plan::{
    Access, Arg, Elementwise, Launch, Options, ProgramPlan, Scratch, Work, buckets, schedule,
};
use attention::{Rotation, Scores};
use coldpress_kernels::cpu::abi::TILE_N;
use coldpress_runtime::manifest::{CandidatePlan, Stage};
use petgraph::stable_graph::NodeIndex;
use recurrent::Rule;
use std::ops::Deref;

/// A CPU: workers that share every launch.
pub struct Cpu<'a> {
    /// Picks matmul variants.
    pub selector: Selector<'a>,
    /// What the plan is made for.
    pub options: Options,
}

impl Backend for Cpu<'_> {
    fn reserved(&self) -> usize {
        0
    }

    fn zeroed(&self) -> usize {
        0
    }

    fn matrix_bytes(&self, weight: &Weight, matrices: usize) -> Result<Option<u64>, Error> {
        let tile = tile_bytes(&packed_layout(weight)?, weight)?;
        let tiles = (weight.n / matrices).div_ceil(TILE_N) as u64;
        Ok(tiles
            .checked_mul(matrices as u64)
            .and_then(|tiles| tiles.checked_mul(tile as u64)))
    }

    fn buckets(
        &self,
        graph: &OpGraph,
        stage: Stage,
        nodes: &[NodeIndex],
    ) -> Result<Vec<usize>, Error> {
        let max_batch = self.options.max_batch;
        match stage {
            Stage::Trunk => Ok(buckets::trunk(max_batch)),
            Stage::Head => {
                let padded =
                    buckets::padded(max_batch, |rows| self.matmul_seconds(graph, nodes, rows))?;
                Ok(buckets::head(max_batch, padded))
            }
        }
    }

    fn groups(&self, _: &OpGraph, nodes: &[NodeIndex]) -> Vec<Vec<NodeIndex>> {
        nodes.iter().map(|&node| vec![node]).collect()
    }

    fn stride(&self, graph: &OpGraph, value: Value) -> usize {
        stride(graph.value_type(value))
    }

    fn scratch(&self, graph: &OpGraph, node: NodeIndex, rows: usize) -> Option<Scratch> {
        let gathered = experts::scratch(graph, node, rows);
        gathered.or_else(|| attention::scratch(graph, node, rows, self.options))
    }

    fn launches(&self, context: &Context<'_>, group: &[NodeIndex]) -> Result<Vec<Launch>, Error> {
        let lowering = Lowering {
            context,
            selector: &self.selector,
        };
        let mut launches = Vec::new();
        for &node in group {
            launches.extend(lowering.node(node)?);
        }
        Ok(launches)
    }

    fn candidates(&self) -> Option<CandidatePlan> {
        None
    }

    fn finish(&self, program: &mut ProgramPlan) {
        schedule::barriers(&mut program.launches);
    }
}

impl Cpu<'_> {
    /// Predicted time of the matmuls among `nodes` at `rows` rows.
    fn matmul_seconds(
        &self,
        graph: &OpGraph,
        nodes: &[NodeIndex],
        rows: usize,
    ) -> Result<f64, Error> {
        let mut seconds = 0.0;
        for &node in nodes {
            if let Op::MatMul { parts, .. } = &graph.nodes[node].op {
                for part in parts {
                    let weight = &graph.weights[part.weight.0 as usize];
                    seconds += self.selector.pick(weight, rows)?.cost.seconds;
                }
            }
        }
        Ok(seconds)
    }
}

/// Everything lowering needs to know besides the node.
struct Lowering<'a> {
    context: &'a Context<'a>,
    selector: &'a Selector<'a>,
}

impl<'a> Deref for Lowering<'a> {
    type Target = Context<'a>;

    fn deref(&self) -> &Context<'a> {
        self.context
    }
}

impl Lowering<'_> {
    /// Launches of one node, in order.
    fn node(&self, node: NodeIndex) -> Result<Vec<Launch>, Error> {
        let inputs = self.graph.inputs(node);
        let n = &self.graph.nodes[node];
        let label = n.label.as_str();
        let out = Value { node, port: 0 };
        // What a launch of this node leaves for the next one in the memory of an input.
        let between = Value {
            node,
            port: n.outputs.len() as u16,
        };
        let launches = match &n.op {
            Op::Embed { weight, scale } => vec![self.embed(label, *weight, *scale, out)?],
            Op::RopeTable { inv_freq, mscale } => {
                vec![self.rope_table(label, *inv_freq, *mscale, out)?]
            }
            Op::RmsNorm { weight, eps } => {
                vec![self.norm(label, "rmsnorm", (*weight, *eps), inputs[0], out)?]
            }
            Op::NormQuantise { weight, eps } => {
                vec![self.norm(label, "rmsnorm_q8", (*weight, *eps), inputs[0], out)?]
            }
            Op::MatMul { parts, residual } => vec![self.matmul(label, node, parts, *residual)?],
            Op::Route(routing) => vec![self.route(label, *routing, inputs[0], out)?],
            Op::ExpertMatMul { parts, experts } => {
                self.expert_matmul(label, node, parts, *experts)?
            }
            Op::ExpertScale { factors } => {
                vec![self.expert_scale(label, *factors, &inputs, out)?]
            }
            Op::ExpertSum => vec![self.expert_sum(label, &inputs, out)?],
            Op::GateRows => vec![self.gate_rows(label, &inputs, out)?],
            Op::HeadNorm { norm, heads } => {
                if self.buffer(inputs[0])? != self.buffer(out)? {
                    return self.norm_heads(label, norm, *heads, inputs[0], out);
                }
                let rotation = Rotation {
                    table: None,
                    heads: *heads,
                    shape: RopeShape {
                        head_dim: self.graph.value_type(out).width / heads,
                        rot_dim: 0,
                        style: RopeStyle::Neox,
                    },
                    norm: Some(*norm),
                };
                vec![self.rope(label, inputs[0], out, &rotation)?]
            }
            Op::Rope { heads, shape } => {
                self.same_memory(label, inputs[0], out)?;
                let rotation = Rotation {
                    table: Some(inputs[1]),
                    heads: *heads,
                    shape: *shape,
                    norm: None,
                };
                vec![self.rope(label, inputs[0], out, &rotation)?]
            }
            Op::KvAppend { layer } => {
                vec![self.kv_append(label, *layer, (inputs[0], inputs[0]), inputs[1])?]
            }
            Op::RopeAppend {
                layer,
                heads,
                shape,
                q_norm,
                k_norm,
            } => {
                self.same_memory(label, inputs[0], out)?;
                let (k, v) = (inputs[1], inputs[2]);
                let of_q = Rotation {
                    table: Some(inputs[3]),
                    heads: *heads,
                    shape: *shape,
                    norm: *q_norm,
                };
                let of_k = Rotation {
                    heads: self.graph.kv[*layer].kv_heads,
                    norm: *k_norm,
                    ..of_q
                };
                vec![
                    self.rope(label, inputs[0], out, &of_q)?,
                    self.rope(label, k, between, &of_k)?,
                    self.kv_append(label, *layer, (k, between), v)?,
                ]
            }
            Op::Attention {
                layer,
                heads,
                scale,
                softcap,
                sinks,
            } => {
                let scores = Scores {
                    layer: *layer,
                    heads: *heads,
                    scale: *scale,
                    softcap: *softcap,
                    sinks: *sinks,
                };
                self.attention(label, &scores, inputs[0], out)?
            }
            Op::ShortConv { state, weight } => {
                vec![self.short_conv(label, (*state, *weight), inputs[0], out)?]
            }
            Op::DeltaRule {
                state,
                heads,
                a,
                dt,
                eps,
            } => {
                let rule = Rule {
                    state: *state,
                    heads: *heads,
                    a: *a,
                    dt: *dt,
                    eps: *eps,
                };
                vec![self.delta_rule(label, &rule, &inputs, out)?]
            }
            Op::Quantise => vec![self.quantise(label, inputs[0], out)?],
            Op::GatedActQuantise(act) => vec![self.gated(label, *act, &inputs, out)?],
            Op::Act(a) => self.inline(label, Elementwise::Act(*a), &inputs, out)?,
            Op::Mul => self.inline(label, Elementwise::Mul, &inputs, out)?,
            Op::Add => self.inline(label, Elementwise::Add, &inputs, out)?,
            Op::GatedAct(a) => self.inline(label, Elementwise::GatedAct(*a), &inputs, out)?,
            Op::Scale(s) => self.inline(label, Elementwise::Scale(*s), &inputs, out)?,
            Op::Softcap(c) => self.inline(label, Elementwise::Softcap(*c), &inputs, out)?,
            Op::SelectRows => vec![self.select_rows(label, inputs[0], out)?],
            Op::Columns { .. } | Op::Logits => vec![],
        };
        Ok(launches)
    }

    fn inline(
        &self,
        label: &str,
        op: Elementwise,
        inputs: &[Value],
        out: Value,
    ) -> Result<Vec<Launch>, Error> {
        Ok(vec![self.elementwise(label, op, inputs, out)?])
    }

    fn call(
        &self,
        label: &str,
        symbol: String,
        args: Vec<Arg>,
        units: usize,
        accesses: Vec<Access>,
    ) -> Launch {
        let touched = accesses
            .iter()
            .map(|a| a.width * a.rows.min(self.rows.max(units)))
            .sum();
        let work = Work::Call {
            symbol,
            args,
            units,
        };
        self.launch(label, work, touched, accesses)
    }

    /// A launch without weights that moves `touched` bytes in cache.
    fn launch(&self, label: &str, work: Work, touched: usize, accesses: Vec<Access>) -> Launch {
        Launch {
            label: label.to_string(),
            work,
            barrier: false,
            accesses,
            reason: String::new(),
            bytes: 0,
            macs: 0,
            seconds: self.selector.light_seconds(touched),
        }
    }

    fn symbol(&self, family: &str) -> String {
        format!("{family}_{}", self.selector.isa_name())
    }
}

fn bits(value: f32) -> Arg {
    Arg::Const(value.to_bits() as usize)
}
