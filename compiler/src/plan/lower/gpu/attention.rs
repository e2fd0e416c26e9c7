//! Attention: how a step is divided, and one launch for all between the q, k, v projections and the output projection.

use super::machine::Machine;
use super::{LIVE, Lowering, NULL, bits, number, refused};
use crate::error::Error;
use crate::graph::{Op, OpGraph, RopeStyle, Value, WeightId};
use crate::plan::memory::scratch_value;
use crate::plan::{Access, Form, Launch, Options, Space, Split};
use coldpress_kernels::attention::Shape;
use coldpress_kernels::gpu::abi::StepLayout;
use coldpress_kernels::gpu::attention::{self, AttentionArgs, PlanArgs};
use coldpress_kernels::gpu::{metal, rope};
use coldpress_runtime::manifest::GridArg;
use petgraph::stable_graph::NodeIndex;

/// The plans of attention: one for each kind of attention in the model, made anew in every program.
pub(super) struct Attentions {
    kinds: Vec<Kind>,
    options: Options,
    processors: usize,
    /// Whether attention needs neither plans nor memory of its own.
    metal: bool,
}

/// Attention nodes that divide a step in the same way.
pub(super) struct Kind {
    shape: Shape,
    /// Tokens of a split.
    pub(super) split: usize,
    /// Bytes of its plan for the largest step.
    bytes: usize,
    /// The node of the first layer, which makes the plan.
    node: NodeIndex,
}

impl Attentions {
    pub(super) fn new(
        graph: &OpGraph,
        machine: &Machine,
        options: Options,
        step: StepLayout,
    ) -> Attentions {
        let mut all = Attentions {
            kinds: Vec::new(),
            options,
            processors: machine.rates.sms as usize,
            metal: machine.is_metal(),
        };
        for node in graph.order() {
            let Some(shape) = shape(graph, node) else {
                continue;
            };
            if all.kind(&shape).is_some() {
                continue;
            }
            let (split, bytes) = match all.metal {
                true => (metal::split(), 0),
                false => {
                    let split = attention::split(&shape, options.max_context, all.processors);
                    let rows = step.max_rows as usize;
                    let bytes = attention::plan_bytes(rows, all.cells(rows, split));
                    (split, bytes.next_multiple_of(64))
                }
            };
            all.kinds.push(Kind {
                shape,
                split,
                bytes,
                node,
            });
        }
        all
    }

    /// Bytes of all plans.
    pub(super) fn plan_bytes(&self) -> usize {
        self.kinds.iter().map(|k| k.bytes).sum()
    }

    /// Counters of all launches, zero between them, in bytes.
    pub(super) fn counter_bytes(&self, step: StepLayout) -> usize {
        if self.metal {
            return 0;
        }
        let rows = step.max_rows as usize;
        let bytes = |k: &Kind| attention::counter_bytes(rows, k.shape.kv_heads, k.shape.group());
        let most = self.kinds.iter().map(bytes).max().unwrap_or(0);
        most.next_multiple_of(64)
    }

    /// Bytes of partial results of the attention at `node`.
    pub(super) fn scratch_bytes(&self, graph: &OpGraph, node: NodeIndex, rows: usize) -> usize {
        if self.metal {
            return 0;
        }
        let kind = shape(graph, node).and_then(|shape| Some((shape, self.kind(&shape)?.1)));
        kind.map_or(0, |(shape, kind)| {
            let cells = self.cells(rows, kind.split);
            attention::scratch_bytes(shape.heads, shape.head_dim, cells).next_multiple_of(64)
        })
    }

    /// Cells for a step of `rows` rows: as many sequences as there can be, each as long as it can be.
    fn cells(&self, rows: usize, split: usize) -> usize {
        let sequences = rows.min(self.options.max_batch);
        attention::cells(sequences, self.options.max_context, split).max(rows)
    }

    /// The kind of this shape, and where its plan is among all plans.
    fn kind(&self, shape: &Shape) -> Option<(usize, &Kind)> {
        let mut offset = 0;
        for kind in &self.kinds {
            let key = |s: &Shape| (s.heads, s.kv_heads, s.head_dim, s.window);
            if key(&kind.shape) == key(shape) {
                return Some((offset, kind));
            }
            offset += kind.bytes;
        }
        None
    }
}

/// The shape of the attention at `node`, if it is one.
fn shape(graph: &OpGraph, node: NodeIndex) -> Option<Shape> {
    let Op::Attention {
        layer,
        heads,
        scale,
        softcap,
        ..
    } = graph.nodes[node].op
    else {
        return None;
    };
    let kv = &graph.kv[layer];
    Some(Shape {
        heads,
        kv_heads: kv.kv_heads,
        head_dim: kv.head_dim,
        scale,
        window: kv.window.unwrap_or(0),
        softcap: softcap.unwrap_or(0.0),
    })
}

