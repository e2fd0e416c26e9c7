//! The gated feed-forward network of one layer: act(gate x) * (up x), then down.

use super::parts::{Builder, Rows};
use crate::error::Error;
use crate::graph::{Activation, Op, Value};

/// What tells one layer's feed-forward network from another's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ffn {
    pub activation: Activation,
    /// Whether the gate is the first half of `ffn_up` instead of a tensor of its own.
    pub gate_in_up: bool,
    /// Whether its projections may have biases.
    pub bias: bool,
    /// Whether llama.cpp multiplies its products by their `.scale` tensors; where it does not, they change nothing.
    pub scales: bool,
}

impl Ffn {
    /// Three tensors without biases.
    pub const fn new(activation: Activation) -> Ffn {
        Ffn {
            activation,
            gate_in_up: false,
            bias: false,
            scales: true,
        }
    }

    /// As [`Ffn::new`], where llama.cpp leaves `.scale` tensors alone.
    pub const fn unscaled(activation: Activation) -> Ffn {
        Ffn {
            scales: false,
            ..Ffn::new(activation)
        }
    }
}

impl Builder<'_> {
    /// From the normed rows to `ffn_down`, without the residual.
    pub fn ffn(&mut self, layer: usize, x: Value, ffn: &Ffn) -> Result<Value, Error> {
        let (hidden, width) = (self.hparams.hidden, self.hparams.ffn[layer]);
        let label = |part: &str| format!("blk.{layer}.{part}");
        let (up_label, gate_label) = (label("ffn_up"), label("ffn_gate"));
        if !ffn.scales {
            for label in [&up_label, &gate_label, &label("ffn_down")] {
                self.ignore(format!("{label}.scale"));
            }
        }
        let half = |first| {
            let rows = Rows {
                of: &up_label,
                total: 2 * width,
                first,
            };
            ffn.gate_in_up.then_some(rows)
        };
        let gate = self.projection(&gate_label, x, width, half(0), ffn)?;
        let up = self.projection(&up_label, x, width, half(width), ffn)?;
        let gated = self.gated(layer, "", ffn.activation, (gate, up))?;
        self.projection(&label("ffn_down"), gated, hidden, None, ffn)
    }

    /// The activation of a gate times what it lets through; labels end in `suffix`.
    pub fn gated(
        &mut self,
        layer: usize,
        suffix: &str,
        activation: Activation,
        (gate, up): (Value, Value),
    ) -> Result<Value, Error> {
        let act = format!("blk.{layer}.ffn_act{suffix}");
        // Gate and value are not a product of two functions.
        if activation == Activation::ClampedSwish {
            let op = Op::GatedAct(activation);
            return self.graph.add_one(op, act, &[gate, up]);
        }
        let act = self.graph.add_one(Op::Act(activation), act, &[gate])?;
        let gated = format!("blk.{layer}.ffn_gated{suffix}");
        self.graph.add_one(Op::Mul, gated, &[act, up])
    }

    /// (x W^T + bias) times the scale: unlike in attention, the bias is scaled too.
    fn projection(
        &mut self,
        label: &str,
        x: Value,
        n: usize,
        rows: Option<Rows>,
        ffn: &Ffn,
    ) -> Result<Value, Error> {
        let k = self.graph.value_type(x).width;
        let part = match rows {
            Some(rows) => self.part_of(label, (n, k), rows, ffn.bias)?,
            None => self.part(label, (n, k), ffn.bias)?,
        };
        let y = self.matmul(label, x, part)?;
        let scale = self.scale_of(rows.map_or(label, |rows| rows.of))?;
        self.scale(&format!("{label}_scaled"), y, scale)
    }
}
