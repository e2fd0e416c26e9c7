//! `tokenizer.ggml.*` metadata to a `TokenizerSpec`: the vocabulary, its algorithm and its kinds. Facts from llama.cpp
//! (src/llama-vocab.cpp). Names of pre-tokenizers are in `tokenizer/pre.rs`, special tokens and what ends a generation in
//! `tokenizer/special.rs`; nothing here encodes text.

mod pre;
mod special;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use coldpress_runtime::tokenizer::{
    Algorithm, Alphabet, BpeSpec, SpmSpec, TokenKind, TokenizerSpec,
};

use crate::error::Error;
use crate::gguf::Gguf;
use special::{Specials, stripping};

/// Values of `tokenizer.ggml.model` that can be compiled.
const MODELS: &str = "llama, gpt2, gemma4";

/// Values of `tokenizer.ggml.model` that stand for no tokenizer: prompts are token ids then. `test` is what llama.cpp's
/// own test models have.
const NONE: [&str; 3] = ["none", "no_vocab", "test"];

/// The tokenizer of a GGUF file, if it has one.
///
/// # Errors
/// As of [`from_gguf`].
pub fn optional(gguf: &Gguf) -> Result<Option<TokenizerSpec>, Error> {
    match is_there(gguf)? {
        true => from_gguf(gguf).map(Some),
        false => Ok(None),
    }
}

/// Whether a GGUF file says that it has a tokenizer.
///
/// # Errors
/// A model name that is no text.
pub fn is_there(gguf: &Gguf) -> Result<bool, Error> {
    let model = gguf.str("tokenizer.ggml.model")?;
    Ok(model.is_some_and(|model| !NONE.contains(&model)))
}

/// The tokenizer of a GGUF file; a file without tensors will do.
///
/// # Errors
/// A tokenizer model or pre-tokenizer that is not known, by name; metadata that is missing or contradicts itself.
pub fn from_gguf(gguf: &Gguf) -> Result<TokenizerSpec, Error> {
    let model = gguf
        .str("tokenizer.ggml.model")?
        .ok_or_else(|| missing("tokenizer.ggml.model"))?;
    let tokens: Vec<String> = gguf
        .strs("tokenizer.ggml.tokens")?
        .ok_or_else(|| missing("tokenizer.ggml.tokens"))?
        .iter()
        .enumerate()
        .map(|(id, text)| match text.is_empty() {
            true => format!("[EMPTY_{id}]"),
            false => text.clone(),
        })
        .collect();
    if u32::try_from(tokens.len()).is_err() {
        return Err(Error::Model {
            what: "tokenizer.ggml.tokens".to_owned(),
            why: format!("{} tokens do not fit 32-bit ids", tokens.len()),
        });
    }
    let mut ids: HashMap<&str, u32> = HashMap::with_capacity(tokens.len());
    for (id, text) in (0u32..).zip(&tokens) {
        if let Some(first) = ids.insert(text, id) {
            return Err(Error::Model {
                what: "tokenizer.ggml.tokens".to_owned(),
                why: format!("tokens {first} and {id} are both {text:?}"),
            });
        }
    }
    let pre_name = match (model, gguf.str("tokenizer.ggml.pre")?) {
        ("gemma4", _) => "gemma4",
        (_, Some(name)) if !name.is_empty() => name,
        _ => "default",
    };
    let (algorithm, default_bos) = match model {
        "llama" => (Algorithm::Spm(spm(gguf, tokens.len())?), true),
        "gpt2" | "gemma4" => {
            let pre = pre::find(pre_name).ok_or_else(|| Error::Unsupported {
                what: format!("tokenizer.ggml.pre `{pre_name}`"),
                why: format!("supported: {}", pre::names().join(", ")),
            })?;
            (Algorithm::Bpe(bpe(gguf, pre, pre_name, &ids)?), pre.add_bos)
        }
        other => {
            return Err(Error::Unsupported {
                what: format!("tokenizer.ggml.model `{other}`"),
                why: format!("supported: {MODELS}"),
            });
        }
    };

    let kinds = kinds(gguf, tokens.len())?;
    let (roles, kinds) = Specials::new(gguf, &ids, kinds, model == "llama").resolve()?;
    let always_bos = matches!(&algorithm, Algorithm::Bpe(bpe) if bpe.whole_newline_runs);
    let (strip_left, strip_right) = stripping(gguf, pre_name, &ids, &kinds)?;
    Ok(TokenizerSpec {
        algorithm,
        bos: roles.bos,
        eos: roles.eos,
        eot: roles.eot,
        eom: roles.eom,
        unk: roles.unk,
        pad: roles.pad,
        end_of_generation: roles.end_of_generation,
        add_bos: always_bos
            || gguf
                .bool("tokenizer.ggml.add_bos_token")?
                .unwrap_or(default_bos),
        add_eos: gguf.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
        strip_left,
        strip_right,
        chat_template: gguf.str("tokenizer.chat_template")?.map(str::to_owned),
        kinds,
        tokens,
    })
}

