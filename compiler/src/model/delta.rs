//! Decoders most of whose layers are gated delta nets: projections, a short convolution, the delta rule, a gated norm and
//! the output projection. The other layers attend, with a gate. What all decoders share is in parts.rs and decoder.rs.

use coldpress_kernels::recurrent::{
    Heads, Reason, conv_legal, conv_state_floats, delta_state_floats,
};

use super::attention::{Attention, QkNorm};
use super::decoder::{Branch, Feed, Head};
use super::experts::{ExpertShape, ExpertWidth, Shared};
use super::parts::{Builder, Runs};
use super::rope::Rope;
use super::window;
use crate::error::Error;
use crate::gguf::Value as Key;
use crate::graph::{Activation, HeadNorm, Op, StateLayer, Value};

/// What tells one family's delta nets from another's.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeltaNet {
    /// Whether heads that share a key follow each other.
    pub grouped: bool,
    /// Whether the rows of alpha and beta take turns in one tensor, by key.
    pub together: bool,
    /// Whether products are multiplied by the factors of their tensors where the file has some; llama.cpp does not do so
    /// for every architecture.
    pub scales: bool,
}

impl DeltaNet {
    /// Files have heads in an order in which keys take turns.
    pub const TILED: DeltaNet = DeltaNet {
        grouped: false,
        together: false,
        scales: true,
    };
    /// Files have the heads of a key beside each other.
    pub const GROUPED: DeltaNet = DeltaNet {
        grouped: true,
        together: true,
        scales: false,
    };
}

/// Sizes of the delta nets of a model.
#[derive(Clone, Copy, Debug)]
struct Shape {
    heads: Heads,
    taps: usize,
}

/// Of the keys that are read for every architecture, those that these models may have, without experts or with them.
pub(super) const READS: &[&str] = &["nextn_predict_layers"];
pub(super) const READS_WITH_EXPERTS: &[&str] = &["nextn_predict_layers", "expert_count"];

/// The experts of those that have some: in every layer, and beside them a network that all rows pass, through a gate.
pub(super) const EXPERTS: ExpertShape = ExpertShape {
    width: ExpertWidth::OwnKey,
    shared: Shared::GatedAndScaled,
    ..ExpertShape::MIXTRAL
};

/// Taps of the convolution, its last inputs included.
const TAPS: &str = "ssm.conv_kernel";
/// Elements of all values of a row.
const INNER: &str = "ssm.inner_size";
/// Elements of a head.
const DIM: &str = "ssm.state_size";
/// Heads of values.
const HEADS: &str = "ssm.time_step_rank";
/// Heads of queries and keys.
const KEY_HEADS: &str = "ssm.group_count";
/// One bool per layer, or every how many layers one attends.
const RECURRENT: &str = "attention.recurrent_layers";
const INTERVAL: &str = "full_attention_interval";
const NEXTN: &str = "nextn_predict_layers";

