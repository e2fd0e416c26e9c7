//! Short convolutions and gated delta rules, with the states of all slots.

use super::{Lowering, bits};
use crate::error::Error;
use crate::graph::{Value, WeightId};
use crate::plan::{Access, Arg, Form, Launch, Space, Split, Work};
use coldpress_kernels::cpu::abi::TILE_N;
use coldpress_kernels::recurrent::{Heads, Kind};

/// The fields of a delta rule.
pub(super) struct Rule {
    /// Index into `OpGraph::states`.
    pub(super) state: usize,
    pub(super) heads: Heads,
    /// Vector of the decay.
    pub(super) a: WeightId,
    /// Vector added to alpha.
    pub(super) dt: WeightId,
    /// Added to sums of squares.
    pub(super) eps: f32,
}

impl Lowering<'_> {
    /// Workers divide the channels.
    pub(super) fn short_conv(
        &self,
        label: &str,
        (state, weight): (usize, WeightId),
        x: Value,
        out: Value,
    ) -> Result<Launch, Error> {
        let (from, to) = (self.buffer(x)?, self.buffer(out)?);
        let w = self.graph.weight(weight);
        let args = vec![
            Arg::Arena(from.offset),
            Arg::Weights(self.placement(weight, Form::Vector)?.offset),
            Arg::Arena(to.offset),
            Arg::Kv(self.states[state].offset),
            Arg::Step(0),
            Arg::Const(w.k),
            Arg::Const(w.n),
            Arg::Worker,
            Arg::Workers,
            Arg::Const(from.stride),
            Arg::Const(to.stride),
            Arg::Const(self.states[state].slot_bytes as usize),
        ];
        let cells = Split::Live {
            per_row: w.k / TILE_N,
            bytes: TILE_N * 4,
        };
        let accesses = vec![
            self.read(x, cells)?,
            self.write(out, cells)?,
            state_access(state),
        ];
        Ok(self.recurrent(label, Kind::ShortConv, args, accesses))
    }

    /// Workers divide the heads of all slots.
    pub(super) fn delta_rule(
        &self,
        label: &str,
        rule: &Rule,
        inputs: &[Value],
        out: Value,
    ) -> Result<Launch, Error> {
        let (x, alpha, beta) = (inputs[0], inputs[1], inputs[2]);
        let (from, to) = (self.buffer(x)?, self.buffer(out)?);
        let (by, at) = (self.buffer(alpha)?, self.buffer(beta)?);
        let state = self.states[rule.state];
        let heads = rule.heads;
        let args = vec![
            Arg::Arena(from.offset),
            Arg::Arena(by.offset),
            Arg::Arena(at.offset),
            Arg::Weights(self.placement(rule.a, Form::Vector)?.offset),
            Arg::Weights(self.placement(rule.dt, Form::Vector)?.offset),
            Arg::Arena(to.offset),
            Arg::Kv(state.offset),
            Arg::Step(0),
            Arg::Const(heads.key_heads),
            Arg::Const(heads.heads),
            Arg::Const(heads.dim),
            Arg::Const(usize::from(heads.grouped)),
            Arg::Worker,
            Arg::Workers,
            Arg::Const(from.stride),
            Arg::Const(by.stride),
            Arg::Const(at.stride),
            Arg::Const(to.stride),
            Arg::Const(state.slot_bytes as usize),
            bits(rule.eps),
        ];
        // A head's key is read by all heads that share it.
        let cells = Split::Live {
            per_row: heads.heads,
            bytes: heads.dim * 4,
        };
        let accesses = vec![
            self.read(x, Split::Whole)?,
            self.read(alpha, Split::Whole)?,
            self.read(beta, Split::Whole)?,
            self.write(out, cells)?,
            state_access(rule.state),
        ];
        Ok(self.recurrent(label, Kind::DeltaRule, args, accesses))
    }

    fn recurrent(&self, label: &str, kind: Kind, args: Vec<Arg>, accesses: Vec<Access>) -> Launch {
        let work = Work::Recurrent {
            symbol: self.symbol(kind.family()),
            args,
        };
        // A decode step reads and writes the states of as many slots as it has rows.
        let states = |a: &Access| match a.space {
            Space::State(state) => 2 * self.states[state].slot_bytes as usize * self.rows,
            _ => a.width * self.rows,
        };
        let touched = accesses.iter().map(states).sum();
        self.launch(label, work, touched, accesses)
    }
}

/// The state of every slot, read and written.
fn state_access(state: usize) -> Access {
    Access {
        space: Space::State(state),
        value: None,
        offset: 0,
        stride: 0,
        rows: 0,
        width: 0,
        write: true,
        split: Split::Whole,
    }
}