impl Lowering<'_> {
    /// Attention at `node`, its rows left as `out`; the queries, keys and values are those that `rotation` is given, or else
    /// the queries are ready and the rest is in the cache. The first layer of a kind makes the plan that all of them use.
    pub(super) fn attention(
        &self,
        node: NodeIndex,
        rotation: Option<NodeIndex>,
        out: Value,
    ) -> Result<Vec<Launch>, Error> {
        let n = &self.graph.nodes[node];
        let label = n.label.as_str();
        let (Some(shape), &Op::Attention { layer, sinks, .. }) = (shape(self.graph, node), &n.op)
        else {
            return Err(Error::Internal(format!("{label}: no attention")));
        };
        attention::legal(&shape, self.options.kv_type).map_err(|why| refused(label, why))?;
        let (offset, kind) = self
            .gpu
            .attentions
            .kind(&shape)
            .ok_or_else(|| Error::Internal(format!("{label}: attention of no kind")))?;
        if self.gpu.machine.is_metal() {
            return self.metal_attention((node, layer), sinks, rotation, out, (&shape, kind));
        }
        let plan = GridArg::Arena((self.gpu.zeroed + offset) as u64);
        let (rows, step) = (self.rows, &self.gpu.step);
        let processors = self.gpu.machine.rates.sms as usize;
        let kv_type = self.options.kv_type;
        let form = self.form(out);
        let geometry = attention::geometry(kv_type, shape.head_dim, processors);
        let (positions, slots) = (
            GridArg::Step(step.positions()),
            GridArg::Step(step.slot_of_row()),
        );
        let mut launches = Vec::new();
        if kind.node == node {
            let args = PlanArgs {
                positions,
                slots,
                live: LIVE,
                plan,
                max_rows: number(rows),
                cells: number(self.gpu.attentions.cells(rows, kind.split)),
                tile_rows: number(attention::rows_per_tile(shape.group())),
                parts: number(attention::parts(shape.kv_heads, shape.group())),
                warps: number(attention::warps(kv_type, shape.head_dim, &geometry)),
                split: number(kind.split),
                window: number(shape.window),
            };
            let what = (attention::plan(), attention::plan_geometry());
            launches.push(self.grid(label, what, args.list(), vec![], 0));
        }
        let scratch = scratch_value(self.graph, node);
        let mut accesses = vec![kv_access(layer, false)];
        let mut inputs = self.graph.inputs(rotation.unwrap_or(node));
        inputs.truncate(if rotation.is_some() { 4 } else { 1 });
        for &input in &inputs {
            accesses.push(self.reads(input)?);
        }
        let (mut neox, mut rot_dim, mut norms) = (true, 0, (None, None));
        if let Some(Op::RopeAppend {
            shape: rope,
            q_norm,
            k_norm,
            ..
        }) = rotation.map(|r| &self.graph.nodes[r].op)
        {
            rope::legal(rope.head_dim, rope.rot_dim).map_err(|why| refused(label, why))?;
            (neox, rot_dim) = (rope.style == RopeStyle::Neox, rope.rot_dim);
            norms = (*q_norm, *k_norm);
            accesses.push(kv_access(layer, true));
        }
        let (q, q_stride) = self.rows_of(inputs.first())?;
        let (k, k_stride) = self.rows_of(inputs.get(1))?;
        let (v, v_stride) = self.rows_of(inputs.get(2))?;
        let (table, table_stride) = self.rows_of(inputs.get(3))?;
        let (q_norm, q_eps) = self.head_norm_args(norms.0)?;
        let (k_norm, k_eps) = self.head_norm_args(norms.1)?;
        let args = AttentionArgs {
            q,
            k,
            v,
            table,
            q_norm,
            k_norm,
            sinks: self.sinks(sinks)?,
            kv: GridArg::Kv(self.kv[layer].offset),
            plan,
            scratch: self.arena(scratch)?,
            counters: GridArg::Arena(0),
            out: self.arena(out)?,
            positions,
            slots,
            page_table: GridArg::Step(step.page_table(self.kv[layer].table)),
            live: LIVE,
            max_rows: number(rows),
            kv_heads: number(shape.kv_heads),
            q_stride,
            k_stride,
            v_stride,
            table_stride,
            out_stride: self.row_stride(out)?,
            rot_dim: number(rot_dim),
            q_eps,
            k_eps,
            pages_per_slot: number(step.pages_per_slot as usize),
            split: number(kind.split),
            window: number(shape.window),
            scale: bits(shape.scale),
            softcap: bits(shape.softcap),
        };
        let cells = self.buffer(scratch)?;
        let left = Access {
            space: Space::Arena,
            value: Some(scratch),
            offset: cells.offset,
            stride: cells.stride,
            rows: 1,
            width: cells.stride,
            write: true,
            split: Split::Whole,
        };
        accesses.extend([left, self.writes(out)?]);
        // Predictions are for short contexts; what a long one adds is the cache's bytes.
        let mut bytes = rows as u64 * attention::bytes(&shape, kv_type, form, 0, kind.split);
        if rotation.is_some() {
            bytes += rope::append_bytes(kv_type, 0, shape.kv_heads, shape.head_dim, rows);
        }
        let kernel = attention::attention(kv_type, shape.head_dim, shape.group(), neox, form);
        let what = (kernel, geometry);
        let launch = self.grid(label, what, args.list(), accesses, bytes);
        launches.push(Launch {
            seconds: launch.seconds + attention::PREPARE,
            ..launch
        });
        Ok(launches)
    }

    /// The scores of sinks, if there are any.
    pub(super) fn sinks(&self, sinks: Option<WeightId>) -> Result<GridArg, Error> {
        match sinks {
            Some(sinks) => Ok(GridArg::Weights(
                self.placement(sinks, Form::Vector)?.offset,
            )),
            None => Ok(NULL),
        }
    }
}

pub(super) fn kv_access(layer: usize, write: bool) -> Access {
    Access {
        space: Space::Kv(layer),
        value: None,
        offset: 0,
        stride: 0,
        rows: 0,
        width: 0,
        write,
        split: Split::Whole,
    }
}
