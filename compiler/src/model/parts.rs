//! The pieces that dense decoders share, so that an architecture is a short file: tensors checked against metadata,
//! attention, feed-forward, head. Emits simple ops only. What metadata means is in metadata.rs and rope.rs.

use std::collections::BTreeSet;

use coldpress_kernels::quant;
use coldpress_kernels::tensor_type::TensorType;

use super::experts::ExpertShape;
use super::metadata::{Hparams, Metadata};
use super::rope::{self, FreqFactors, Frequencies};
use crate::error::Error;
use crate::gguf::{Gguf, TensorInfo};
use crate::graph::{
    Activation, HeadNorm, KvLayer, Op, OpGraph, Part, RopeShape, RopeStyle, Source, Value, Weight,
    WeightId,
};

/// Which bias tensors an architecture may have; each is added where the file has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Biases {
    pub qkv: bool,
    pub attn_output: bool,
    pub ffn: bool,
    pub output: bool,
}

/// What tells one dense pre-norm decoder from another.
#[derive(Clone, Copy, Debug)]
pub(super) struct LayerShape {
    pub activation: Activation,
    pub qk_norm: QkNorm,
    /// Tokens that attention sees, if not all.
    pub window: Option<usize>,
    /// Whether each head's softmax has a score that brings no value.
    pub sinks: bool,
    pub biases: Biases,
    /// Instead of a dense feed-forward network.
    pub experts: Option<ExpertShape>,
}

/// RMS norms of Q and K before the rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QkNorm {
    None,
    /// Of every head.
    Heads,
    /// Of all heads of a row together.
    Row,
}

/// The rotary table of a graph.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rope {
    table: Value,
    shape: RopeShape,
}

/// A graph in the making, and the tensors it has read.
pub(super) struct Builder<'a> {
    pub(super) metadata: Metadata<'a>,
    pub hparams: Hparams,
    pub graph: OpGraph,
    used: BTreeSet<String>,
}

impl<'a> Builder<'a> {
    pub fn new(gguf: &'a Gguf, architecture: &'a str) -> Result<Self, Error> {
        let metadata = Metadata { gguf, architecture };
        Ok(Builder {
            metadata,
            hparams: Hparams::read(metadata)?,
            graph: OpGraph::default(),
            used: BTreeSet::new(),
        })
    }

    /// The finished graph; every tensor of the file must have been read.
    pub fn finish(self) -> Result<(Hparams, OpGraph), Error> {
        let tensors = self.metadata.gguf.tensors().iter();
        let mut unread = tensors.filter(|t| !self.used.contains(&t.name) && !is_leftover(&t.name));
        match unread.next() {
            Some(tensor) => Err(Error::Unsupported {
                what: tensor.name.clone(),
                why: format!(
                    "no {} model has this tensor, so its effect would be lost",
                    self.metadata.architecture
                ),
            }),
            None => Ok((self.hparams, self.graph)),
        }
    }

    /// Embedding, all layers, head: the whole of a dense pre-norm decoder.
    pub fn decoder(&mut self, shape: &LayerShape, rope: &Rope) -> Result<(), Error> {
        let mut x = self.embedding()?;
        for layer in 0..self.hparams.layers {
            let normed = self.norm(&format!("blk.{layer}.attn_norm"), x)?;
            let attention = self.attention(layer, normed, shape, rope)?;
            x = self.add(&format!("blk.{layer}.attn_residual"), attention, x)?;
            let normed = self.norm(&format!("blk.{layer}.ffn_norm"), x)?;
            let ffn = match &shape.experts {
                Some(experts) => self.experts(layer, normed, experts)?,
                None => self.ffn(layer, normed, shape)?,
            };
            x = self.add(&format!("blk.{layer}.ffn_residual"), ffn, x)?;
        }
        self.head(x, shape.biases.output)
    }

