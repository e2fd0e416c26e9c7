//! Mixtures of experts: routing, matmuls by expert, sums. Routed rows lie by expert (`coldpress_kernels::cpu::groups`):
//! rows of the step are gathered into that order, and stay in it until they are summed.

use super::Lowering;
use super::rows::at_share;
use crate::error::Error;
use crate::graph::{Gating, Op, OpGraph, Part, Routing, Rows, Value, WeightId};
use crate::plan::memory::{rows_of, scratch_value, stride};
use crate::plan::select::{packed_layout, tile_bytes};
use crate::plan::{
    Access, Arg, Buffer, ExpertPart, Experts, Form, Launch, Scratch, Space, Split, Work,
};
use coldpress_kernels::cpu::abi::TILE_N;
use coldpress_kernels::matmul::Cost;
use petgraph::stable_graph::NodeIndex;

/// Where the rows of the step lie that `node` gathers, in a step of `rows` rows, not placed yet; nothing where it gathers
/// none.
pub fn scratch(graph: &OpGraph, node: NodeIndex, rows: usize) -> Option<Scratch> {
    if !matches!(graph.nodes[node].op, Op::ExpertMatMul { .. }) {
        return None;
    }
    let [x, _] = graph.inputs(node)[..] else {
        return None;
    };
    let ty = graph.value_type(x);
    if ty.rows != Rows::Step {
        return None;
    }
    let routed = graph.nodes[node].outputs.first().copied()?;
    let mut gathered = Scratch::piece(stride(ty));
    gathered.slots = rows_of(routed, rows);
    Some(gathered)
}