impl Builder<'_> {
    /// The whole of a decoder whose recurrent layers are `net`.
    pub fn delta_decoder(&mut self, rope: Rope, net: DeltaNet, feed: Feed) -> Result<(), Error> {
        let layers = self.hparams.layers;
        self.leave_out_predictors()?;
        let recurrent = self.recurrent_layers(layers)?;
        let shape = self.delta_shape(net)?;
        let mut x = self.embedding(1.0)?;
        for (layer, recurrent) in recurrent.into_iter().enumerate() {
            let attention = Attention {
                qk_norm: QkNorm::Heads,
                gated: true,
                ..self.plain_attention(layer, rope)
            };
            let names = (["attn_norm", ""], "attn_residual");
            x = self.branch(layer, x, Branch::PRE_NORM, names, |b, x| match recurrent {
                true => b.delta_net(layer, x, net, shape),
                false => b.attention(layer, x, &attention),
            })?;
            let names = (["post_attention_norm", ""], "ffn_residual");
            x = self.branch(layer, x, Branch::PRE_NORM, names, |b, x| match &feed {
                Feed::Dense(ffn) => b.ffn(layer, x, ffn),
                Feed::Experts(experts) => b.experts(layer, x, experts),
            })?;
        }
        self.head(x, &Head::PLAIN)
    }

    /// Layers at the end that predict tokens further on take no part in the logits.
    fn leave_out_predictors(&mut self) -> Result<(), Error> {
        let (gguf, layers) = (self.metadata.gguf, self.hparams.layers);
        let predictors = gguf.u32(&self.metadata.key(NEXTN))?.unwrap_or(0) as usize;
        let Some(trunk) = layers.checked_sub(predictors).filter(|&trunk| trunk > 0) else {
            let why = format!("{predictors} of {layers} layers");
            return Err(self.metadata.wrong(NEXTN, &why));
        };
        for layer in trunk..layers {
            let prefix = format!("blk.{layer}.");
            let own = gguf
                .tensors()
                .iter()
                .filter(|t| t.name.starts_with(&prefix));
            own.for_each(|tensor| self.ignore(tensor.name.clone()));
        }
        self.hparams.layers = trunk;
        Ok(())
    }

    /// Whether each of the model's layers is recurrent: as the file says of `all` layers, or all but the last of every four,
    /// or of as many as it says.
    fn recurrent_layers(&self, all: usize) -> Result<Vec<bool>, Error> {
        let metadata = self.metadata;
        let key = metadata.key(RECURRENT);
        let mut recurrent = match metadata.gguf.get(&key) {
            Some(Key::Array(_)) => window::each(metadata, &key)?,
            Some(Key::Bool(recurrent)) => vec![*recurrent; all],
            Some(_) => vec![metadata.gguf.u32(&key)? != Some(0); all],
            None => {
                let interval = metadata.optional_size(INTERVAL)?.unwrap_or(4);
                (1..=all).map(|layer| layer % interval != 0).collect()
            }
        };
        let layers = self.hparams.layers;
        if recurrent.len() < layers {
            let why = format!("has {} elements for {layers} layers", recurrent.len());
            return Err(metadata.wrong(RECURRENT, &why));
        }
        recurrent.truncate(layers);
        match recurrent.contains(&false) {
            true => Ok(recurrent),
            false => Err(Error::Unsupported {
                what: key,
                why: "no layer attends; only models with some that do are implemented".into(),
            }),
        }
    }

    fn delta_shape(&self, net: DeltaNet) -> Result<Shape, Error> {
        let metadata = self.metadata;
        let refused = |key: &str, why: String| Error::Unsupported {
            what: metadata.key(key),
            why,
        };
        let heads = Heads {
            key_heads: metadata.size(KEY_HEADS)?,
            heads: metadata.size(HEADS)?,
            dim: metadata.size(DIM)?,
            grouped: net.grouped,
        };
        heads.legal().map_err(|why| match why {
            why @ Reason::Dim { .. } => refused(DIM, why.to_string()),
            why => metadata.wrong(KEY_HEADS, &why.to_string()),
        })?;
        let inner = metadata.size(INNER)?;
        if heads.heads.checked_mul(heads.dim) != Some(inner) {
            let why = format!(
                "{inner} is not {HEADS} times {DIM}, {} times {}",
                heads.heads, heads.dim
            );
            return Err(metadata.wrong(INNER, &why));
        }
        let taps = metadata.size(TAPS)?;
        conv_legal(heads.width(), taps).map_err(|why| refused(TAPS, why.to_string()))?;
        Ok(Shape { heads, taps })
    }

    /// From the normed rows to the output projection, without the residual.
    fn delta_net(
        &mut self,
        layer: usize,
        x: Value,
        net: DeltaNet,
        Shape { heads, taps }: Shape,
    ) -> Result<Value, Error> {
        let label = |part: &str| format!("blk.{layer}.{part}");
        let channels = heads.width();
        let values = heads.heads * heads.dim;
        if !net.scales {
            for part in ["attn_qkv", "attn_gate", "ssm_out", "ssm_ba"] {
                self.ignore(label(&format!("{part}.scale")));
            }
        }
        let qkv = self.linear(&label("attn_qkv"), x, channels, false)?;
        let z = self.linear(&label("attn_gate"), x, values, false)?;
        let [beta, alpha] = match net.together {
            true => self.alpha_and_beta(layer, x, heads)?,
            false => [
                self.linear(&label("ssm_beta"), x, heads.heads, false)?,
                self.linear(&label("ssm_alpha"), x, heads.heads, false)?,
            ],
        };

        let weight = self.transposed(&label("ssm_conv1d.weight"), taps, channels)?;
        let state = self.state(conv_state_floats(channels, taps));
        let conv = Op::ShortConv { state, weight };
        let mixed = self.graph.add_one(conv, label("ssm_conv1d"), &[qkv])?;

        let rule = Op::DeltaRule {
            state: self.state(delta_state_floats(heads.heads, heads.dim)),
            heads,
            a: self.vector(&label("ssm_a"), heads.heads)?,
            dt: self.vector(&label("ssm_dt.bias"), heads.heads)?,
            eps: self.hparams.rms_eps,
        };
        let inputs = [mixed, alpha, beta];
        let y = self.graph.add_one(rule, label("ssm_delta"), &inputs)?;

        let norm = HeadNorm {
            weight: self.vector(&label("ssm_norm.weight"), heads.dim)?,
            eps: self.hparams.rms_eps,
        };
        let norm = Op::HeadNorm {
            norm,
            heads: heads.heads,
        };
        let y = self.graph.add_one(norm, label("ssm_norm"), &[y])?;
        let act = Op::Act(Activation::Silu);
        let act = self.graph.add_one(act, label("attn_gate_act"), &[z])?;
        let gated = self.graph.add_one(Op::Mul, label("ssm_gated"), &[act, y])?;
        self.linear(&label("ssm_out"), gated, self.hparams.hidden, false)
    }

    /// Beta and alpha from one tensor: for each key, the betas of the heads that share it, then their alphas.
    fn alpha_and_beta(
        &mut self,
        layer: usize,
        x: Value,
        heads: Heads,
    ) -> Result<[Value; 2], Error> {
        let label = |part: &str| format!("blk.{layer}.{part}");
        let (of, shared) = (label("ssm_ba"), heads.heads / heads.key_heads);
        let half = |first| Runs {
            of: &of,
            total: 2 * heads.heads,
            first,
            run: shared,
            stride: 2 * shared,
        };
        Ok([
            self.linear_runs(&label("ssm_beta"), x, half(0), false)?,
            self.linear_runs(&label("ssm_alpha"), x, half(shared), false)?,
        ])
    }

    /// A state of so many floats.
    fn state(&mut self, floats: usize) -> usize {
        self.graph.states.push(StateLayer { floats });
        self.graph.states.len() - 1
    }
}