    pub fn embedding(&mut self) -> Result<Value, Error> {
        let Hparams {
            vocab_size, hidden, ..
        } = self.hparams;
        let weight = self.matrix("token_embd.weight", vocab_size, hidden)?;
        self.graph
            .add_one(Op::Embed { weight, scale: 1.0 }, "token_embd", &[])
    }

    /// The table of rotary frequencies from metadata and, where the architecture has them, frequency factors.
    pub fn rope(&mut self, style: RopeStyle, factors: FreqFactors) -> Result<Rope, Error> {
        let Hparams {
            head_dim,
            rot_dim,
            context,
            ..
        } = self.hparams;
        let factors = match factors {
            FreqFactors::Optional if self.has(rope::FACTORS) => {
                self.tensor(rope::FACTORS, &[rot_dim as u64 / 2])?;
                rope::factors(self.metadata)?
            }
            _ => None,
        };
        let Frequencies { inv_freq, mscale } =
            rope::frequencies(self.metadata, rot_dim, context, factors.as_deref())?;
        let inv_freq = self.graph.add_weight(Weight {
            name: "<rope_inv_freq>".into(),
            ty: TensorType::F32,
            n: 1,
            k: inv_freq.len(),
            source: Source::Computed(inv_freq),
        });
        let table = self
            .graph
            .add_one(Op::RopeTable { inv_freq, mscale }, "rope_table", &[])?;
        Ok(Rope {
            table,
            shape: RopeShape {
                head_dim,
                rot_dim,
                style,
            },
        })
    }

    /// RMS norm by the vector `LABEL.weight`.
    pub fn norm(&mut self, label: &str, x: Value) -> Result<Value, Error> {
        let width = self.graph.value_type(x).width;
        let weight = self.vector(&format!("{label}.weight"), width)?;
        let eps = self.hparams.rms_eps;
        self.graph.add_one(Op::RmsNorm { weight, eps }, label, &[x])
    }

    /// Q, K, V, rotation, KV cache, attention and output projection of one layer, without the residual.
    pub fn attention(
        &mut self,
        layer: usize,
        x: Value,
        shape: &LayerShape,
        rope: &Rope,
    ) -> Result<Value, Error> {
        let (heads, kv_heads) = (self.hparams.heads[layer], self.hparams.kv_heads[layer]);
        let Hparams {
            hidden,
            head_dim,
            attention_scale: scale,
            ..
        } = self.hparams;
        let label = |part: &str| format!("blk.{layer}.{part}");
        if self.has(&label("attn_qkv.weight")) && !self.has(&label("attn_q.weight")) {
            return Err(Error::Unsupported {
                what: label("attn_qkv.weight"),
                why: format!(
                    "only separate attn_q, attn_k and attn_v are implemented for {}",
                    self.metadata.architecture
                ),
            });
        }
        let bias = shape.biases.qkv;
        let mut q = self.linear(&label("attn_q"), x, heads * head_dim, bias)?;
        let mut k = self.linear(&label("attn_k"), x, kv_heads * head_dim, bias)?;
        let v = self.linear(&label("attn_v"), x, kv_heads * head_dim, bias)?;
        match shape.qk_norm {
            QkNorm::None => {}
            QkNorm::Heads => {
                q = self.head_norm(&label("attn_q_norm"), q, heads)?;
                k = self.head_norm(&label("attn_k_norm"), k, kv_heads)?;
            }
            QkNorm::Row => {
                q = self.norm(&label("attn_q_norm"), q)?;
                k = self.norm(&label("attn_k_norm"), k)?;
            }
        }
        let rotate = |heads| Op::Rope {
            heads,
            shape: rope.shape,
        };
        q = self
            .graph
            .add_one(rotate(heads), label("attn_q_rope"), &[q, rope.table])?;
        k = self
            .graph
            .add_one(rotate(kv_heads), label("attn_k_rope"), &[k, rope.table])?;
        let kv = self.graph.kv.len();
        self.graph.kv.push(KvLayer {
            kv_heads,
            head_dim,
            window: shape.window,
        });
        let written = self
            .graph
            .add_one(Op::KvAppend { layer: kv }, label("attn_kv"), &[k, v])?;
        let sinks = match shape.sinks {
            true => Some(self.vector(&label("attn_sinks.weight"), heads)?),
            false => None,
        };
        let op = Op::Attention {
            layer: kv,
            heads,
            scale,
            softcap: None,
            sinks,
        };
        let attention = self.graph.add_one(op, label("attn"), &[q, written])?;
        self.linear(
            &label("attn_output"),
            attention,
            hidden,
            shape.biases.attn_output,
        )
    }

