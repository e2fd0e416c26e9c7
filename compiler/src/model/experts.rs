//! Mixtures of experts: the router, the experts' feed-forward networks, and the network that all rows pass besides.
//! What all decoders share is in parts.rs.

use coldpress_kernels::experts::legal;

use super::check::Neutral;
use super::decoder::Feed;
use super::ffn::Ffn;
use super::parts::Builder;
use crate::error::Error;
use crate::graph::{Activation, Gating, Op, Part, Routing, Value};

/// How wide an expert is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExpertWidth {
    /// `feed_forward_length`.
    Dense,
    /// `expert_feed_forward_length`; without it, the experts of a row share `feed_forward_length`.
    OwnKey,
}

/// Whether all rows also pass a network of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shared {
    None,
    /// Through a gate of its own.
    Gated,
    /// As `Gated`, its products multiplied by the factors of its tensors where the file has some.
    GatedAndScaled,
    /// Where the file says how wide it is.
    Plain,
}

/// What tells one mixture of experts from another.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExpertShape {
    pub activation: Activation,
    pub gating: Gating,
    /// Whether a row's weights are divided by their sum.
    pub normalise: bool,
    pub width: ExpertWidth,
    /// Whether router and experts have biases.
    pub biases: bool,
    /// Whether products are multiplied by the factors of their experts where the file has some; llama.cpp does not do so
    /// for every architecture.
    pub scales: bool,
    /// The network that all rows pass besides.
    pub shared: Shared,
}

impl ExpertShape {
    /// Mixtral's.
    pub const MIXTRAL: ExpertShape = ExpertShape {
        activation: Activation::Silu,
        gating: Gating::Softmax,
        normalise: true,
        width: ExpertWidth::Dense,
        biases: false,
        scales: true,
        shared: Shared::None,
    };
}

/// Of the keys that are read for every architecture, those of models with experts.
pub(super) const READS: &[&str] = &["expert_count"];
/// What a model with experts is refused for, since nothing here does it.
pub(super) const REFUSES: &[Neutral] = &[
    ("expert_gating_func", &[0.0, 1.0]),
    ("expert_group_count", &[0.0, 1.0]),
    ("expert_group_used_count", &[0.0, 1.0]),
    ("expert_weights_scale", &[0.0, 1.0]),
];

/// The experts of one layer.
struct Chosen {
    experts: usize,
    routes: Value,
    biases: bool,
    scales: bool,
}

