//! Nodes that work on each row by itself: embedding, norms, activation forms, element-wise functions, and the gathering of
//! rows that want logits.

use super::{LIVE, Lowering, NULL, bits, number, refused};
use crate::error::Error;
use crate::graph::{Activation, HeadNorm, Op, Value, WeightId};
use crate::plan::memory::rows_of;
use crate::plan::select::packed_layout;
use crate::plan::{Access, Form, Launch};
use coldpress_kernels::gpu::abi::ActForm;
use coldpress_kernels::gpu::embed::{self, EmbedArgs};
use coldpress_kernels::gpu::rows::{self, ElementwiseArgs, GatherArgs, NormArgs};
use coldpress_kernels::gpu::tile;
use coldpress_runtime::manifest::GridArg;

impl Lowering<'_> {
    pub(super) fn embed(
        &self,
        label: &str,
        weight: WeightId,
        scale: f32,
        out: Value,
    ) -> Result<Vec<Launch>, Error> {
        let w = self.graph.weight(weight);
        let layout = packed_layout(w)?;
        let candidates = self.gpu.candidates.map(|sorted| sorted.plan());
        let args = EmbedArgs {
            weights: GridArg::Weights(self.placement(weight, Form::Tiles)?.offset),
            tokens: GridArg::Step(self.gpu.step.tokens()),
            follows: GridArg::Step(self.gpu.step.follows()),
            ids: candidates.map_or(NULL, |c| GridArg::Arena(c.ids_offset)),
            live: LIVE,
            out: self.arena(out)?,
            k: number(w.k),
            units: number(tile::units(&layout, w.k)),
            out_stride: self.row_stride(out)?,
            scale: bits(scale),
            ids_count: number(candidates.map_or(0, |c| c.count as usize)),
            vocab: number(w.n),
        };
        let what = (embed::embed(&layout), embed::geometry(w.k, self.rows));
        let bytes = embed::bytes(&layout, w.k, self.rows);
        let accesses = vec![self.writes(out)?];
        Ok(vec![self.grid(label, what, args.list(), accesses, bytes)])
    }

    /// An RMS norm, left in the form of `out`, and as f32 rows if those are a value too.
    pub(super) fn norm(
        &self,
        label: &str,
        (weight, eps): (WeightId, f32),
        input: Value,
        out: Value,
        plain: Option<Value>,
    ) -> Result<Vec<Launch>, Error> {
        let width = self.graph.value_type(input).width;
        rows::legal(width).map_err(|why| refused(label, why))?;
        let args = NormArgs {
            x: self.arena(input)?,
            weight: GridArg::Weights(self.placement(weight, Form::Vector)?.offset),
            out: self.arena(out)?,
            plain: plain.map_or(Ok(NULL), |plain| self.arena(plain))?,
            width: number(width),
            rows: number(self.rows),
            x_stride: self.row_stride(input)?,
            out_stride: self.row_stride(out)?,
            plain_stride: plain.map_or(Ok(number(0)), |plain| self.row_stride(plain))?,
            eps: bits(eps),
        };
        let form = self.form(out);
        let what = (rows::norm(form, width), rows::norm_geometry(self.rows));
        let bytes = rows::norm_bytes(form, width, self.rows);
        let mut accesses = vec![self.reads(input)?, self.writes(out)?];
        if let Some(plain) = plain {
            accesses.push(self.writes(plain)?);
        }
        Ok(vec![self.grid(label, what, args.list(), accesses, bytes)])
    }

    /// RMS norms of heads whose rows somebody reads again: a norm of the head's columns for each.
    pub(super) fn norm_heads(
        &self,
        label: &str,
        (norm, heads): (&HeadNorm, usize),
        input: Value,
        out: Value,
    ) -> Result<Vec<Launch>, Error> {
        let width = self.graph.value_type(out).width / heads;
        rows::legal(width).map_err(|why| refused(label, why))?;
        let (from, to) = (self.reads(input)?, self.writes(out)?);
        let weight = self.placement(norm.weight, Form::Vector)?.offset;
        let bytes = rows::norm_bytes(ActForm::F32, width, self.rows);
        let head = |head: usize| {
            let columns = |whole: Access| Access {
                offset: whole.offset + head * width * 4,
                width: width * 4,
                ..whole
            };
            let (from, to) = (columns(from), columns(to));
            let args = NormArgs {
                x: GridArg::Arena(from.offset as u64),
                weight: GridArg::Weights(weight),
                out: GridArg::Arena(to.offset as u64),
                plain: NULL,
                width: number(width),
                rows: number(self.rows),
                x_stride: number(from.stride),
                out_stride: number(to.stride),
                plain_stride: number(0),
                eps: bits(norm.eps),
            };
            let kernel = rows::norm(ActForm::F32, width);
            let what = (kernel, rows::norm_geometry(self.rows));
            self.grid(label, what, args.list(), vec![from, to], bytes)
        };
        Ok((0..heads).map(head).collect())
    }

    /// An element-wise function of one or two values, left in the form of `out`.
    pub(super) fn elementwise(
        &self,
        label: &str,
        op: &Op,
        inputs: &[Value],
        out: Value,
    ) -> Result<Vec<Launch>, Error> {
        let (function, factor) = match *op {
            Op::Quantise => (rows::Op::Copy, 0.0),
            Op::Add => (rows::Op::Add, 0.0),
            Op::Mul => (rows::Op::Mul, 0.0),
            Op::Act(Activation::Silu) => (rows::Op::Silu, 0.0),
            Op::Act(Activation::GeluTanh) => (rows::Op::GeluTanh, 0.0),
            Op::Act(Activation::Sigmoid) => (rows::Op::Sigmoid, 0.0),
            Op::GatedAct(Activation::Sigmoid) | Op::GatedActQuantise(Activation::Sigmoid) => {
                (rows::Op::SigmoidMul, 0.0)
            }
            Op::GatedAct(Activation::Silu) | Op::GatedActQuantise(Activation::Silu) => {
                (rows::Op::SiluMul, 0.0)
            }
            Op::GatedAct(Activation::GeluTanh) | Op::GatedActQuantise(Activation::GeluTanh) => {
                (rows::Op::GeluTanhMul, 0.0)
            }
            Op::GatedAct(Activation::ClampedSwish)
            | Op::GatedActQuantise(Activation::ClampedSwish) => (rows::Op::ClampedMul, 0.0),
            Op::Scale(factor) => (rows::Op::Scale, factor),
            Op::Softcap(cap) => (rows::Op::Softcap, cap),
            ref op => return Err(refused(label, format!("{op:?}"))),
        };
        let width = self.graph.value_type(inputs[0]).width;
        rows::legal(width).map_err(|why| refused(label, why))?;
        let inputs = &inputs[..function.arity()];
        let (y, y_stride) = match inputs.get(1) {
            Some(&y) => (self.arena(y)?, self.row_stride(y)?),
            None => (NULL, number(0)),
        };
        let rows_here = rows_of(self.graph.value_type(out), self.rows);
        let args = ElementwiseArgs {
            x: self.arena(inputs[0])?,
            y,
            out: self.arena(out)?,
            width: number(width),
            rows: number(rows_here),
            x_stride: self.row_stride(inputs[0])?,
            y_stride,
            out_stride: self.row_stride(out)?,
            factor: bits(factor),
        };
        let form = self.form(out);
        let mut accesses = Vec::with_capacity(3);
        for &input in inputs {
            accesses.push(self.reads(input)?);
        }
        accesses.push(self.writes(out)?);
        let geometry = rows::elementwise_geometry(width, rows_here);
        let what = (rows::elementwise(function, form), geometry);
        let bytes = rows::elementwise_bytes(function, form, width, rows_here);
        Ok(vec![self.grid(label, what, args.list(), accesses, bytes)])
    }

    /// Gathers the rows that want logits from all the rows the trunk may have left.
    pub(super) fn select_rows(&self, label: &str, out: Value) -> Result<Vec<Launch>, Error> {
        let width = self.graph.value_type(out).width;
        rows::legal(width).map_err(|why| refused(label, why))?;
        let args = GatherArgs {
            from: GridArg::Arena(self.hidden.offset as u64),
            logit_rows: GridArg::Step(self.gpu.step.logit_rows()),
            live: LIVE,
            out: self.arena(out)?,
            width: number(width),
            from_stride: number(self.hidden.stride),
            out_stride: self.row_stride(out)?,
        };
        let what = (rows::gather_rows(), rows::gather_geometry(width, self.rows));
        let bytes = rows::gather_bytes(width, self.rows);
        let accesses = vec![self.hidden, self.writes(out)?];
        Ok(vec![self.grid(label, what, args.list(), accesses, bytes)])
    }
}
