//! Nodes that work on each row by itself: embedding, norms, activation quantisation, element-wise functions, and the
//! gathering of rows that want logits.

use super::{Lowering, bits};
use crate::error::Error;
use crate::graph::{Activation, HeadNorm, Value, WeightId};
use crate::plan::memory::rows_of;
use crate::plan::select::packed_layout;
use crate::plan::{Access, Arg, Buffer, Elementwise, Form, Launch, Split, Work};
use coldpress_kernels::gated;

impl Lowering<'_> {
    /// Rows of a value in this program.
    pub(super) fn rows_of(&self, value: Value) -> usize {
        rows_of(self.graph.value_type(value), self.rows)
    }

    pub(super) fn embed(
        &self,
        label: &str,
        weight: WeightId,
        scale: f32,
        out: Value,
    ) -> Result<Launch, Error> {
        let w = &self.graph.weights[weight.0 as usize];
        let to = self.buffer(out)?;
        let args = vec![
            Arg::Weights(self.placement(weight, Form::Tiles)?.offset),
            Arg::Step(0),
            Arg::Arena(to.offset),
            Arg::Const(w.k),
            Arg::Begin,
            Arg::End,
            Arg::Const(to.stride),
            bits(scale),
        ];
        let symbol = format!("embed_{}_scalar", packed_layout(w)?.name());
        let accesses = vec![self.write(out, Split::Rows)?];
        Ok(self.call(label, symbol, args, self.rows, accesses))
    }

    /// An RMS norm, to f32 (`rmsnorm`) or int8 rows (`rmsnorm_q8`).
    pub(super) fn norm(
        &self,
        label: &str,
        family: &str,
        (weight, eps): (WeightId, f32),
        input: Value,
        out: Value,
    ) -> Result<Launch, Error> {
        let (from, to) = (self.buffer(input)?, self.buffer(out)?);
        let args = vec![
            at_share(from),
            Arg::Weights(self.placement(weight, Form::Vector)?.offset),
            at_share(to),
            Arg::Const(self.graph.value_type(input).width),
            Arg::Count,
            Arg::Const(from.stride),
            Arg::Const(to.stride),
            bits(eps),
        ];
        let accesses = vec![
            self.read(input, Split::Rows)?,
            self.write(out, Split::Rows)?,
        ];
        let rows = self.rows_of(input);
        Ok(self.call(label, self.symbol(family), args, rows, accesses))
    }

    /// A norm of every head, whose rows somebody reads again: a norm of the head's columns for each.
    pub(super) fn norm_heads(
        &self,
        label: &str,
        norm: &HeadNorm,
        heads: usize,
        input: Value,
        out: Value,
    ) -> Result<Vec<Launch>, Error> {
        let (from, to) = (self.buffer(input)?, self.buffer(out)?);
        let width = self.graph.value_type(out).width / heads;
        let weight = self.placement(norm.weight, Form::Vector)?.offset;
        let (read, write) = (
            self.read(input, Split::Rows)?,
            self.write(out, Split::Rows)?,
        );
        let head = |head: usize| {
            let column = head * width * 4;
            let columns = |whole: Buffer| Buffer {
                offset: whole.offset + column,
                ..whole
            };
            let args = vec![
                at_share(columns(from)),
                Arg::Weights(weight),
                at_share(columns(to)),
                Arg::Const(width),
                Arg::Count,
                Arg::Const(from.stride),
                Arg::Const(to.stride),
                bits(norm.eps),
            ];
            // As for other launches, what pads a row belongs to it.
            let part = |whole: Access| Access {
                offset: whole.offset + column,
                width: match head + 1 == heads {
                    true => whole.width - column,
                    false => width * 4,
                },
                ..whole
            };
            let accesses = vec![part(read), part(write)];
            self.call(label, self.symbol("rmsnorm"), args, self.rows, accesses)
        };
        Ok((0..heads).map(head).collect())
    }

    pub(super) fn quantise(&self, label: &str, input: Value, out: Value) -> Result<Launch, Error> {
        let (from, to) = (self.buffer(input)?, self.buffer(out)?);
        let args = vec![
            at_share(from),
            at_share(to),
            Arg::Const(self.graph.value_type(input).width),
            Arg::Count,
            Arg::Const(from.stride),
            Arg::Const(to.stride),
        ];
        let accesses = vec![
            self.read(input, Split::Rows)?,
            self.write(out, Split::Rows)?,
        ];
        let rows = self.rows_of(input);
        Ok(self.call(label, self.symbol("quantise"), args, rows, accesses))
    }

    /// A gate and what it gates, to int8 rows.
    pub(super) fn gated(
        &self,
        label: &str,
        activation: Activation,
        inputs: &[Value],
        out: Value,
    ) -> Result<Launch, Error> {
        let width = self.graph.value_type(inputs[0]).width;
        let (gate, up) = (self.buffer(inputs[0])?, self.buffer(inputs[1])?);
        let to = self.buffer(out)?;
        let args = vec![
            at_share(gate),
            at_share(up),
            at_share(to),
            Arg::Const(width),
            Arg::Count,
            Arg::Const(gate.stride),
            Arg::Const(up.stride),
            Arg::Const(to.stride),
        ];
        let accesses = vec![
            self.read(inputs[0], Split::Rows)?,
            self.read(inputs[1], Split::Rows)?,
            self.write(out, Split::Rows)?,
        ];
        let (rows, family) = (self.rows_of(inputs[0]), gated::family(activation));
        Ok(self.call(label, self.symbol(&family), args, rows, accesses))
    }

    /// An inline loop over `inputs`.
    pub(super) fn elementwise(
        &self,
        label: &str,
        op: Elementwise,
        inputs: &[Value],
        out: Value,
    ) -> Result<Launch, Error> {
        let output = self.write(out, Split::Rows)?;
        let mut accesses = Vec::new();
        let mut buffers = Vec::new();
        for &input in &inputs[..op.arity()] {
            accesses.push(self.read(input, Split::Rows)?);
            buffers.push(self.buffer(input)?);
        }
        accesses.push(output);
        Ok(Launch {
            label: label.to_string(),
            work: Work::Elementwise {
                op,
                inputs: buffers,
                output: Buffer {
                    offset: output.offset,
                    stride: output.stride,
                },
                width: self.graph.value_type(inputs[0]).width,
                rows: output.rows,
            },
            barrier: false,
            accesses,
            reason: String::new(),
            bytes: 0,
            macs: 0,
            seconds: self.selector.light_seconds(output.rows * output.width),
        })
    }

    /// Gathers the rows that want logits from all the rows the trunk may have left.
    pub(super) fn select_rows(
        &self,
        label: &str,
        input: Value,
        out: Value,
    ) -> Result<Launch, Error> {
        let (from, to) = (self.buffer(input)?, self.buffer(out)?);
        let args = vec![
            Arg::Arena(from.offset),
            Arg::Step(0),
            Arg::Arena(to.offset),
            Arg::Const(self.graph.value_type(input).width),
            Arg::Begin,
            Arg::End,
            Arg::Const(from.stride),
            Arg::Const(to.stride),
        ];
        let accesses = vec![self.hidden, self.write(out, Split::Rows)?];
        Ok(self.call(
            label,
            "gather_rows_scalar".into(),
            args,
            self.rows,
            accesses,
        ))
    }
}

/// The first row of a worker's share.
pub(super) fn at_share(rows: Buffer) -> Arg {
    Arg::ArenaAt {
        offset: rows.offset,
        stride: rows.stride,
    }
}
