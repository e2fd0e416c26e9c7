//! Everything between the q, k, v projections and the output projection: rotary tables, rotation with per-head norms, the
//! KV cache, attention.

use super::{LIVE, Lowering, NULL, bits, number, refused};
use crate::error::Error;
use crate::graph::{HeadNorm, Op, OpGraph, RopeShape, RopeStyle, Value, WeightId};
use crate::plan::memory::scratch_value;
use crate::plan::{Access, Form, Launch, Options, Space, Split};
use crate::target::cuda::CudaProfile;
use coldpress_kernels::attention::Shape;
use coldpress_kernels::gpu::abi::StepLayout;
use coldpress_kernels::gpu::attention::{self, AttentionArgs, PlanArgs};
use coldpress_kernels::gpu::rope::{self, AppendArgs, TableArgs};
use coldpress_runtime::manifest::GridArg;
use petgraph::stable_graph::NodeIndex;

/// The plans of attention: one for each kind of attention in the model, made anew in every program.
pub(super) struct Attentions {
    kinds: Vec<Kind>,
    options: Options,
    processors: usize,
}

/// Attention nodes that divide a step in the same way.
struct Kind {
    shape: Shape,
    /// Tokens of a split.
    split: usize,
    /// Bytes of its plan for the largest step.
    bytes: usize,
    /// The node of the first layer, which makes the plan.
    node: NodeIndex,
}

