//! Short convolutions and gated delta rules, with the states of all slots.

use super::{LIVE, Lowering, NULL, bits, number, refused};
use crate::error::Error;
use crate::graph::{HeadNorm, Op, Value, WeightId};
use crate::plan::{Access, Form, Launch, Space, Split};
use coldpress_kernels::gpu::recurrent::{
    self, DeltaRuleArgs, ShortConvArgs, delta_rule_geometry, short_conv_geometry,
};
use coldpress_kernels::gpu::{Geometry, Kernel};
use coldpress_runtime::manifest::GridArg;
use petgraph::stable_graph::NodeIndex;

impl Lowering<'_> {
    pub(super) fn short_conv(
        &self,
        label: &str,
        (state, weight): (usize, WeightId),
        x: Value,
        out: Value,
    ) -> Result<Vec<Launch>, Error> {
        let w = self.graph.weight(weight);
        let (channels, slots) = (w.k, self.gpu.step.slots as usize);
        let (geometry, by_row) = short_conv_geometry(channels, self.rows, slots);
        let args = ShortConvArgs {
            x: self.arena(x)?,
            weight: GridArg::Weights(self.placement(weight, Form::Vector)?.offset),
            out: self.arena(out)?,
            state: GridArg::Kv(self.states[state].offset),
            slots: GridArg::Step(self.gpu.step.slot_of_row()),
            positions: GridArg::Step(self.gpu.step.positions()),
            live: LIVE,
            channels: number(channels),
            by_row: number(usize::from(by_row)),
            x_stride: self.row_stride(x)?,
            out_stride: self.row_stride(out)?,
            slot_stride: GridArg::Const(self.states[state].slot_bytes),
        };
        let what = (recurrent::short_conv(w.n), geometry);
        let accesses = vec![self.reads(x)?, self.writes(out)?];
        Ok(vec![self.recurrent(
            label,
            what,
            args.list(),
            accesses,
            state,
        )])
    }

    /// The delta rule at `node`, with the norm of every head that alone reads what it found, if there is one; `out` is the
    /// norm's then.
    pub(super) fn delta_rule(
        &self,
        node: NodeIndex,
        norm: Option<HeadNorm>,
        out: Value,
    ) -> Result<Vec<Launch>, Error> {
        let (inputs, n) = (self.graph.inputs(node), &self.graph.nodes[node]);
        let label = n.label.as_str();
        let &Op::DeltaRule {
            state,
            heads,
            a,
            dt,
            eps,
        } = &n.op
        else {
            return Err(Error::Internal(format!("{label}: no delta rule")));
        };
        recurrent::legal(&heads).map_err(|why| refused(label, why))?;
        let (x, alpha, beta) = (inputs[0], inputs[1], inputs[2]);
        let slots = self.gpu.step.slots as usize;
        let (geometry, by_row) = delta_rule_geometry(&heads, self.rows, slots);
        let args = DeltaRuleArgs {
            x: self.arena(x)?,
            alpha: self.arena(alpha)?,
            beta: self.arena(beta)?,
            a: GridArg::Weights(self.placement(a, Form::Vector)?.offset),
            dt: GridArg::Weights(self.placement(dt, Form::Vector)?.offset),
            out: self.arena(out)?,
            state: GridArg::Kv(self.states[state].offset),
            slots: GridArg::Step(self.gpu.step.slot_of_row()),
            positions: GridArg::Step(self.gpu.step.positions()),
            live: LIVE,
            key_heads: number(heads.key_heads),
            heads: number(heads.heads),
            by_row: number(usize::from(by_row)),
            x_stride: self.row_stride(x)?,
            alpha_stride: self.row_stride(alpha)?,
            beta_stride: self.row_stride(beta)?,
            out_stride: self.row_stride(out)?,
            slot_stride: GridArg::Const(self.states[state].slot_bytes),
            eps: bits(eps),
            norm: match norm {
                Some(norm) => GridArg::Weights(self.placement(norm.weight, Form::Vector)?.offset),
                None => NULL,
            },
            norm_eps: bits(norm.map_or(0.0, |norm| norm.eps)),
        };
        let what = (recurrent::delta_rule(&heads, norm.is_some()), geometry);
        let accesses = vec![
            self.reads(x)?,
            self.reads(alpha)?,
            self.reads(beta)?,
            self.writes(out)?,
        ];
        Ok(vec![self.recurrent(
            label,
            what,
            args.list(),
            accesses,
            state,
        )])
    }

    fn recurrent(
        &self,
        label: &str,
        what: (Kernel, Geometry),
        args: Vec<GridArg>,
        mut accesses: Vec<Access>,
        state: usize,
    ) -> Launch {
        let touched: usize = accesses.iter().map(|a| a.width).sum();
        let slot_bytes = self.states[state].slot_bytes as usize;
        let slots = self.gpu.step.slots as usize;
        let states = recurrent::state_bytes(slot_bytes, self.rows, slots);
        accesses.push(Access {
            space: Space::State(state),
            value: None,
            offset: 0,
            stride: 0,
            rows: 0,
            width: 0,
            write: true,
            split: Split::Whole,
        });
        let rows = (touched * self.rows) as u64;
        let launch = self.grid(label, what, args, accesses, rows);
        // Nothing keeps states near from one step to the next.
        let seconds = launch.seconds + states as f64 / self.gpu.machine.rates.bandwidth;
        Launch { seconds, ..launch }
    }
}
