//! Mixtures of experts: the router's choice, what matmuls by expert are told of it, and the sum of what experts made of a
//! row with what is added to it and the norm that follows. The matmuls themselves are in `matmul.rs`.

use super::{LIVE, Lowering, NULL, adapt, bits, number, refused};
use crate::error::Error;
use crate::graph::{Gating, Op, Routing, Rows, Value, WeightId};
use crate::plan::{Access, Form, Launch};
use coldpress_kernels::gpu::experts::{
    self, GateArgs, LISTS, RouteArgs, Routed, Routes, ScaleArgs, SumArgs,
};
use coldpress_kernels::gpu::{metal, rows};
use coldpress_runtime::manifest::GridArg;
use petgraph::stable_graph::NodeIndex;

impl Lowering<'_> {
    /// Where a router leaves what in this program.
    fn routes(&self, routes: Value) -> Routes {
        Routes {
            rows: self.rows,
            used: self.graph.value_type(routes).width,
        }
    }

    /// Each row's experts, and the items of all matmuls that follow.
    pub(super) fn route(
        &self,
        label: &str,
        routing: Routing,
        logits: Value,
        out: Value,
    ) -> Result<Vec<Launch>, Error> {
        let routed = Routed {
            experts: self.graph.value_type(logits).width,
            used: routing.used,
        };
        let stamps = self.gpu.choices.stamps(self.graph, out, self.rows)?;
        if stamps.len() > LISTS {
            return Err(refused(label, format!("experts in stamps of {stamps:?}")));
        }
        let list = |i: usize| match stamps.get(i) {
            Some(&stamp) => (number(stamp), number(routed.most_items(self.rows, stamp))),
            None => (number(0), number(0)),
        };
        let [(stamp0, bound0), (stamp1, bound1), (stamp2, bound2)] = [0, 1, 2].map(list);
        let args = RouteArgs {
            logits: self.arena(logits)?,
            routes: self.arena(out)?,
            counters: GridArg::Arena(0),
            live: LIVE,
            rows: number(self.rows),
            used: number(routing.used),
            logits_stride: self.row_stride(logits)?,
            stamp0,
            bound0,
            stamp1,
            bound1,
            stamp2,
            bound2,
        };
        let of_used = routing.gating == Gating::SoftmaxOfUsed;
        let kernels = match self.gpu.machine.is_metal() {
            true => {
                let router = (routed.experts, of_used, routing.normalise);
                experts::route_apart(router, self.rows, metal::SHARED_BYTES as usize)
            }
            false => {
                let kernel = experts::route(routed.experts, of_used, routing.normalise);
                vec![(kernel, experts::route_geometry(routed.experts, self.rows))]
            }
        };
        // What all of them move and take, by as many as there are.
        let bytes = experts::route_bytes(routed, self.rows) / kernels.len() as u64;
        let seconds = experts::route_seconds(routed, self.rows) / kernels.len() as f64;
        let launches = kernels.into_iter().map(|what| {
            let accesses = vec![self.reads(logits)?, self.writes(out)?];
            let launch = self.grid(label, what, args.list(), accesses, bytes);
            let seconds = launch.seconds + seconds;
            Ok(Launch { seconds, ..launch })
        });
        launches.collect()
    }

    /// What the matmul by expert at `node` is told of its rows, if its kernel's stamp is `stamp`; its parts are matrices of
    /// their own.
    pub(super) fn routed_args(&self, node: NodeIndex, stamp: usize) -> Result<[GridArg; 5], Error> {
        let inputs = self.graph.inputs(node);
        let (x, routes) = (inputs[0], inputs[1]);
        let left = self.routes(routes);
        let stamps = self.gpu.choices.stamps(self.graph, routes, self.rows)?;
        let list = stamps.iter().position(|&s| s == stamp).ok_or_else(|| {
            let label = &self.graph.nodes[node].label;
            Error::Internal(format!("{label}: no items of {stamp} rows"))
        })?;
        let share = match self.graph.value_type(x).rows {
            Rows::Routed { .. } => 1,
            Rows::Step | Rows::Logits => left.used,
        };
        Ok([
            self.arena(routes)?,
            number(left.items(list)),
            number(left.order()),
            number(share),
            number(1),
        ])
    }

    /// Routed rows times the factors of their experts.
    pub(super) fn expert_scale(
        &self,
        label: &str,
        factors: WeightId,
        inputs: &[Value],
        out: Value,
    ) -> Result<Vec<Launch>, Error> {
        let (x, routes) = (inputs[0], inputs[1]);
        let width = self.graph.value_type(x).width;
        rows::legal(width).map_err(|why| refused(label, why))?;
        let left = self.routes(routes);
        let args = ScaleArgs {
            x: self.arena(x)?,
            routes: self.arena(routes)?,
            factors: GridArg::Weights(self.placement(factors, Form::Vector)?.offset),
            live: LIVE,
            out: self.arena(out)?,
            width: number(width),
            used: number(left.used),
            x_stride: self.row_stride(x)?,
            out_stride: self.row_stride(out)?,
        };
        let what = (
            experts::scale(),
            experts::scale_geometry(width, left.routed()),
        );
        let accesses = vec![self.reads(x)?, self.reads(routes)?, self.writes(out)?];
        let bytes = (left.routed() * width * 8) as u64;
        Ok(vec![self.grid(label, what, args.list(), accesses, bytes)])
    }

    /// Rows times the logistic functions of their gates.
    pub(super) fn gate_rows(
        &self,
        label: &str,
        inputs: &[Value],
        out: Value,
    ) -> Result<Vec<Launch>, Error> {
        let (x, gate) = (inputs[0], inputs[1]);
        let width = self.graph.value_type(x).width;
        rows::legal(width).map_err(|why| refused(label, why))?;
        let args = GateArgs {
            x: self.arena(x)?,
            gate: self.arena(gate)?,
            out: self.arena(out)?,
            width: number(width),
            rows: number(self.rows),
            x_stride: self.row_stride(x)?,
            gate_stride: self.row_stride(gate)?,
            out_stride: self.row_stride(out)?,
        };
        let what = (
            experts::gate_rows(),
            experts::gate_geometry(width, self.rows),
        );
        let accesses = vec![self.reads(x)?, self.reads(gate)?, self.writes(out)?];
        let bytes = (self.rows * width * 8) as u64;
        Ok(vec![self.grid(label, what, args.list(), accesses, bytes)])
    }

    /// The sum over experts and what completes it: factors of experts before it, up to two additions, the gate of what is
    /// added first, and a norm after it.
    pub(super) fn expert_sum(&self, group: &[NodeIndex]) -> Result<Vec<Launch>, Error> {
        let mut factors = None;
        let mut input = None;
        let mut added = Vec::new();
        let mut gate: Option<(Value, Value)> = None;
        let mut norm = None;
        let mut before: Option<Value> = None;
        // The last value that is not a norm.
        let mut out = None;
        let mut label = "";
        for &node in group {
            let (n, inputs) = (&self.graph.nodes[node], self.graph.inputs(node));
            let value = Value { node, port: 0 };
            match n.op {
                Op::ExpertScale { factors: of } => {
                    factors = Some(of);
                    input = Some(inputs[0]);
                }
                Op::ExpertSum => {
                    input = input.or(Some(inputs[0]));
                    (label, out) = (&n.label, Some((value, inputs[1])));
                }
                Op::GateRows => {
                    // What the addition after it adds.
                    gate = Some((value, inputs[1]));
                    added.push(inputs[0]);
                    continue;
                }
                Op::Add => {
                    let gated = gate.map(|(rows, _)| rows);
                    let other = inputs.iter().find(|&&i| Some(i) != before);
                    added.extend(other.filter(|&&other| Some(other) != gated));
                    out = out.map(|(_, routes)| (value, routes));
                }
                Op::RmsNorm { weight, eps } | Op::NormQuantise { weight, eps } => {
                    norm = Some((weight, eps, value));
                }
                ref op => return Err(Error::Internal(format!("{op:?} after experts"))),
            }
            before = Some(value);
        }
        let (Some(x), Some((out, routes))) = (input, out) else {
            return Err(Error::Internal(format!("{label}: a sum of nothing")));
        };
        let width = self.graph.value_type(out).width;
        rows::legal(width).map_err(|why| refused(label, why))?;
        let used = self.graph.value_type(routes).width;
        let mut accesses: Vec<Access> = vec![self.reads(x)?, self.reads(routes)?];
        for &value in &added {
            accesses.push(self.reads(value)?);
        }
        let (first, first_stride) = self.rows_of(added.first())?;
        let (second, second_stride) = self.rows_of(added.get(1))?;
        let gate = gate.map(|(_, gate)| gate);
        let (gates, gate_stride) = self.rows_of(gate.as_ref())?;
        if let Some(gate) = gate {
            accesses.push(self.reads(gate)?);
        }
        let kept = !adapt::passes_through(self.graph, out);
        let kept = kept.then_some(out);
        let (to, to_stride) = self.rows_of(kept.as_ref())?;
        if let Some(out) = kept {
            accesses.push(self.writes(out)?);
        }
        let (mut weight, mut normed, mut eps) = (NULL, (NULL, number(0)), number(0));
        if let Some((of, added, value)) = norm {
            weight = GridArg::Weights(self.placement(of, Form::Vector)?.offset);
            normed = self.rows_of(Some(&value))?;
            eps = bits(added);
            accesses.push(self.writes(value)?);
        }
        let factors = match factors {
            Some(factors) => GridArg::Weights(self.placement(factors, Form::Vector)?.offset),
            None => NULL,
        };
        let args = SumArgs {
            x: self.arena(x)?,
            routes: self.arena(routes)?,
            factors,
            live: LIVE,
            first,
            gate: gates,
            second,
            out: to,
            norm_weight: weight,
            normed: normed.0,
            width: number(width),
            used: number(used),
            x_stride: self.row_stride(x)?,
            first_stride,
            gate_stride,
            second_stride,
            out_stride: to_stride,
            normed_stride: normed.1,
            eps,
        };
        let form = norm.map(|(_, _, value)| self.form(value));
        let what = (experts::sum(width, form), experts::sum_geometry(self.rows));
        let bytes = experts::sum_bytes(width, self.rows, used, added.len());
        Ok(vec![self.grid(label, what, args.list(), accesses, bytes)])
    }
}