    /// Gated feed-forward network of one layer, without the residual.
    pub fn ffn(&mut self, layer: usize, x: Value, shape: &LayerShape) -> Result<Value, Error> {
        let (hidden, width) = (self.hparams.hidden, self.hparams.ffn[layer]);
        let label = |part: &str| format!("blk.{layer}.{part}");
        let bias = shape.biases.ffn;
        let gate = self.linear(&label("ffn_gate"), x, width, bias)?;
        let up = self.linear(&label("ffn_up"), x, width, bias)?;
        let gated = self.gated(layer, "", shape.activation, (gate, up))?;
        self.linear(&label("ffn_down"), gated, hidden, bias)
    }

    /// The activation of a gate times what it lets through; labels end in `suffix`.
    pub(super) fn gated(
        &mut self,
        layer: usize,
        suffix: &str,
        activation: Activation,
        (gate, up): (Value, Value),
    ) -> Result<Value, Error> {
        let act = format!("blk.{layer}.ffn_act{suffix}");
        // Gate and value are not a product of two functions.
        if activation == Activation::ClampedSwish {
            return self
                .graph
                .add_one(Op::GatedAct(activation), act, &[gate, up]);
        }
        let act = self.graph.add_one(Op::Act(activation), act, &[gate])?;
        let gated = format!("blk.{layer}.ffn_gated{suffix}");
        self.graph.add_one(Op::Mul, gated, &[act, up])
    }

    /// Final norm and output projection of the rows whose logits are wanted. Without `output.weight` the embedding
    /// matrix is used.
    pub fn head(&mut self, x: Value, bias: bool) -> Result<(), Error> {
        let Hparams {
            vocab_size, hidden, ..
        } = self.hparams;
        let rows = self.graph.add_one(Op::SelectRows, "logits_rows", &[x])?;
        let normed = self.norm("output_norm", rows)?;
        let name = match self.has("output.weight") {
            true => "output.weight",
            false => "token_embd.weight",
        };
        let weight = self.matrix(name, vocab_size, hidden)?;
        let bias = self.bias("output", vocab_size, bias)?;
        let op = Op::MatMul {
            parts: vec![Part { weight, bias }],
            residual: false,
        };
        let logits = self.graph.add_one(op, "output", &[normed])?;
        self.graph.add(Op::Logits, "logits", &[logits])?;
        Ok(())
    }

    /// x W^T with the matrix `LABEL.weight`, plus `LABEL.bias` when the architecture may have one and the file does.
    pub fn linear(&mut self, label: &str, x: Value, n: usize, bias: bool) -> Result<Value, Error> {
        let k = self.graph.value_type(x).width;
        let weight = self.matrix(&format!("{label}.weight"), n, k)?;
        let bias = self.bias(label, n, bias)?;
        let op = Op::MatMul {
            parts: vec![Part { weight, bias }],
            residual: false,
        };
        self.graph.add_one(op, label, &[x])
    }

    fn head_norm(&mut self, label: &str, x: Value, heads: usize) -> Result<Value, Error> {
        let weight = self.vector(&format!("{label}.weight"), self.hparams.head_dim)?;
        let norm = HeadNorm {
            weight,
            eps: self.hparams.rms_eps,
        };
        self.graph
            .add_one(Op::HeadNorm { norm, heads }, label, &[x])
    }

