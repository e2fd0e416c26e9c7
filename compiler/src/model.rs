//! GGUF to op graph: one architecture per file, one line in `ARCHITECTURES`. Builders emit simple ops only; fusing is for
//! `pass`. Everything a file can get wrong about its own model is found here and named: keys, tensors, shapes.

mod check;
mod experts;
mod gpt_oss;
mod llama;
mod metadata;
mod olmoe;
mod parts;
mod qwen2;
mod qwen2moe;
mod qwen3;
mod qwen3moe;
mod rope;
#[cfg(test)]
mod tests;

use crate::error::Error;
use crate::gguf::Gguf;
use crate::graph::{OpGraph, Source, verify};
use parts::Builder;

/// A model family: how its metadata and tensors become a graph.
pub struct Architecture {
    /// Value of `general.architecture`.
    pub name: &'static str,
    /// Keys it reads of those that `check` refuses of others.
    keys: &'static [&'static str],
    build: fn(&mut Builder) -> Result<(), Error>,
}

/// Every architecture that can be compiled.
pub const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        name: "llama",
        keys: experts::KEYS,
        build: llama::build,
    },
    Architecture {
        name: "qwen2",
        keys: &[],
        build: qwen2::build,
    },
    Architecture {
        name: "qwen3",
        keys: &[],
        build: qwen3::build,
    },
    Architecture {
        name: "gpt-oss",
        keys: experts::KEYS,
        build: gpt_oss::build,
    },
    Architecture {
        name: "qwen2moe",
        keys: experts::KEYS,
        build: qwen2moe::build,
    },
    Architecture {
        name: "qwen3moe",
        keys: experts::KEYS,
        build: qwen3moe::build,
    },
    Architecture {
        name: "olmoe",
        keys: experts::KEYS,
        build: olmoe::build,
    },
];

/// A model as the rest of the compiler sees it.
#[derive(Clone, Debug)]
pub struct Model {
    /// What reports print and the engine needs to know.
    pub info: ModelInfo,
    /// One step over its rows, unfused.
    pub graph: OpGraph,
}

/// The model's dimensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    /// `general.architecture`.
    pub architecture: String,
    /// `general.name`; empty when the file has none.
    pub name: String,
    /// Rows of the embedding matrix, and of the logits.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Query heads of the first layer.
    pub heads: usize,
    /// Key/value heads of the first layer.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// The file's context length in tokens.
    pub max_context: usize,
    /// Weights of all tensors the graph reads; tied ones count once.
    pub parameters: u64,
}

/// Builds and verifies the graph of the model in `gguf`.
///
/// # Errors
/// `Error::Unsupported` for an architecture, tensor type or metadata value without implementation here, `Error::Model`
/// for missing keys and tensors, wrong shapes, and tensors that the architecture does not have.
pub fn build(gguf: &Gguf) -> Result<Model, Error> {
    const KEY: &str = "general.architecture";
    let name = gguf.str(KEY)?.ok_or_else(|| Error::Model {
        what: KEY.into(),
        why: "missing: the file does not say what model it holds".into(),
    })?;
    let architecture = ARCHITECTURES.iter().find(|a| a.name == name);
    let architecture = architecture.ok_or_else(|| Error::Unsupported {
        what: format!("architecture {name}"),
        why: format!(
            "not implemented (supported: {})",
            ARCHITECTURES
                .iter()
                .map(|a| a.name)
                .collect::<Vec<_>>()
                .join(", ")
        ),
    })?;
    check::keys(gguf, name, architecture.keys)?;
    let mut builder = Builder::new(gguf, name)?;
    (architecture.build)(&mut builder)?;
    let (hparams, graph) = builder.finish()?;
    verify::verify(&graph)?;
    let from_file = graph.weights.iter().filter(|w| w.source == Source::Gguf);
    let info = ModelInfo {
        architecture: name.into(),
        name: gguf.str("general.name")?.unwrap_or_default().into(),
        vocab_size: hparams.vocab_size,
        hidden: hparams.hidden,
        layers: hparams.layers,
        heads: hparams.heads[0],
        kv_heads: hparams.kv_heads[0],
        head_dim: hparams.head_dim,
        max_context: hparams.context,
        parameters: from_file.map(|w| w.n as u64 * w.k as u64).sum(),
    };
    Ok(Model { info, graph })
}
