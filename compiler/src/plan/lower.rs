//! Graph nodes to launches, for one program: which micro-kernels a node becomes, with their arguments, and what they
//! touch. Only this module knows both the ops and the micro-kernels' signatures; what it says a launch touches is what
//! `schedule` and `verify` go by.

mod attention;
mod matmul;
mod rows;

use super::memory::{Placed, stride};
use super::select::Selector;
use super::{
    Access, Arg, Buffer, Elementwise, Form, Launch, Options, Placement, Space, Split, Work,
};
use crate::error::Error;
use crate::graph::{Op, OpGraph, RopeShape, RopeStyle, Value, WeightId};
pub use attention::scratch;
use attention::{Rotation, Scores};
use petgraph::stable_graph::NodeIndex;

/// Everything lowering needs to know besides the node.
pub struct Lowering<'a> {
    /// The graph.
    pub graph: &'a OpGraph,
    /// Where values lie in this program.
    pub placed: &'a Placed,
    /// Where weights lie, by weight id.
    pub placements: &'a [Vec<Placement>],
    /// Offset of each layer's pages in the KV pool.
    pub kv_offsets: &'a [u64],
    /// How the head reads the trunk's rows.
    pub hidden: Access,
    /// Rows of the bucket.
    pub rows: usize,
    /// What the plan is made for.
    pub options: Options,
    /// Picks matmul variants.
    pub selector: &'a Selector<'a>,
}

impl Lowering<'_> {
    /// Launches of one node, in order.
    pub fn node(&self, node: NodeIndex) -> Result<Vec<Launch>, Error> {
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
            Op::HeadNorm { norm, heads } => {
                self.same_memory(label, inputs[0], out)?;
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
            } => {
                let scores = Scores {
                    layer: *layer,
                    heads: *heads,
                    scale: *scale,
                    softcap: *softcap,
                };
                self.attention(label, &scores, inputs[0], out)?
            }
            Op::Quantise => vec![self.quantise(label, (inputs[0], inputs[0]), out)?],
            Op::GatedActQuantise(act) => {
                let gated = Access {
                    value: Some(between),
                    ..self.write(inputs[0], Split::Rows)?
                };
                vec![
                    self.elementwise(label, Elementwise::GatedAct(*act), &inputs, gated)?,
                    self.quantise(label, (inputs[0], between), out)?,
                ]
            }
            Op::Act(a) => self.inline(label, Elementwise::Act(*a), &inputs, out)?,
            Op::Mul => self.inline(label, Elementwise::Mul, &inputs, out)?,
            Op::Add => self.inline(label, Elementwise::Add, &inputs, out)?,
            Op::GatedAct(a) => self.inline(label, Elementwise::GatedAct(*a), &inputs, out)?,
            Op::Scale(s) => self.inline(label, Elementwise::Scale(*s), &inputs, out)?,
            Op::Softcap(c) => self.inline(label, Elementwise::Softcap(*c), &inputs, out)?,
            Op::SelectRows => vec![self.select_rows(label, inputs[0], out)?],
            Op::Logits => vec![],
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
        let output = self.write(out, Split::Rows)?;
        Ok(vec![self.elementwise(label, op, inputs, output)?])
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
            .map(|a| a.width * a.rows.min(self.rows))
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

    fn placement(&self, weight: WeightId, form: Form) -> Result<&Placement, Error> {
        self.placements[weight.0 as usize]
            .iter()
            .find(|p| p.form == form)
            .ok_or_else(|| {
                let name = &self.graph.weights[weight.0 as usize].name;
                Error::Internal(format!("{name} was not packed as {form:?}"))
            })
    }

    fn buffer(&self, value: Value) -> Result<Buffer, Error> {
        self.placed.buffers.get(&value).copied().ok_or_else(|| {
            Error::Internal(format!(
                "{}: output {} has no memory",
                self.graph.nodes[value.node].label, value.port
            ))
        })
    }

    /// In-place ops rely on `memory` having given the output its input's place.
    fn same_memory(&self, label: &str, a: Value, b: Value) -> Result<(), Error> {
        if self.buffer(a)? == self.buffer(b)? {
            return Ok(());
        }
        Err(Error::Internal(format!(
            "{label}: works in place, but its input is read again later"
        )))
    }

    fn read(&self, value: Value, split: Split) -> Result<Access, Error> {
        let at = self.buffer(value)?;
        Ok(Access {
            space: Space::Arena,
            value: Some(value),
            offset: at.offset,
            stride: at.stride,
            rows: self.rows,
            width: stride(self.graph.value_type(value)),
            write: false,
            split,
        })
    }

    fn write(&self, value: Value, split: Split) -> Result<Access, Error> {
        Ok(Access {
            write: true,
            ..self.read(value, split)?
        })
    }
}

fn bits(value: f32) -> Arg {
    Arg::Const(value.to_bits() as usize)
}
