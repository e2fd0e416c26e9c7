//! Per-layer embeddings: every layer adds what it makes of a few numbers of its own about the token, from a second
//! embedding table and a projection of the first.

use super::parts::Builder;
use crate::error::Error;
use crate::graph::{Activation, Op, VIEW_COLUMNS, Value};

const LENGTH: &str = "embedding_length_per_layer_input";

/// The numbers of all layers, `[rows, layers * width]`.
pub(super) struct PerLayer {
    all: Value,
    /// Numbers of one layer.
    width: usize,
}

impl PerLayer {
    /// Reads and projects them, if the model has any; `embedding` are the scaled rows of the first table.
    pub fn new(b: &mut Builder, embedding: Value) -> Result<Option<PerLayer>, Error> {
        let width = b.metadata.gguf.u32(&b.metadata.key(LENGTH))?;
        let width = width.ok_or_else(|| b.metadata.missing(LENGTH))? as usize;
        let (layers, hidden) = (b.hparams.layers, b.hparams.hidden);
        if width == 0 {
            return Ok(None);
        }
        if !width.is_multiple_of(VIEW_COLUMNS) {
            return Err(Error::Unsupported {
                what: b.metadata.key(LENGTH),
                why: format!("{width} is no multiple of {VIEW_COLUMNS}"),
            });
        }
        let all = layers
            .checked_mul(width)
            .filter(|&all| u32::try_from(all).is_ok());
        let all = all.ok_or_else(|| b.metadata.wrong(LENGTH, &format!("is {width}")))?;
        let weight = b.matrix("per_layer_token_embd.weight", b.hparams.vocab_size, all)?;
        let scale = (width as f32).sqrt();
        let embed = Op::Embed { weight, scale };
        let table = b.graph.add_one(embed, "per_layer_token_embd", &[])?;
        let projected = b.linear("per_layer_model_proj", embedding, all, false)?;
        let scale = 1.0 / (hidden as f32).sqrt();
        let projected = b.scale("per_layer_model_proj_scale", projected, scale)?;
        let projected = b.head_norm("per_layer_proj_norm", projected, layers)?;
        let sum = b.add("per_layer_sum", projected, table)?;
        let all = b.scale("per_layer_input", sum, std::f32::consts::FRAC_1_SQRT_2)?;
        Ok(Some(PerLayer { all, width }))
    }

    /// x + norm(proj(act(gate x) * the layer's numbers)).
    pub fn add(
        &self,
        b: &mut Builder,
        layer: usize,
        x: Value,
        activation: Activation,
    ) -> Result<Value, Error> {
        let label = |part: &str| format!("blk.{layer}.{part}");
        let view = Op::Columns {
            start: layer * self.width,
            width: self.width,
        };
        let own = b
            .graph
            .add_one(view, label("per_layer_input"), &[self.all])?;
        let gate = b.linear(&label("inp_gate"), x, self.width, false)?;
        let act = Op::Act(activation);
        let act = b.graph.add_one(act, label("inp_gate_act"), &[gate])?;
        let gated = b.graph.add_one(Op::Mul, label("inp_gated"), &[act, own])?;
        let y = b.linear(&label("proj"), gated, b.hparams.hidden, false)?;
        let y = b.norm(&label("post_norm"), y)?;
        b.add(&label("per_layer_residual"), y, x)
    }
}