fn missing(key: &str) -> Error {
    Error::Model {
        what: key.to_owned(),
        why: "the file has no such key: it carries no tokenizer".to_owned(),
    }
}

fn too_short(key: &str, found: usize, tokens: usize) -> Error {
    Error::Model {
        what: key.to_owned(),
        why: format!("{found} entries for {tokens} tokens"),
    }
}

fn spm(gguf: &Gguf, tokens: usize) -> Result<SpmSpec, Error> {
    let key = "tokenizer.ggml.scores";
    let mut scores = gguf.f32s(key)?.unwrap_or_else(|| vec![0.0; tokens]);
    if scores.len() < tokens {
        return Err(too_short(key, scores.len(), tokens));
    }
    scores.truncate(tokens);
    Ok(SpmSpec {
        scores,
        add_space_prefix: gguf
            .bool("tokenizer.ggml.add_space_prefix")?
            .unwrap_or(true),
    })
}

fn bpe(
    gguf: &Gguf,
    pre: &pre::Pre,
    pre_name: &str,
    ids: &HashMap<&str, u32>,
) -> Result<BpeSpec, Error> {
    let key = "tokenizer.ggml.merges";
    let bad = |rank: usize, merge: &str, why: &str| Error::Model {
        what: format!("{key}[{rank}]"),
        why: format!("{merge:?} {why}"),
    };
    let texts = match gguf.strs(key)? {
        Some(texts) => texts,
        None if pre_name == "kimi-k2" => &[],
        None => return Err(missing(key)),
    };
    let mut merges = Vec::with_capacity(texts.len());
    let mut seen = HashSet::with_capacity(texts.len());
    let mut joined = String::new();
    for (rank, merge) in texts.iter().enumerate() {
        // The left part is never empty, so a leading space belongs to it.
        let first = merge.chars().next().map_or(0, char::len_utf8);
        let (left, right) = merge[first..]
            .find(' ')
            .map(|at| (&merge[..first + at], &merge[first + at + 1..]))
            .ok_or_else(|| bad(rank, merge, "is not two parts with a space between"))?;
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        match (ids.get(left), ids.get(right), ids.get(joined.as_str())) {
            // Of equal pairs the first counts.
            (Some(&left), Some(&right), Some(_)) if seen.insert((left, right)) => {
                merges.push((left, right));
            }
            (Some(_), Some(_), Some(_)) => {}
            _ => return Err(bad(rank, merge, "merges or makes what is no token")),
        }
    }
    Ok(BpeSpec {
        merges,
        splits: pre.splits(),
        alphabet: match pre.space_marker {
            true => Alphabet::SpaceMarker,
            false => Alphabet::ByteLevel,
        },
        ignore_merges: pre.ignore_merges,
        whole_newline_runs: pre.whole_newline_runs,
    })
}

/// Kinds as written, before tokens are recognised by their text.
fn kinds(gguf: &Gguf, tokens: usize) -> Result<Vec<TokenKind>, Error> {
    let key = "tokenizer.ggml.token_type";
    let Some(mut types) = gguf.i32s(key)? else {
        return Ok(vec![TokenKind::Normal; tokens]);
    };
    if types.len() < tokens {
        return Err(too_short(key, types.len(), tokens));
    }
    types.truncate(tokens);
    let kind = |ty| match ty {
        1 => TokenKind::Normal,
        2 => TokenKind::Unknown,
        3 => TokenKind::Control,
        4 => TokenKind::UserDefined,
        6 => TokenKind::Byte,
        _ => TokenKind::Unused,
    };
    Ok(types.into_iter().map(kind).collect())
}
