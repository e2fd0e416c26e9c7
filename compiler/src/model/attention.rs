//! Attention of one layer: projections from three tensors or from one, per-head norms, rotation, the KV cache, scores and
//! the output projection. An architecture that differs in one of them states it in `Attention`; one that differs in how
//! they follow each other composes the parts itself.

use super::parts::{Builder, Rows, Runs};
use super::rope::Rope;
use crate::error::Error;
use crate::graph::{Activation, HeadNorm, KvLayer, Op, Value, WeightId};

/// RMS norms of Q and K.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QkNorm {
    None,
    /// Of each head, before the rotation.
    Heads,
    /// Of each head, after the rotation.
    HeadsAfterRotation,
    /// Of all heads together, before the rotation.
    Row,
}

/// What tells one layer's attention from another's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attention {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// None where positions do not enter.
    pub rope: Option<Rope>,
    /// Tokens a row attends to, itself included, if not all before it.
    pub window: Option<usize>,
    /// Multiplier of q k.
    pub scale: f32,
    /// cap * tanh(s / cap) on the scores.
    pub softcap: Option<f32>,
    pub qk_norm: QkNorm,
    /// Whether Q, K and V may have biases.
    pub qkv_bias: bool,
    /// Whether the output projection may have one.
    pub output_bias: bool,
    /// Whether each head's softmax has a score that brings no value.
    pub sinks: bool,
    /// Whether the rows of `attn_q` are, head by head, those of a query and as many of a gate, whose logistic function
    /// multiplies what the head finds.
    pub gated: bool,
}

/// K and V of a layer, in the cache.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cached {
    written: Value,
    /// Index into `OpGraph::kv`.
    layer: usize,
    pub shape: KvLayer,
}

