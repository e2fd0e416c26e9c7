//! Rotation and storing where attention does not do it on the way: rotary tables, and norms of heads, rotation and the KV
//! cache by themselves.

use super::attention::kv_access;
use super::{LIVE, Lowering, NULL, bits, number, refused};
use crate::error::Error;
use crate::graph::{HeadNorm, RopeShape, RopeStyle, Value, WeightId};
use crate::plan::{Form, Launch};
use coldpress_kernels::gpu::rope::{self, AppendArgs, TableArgs};
use coldpress_runtime::manifest::GridArg;

/// What `rope_append` does to a row; what it does not do is left out.
pub(super) struct Appended {
    pub(super) q: Option<(Value, usize)>,
    /// K and V, and the layer.
    pub(super) kv: Option<(Value, Value, usize)>,
    pub(super) table: Option<Value>,
    pub(super) shape: RopeShape,
    pub(super) q_norm: Option<HeadNorm>,
    pub(super) k_norm: Option<HeadNorm>,
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
    pub(super) fn append(
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
        let (q_norm, q_eps) = self.head_norm_args(what.q_norm)?;
        let (k_norm, k_eps) = self.head_norm_args(what.k_norm)?;
        let mut accesses = Vec::new();
        let (q, q_stride) = self.rows_of(what.q.as_ref().map(|q| &q.0))?;
        if let (Some((q, _)), Some(rotated)) = (what.q, rotated) {
            self.same_memory(label, q, rotated)?;
            accesses.extend([self.reads(q)?, self.writes(rotated)?]);
        }
        let (k, k_stride) = self.rows_of(what.kv.as_ref().map(|kv| &kv.0))?;
        let (v, v_stride) = self.rows_of(what.kv.as_ref().map(|kv| &kv.1))?;
        let (table, table_stride) = self.rows_of(what.table.as_ref())?;
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
            q_norm,
            k_norm,
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
            q_eps,
            k_eps,
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

    /// Address of a value's rows and bytes between them; null without a value.
    pub(super) fn rows_of(&self, value: Option<&Value>) -> Result<(GridArg, GridArg), Error> {
        match value {
            Some(&value) => Ok((self.arena(value)?, self.row_stride(value)?)),
            None => Ok((NULL, number(0))),
        }
    }

    /// Weight and epsilon of a norm of heads; null without one.
    pub(super) fn head_norm_args(
        &self,
        norm: Option<HeadNorm>,
    ) -> Result<(GridArg, GridArg), Error> {
        match norm {
            Some(n) => {
                let placed = self.placement(n.weight, Form::Vector)?;
                Ok((GridArg::Weights(placed.offset), bits(n.eps)))
            }
            None => Ok((NULL, bits(0.0))),
        }
    }
}
