//! Everything between the q, k, v projections and the output projection: rotary tables, rotation with per-head norms,
//! the KV cache, attention.

use super::{Lowering, bits};
use crate::error::Error;
use crate::graph::{HeadNorm, RopeShape, RopeStyle, Value, WeightId};
use crate::plan::{Access, Arg, Form, Launch, Space, Split};

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
            Arg::Step,
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
            Arg::Step,
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
            Arg::Kv(self.kv_offsets[layer]),
            Arg::Step,
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

    pub(super) fn attention(
        &self,
        label: &str,
        scores: &Scores,
        q: Value,
        out: Value,
    ) -> Result<Launch, Error> {
        let (from, to) = (self.buffer(q)?, self.buffer(out)?);
        let shape = self.graph.kv[scores.layer];
        let args = vec![
            Arg::Arena(from.offset),
            Arg::Kv(self.kv_offsets[scores.layer]),
            Arg::Arena(to.offset),
            Arg::Step,
            Arg::Const(scores.heads),
            Arg::Const(shape.kv_heads),
            Arg::Const(shape.head_dim),
            Arg::Begin,
            Arg::End,
            Arg::Const(from.stride),
            Arg::Const(to.stride),
            bits(scores.scale),
            Arg::Const(shape.window.unwrap_or(0)),
            bits(scores.softcap.unwrap_or(0.0)),
        ];
        let cells = Split::Cells {
            per_row: shape.kv_heads,
            bytes: scores.heads / shape.kv_heads * shape.head_dim * 4,
        };
        let accesses = vec![
            self.read(q, cells)?,
            self.write(out, cells)?,
            kv_access(scores.layer, false),
        ];
        Ok(self.call(
            label,
            self.kv_symbol("attention"),
            args,
            self.rows * shape.kv_heads,
            accesses,
        ))
    }

    fn kv_symbol(&self, family: &str) -> String {
        let kv = self.kv_type.name();
        self.symbol(&format!("{family}_{kv}"))
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
