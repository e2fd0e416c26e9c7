//! How a decoder's rooms follow each other: embedding, the two branches of a layer with their norms and residuals, head.

use super::attention::Attention;
use super::experts::ExpertShape;
use super::ffn::Ffn;
use super::parts::Builder;
use crate::error::Error;
use crate::graph::{Op, Part, Value};

/// Where a branch has its RMS norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Norms {
    /// Of what it reads.
    Before,
    /// Of what it adds.
    After,
    /// Both.
    Around,
}

/// How a branch joins the residual stream: x + scale * branch(x).
#[derive(Clone, Copy, Debug)]
pub(super) struct Branch {
    pub norms: Norms,
    pub scale: f32,
}

impl Branch {
    /// x + branch(norm(x)).
    pub const PRE_NORM: Branch = Branch {
        norms: Norms::Before,
        scale: 1.0,
    };
    /// x + norm(branch(x)).
    pub const POST_NORM: Branch = Branch {
        norms: Norms::After,
        scale: 1.0,
    };
    /// x + norm(branch(norm(x))).
    pub const AROUND: Branch = Branch {
        norms: Norms::Around,
        scale: 1.0,
    };
}

/// From the normed rows to the logits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    /// Whether `output.bias` may exist.
    pub bias: bool,
    /// What logits are multiplied by, before the cap.
    pub scale: f32,
    pub softcap: Option<f32>,
}

impl Head {
    /// A projection and nothing else.
    pub const PLAIN: Head = Head {
        bias: false,
        scale: 1.0,
        softcap: None,
    };
}

/// Layers that differ in nothing but their attention, and what is before and behind them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decoder {
    /// What rows of the embedding are multiplied by.
    pub embedding: f32,
    pub branch: Branch,
    pub feed: Feed,
    pub head: Head,
}

/// What follows the attention of a layer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Feed {
    /// One network for all rows.
    Dense(Ffn),
    /// A mixture of experts.
    Experts(ExpertShape),
}

impl Decoder {
    /// As llama, with this feed-forward network.
    pub const fn new(ffn: Ffn) -> Decoder {
        Decoder::with(Feed::Dense(ffn))
    }

    /// As llama, with these experts.
    pub const fn of_experts(experts: ExpertShape) -> Decoder {
        Decoder::with(Feed::Experts(experts))
    }

    /// As llama, with what follows attention.
    pub const fn with(feed: Feed) -> Decoder {
        Decoder {
            embedding: 1.0,
            branch: Branch::PRE_NORM,
            feed,
            head: Head::PLAIN,
        }
    }
}

impl Builder<'_> {
    /// The whole of a decoder whose layers have the attention that `attention` says.
    pub fn decoder(
        &mut self,
        decoder: &Decoder,
        attention: impl Fn(&Self, usize) -> Attention,
    ) -> Result<(), Error> {
        let mut x = self.embedding(decoder.embedding)?;
        for layer in 0..self.hparams.layers {
            let attention = attention(self, layer);
            x = self.attention_branch(layer, x, decoder.branch, &attention)?;
            x = match &decoder.feed {
                Feed::Dense(ffn) => self.ffn_branch(layer, x, decoder.branch, ffn)?,
                Feed::Experts(experts) => self.experts_branch(layer, x, decoder.branch, experts)?,
            };
        }
        self.head(x, &decoder.head)
    }

    /// The soft cap at `key`, or `default` where the file says nothing; 0 is none.
    pub fn cap(&self, key: &str, default: f32) -> Result<Option<f32>, Error> {
        match self.metadata.f32(key)?.unwrap_or(default) {
            0.0 => Ok(None),
            cap if cap > 0.0 => Ok(Some(cap)),
            cap => Err(self.metadata.wrong(key, &format!("is {cap}"))),
        }
    }

    /// Rows of the embedding matrix, times `scale`.
    pub fn embedding(&mut self, scale: f32) -> Result<Value, Error> {
        let (vocab, hidden) = (self.hparams.vocab_size, self.hparams.hidden);
        let weight = self.matrix("token_embd.weight", vocab, hidden)?;
        self.graph
            .add_one(Op::Embed { weight, scale }, "token_embd", &[])
    }

    /// Attention of one layer, added to the residual stream.
    pub fn attention_branch(
        &mut self,
        layer: usize,
        x: Value,
        branch: Branch,
        attention: &Attention,
    ) -> Result<Value, Error> {
        let norms = ["attn_norm", "post_attention_norm"];
        self.branch(layer, x, branch, (norms, "attn_residual"), |b, x| {
            b.attention(layer, x, attention)
        })
    }

    /// Feed-forward network of one layer, added to the residual stream.
    pub fn ffn_branch(
        &mut self,
        layer: usize,
        x: Value,
        branch: Branch,
        ffn: &Ffn,
    ) -> Result<Value, Error> {
        let norms = ["ffn_norm", "post_ffw_norm"];
        self.branch(layer, x, branch, (norms, "ffn_residual"), |b, x| {
            b.ffn(layer, x, ffn)
        })
    }

    /// Experts of one layer, added to the residual stream.
    pub fn experts_branch(
        &mut self,
        layer: usize,
        x: Value,
        branch: Branch,
        experts: &ExpertShape,
    ) -> Result<Value, Error> {
        let norms = ["ffn_norm", "post_ffw_norm"];
        self.branch(layer, x, branch, (norms, "ffn_residual"), |b, x| {
            b.experts(layer, x, experts)
        })
    }

    /// What `compute` makes of the normed rows, normed, scaled and added to x; `norms` are tensor names before and after.
    pub fn branch(
        &mut self,
        layer: usize,
        x: Value,
        branch: Branch,
        (norms, sum): ([&str; 2], &str),
        compute: impl FnOnce(&mut Self, Value) -> Result<Value, Error>,
    ) -> Result<Value, Error> {
        let label = |part: &str| format!("blk.{layer}.{part}");
        let [before, after] = norms;
        let input = match branch.norms {
            Norms::Before | Norms::Around => self.norm(&label(before), x)?,
            Norms::After => x,
        };
        let mut y = compute(self, input)?;
        if matches!(branch.norms, Norms::After | Norms::Around) {
            y = self.norm(&label(after), y)?;
        }
        let y = self.scale(&label(&format!("{sum}_scale")), y, branch.scale)?;
        self.add(&label(sum), y, x)
    }

    /// Final norm and output projection of the rows whose logits are wanted. Without `output.weight` the embedding
    /// matrix is used.
    pub fn head(&mut self, x: Value, head: &Head) -> Result<(), Error> {
        let (vocab, hidden) = (self.hparams.vocab_size, self.hparams.hidden);
        let rows = self.graph.add_one(Op::SelectRows, "logits_rows", &[x])?;
        let normed = self.norm("output_norm", rows)?;
        let name = match self.has("output.weight") {
            true => "output.weight",
            false => "token_embd.weight",
        };
        let weight = self.matrix(name, vocab, hidden)?;
        let bias = match head.bias {
            true => self.bias("output", vocab)?,
            false => None,
        };
        let logits = self.matmul("output", normed, Part { weight, bias })?;
        let logits = self.scale("output_scale", logits, head.scale)?;
        let logits = self.softcap("output_softcap", logits, head.softcap)?;
        self.graph.add(Op::Logits, "logits", &[logits])?;
        Ok(())
    }
}