impl Builder<'_> {
    /// Whether the file says that its model has experts.
    pub fn has_experts(&self) -> Result<bool, Error> {
        let count = self.metadata.gguf.u32(&self.metadata.key("expert_count"))?;
        Ok(count.is_some_and(|count| count > 0))
    }

    /// Experts of a layer, and how many of them a row uses.
    pub fn expert_counts(&self) -> Result<(usize, usize), Error> {
        let (count, used) = ("expert_count", "expert_used_count");
        let (experts, used) = (self.metadata.size(count)?, self.metadata.size(used)?);
        legal(experts, used).map_err(|why| Error::Unsupported {
            what: self.metadata.key("expert_used_count"),
            why: why.to_string(),
        })?;
        Ok((experts, used))
    }

    /// Experts like Mixtral's where the file says that there are some, else this network.
    pub fn mixtral_or(&self, ffn: Ffn) -> Result<Feed, Error> {
        Ok(match self.has_experts()? {
            true => Feed::Experts(ExpertShape::MIXTRAL),
            false => Feed::Dense(ffn),
        })
    }

    /// Router and experts of one layer, without the residual.
    pub fn experts(&mut self, layer: usize, x: Value, shape: &ExpertShape) -> Result<Value, Error> {
        let dense = self.hparams.ffn[layer];
        let label = |part: &str| format!("blk.{layer}.{part}");
        let (experts, _) = self.expert_counts()?;
        let logits = self.linear(&label("ffn_gate_inp"), x, experts, shape.biases)?;
        let sum = self.routed(layer, x, logits, shape)?;
        let width = self
            .metadata
            .gguf
            .u32(&self.metadata.key("expert_shared_feed_forward_length"))?;
        let width = width.filter(|&width| width > 0).map(|width| width as usize);
        let shared = match (shape.shared, width) {
            (Shared::None, _) | (Shared::Plain, None) => return Ok(sum),
            (Shared::Plain, Some(width)) => self.shared_expert(layer, x, width, shape)?,
            (Shared::Gated | Shared::GatedAndScaled, width) => {
                let width = width.unwrap_or(dense);
                let y = self.shared_expert(layer, x, width, shape)?;
                let gate = self.linear(&label("ffn_gate_inp_shexp"), x, 1, false)?;
                self.graph
                    .add_one(Op::GateRows, label("ffn_shexp"), &[y, gate])?
            }
        };
        self.add(&label("ffn_moe_shared"), sum, shared)
    }

    /// Experts of one layer for rows whose router said `logits`, summed.
    pub fn routed(
        &mut self,
        layer: usize,
        x: Value,
        logits: Value,
        shape: &ExpertShape,
    ) -> Result<Value, Error> {
        let (hidden, dense) = (self.hparams.hidden, self.hparams.ffn[layer]);
        let (experts, used) = self.expert_counts()?;
        let width = match shape.width {
            ExpertWidth::Dense => dense,
            ExpertWidth::OwnKey => {
                let layers = self.hparams.layers;
                let own = self.metadata.sizes("expert_feed_forward_length", layers)?;
                own.map_or(dense / used, |widths| widths[layer])
            }
        };
        let label = |part: &str| format!("blk.{layer}.{part}");
        let routing = Op::Route(Routing {
            used,
            gating: shape.gating,
            normalise: shape.normalise,
        });
        let chosen = Chosen {
            experts,
            routes: self.graph.add_one(routing, label("ffn_route"), &[logits])?,
            biases: shape.biases,
            scales: shape.scales,
        };
        let (gate, up) = self.gate_and_up(layer, x, width, &chosen)?;
        let gated = self.gated(layer, "_exps", shape.activation, (gate, up))?;
        let down = self.by_expert(&label("ffn_down_exps"), gated, hidden, &chosen)?;
        let inputs = [down, chosen.routes];
        let sum = self
            .graph
            .add_one(Op::ExpertSum, label("ffn_moe"), &inputs)?;
        Ok(sum)
    }

    /// Both halves of the gated networks, from a tensor each or from one whose first rows are the gate's.
    fn gate_and_up(
        &mut self,
        layer: usize,
        x: Value,
        width: usize,
        chosen: &Chosen,
    ) -> Result<(Value, Value), Error> {
        let label = |part: &str| format!("blk.{layer}.{part}");
        let both = label("ffn_gate_up_exps");
        if !self.has(&format!("{both}.weight")) {
            let gate = self.by_expert(&label("ffn_gate_exps"), x, width, chosen)?;
            let up = self.by_expert(&label("ffn_up_exps"), x, width, chosen)?;
            return Ok((gate, up));
        }
        let y = self.by_expert(&both, x, 2 * width, chosen)?;
        let half = |start| Op::Columns { start, width };
        let gate = self.graph.add_one(half(0), label("ffn_gate_exps"), &[y])?;
        let up = self
            .graph
            .add_one(half(width), label("ffn_up_exps"), &[y])?;
        Ok((gate, up))
    }

    /// Matrices `LABEL.weight`, `[n, k]` for each expert, on the rows that use them.
    fn by_expert(
        &mut self,
        label: &str,
        x: Value,
        n: usize,
        chosen: &Chosen,
    ) -> Result<Value, Error> {
        let (k, experts) = (self.graph.value_type(x).width, chosen.experts);
        let weight = self.matrices(&format!("{label}.weight"), (n, k), experts)?;
        let bias = match chosen.biases {
            true => Some(self.vectors(&format!("{label}.bias"), n, experts)?),
            false => None,
        };
        let parts = vec![Part { weight, bias }];
        let op = Op::ExpertMatMul { parts, experts };
        let y = self.graph.add_one(op, label, &[x, chosen.routes])?;
        let scale = format!("{label}.scale");
        if !chosen.scales || !self.has(&scale) {
            self.ignore(scale);
            return Ok(y);
        }
        let factors = self.vectors(&scale, experts, 1)?;
        let op = Op::ExpertScale { factors };
        self.graph
            .add_one(op, format!("{label}_scaled"), &[y, chosen.routes])
    }

    /// The network that all rows pass, without its gate.
    fn shared_expert(
        &mut self,
        layer: usize,
        x: Value,
        width: usize,
        shape: &ExpertShape,
    ) -> Result<Value, Error> {
        let hidden = self.hparams.hidden;
        let label = |part: &str| format!("blk.{layer}.{part}");
        // As llama.cpp, which for most architectures reads these factors for experts alone.
        if shape.shared != Shared::GatedAndScaled {
            for part in ["ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"] {
                self.ignore(label(&format!("{part}.scale")));
            }
        }
        let gate = self.linear(&label("ffn_gate_shexp"), x, width, false)?;
        let up = self.linear(&label("ffn_up_shexp"), x, width, false)?;
        let gated = self.gated(layer, "_shexp", shape.activation, (gate, up))?;
        self.linear(&label("ffn_down_shexp"), gated, hidden, false)
    }
}