    pub(super) fn add(&mut self, label: &str, a: Value, b: Value) -> Result<Value, Error> {
        self.graph.add_one(Op::Add, label, &[a, b])
    }

    /// A tensor that changes nothing may be there.
    pub(super) fn ignore(&mut self, name: String) {
        self.used.insert(name);
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.metadata.gguf.tensor(name).is_some()
    }

    fn bias(&mut self, label: &str, n: usize, allowed: bool) -> Result<Option<WeightId>, Error> {
        let name = format!("{label}.bias");
        match allowed && self.has(&name) {
            true => self.vector(&name, n).map(Some),
            false => Ok(None),
        }
    }

    fn matrix(&mut self, name: &str, n: usize, k: usize) -> Result<WeightId, Error> {
        self.matrices(name, n, k, 1)
    }

    /// `count` matrices `[n, k]` in one tensor, whose rows the weight has on top of each other.
    pub(super) fn matrices(
        &mut self,
        name: &str,
        n: usize,
        k: usize,
        count: usize,
    ) -> Result<WeightId, Error> {
        let ty = self.tensor(name, &[k as u64, n as u64, count as u64])?.ty;
        if quant::format(ty).is_none() {
            let types: Vec<_> = quant::FORMATS
                .iter()
                .map(|format| format.ty.name())
                .collect();
            return Err(Error::Unsupported {
                what: name.into(),
                why: format!("no kernel reads {ty} (supported: {})", types.join(", ")),
            });
        }
        Ok(self.weight(name, ty, n * count, k))
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<WeightId, Error> {
        self.vectors(name, len, 1)
    }

    /// `count` vectors in one tensor.
    pub(super) fn vectors(
        &mut self,
        name: &str,
        len: usize,
        count: usize,
    ) -> Result<WeightId, Error> {
        let ty = self.tensor(name, &[len as u64, count as u64])?.ty;
        if !matches!(ty, TensorType::F32 | TensorType::F16 | TensorType::BF16) {
            return Err(Error::Unsupported {
                what: name.into(),
                why: format!("{ty} is no type for a vector (supported: F32, F16, BF16)"),
            });
        }
        Ok(self.weight(name, ty, count, len))
    }

    fn weight(&mut self, name: &str, ty: TensorType, n: usize, k: usize) -> WeightId {
        self.graph.add_weight(Weight {
            name: name.into(),
            ty,
            n,
            k,
            source: Source::Gguf,
        })
    }

    /// The tensor of that name, which must have these dimensions; further ones may be 1.
    fn tensor(&mut self, name: &str, dims: &[u64]) -> Result<&'a TensorInfo, Error> {
        let wrong = |why: String| Error::Model {
            what: name.into(),
            why,
        };
        let stated = dims.iter().rposition(|&dim| dim != 1).unwrap_or(0);
        let dims = &dims[..=stated];
        let tensor = self.metadata.gguf.tensor(name);
        let tensor = tensor.ok_or_else(|| wrong(format!("missing: expected {dims:?}")))?;
        let found = tensor.dims.iter().copied().chain(std::iter::repeat(1));
        let longest = dims.len().max(tensor.dims.len());
        let expected = dims.iter().copied().chain(std::iter::repeat(1));
        if !found.take(longest).eq(expected.take(longest)) {
            return Err(wrong(format!(
                "expected {dims:?}, found {:?} (row length first)",
                tensor.dims
            )));
        }
        self.used.insert(name.into());
        Ok(tensor)
    }
}

/// Tensors that old converters left in files and that llama.cpp never reads: precomputed rotary frequencies.
fn is_leftover(name: &str) -> bool {
    name.ends_with(".attn_rot_embd")
        || name.ends_with(".attn_rot_embd.weight")
        || name.ends_with("rotary_emb.inv_freq")
}
