//! Everything between the q, k, v projections and the output projection: rotary tables, rotation with per-head norms,
//! the KV cache, attention.

use super::{Lowering, bits};
use crate::error::Error;
use crate::graph::{HeadNorm, Op, OpGraph, RopeShape, RopeStyle, Value, WeightId};
use crate::plan::memory::scratch_value;
use crate::plan::{
    Access, Arg, Attention, Buffer, Form, Launch, Options, Scratch, Space, Split, Work,
};
use coldpress_kernels::attention::{self, Shape};
use petgraph::stable_graph::NodeIndex;

/// What rotates in a launch, and how.
pub(super) struct Rotation {
    /// cos and sin rows; none for a norm alone.
    pub(super) table: Option<Value>,
    /// Heads in a row.
    pub(super) heads: usize,
    /// Head shape and pairing.
    pub(super) shape: RopeShape,
    /// Norm of each head before it rotates.
    pub(super) norm: Option<HeadNorm>,
}

/// The fields of an attention op.
pub(super) struct Scores {
    /// Index into `OpGraph::kv`.
    pub(super) layer: usize,
    /// Query heads.
    pub(super) heads: usize,
    /// Multiplier of q k.
    pub(super) scale: f32,
    /// cap * tanh(s / cap) on the scores.
    pub(super) softcap: Option<f32>,
    /// A score for each head that brings no value.
    pub(super) sinks: Option<WeightId>,
}

