//! Hyperparameters that every architecture has: keys with the architecture's prefix, read once, checked, defaulted as
//! llama.cpp defaults them (`llama_model_base::load_hparams`). Keys of one feature are read where the feature is built.

use crate::error::Error;
use crate::gguf::Gguf;

/// Reads `ARCHITECTURE.suffix` keys.
#[derive(Clone, Copy)]
pub(super) struct Metadata<'a> {
    pub gguf: &'a Gguf,
    pub architecture: &'a str,
}

/// Dimensions and constants of the whole model; arrays have one element per layer.
#[derive(Clone, Debug)]
pub(super) struct Hparams {
    pub vocab_size: usize,
    pub hidden: usize,
    pub layers: usize,
    pub context: usize,
    pub heads: Vec<usize>,
    pub kv_heads: Vec<usize>,
    pub ffn: Vec<usize>,
    pub head_dim: usize,
    /// Leading elements of a head that rotate.
    pub rot_dim: usize,
    pub rms_eps: f32,
}

impl<'a> Metadata<'a> {
    /// The whole key: `llama.block_count`.
    pub fn key(self, suffix: &str) -> String {
        format!("{}.{suffix}", self.architecture)
    }

    pub fn f32(self, suffix: &str) -> Result<Option<f32>, Error> {
        let value = self.gguf.f32(&self.key(suffix))?;
        if value.is_some_and(|value| !value.is_finite()) {
            return Err(self.wrong(suffix, "is not finite"));
        }
        Ok(value)
    }

    pub fn str(self, suffix: &str) -> Result<Option<&'a str>, Error> {
        Ok(self.gguf.str(&self.key(suffix))?)
    }

    /// A size that must be there and must not be 0.
    pub fn size(self, suffix: &str) -> Result<usize, Error> {
        let value = self.optional_size(suffix)?;
        value.ok_or_else(|| self.wrong(suffix, "missing"))
    }

    /// A size that must not be 0 when it is there.
    pub fn optional_size(self, suffix: &str) -> Result<Option<usize>, Error> {
        match self.gguf.u32(&self.key(suffix))? {
            Some(0) => Err(self.wrong(suffix, "is 0")),
            size => Ok(size.map(|size| size as usize)),
        }
    }

    /// One size per layer, from an array or from one number for all layers.
    pub fn sizes(self, suffix: &str, layers: usize) -> Result<Option<Vec<usize>>, Error> {
        let Some(sizes) = self.gguf.u32s(&self.key(suffix))? else {
            return Ok(None);
        };
        if let Some(layer) = sizes.iter().position(|&size| size == 0) {
            let why = format!("is 0 for layer {layer}; layers without it are not implemented");
            return Err(Error::Unsupported {
                what: self.key(suffix),
                why,
            });
        }
        let is_array = matches!(
            self.gguf.get(&self.key(suffix)),
            Some(crate::gguf::Value::Array(_))
        );
        match sizes[..] {
            [size] if !is_array => Ok(Some(vec![size as usize; layers])),
            _ if sizes.len() < layers => {
                let why = format!("has {} elements for {layers} layers", sizes.len());
                Err(self.wrong(suffix, &why))
            }
            _ => Ok(Some(
                sizes[..layers].iter().map(|&size| size as usize).collect(),
            )),
        }
    }

    pub fn wrong(self, suffix: &str, why: &str) -> Error {
        Error::Model {
            what: self.key(suffix),
            why: why.into(),
        }
    }

    pub fn missing(self, suffix: &str) -> Error {
        self.wrong(suffix, "missing")
    }
}

/// Bounds what a hostile file can make tables from; the widest head in use has 512 elements.
const MAX_HEAD_DIM: usize = 1 << 16;