impl Attentions {
    pub(super) fn new(
        graph: &OpGraph,
        profile: &CudaProfile,
        options: Options,
        step: StepLayout,
    ) -> Attentions {
        let mut all = Attentions {
            kinds: Vec::new(),
            options,
            processors: profile.sms as usize,
        };
        for node in graph.order() {
            let Some(shape) = shape(graph, node) else {
                continue;
            };
            if all.kind(&shape).is_some() {
                continue;
            }
            let split = attention::split(&shape, options.max_context, all.processors);
            let rows = step.max_rows as usize;
            let cells = all.cells(rows, split);
            all.kinds.push(Kind {
                shape,
                split,
                bytes: attention::plan_bytes(rows, cells).next_multiple_of(64),
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
        let rows = step.max_rows as usize;
        let bytes = |k: &Kind| attention::counter_bytes(rows, k.shape.kv_heads, k.shape.group());
        let most = self.kinds.iter().map(bytes).max().unwrap_or(0);
        most.next_multiple_of(64)
    }

    /// Bytes of partial results of the attention at `node`.
    pub(super) fn scratch_bytes(&self, graph: &OpGraph, node: NodeIndex, rows: usize) -> usize {
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

/// What `rope_append` does to a row; what it does not do is left out.
struct Appended {
    q: Option<(Value, usize)>,
    /// K and V, and the layer.
    kv: Option<(Value, Value, usize)>,
    table: Option<Value>,
    shape: RopeShape,
    q_norm: Option<HeadNorm>,
    k_norm: Option<HeadNorm>,
}

impl Lowering<'_> {
    pub(super) fn rope_table(
        &self,
        label: &str,
        inv_freq: WeightId,
        mscale: f32,
        out: Value,
    ) -> Result<Vec<Launch>, Error> {
        let half = self.graph.weight(inv_freq).k;
        let args = TableArgs {
            positions: GridArg::Step(self.gpu.step.positions()),
            inv_freq: GridArg::Weights(self.placement(inv_freq, Form::Vector)?.offset),
            out: self.arena(out)?,
            half: number(half),
            mscale: bits(mscale),
            live: LIVE,
            out_stride: self.row_stride(out)?,
        };
        let what = (rope::table(), rope::table_geometry(self.rows));
        let accesses = vec![self.writes(out)?];
        let bytes = (self.rows * half * 8) as u64;
        Ok(vec![self.grid(label, what, args.list(), accesses, bytes)])
    }

    pub(super) fn head_norm(
        &self,
        label: &str,
        input: Value,
        out: Value,
        (norm, heads, head_dim): (HeadNorm, usize, usize),
    ) -> Result<Vec<Launch>, Error> {
        let appended = Appended {
            q: Some((input, heads)),
            kv: None,
            table: None,
            shape: RopeShape {
                head_dim,
                rot_dim: 0,
                style: RopeStyle::Neox,
            },
            q_norm: Some(norm),
            k_norm: None,
        };
        self.append(label, &appended, Some(out))
    }

    pub(super) fn rope(
        &self,
        label: &str,
        inputs: &[Value],
        out: Value,
        (heads, shape): (usize, RopeShape),
    ) -> Result<Vec<Launch>, Error> {
        let appended = Appended {
            q: Some((inputs[0], heads)),
            kv: None,
            table: Some(inputs[1]),
            shape,
            q_norm: None,
            k_norm: None,
        };
        self.append(label, &appended, Some(out))
    }

    pub(super) fn kv_append(
        &self,
        label: &str,
        inputs: &[Value],
        layer: usize,
    ) -> Result<Vec<Launch>, Error> {
        let appended = Appended {
            q: None,
            kv: Some((inputs[0], inputs[1], layer)),
            table: None,
            shape: RopeShape {
                head_dim: self.graph.kv[layer].head_dim,
                rot_dim: 0,
                style: RopeStyle::Neox,
            },
            q_norm: None,
            k_norm: None,
        };
        self.append(label, &appended, None)
    }

    pub(super) fn rope_append(
        &self,
        label: &str,
        inputs: &[Value],
        out: Value,
        layer: usize,
        (heads, shape): (usize, RopeShape),
        (q_norm, k_norm): (Option<HeadNorm>, Option<HeadNorm>),
    ) -> Result<Vec<Launch>, Error> {
        let appended = Appended {
            q: Some((inputs[0], heads)),
            kv: Some((inputs[1], inputs[2], layer)),
            table: Some(inputs[3]),
            shape,
            q_norm,
            k_norm,
        };
        self.append(label, &appended, Some(out))
    }

    /// `rotated` is what the rows of q hold from then on.
    fn append(
        &self,
        label: &str,
        what: &Appended,
        rotated: Option<Value>,
    ) -> Result<Vec<Launch>, Error> {
        let RopeShape {
            head_dim,
            rot_dim,
            style,
        } = what.shape;
        let rot_dim = what.table.map_or(0, |_| rot_dim);
        rope::legal(head_dim, rot_dim).map_err(|why| refused(label, why))?;
        let weight = |norm: Option<HeadNorm>| match norm {
            Some(n) => Ok::<_, Error>(GridArg::Weights(
                self.placement(n.weight, Form::Vector)?.offset,
            )),
            None => Ok(NULL),
        };
        let eps = |norm: Option<HeadNorm>| bits(norm.map_or(0.0, |n| n.eps));
        let rows = |value: Option<Value>| match value {
            Some(value) => Ok((self.arena(value)?, self.row_stride(value)?)),
            None => Ok::<_, Error>((NULL, number(0))),
        };
        let mut accesses = Vec::new();
        let (q, q_stride) = rows(what.q.map(|q| q.0))?;
        if let (Some((q, _)), Some(rotated)) = (what.q, rotated) {
            self.same_memory(label, q, rotated)?;
            accesses.extend([self.reads(q)?, self.writes(rotated)?]);
        }
        let (k, k_stride) = rows(what.kv.map(|kv| kv.0))?;
        let (v, v_stride) = rows(what.kv.map(|kv| kv.1))?;
        let (table, table_stride) = rows(what.table)?;
        if let Some(table) = what.table {
            accesses.push(self.reads(table)?);
        }
        let (mut kv, mut kv_heads, mut kv_table) = (NULL, 0, 0);
        if let Some((k, v, layer)) = what.kv {
            accesses.extend([self.reads(k)?, self.reads(v)?, kv_access(layer, true)]);
            kv = GridArg::Kv(self.kv[layer].offset);
            kv_heads = self.graph.kv[layer].kv_heads;
            kv_table = self.kv[layer].table;
        }
        let heads = what.q.map_or(0, |q| q.1);
        let args = AppendArgs {
            q,
            k,
            v,
            table,
            q_norm: weight(what.q_norm)?,
            k_norm: weight(what.k_norm)?,
            kv,
            positions: GridArg::Step(self.gpu.step.positions()),
            slots: GridArg::Step(self.gpu.step.slot_of_row()),
            page_table: GridArg::Step(self.gpu.step.page_table(kv_table)),
            live: LIVE,
            heads: number(heads),
            kv_heads: number(kv_heads),
            rot_dim: number(rot_dim),
            q_stride,
            k_stride,
            v_stride,
            table_stride,
            q_eps: eps(what.q_norm),
            k_eps: eps(what.k_norm),
            pages_per_slot: number(self.gpu.step.pages_per_slot as usize),
        };
        let kv_type = self.options.kv_type;
        let kernel = rope::append(kv_type, head_dim, style == RopeStyle::Neox);
        let geometry = rope::append_geometry(heads, kv_heads, self.rows, head_dim);
        let bytes = rope::append_bytes(kv_type, heads, kv_heads, head_dim, self.rows);
        Ok(vec![self.grid(
            label,
            (kernel, geometry),
            args.list(),
            accesses,
            bytes,
        )])
    }

    /// Attention at `node`, its rows left as `out`. The first layer of a kind makes the plan that all of them use.
    pub(super) fn attention(&self, node: NodeIndex, out: Value) -> Result<Vec<Launch>, Error> {
        let n = &self.graph.nodes[node];
        let label = n.label.as_str();
        let (Some(shape), &Op::Attention { layer, .. }) = (shape(self.graph, node), &n.op) else {
            return Err(Error::Internal(format!("{label}: no attention")));
        };
        attention::legal(&shape).map_err(|why| refused(label, why))?;
        let (offset, kind) = self
            .gpu
            .attentions
            .kind(&shape)
            .ok_or_else(|| Error::Internal(format!("{label}: attention of no kind")))?;
        let plan = GridArg::Arena((self.gpu.zeroed + offset) as u64);
        let (rows, step) = (self.rows, &self.gpu.step);
        let processors = self.gpu.profile.sms as usize;
        let kv_type = self.options.kv_type;
        let form = self.form(out);
        let kernel = attention::attention(kv_type, shape.head_dim, shape.group(), form);
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
        let q = self.graph.inputs(node)[0];
        let args = AttentionArgs {
            q: self.arena(q)?,
            kv: GridArg::Kv(self.kv[layer].offset),
            plan,
            scratch: self.arena(scratch)?,
            counters: GridArg::Arena(0),
            out: self.arena(out)?,
            positions,
            slots,
            page_table: GridArg::Step(step.page_table(self.kv[layer].table)),
            max_rows: number(rows),
            kv_heads: number(shape.kv_heads),
            q_stride: self.row_stride(q)?,
            out_stride: self.row_stride(out)?,
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
        // Predictions are for short contexts; what a long one adds is the cache's bytes.
        let bytes = rows as u64 * attention::bytes(&shape, kv_type, form, 0, kind.split);
        let accesses = vec![
            self.reads(q)?,
            kv_access(layer, false),
            left,
            self.writes(out)?,
        ];
        launches.push(self.grid(label, (kernel, geometry), args.list(), accesses, bytes));
        Ok(launches)
    }
}

fn kv_access(layer: usize, write: bool) -> Access {
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