impl Lowering<'_> {
    pub(super) fn rope_table(
        &self,
        label: &str,
        inv_freq: WeightId,
        mscale: f32,
        out: Value,
    ) -> Result<Launch, Error> {
        let half = self.graph.weights[inv_freq.0 as usize].k;
        let to = self.buffer(out)?;
        let args = vec![
            Arg::Step(0),
            Arg::Weights(self.placement(inv_freq, Form::Vector)?.offset),
            Arg::Arena(to.offset),
            Arg::Const(half),
            bits(mscale),
            Arg::Begin,
            Arg::End,
            Arg::Const(to.stride),
        ];
        let accesses = vec![self.write(out, Split::Rows)?];
        Ok(self.call(label, "rope_table_scalar".into(), args, self.rows, accesses))
    }

    /// Rotates the rows of `from` in place; they are `to` from then on.
    pub(super) fn rope(
        &self,
        label: &str,
        from: Value,
        to: Value,
        rotation: &Rotation,
    ) -> Result<Launch, Error> {
        let x = self.buffer(from)?;
        let read = self.read(from, Split::Rows)?;
        let write = Access {
            value: Some(to),
            write: true,
            ..read
        };
        let mut accesses = vec![read, write];
        let (table, table_stride) = match rotation.table {
            Some(table) => {
                accesses.push(self.read(table, Split::Rows)?);
                let rows = self.buffer(table)?;
                (Arg::Arena(rows.offset), rows.stride)
            }
            None => (Arg::Null, 0),
        };
        let weight = match rotation.norm {
            Some(n) => Arg::Weights(self.placement(n.weight, Form::Vector)?.offset),
            None => Arg::Null,
        };
        let args = vec![
            Arg::Arena(x.offset),
            weight,
            table,
            Arg::Const(rotation.heads),
            Arg::Const(rotation.shape.head_dim),
            Arg::Const(rotation.shape.rot_dim),
            Arg::Const(usize::from(rotation.shape.style == RopeStyle::Neox)),
            Arg::Begin,
            Arg::End,
            Arg::Const(x.stride),
            Arg::Const(table_stride),
            bits(rotation.norm.map_or(0.0, |n| n.eps)),
            Arg::Step(0),
        ];
        Ok(self.call(label, self.symbol("rope_heads"), args, self.rows, accesses))
    }

    /// `rotated` is what k's rows hold by now: k itself, or what a rotation in place made of it.
    pub(super) fn kv_append(
        &self,
        label: &str,
        layer: usize,
        (k, rotated): (Value, Value),
        v: Value,
    ) -> Result<Launch, Error> {
        let (kb, vb) = (self.buffer(k)?, self.buffer(v)?);
        let shape = self.graph.kv[layer];
        let args = vec![
            Arg::Arena(kb.offset),
            Arg::Arena(vb.offset),
            Arg::Kv(self.kv[layer].offset),
            Arg::Step(self.kv[layer].table),
            Arg::Const(shape.kv_heads),
            Arg::Const(shape.head_dim),
            Arg::Begin,
            Arg::End,
            Arg::Const(kb.stride),
            Arg::Const(vb.stride),
        ];
        let accesses = vec![
            Access {
                value: Some(rotated),
                ..self.read(k, Split::Rows)?
            },
            self.read(v, Split::Rows)?,
            kv_access(layer, true),
        ];
        Ok(self.call(
            label,
            self.kv_symbol("kv_append"),
            args,
            self.rows,
            accesses,
        ))
    }

    /// The workers' shares of all queries, and where they may share a query the merging of what they left.
    pub(super) fn attention(
        &self,
        label: &str,
        scores: &Scores,
        q: Value,
        out: Value,
    ) -> Result<Vec<Launch>, Error> {
        let (from, to) = (self.buffer(q)?, self.buffer(out)?);
        let shape = shape(self.graph, scores);
        let node = out.node;
        let scratch = match scratch(self.graph, node, self.rows, self.options) {
            Some(unplaced) => Some(Scratch {
                buffer: self.buffer(scratch_value(self.graph, node))?,
                ..unplaced
            }),
            None => None,
        };
        let (partials, slot, cell) = match scratch {
            Some(s) => (Arg::Arena(s.buffer.offset), s.buffer.stride, s.cell),
            None => (Arg::Null, 0, 0),
        };
        let cells = Split::Live {
            per_row: shape.kv_heads,
            bytes: shape.group() * shape.head_dim * 4,
        };
        let (read, write) = (self.read(q, cells)?, self.write(out, cells)?);
        let sinks = match scores.sinks {
            Some(sinks) => Arg::Weights(self.placement(sinks, Form::Vector)?.offset),
            None => Arg::Null,
        };
        let kv = kv_access(scores.layer, false);
        let launch = |symbol: String, args: Vec<Arg>, accesses: Vec<Access>| {
            let work = Work::Attention(Attention {
                symbol,
                args,
                shape,
                scratch,
            });
            // Partial results are few: only of queries that several workers share.
            let touched = (read.width + write.width) * self.rows;
            self.launch(label, work, touched, accesses)
        };
        let args = vec![
            Arg::Arena(from.offset),
            Arg::Kv(self.kv[scores.layer].offset),
            Arg::Arena(to.offset),
            partials,
            Arg::Step(self.kv[scores.layer].table),
            Arg::Const(shape.heads),
            Arg::Const(shape.kv_heads),
            Arg::Const(shape.head_dim),
            Arg::Worker,
            Arg::Workers,
            Arg::Const(from.stride),
            Arg::Const(to.stride),
            Arg::Const(slot),
            Arg::Const(cell),
            bits(shape.scale),
            Arg::Const(shape.window),
            bits(shape.softcap),
            sinks,
        ];
        let symbol = self.kv_symbol("attention");
        let Some(scratch) = scratch else {
            return Ok(vec![launch(symbol, args, vec![read, write, kv])]);
        };
        // The rows are not complete before the partial results are merged into them.
        let unmerged = Access {
            value: Some(Value {
                port: self.graph.nodes[node].outputs.len() as u16,
                ..out
            }),
            ..write
        };
        let left = Access {
            space: Space::Arena,
            value: Some(scratch_value(self.graph, node)),
            offset: scratch.buffer.offset,
            stride: scratch.buffer.stride,
            rows: scratch.slots,
            width: scratch.buffer.stride,
            write: true,
            split: Split::Live {
                per_row: scratch.cells,
                bytes: scratch.cell,
            },
        };
        let first = launch(symbol, args, vec![read, unmerged, left, kv]);
        let args = vec![
            partials,
            Arg::Arena(to.offset),
            Arg::Step(0),
            Arg::Const(shape.heads),
            Arg::Const(shape.kv_heads),
            Arg::Const(shape.head_dim),
            Arg::Worker,
            Arg::Workers,
            Arg::Const(to.stride),
            Arg::Const(slot),
            Arg::Const(cell),
            Arg::Const(shape.window),
            sinks,
        ];
        let found = Access {
            write: false,
            split: Split::Whole,
            ..left
        };
        let unmerged = Access {
            write: false,
            ..unmerged
        };
        let symbol = self.symbol("attention_combine");
        Ok(vec![
            first,
            launch(symbol, args, vec![found, unmerged, write]),
        ])
    }

    fn kv_symbol(&self, family: &str) -> String {
        let kv = self.options.kv_type.name();
        self.symbol(&format!("{family}_{kv}"))
    }
}

/// The shape of an attention op.
fn shape(graph: &OpGraph, scores: &Scores) -> Shape {
    let layer = &graph.kv[scores.layer];
    Shape {
        heads: scores.heads,
        kv_heads: layer.kv_heads,
        head_dim: layer.head_dim,
        scale: scores.scale,
        window: layer.window.unwrap_or(0),
        softcap: scores.softcap.unwrap_or(0.0),
    }
}

/// What attention at `node` needs to share queries among workers in a step of `rows` rows, not placed yet. Nothing where
/// one worker does everything, or no sequence has more than one split.
pub fn scratch(graph: &OpGraph, node: NodeIndex, rows: usize, options: Options) -> Option<Scratch> {
    let &Op::Attention {
        layer,
        heads,
        scale,
        softcap,
        sinks,
    } = &graph.nodes[node].op
    else {
        return None;
    };
    let scores = Scores {
        layer,
        heads,
        scale,
        softcap,
        sinks,
    };
    let shape = shape(graph, &scores);
    let (slots, cells) = (options.workers - 1, attention::splits(options.max_context));
    if slots == 0 || cells == 1 {
        return None;
    }
    let cell = shape.queries_per_unit(rows) * attention::partial_bytes(shape.head_dim);
    Some(Scratch {
        buffer: Buffer {
            offset: 0,
            stride: cells * cell,
        },
        slots,
        cells,
        cell,
    })
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