impl Builder<'_> {
    /// Attention over all earlier tokens with `rope`, sized as metadata says of `layer`.
    pub fn plain_attention(&self, layer: usize, rope: Rope) -> Attention {
        Attention {
            heads: self.hparams.heads[layer],
            kv_heads: self.hparams.kv_heads[layer],
            head_dim: self.hparams.head_dim,
            rope: Some(rope),
            window: None,
            scale: (1.0 / (self.hparams.head_dim as f64).sqrt()) as f32,
            softcap: None,
            qk_norm: QkNorm::None,
            qkv_bias: true,
            output_bias: false,
            sinks: false,
            gated: false,
        }
    }

    /// From the normed rows to the output projection, without the residual.
    pub fn attention(&mut self, layer: usize, x: Value, a: &Attention) -> Result<Value, Error> {
        let (q, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        if a.gated {
            return self.gated_attention(layer, x, a);
        }
        let qkv = self.qkv(layer, x, [q, kv, kv], a.qkv_bias)?;
        let (q, cached) = self.rotated(layer, qkv, a)?;
        self.attend(layer, q, a, &cached)
    }

    /// Norms and rotation of Q and K; K and V are cached.
    fn rotated(
        &mut self,
        layer: usize,
        [mut q, mut k, v]: [Value; 3],
        a: &Attention,
    ) -> Result<(Value, Cached), Error> {
        let label = |part: &str| format!("blk.{layer}.{part}");
        match a.qk_norm {
            QkNorm::None | QkNorm::HeadsAfterRotation => {}
            QkNorm::Heads => {
                q = self.head_norm(&label("attn_q_norm"), q, a.heads)?;
                k = self.head_norm(&label("attn_k_norm"), k, a.kv_heads)?;
            }
            QkNorm::Row => {
                q = self.norm(&label("attn_q_norm"), q)?;
                k = self.norm(&label("attn_k_norm"), k)?;
            }
        }
        if let Some(rope) = &a.rope {
            q = self.rotate(&label("attn_q_rope"), q, a.heads, rope)?;
            k = self.rotate(&label("attn_k_rope"), k, a.kv_heads, rope)?;
        }
        if a.qk_norm == QkNorm::HeadsAfterRotation {
            q = self.head_norm(&label("attn_q_norm"), q, a.heads)?;
            k = self.head_norm(&label("attn_k_norm"), k, a.kv_heads)?;
        }
        let cached = self.cache(layer, a, k, v)?;
        Ok((q, cached))
    }

    /// As [`Builder::attention`], with a gate for every head.
    fn gated_attention(&mut self, layer: usize, x: Value, a: &Attention) -> Result<Value, Error> {
        let label = |part: &str| format!("blk.{layer}.{part}");
        let (of, kv) = (label("attn_q"), a.kv_heads * a.head_dim);
        let half = |first| Runs {
            of: &of,
            total: 2 * a.heads * a.head_dim,
            first,
            run: a.head_dim,
            stride: 2 * a.head_dim,
        };
        let q = self.linear_runs(&of, x, half(0), a.qkv_bias)?;
        let gate = self.linear_runs(&label("attn_gate"), x, half(a.head_dim), a.qkv_bias)?;
        let k = self.linear(&label("attn_k"), x, kv, a.qkv_bias)?;
        let v = self.linear(&label("attn_v"), x, kv, a.qkv_bias)?;
        let (q, cached) = self.rotated(layer, [q, k, v], a)?;
        let mixed = self.mix(layer, q, a, &cached)?;
        let act = Op::Act(Activation::Sigmoid);
        let gate = self.graph.add_one(act, label("attn_gate_act"), &[gate])?;
        let gated = self
            .graph
            .add_one(Op::Mul, label("attn_gated"), &[gate, mixed])?;
        self.linear(
            &label("attn_output"),
            gated,
            self.hparams.hidden,
            a.output_bias,
        )
    }

    /// Scores, softmax and output projection of rows of queries over what is cached.
    pub fn attend(
        &mut self,
        layer: usize,
        q: Value,
        a: &Attention,
        cached: &Cached,
    ) -> Result<Value, Error> {
        let mixed = self.mix(layer, q, a, cached)?;
        let output = format!("blk.{layer}.attn_output");
        self.linear(&output, mixed, self.hparams.hidden, a.output_bias)
    }

    /// Scores and softmax of rows of queries over what is cached.
    fn mix(
        &mut self,
        layer: usize,
        q: Value,
        a: &Attention,
        cached: &Cached,
    ) -> Result<Value, Error> {
        let sinks = match a.sinks {
            true => Some(self.vector(&format!("blk.{layer}.attn_sinks.weight"), a.heads)?),
            false => None,
        };
        let op = Op::Attention {
            layer: cached.layer,
            heads: a.heads,
            scale: a.scale,
            softcap: a.softcap,
            sinks,
        };
        let label = format!("blk.{layer}.attn");
        self.graph.add_one(op, label, &[q, cached.written])
    }

    /// Keeps K and V of every row.
    pub fn cache(
        &mut self,
        layer: usize,
        a: &Attention,
        k: Value,
        v: Value,
    ) -> Result<Cached, Error> {
        let shape = KvLayer {
            kv_heads: a.kv_heads,
            head_dim: a.head_dim,
            window: a.window,
        };
        let index = self.graph.kv.len();
        self.graph.kv.push(shape);
        let (op, label) = (
            Op::KvAppend { layer: index },
            format!("blk.{layer}.attn_kv"),
        );
        let written = self.graph.add_one(op, label, &[k, v])?;
        Ok(Cached {
            written,
            layer: index,
            shape,
        })
    }

    /// Q, K and V, of these widths: from a tensor each, or from rows of `attn_qkv`.
    pub fn qkv(
        &mut self,
        layer: usize,
        x: Value,
        widths: [usize; 3],
        bias: bool,
    ) -> Result<[Value; 3], Error> {
        let fused = format!("blk.{layer}.attn_qkv");
        let total = widths.iter().sum();
        let is_fused = self.has(&format!("{fused}.weight"));
        let mut first = 0;
        let mut project = |part: &str, n: usize| {
            let label = format!("blk.{layer}.{part}");
            let rows = Rows {
                of: &fused,
                total,
                first,
            };
            first += n;
            match is_fused {
                true => self.linear_rows(&label, x, n, rows, bias),
                false => self.linear(&label, x, n, bias),
            }
        };
        let [q, k, v] = widths;
        Ok([
            project("attn_q", q)?,
            project("attn_k", k)?,
            project("attn_v", v)?,
        ])
    }

    /// RMS norm of every head by the vector `LABEL.weight`.
    pub fn head_norm(&mut self, label: &str, x: Value, heads: usize) -> Result<Value, Error> {
        let head_dim = self.graph.value_type(x).width / heads;
        let weight = self.vector(&format!("{label}.weight"), head_dim)?;
        self.norm_heads(label, x, heads, weight)
    }

    /// RMS norm of every head by a vector of the graph.
    pub fn norm_heads(
        &mut self,
        label: &str,
        x: Value,
        heads: usize,
        weight: WeightId,
    ) -> Result<Value, Error> {
        let eps = self.hparams.rms_eps;
        let norm = HeadNorm { weight, eps };
        self.graph
            .add_one(Op::HeadNorm { norm, heads }, label, &[x])
    }

    /// Rotates every head by its row's position.
    pub fn rotate(
        &mut self,
        label: &str,
        x: Value,
        heads: usize,
        rope: &Rope,
    ) -> Result<Value, Error> {
        let shape = rope.shape;
        self.graph
            .add_one(Op::Rope { heads, shape }, label, &[x, rope.table])
    }
}