impl Lowering<'_> {
    pub(super) fn route(
        &self,
        label: &str,
        routing: Routing,
        logits: Value,
        out: Value,
    ) -> Result<Launch, Error> {
        let (from, to) = (self.buffer(logits)?, self.buffer(out)?);
        let args = vec![
            Arg::Arena(from.offset),
            Arg::Arena(to.offset),
            Arg::Step(0),
            Arg::Const(self.graph.value_type(logits).width),
            Arg::Const(routing.used),
            Arg::Const(usize::from(routing.gating == Gating::SoftmaxOfUsed)),
            Arg::Const(usize::from(routing.normalise)),
            Arg::Begin,
            Arg::End,
            Arg::Const(from.stride),
            Arg::Const(to.stride),
        ];
        let accesses = vec![
            self.read(logits, Split::Rows)?,
            self.write(out, Split::Rows)?,
        ];
        Ok(self.call(label, "route_scalar".into(), args, self.rows, accesses))
    }

    /// The gathering of rows that are not routed yet, then the matmuls.
    pub(super) fn expert_matmul(
        &self,
        label: &str,
        node: NodeIndex,
        parts: &[Part],
        experts: usize,
    ) -> Result<Vec<Launch>, Error> {
        let inputs = self.graph.inputs(node);
        let (x, routes) = (inputs[0], inputs[1]);
        let used = self.graph.value_type(routes).width;
        let mut launches = Vec::new();
        let input = match self.graph.value_type(x).rows {
            Rows::Routed { .. } => self.read(x, Split::Whole)?,
            _ => {
                let (gather, gathered) = self.gather(label, node, (experts, used))?;
                launches.push(gather);
                gathered
            }
        };
        let mut work = Experts {
            routes: self.buffer(routes)?,
            experts,
            used,
            input: Buffer {
                offset: input.offset,
                stride: input.stride,
            },
            k: self.graph.value_type(x).width,
            rows: self.rows,
            parts: Vec::with_capacity(parts.len()),
        };
        let mut accesses = vec![input, self.read(routes, Split::Whole)?];
        let mut costs = Vec::with_capacity(parts.len());
        let mut distinct = 0.0;
        for (i, part) in parts.iter().enumerate() {
            let w = &self.graph.weights[part.weight.0 as usize];
            let out = Value {
                node,
                port: i as u16,
            };
            let pick = self.selector.experts(w, (experts, used), self.rows)?;
            let tiles = (w.n / experts).div_ceil(TILE_N);
            // Which tiles of which rows a worker computes, only the step decides.
            let cells = Split::Live {
                per_row: tiles,
                bytes: TILE_N * 4,
            };
            accesses.push(self.write(out, cells)?);
            distinct = pick.distinct;
            costs.push(pick.cost);
            work.parts.push(ExpertPart {
                label: w.name.trim_end_matches(".weight").to_string(),
                symbol: pick.symbol,
                weights: self.placement(part.weight, Form::Experts(experts))?.offset,
                tile_bytes: tile_bytes(&packed_layout(w)?, w)?,
                tiles,
                read_cost: pick.read_cost,
                bias: match part.bias {
                    Some(bias) => Some(self.placement(bias, Form::Vector)?.offset),
                    None => None,
                },
                output: self.buffer(out)?,
            });
        }
        let cost: Cost = costs.into_iter().sum();
        launches.push(Launch {
            label: label.to_string(),
            work: Work::Experts(work),
            barrier: false,
            accesses,
            reason: format!("{cost}; about {distinct:.1} of {experts} experts"),
            bytes: cost.bytes,
            macs: cost.macs,
            seconds: cost.seconds,
        });
        Ok(launches)
    }

    /// Copies the rows that `node` reads to their routed rows; and where these are read from.
    fn gather(
        &self,
        label: &str,
        node: NodeIndex,
        (experts, used): (usize, usize),
    ) -> Result<(Launch, Access), Error> {
        let inputs = self.graph.inputs(node);
        let (x, routes) = (inputs[0], inputs[1]);
        let value = scratch_value(self.graph, node);
        let (from, by, to) = (self.buffer(x)?, self.buffer(routes)?, self.buffer(value)?);
        let gathered = Access {
            space: Space::Arena,
            value: Some(value),
            offset: to.offset,
            stride: to.stride,
            rows: self.rows * used,
            width: to.stride,
            write: false,
            split: Split::Whole,
        };
        let written = Access {
            write: true,
            split: Split::Live {
                per_row: 1,
                bytes: to.stride,
            },
            ..gathered
        };
        let args = vec![
            Arg::Arena(from.offset),
            Arg::Arena(by.offset),
            Arg::Step(0),
            Arg::Arena(to.offset),
            Arg::Const(experts),
            Arg::Const(used),
            Arg::Const(to.stride),
            Arg::Begin,
            Arg::End,
            Arg::Const(from.stride),
            Arg::Const(by.stride),
            Arg::Const(to.stride),
        ];
        let accesses = vec![
            self.read(x, Split::Rows)?,
            self.read(routes, Split::Whole)?,
            written,
        ];
        let symbol = "gather_experts_scalar".into();
        Ok((
            self.call(label, symbol, args, self.rows, accesses),
            gathered,
        ))
    }

    /// Multiplies routed rows in place.
    pub(super) fn expert_scale(
        &self,
        label: &str,
        factors: WeightId,
        inputs: &[Value],
        out: Value,
    ) -> Result<Launch, Error> {
        let (x, routes) = (inputs[0], inputs[1]);
        self.same_memory(label, x, out)?;
        let (rows, by) = (self.buffer(x)?, self.buffer(routes)?);
        let args = vec![
            Arg::Arena(rows.offset),
            Arg::Arena(by.offset),
            Arg::Step(0),
            Arg::Weights(self.placement(factors, Form::Vector)?.offset),
            Arg::Const(self.graph.value_type(x).width),
            Arg::Const(self.graph.weight(factors).k),
            Arg::Const(self.graph.value_type(routes).width),
            Arg::Begin,
            Arg::End,
            Arg::Const(rows.stride),
            Arg::Const(by.stride),
        ];
        // A row's routed rows are its worker's, wherever they lie.
        let cells = Split::Live {
            per_row: 1,
            bytes: rows.stride,
        };
        let accesses = vec![
            self.read(x, cells)?,
            self.read(routes, Split::Whole)?,
            Access {
                value: Some(out),
                ..self.write(x, cells)?
            },
        ];
        Ok(self.call(
            label,
            "expert_scale_scalar".into(),
            args,
            self.rows,
            accesses,
        ))
    }

    pub(super) fn expert_sum(
        &self,
        label: &str,
        inputs: &[Value],
        out: Value,
    ) -> Result<Launch, Error> {
        let (x, routes) = (inputs[0], inputs[1]);
        let (from, by, to) = (self.buffer(x)?, self.buffer(routes)?, self.buffer(out)?);
        let used = self.graph.value_type(routes).width;
        let args = vec![
            Arg::Arena(from.offset),
            Arg::Arena(by.offset),
            Arg::Step(0),
            Arg::Arena(to.offset),
            Arg::Const(self.graph.value_type(out).width),
            Arg::Const(self.experts_of(routes)),
            Arg::Const(used),
            Arg::Begin,
            Arg::End,
            Arg::Const(from.stride),
            Arg::Const(by.stride),
            Arg::Const(to.stride),
        ];
        let accesses = vec![
            self.read(x, Split::Whole)?,
            self.read(routes, Split::Whole)?,
            self.write(out, Split::Rows)?,
        ];
        Ok(self.call(label, "expert_sum_scalar".into(), args, self.rows, accesses))
    }

    /// Experts that routes are chosen from.
    fn experts_of(&self, routes: Value) -> usize {
        let logits = self.graph.inputs(routes.node);
        logits
            .first()
            .map_or(0, |&v| self.graph.value_type(v).width)
    }

    /// Multiplies rows in place by the logistic function of their gates.
    pub(super) fn gate_rows(
        &self,
        label: &str,
        inputs: &[Value],
        out: Value,
    ) -> Result<Launch, Error> {
        let (x, gate) = (inputs[0], inputs[1]);
        self.same_memory(label, x, out)?;
        let (rows, by) = (self.buffer(x)?, self.buffer(gate)?);
        let args = vec![
            at_share(rows),
            at_share(by),
            Arg::Const(self.graph.value_type(x).width),
            Arg::Count,
            Arg::Const(rows.stride),
            Arg::Const(by.stride),
        ];
        let accesses = vec![
            self.read(x, Split::Rows)?,
            self.read(gate, Split::Rows)?,
            self.write(out, Split::Rows)?,
        ];
        Ok(self.call(label, "gate_rows_scalar".into(), args, self.rows, accesses))
    }
}
