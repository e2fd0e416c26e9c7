//! GGUF to op graph: one architecture per file, one line in `ARCHITECTURES`. Builders emit simple ops only; fusing is for
//! `pass`. Everything a file can get wrong about its own model is found here and named: keys, tensors, shapes.

mod attention;
mod check;
mod decoder;
mod delta;
mod exaone;
mod exaone4;
mod experts;
mod ffn;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma4;
mod glm4;
mod gpt_oss;
mod granite;
mod hunyuan_dense;
mod internlm2;
mod judge;
mod llama;
mod maincoder;
mod metadata;
mod minicpm;
mod mistral3;
mod olmo2;
mod olmoe;
mod pangu_embedded;
mod parts;
mod per_layer;
mod phi3;
mod qwen2;
mod qwen2moe;
mod qwen2vl;
mod qwen3;
mod qwen35;
mod qwen35moe;
mod qwen3moe;
mod qwen3next;
mod qwen3vl;
mod qwen3vlmoe;
mod rope;
mod seed_oss;
mod smollm3;
#[cfg(test)]
mod tests;
mod window;
mod xverse;

use crate::error::Error;
use crate::gguf::Gguf;
use crate::graph::{OpGraph, verify};
use parts::Builder;

pub use judge::{Verdict, judge};

/// A model family: how its metadata and tensors become a graph.
pub struct Architecture {
    /// Value of `general.architecture`.
    pub name: &'static str,
    /// Keys that llama.cpp reads for every architecture and that this one implements with any value.
    reads: &'static [&'static str],
    /// Keys that llama.cpp reads for this architecture and that are implemented with these values only.
    refuses: &'static [check::Neutral],
    build: fn(&mut Builder) -> Result<(), Error>,
}

/// Every architecture that can be compiled.
pub const ARCHITECTURES: &[Architecture] = &[
    exaone::ARCHITECTURE,
    exaone4::ARCHITECTURE,
    gemma::ARCHITECTURE,
    gemma2::ARCHITECTURE,
    gemma3::ARCHITECTURE,
    gemma4::ARCHITECTURE,
    glm4::ARCHITECTURE,
    gpt_oss::ARCHITECTURE,
    granite::ARCHITECTURE,
    hunyuan_dense::ARCHITECTURE,
    internlm2::ARCHITECTURE,
    llama::ARCHITECTURE,
    maincoder::ARCHITECTURE,
    minicpm::ARCHITECTURE,
    mistral3::ARCHITECTURE,
    olmo2::ARCHITECTURE,
    olmoe::ARCHITECTURE,
    pangu_embedded::ARCHITECTURE,
    phi3::ARCHITECTURE,
    qwen2::ARCHITECTURE,
    qwen2moe::ARCHITECTURE,
    qwen2vl::ARCHITECTURE,
    qwen3::ARCHITECTURE,
    qwen35::ARCHITECTURE,
    qwen35moe::ARCHITECTURE,
    qwen3moe::ARCHITECTURE,
    qwen3next::ARCHITECTURE,
    qwen3vl::ARCHITECTURE,
    qwen3vlmoe::ARCHITECTURE,
    seed_oss::ARCHITECTURE,
    smollm3::ARCHITECTURE,
    xverse::ARCHITECTURE,
];

/// Context compiled for when none is asked for, in tokens (less if the model was trained for less).
pub const DEFAULT_CONTEXT: usize = 4096;

/// A model as the rest of the compiler sees it.
#[derive(Clone, Debug)]
pub struct Model {
    /// What reports print and the engine needs to know.
    pub info: ModelInfo,
    /// One step over its rows, unfused.
    pub graph: OpGraph,
    /// Above this many tokens of context the model rotates otherwise, and its graph is another one.
    pub switches_above: Option<usize>,
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

/// The architecture that `gguf` says it has.
fn architecture(gguf: &Gguf) -> Result<&'static Architecture, Error> {
    const KEY: &str = "general.architecture";
    let name = gguf.str(KEY)?.ok_or_else(|| Error::Model {
        what: KEY.into(),
        why: "missing: the file does not say what model it holds".into(),
    })?;
    let found = ARCHITECTURES.iter().find(|a| a.name == name);
    found.ok_or_else(|| {
        let known: Vec<_> = ARCHITECTURES.iter().map(|a| a.name).collect();
        Error::Unsupported {
            what: format!("architecture {name}"),
            why: format!("not implemented (supported: {})", known.join(", ")),
        }
    })
}

/// Builds and verifies the graph of the model in `gguf`, for the context it gets when none is asked for.
///
/// # Errors
/// As [`build_for`].
pub fn build(gguf: &Gguf) -> Result<Model, Error> {
    build_for(gguf, None)
}

/// Builds and verifies the graph of the model in `gguf` for sequences of `context` tokens; `None` is the file's context,
/// at most [`DEFAULT_CONTEXT`].
///
/// # Errors
/// `Error::Unsupported` for an architecture, tensor type or metadata value without implementation here, `Error::Model`
/// for missing keys and tensors, wrong shapes, and tensors that the architecture does not have.
pub fn build_for(gguf: &Gguf, context: Option<usize>) -> Result<Model, Error> {
    let architecture = architecture(gguf)?;
    let name = architecture.name;
    if let Some(refused) = check::refused(gguf, architecture)?.into_iter().next() {
        return Err(refused);
    }
    let mut builder = Builder::new(gguf, name, context)?;
    (architecture.build)(&mut builder)?;
    builder.check_all_read()?;
    let Builder {
        hparams,
        graph,
        switches_above,
        folded,
        ..
    } = builder;
    verify::verify(&graph)?;
    let from_file = graph.weights.iter().filter(|w| w.tensor().is_some());
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
        parameters: folded + from_file.map(|w| w.n as u64 * w.k as u64).sum::<u64>(),
    };
    Ok(Model {
        info,
        graph,
        switches_above,
    })
}