impl Hparams {
    pub fn read(metadata: Metadata) -> Result<Hparams, Error> {
        let layers = metadata.size("block_count")?;
        let tensors = metadata.gguf.tensors().len();
        if layers > tensors {
            let why = format!("says {layers} layers, but the file has only {tensors} tensors");
            return Err(metadata.wrong("block_count", &why));
        }
        let hidden = metadata.size("embedding_length")?;
        let heads = metadata.sizes("attention.head_count", layers)?;
        let heads = heads.ok_or_else(|| metadata.missing("attention.head_count"))?;
        let kv_heads = metadata.sizes("attention.head_count_kv", layers)?;
        let kv_heads = kv_heads.unwrap_or_else(|| heads.clone());
        if let Some((heads, kv_heads)) = heads
            .iter()
            .zip(&kv_heads)
            .find(|(h, kv)| !h.is_multiple_of(**kv))
        {
            let why = format!("{kv_heads} does not divide attention.head_count, {heads}");
            return Err(metadata.wrong("attention.head_count_kv", &why));
        }
        let ffn = metadata.sizes("feed_forward_length", layers)?;

        let default_head_dim = hidden / heads[0];
        let head_dim = metadata
            .optional_size("attention.key_length")?
            .unwrap_or(default_head_dim);
        let value_dim = metadata
            .optional_size("attention.value_length")?
            .unwrap_or(default_head_dim);
        if value_dim != head_dim {
            return Err(Error::Unsupported {
                what: metadata.key("attention.value_length"),
                why: format!(
                    "{value_dim} differs from the key length {head_dim}; only equal lengths are implemented"
                ),
            });
        }
        let rot_dim = metadata
            .optional_size("rope.dimension_count")?
            .unwrap_or(head_dim);
        check_head(metadata, head_dim, rot_dim)?;
        const EPS: &str = "attention.layer_norm_rms_epsilon";
        let rms_eps = metadata.f32(EPS)?.ok_or_else(|| metadata.missing(EPS))?;
        if rms_eps < 0.0 {
            return Err(metadata.wrong(EPS, &format!("is {rms_eps}")));
        }
        Ok(Hparams {
            vocab_size: vocab_size(metadata)?,
            hidden,
            layers,
            context: metadata.size("context_length")?,
            heads,
            kv_heads,
            ffn: match ffn {
                Some(ffn) => ffn,
                // Experts alone need not say how wide something else would be.
                None if metadata
                    .sizes("expert_feed_forward_length", layers)?
                    .is_some() =>
                {
                    vec![0; layers]
                }
                None => return Err(metadata.missing("feed_forward_length")),
            },
            head_dim,
            rot_dim,
            rms_eps,
        })
    }
}

/// Whether there is a table for heads of `head_dim` elements of which `rot_dim` rotate.
pub(super) fn check_head(metadata: Metadata, head_dim: usize, rot_dim: usize) -> Result<(), Error> {
    if !(1..=MAX_HEAD_DIM).contains(&head_dim) {
        return Err(Error::Unsupported {
            what: metadata.key("attention.key_length"),
            why: format!("heads of {head_dim} elements (supported: 1 to {MAX_HEAD_DIM})"),
        });
    }
    if rot_dim > head_dim || !rot_dim.is_multiple_of(2) {
        let why = format!("{rot_dim} is not an even number up to the head size {head_dim}");
        return Err(metadata.wrong("rope.dimension_count", &why));
    }
    Ok(())
}

/// Rows of the embedding matrix, which must be as many as the tokenizer has tokens when the file has a tokenizer.
fn vocab_size(metadata: Metadata) -> Result<usize, Error> {
    const TENSOR: &str = "token_embd.weight";
    const TOKENS: &str = "tokenizer.ggml.tokens";
    let model_error = |why: String| Error::Model {
        what: TENSOR.into(),
        why,
    };
    let tensor = metadata
        .gguf
        .tensor(TENSOR)
        .ok_or_else(|| model_error("missing".into()))?;
    let tokens = metadata
        .gguf
        .strs(TOKENS)?
        .map(|tokens| tokens.len() as u64);
    match tokens {
        Some(tokens) if tokens != tensor.n() => Err(model_error(format!(
            "has {} rows, but {TOKENS} has {tokens} tokens",
            tensor.n()
        ))),
        _ => u32::try_from(tensor.n())
            .map(|n| n as usize)
            .map_err(|_| model_error(format!("has {} rows, more than token ids", tensor.n()))),
    }
}
