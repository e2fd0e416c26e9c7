//! `tokenizer.ggml.*` metadata to a `TokenizerSpec`: which algorithm, which patterns, which tokens are special and
//! which end a generation. Facts from llama.cpp (src/llama-vocab.cpp); names of pre-tokenizers are in
//! tokenizer/pre.rs, and nothing here encodes text.

mod pre;

use std::collections::{HashMap, HashSet};

use coldpress_runtime::tokenizer::{
    Algorithm, Alphabet, BpeSpec, SpmSpec, TokenKind, TokenizerSpec,
};

use crate::error::Error;
use crate::gguf::Gguf;

/// Values of `tokenizer.ggml.model` that can be compiled.
const MODELS: &str = "llama, gpt2, gemma4";

/// Ends a turn, in order of preference.
const END_OF_TURN: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
];

const END_OF_MESSAGE: &[&str] = &["<|eom_id|>"];

/// Ends a generation wherever it occurs.
const END_OF_GENERATION: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Fill-in-the-middle roles: metadata keys, the texts looked for without them, and whether the token ends a
/// generation.
const FILL_IN_MIDDLE: &[(&[&str], &[&str], bool)] = &[
    (
        &["prefix_token_id", "fim_pre_token_id"],
        &[
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ],
        false,
    ),
    (
        &["suffix_token_id", "fim_suf_token_id"],
        &[
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ],
        false,
    ),
    (
        &["middle_token_id", "fim_mid_token_id"],
        &[
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "▁<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ],
        false,
    ),
    (
        &["fim_pad_token_id"],
        &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
        true,
    ),
    (
        &["fim_rep_token_id"],
        &[
            "<|fim_repo|>",
            "<|repo_name|>",
            "<fim-repo>",
            "<REPO>",
            "<reponame>",
        ],
        true,
    ),
    (&["fim_sep_token_id"], &["<|file_sep|>"], true),
];

/// Control tokens of one format that are shown as text all the same.
const ALWAYS_SHOWN: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

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

    let mut specials = Specials::new(gguf, &ids, kinds(gguf, tokens.len())?);
    specials.is_spm = model == "llama";
    let roles = specials.resolve()?;
    let kinds = specials.kinds;
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

/// Special tokens found so far.
struct Specials<'a> {
    gguf: &'a Gguf,
    ids: &'a HashMap<&'a str, u32>,
    kinds: Vec<TokenKind>,
    is_spm: bool,
}

struct Roles {
    bos: Option<u32>,
    eos: Option<u32>,
    eot: Option<u32>,
    eom: Option<u32>,
    unk: Option<u32>,
    pad: Option<u32>,
    end_of_generation: Vec<u32>,
}

impl<'a> Specials<'a> {
    fn new(gguf: &'a Gguf, ids: &'a HashMap<&'a str, u32>, kinds: Vec<TokenKind>) -> Specials<'a> {
        Specials {
            gguf,
            ids,
            kinds,
            is_spm: false,
        }
    }

    /// The id a key names; ids outside the vocabulary (writers put -1 there) count as absent.
    fn named(&self, key: &str) -> Result<Option<u32>, Error> {
        let key = format!("tokenizer.ggml.{key}");
        let in_range = |id: i64| {
            u32::try_from(id)
                .ok()
                .filter(|&id| (id as usize) < self.kinds.len())
        };
        if self.gguf.get(&key).is_none() {
            return Ok(None);
        }
        match self.gguf.u32(&key) {
            Ok(id) => Ok(id.map(i64::from).and_then(in_range)),
            Err(error) => match self.gguf.i32s(&key) {
                Ok(Some(ids)) if ids.len() == 1 => {
                    Ok(ids.first().copied().map(i64::from).and_then(in_range))
                }
                _ => Err(error.into()),
            },
        }
    }

    /// The first of these texts that is a token; it becomes a control token.
    fn spelled(&mut self, texts: &[&str]) -> Option<u32> {
        let id = texts.iter().find_map(|text| self.ids.get(text)).copied()?;
        self.set(id, TokenKind::Control);
        Some(id)
    }

    fn set(&mut self, id: u32, kind: TokenKind) {
        if let Some(slot) = self.kinds.get_mut(id as usize) {
            *slot = kind;
        }
    }

    fn resolve(&mut self) -> Result<Roles, Error> {
        let spm_default = |id: u32| (self.is_spm && (id as usize) < self.kinds.len()).then_some(id);
        let (bos, eos, unk) = (spm_default(1), spm_default(2), spm_default(0));
        let mut roles = Roles {
            bos: self.named("bos_token_id")?.or(bos),
            eos: self.named("eos_token_id")?.or(eos),
            eot: self.named("eot_token_id")?,
            eom: self.named("eom_token_id")?,
            unk: self.named("unknown_token_id")?.or(unk),
            pad: self.named("padding_token_id")?,
            end_of_generation: Vec::new(),
        };
        let mut ends = Vec::new();
        roles.eot = roles.eot.or_else(|| self.spelled(END_OF_TURN));
        roles.eom = roles.eom.or_else(|| self.spelled(END_OF_MESSAGE));
        for &(keys, texts, ends_generation) in FILL_IN_MIDDLE {
            let mut id = None;
            for key in keys {
                id = id.or(self.named(key)?);
            }
            let id = id.or_else(|| self.spelled(texts));
            if ends_generation {
                ends.extend(id);
            }
        }
        for text in END_OF_GENERATION {
            ends.extend(self.spelled(&[text]));
        }
        for text in ALWAYS_SHOWN {
            if let Some(&id) = self.ids.get(text) {
                self.set(id, TokenKind::UserDefined);
            }
        }
        ends.extend([roles.eos, roles.eot, roles.eom].into_iter().flatten());
        ends.sort_unstable();
        ends.dedup();
        self.exceptions(&mut ends);
        roles.end_of_generation = ends;
        Ok(roles)
    }

    /// Texts that end a generation in most vocabularies, but not in these.
    fn exceptions(&mut self, ends: &mut Vec<u32>) {
        let id_of = |text: &str, ends: &[u32]| {
            let id = self.ids.get(text).copied();
            id.filter(|id| ends.contains(id))
        };
        let has = |text: &str, ends: &[u32]| id_of(text, ends).is_some();
        // Where a return or a flush ends the turn, `<|end|>` only ends a message inside it.
        let calls = has("<|call|>", ends) || has("<|calls|>", ends);
        let inner_end = (has("<|return|>", ends) || has("<|flush|>", ends)) && calls;
        let end = id_of("<|end|>", ends).filter(|_| inner_end);
        // A vocabulary with its own end markers has `</s>` as ordinary text (HTML strike-through).
        let own_marker = has("<|tool_response>", ends) || has("<|plamo:eos|>", ends);
        let strike = id_of("</s>", ends).filter(|_| own_marker);
        ends.retain(|&id| Some(id) != end && Some(id) != strike);
        if let Some(id) = end {
            self.set(id, TokenKind::UserDefined);
        }
        if let Some(id) = strike {
            self.set(id, TokenKind::Normal);
        }
    }
}

/// Special tokens that swallow white space beside them: GGUF does not store this, llama.cpp knows it by name.
fn stripping(
    gguf: &Gguf,
    pre_name: &str,
    ids: &HashMap<&str, u32>,
    kinds: &[TokenKind],
) -> Result<(Vec<u32>, Vec<u32>), Error> {
    let name = gguf
        .str("general.name")?
        .unwrap_or_default()
        .to_ascii_lowercase();
    let one = |text: &str| ids.get(text).copied().into_iter().collect::<Vec<u32>>();
    if ["jina-v2-de", "jina-v2-es", "jina-v2-code"]
        .iter()
        .any(|pre| pre_name.contains(pre))
    {
        return Ok((one("<mask>"), Vec::new()));
    }
    if name.contains("phi-3") || name.contains("phi3") {
        let keep = ["<unk>", "<s>", "<|endoftext|>"].map(|text| ids.get(text).copied());
        let special = |kind: TokenKind| {
            matches!(
                kind,
                TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown
            )
        };
        let right = (0u32..)
            .zip(kinds)
            .filter(|&(id, &kind)| special(kind) && !keep.contains(&Some(id)))
            .map(|(id, _)| id)
            .collect();
        return Ok((Vec::new(), right));
    }
    if name.contains("modern-bert") {
        return Ok((one("[MASK]"), Vec::new()));
    }
    Ok((Vec::new(), Vec::new()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{Array, GgufWriter, Value};
    use coldpress_runtime::tokenizer::Tokenizer;

    fn texts(texts: &[&str]) -> Value {
        Value::Array(Array::Str(texts.iter().map(|t| (*t).to_owned()).collect()))
    }

    /// `from_gguf` of a file with these keys, on top of a small byte-level vocabulary.
    fn read(keys: &[(&str, Value)]) -> Result<TokenizerSpec, Error> {
        let tokens = [
            "a",
            "b",
            "ab",
            "",
            "<|im_end|>",
            "<|eot_id|>",
            "<|end|>",
            "</s>",
        ];
        let mut all = vec![
            ("tokenizer.ggml.model", Value::Str("gpt2".to_owned())),
            ("tokenizer.ggml.pre", Value::Str("qwen2".to_owned())),
            ("tokenizer.ggml.tokens", texts(&tokens)),
            ("tokenizer.ggml.merges", texts(&["a b", "a b"])),
        ];
        for (key, value) in keys {
            all.retain(|(known, _)| known != key);
            all.push((*key, value.clone()));
        }
        let dir = tempfile::tempdir().expect("a directory for the test");
        let path = dir.path().join("vocab.gguf");
        let mut writer = GgufWriter::new();
        for (key, value) in all {
            writer.add(key, value);
        }
        writer.write(&path).expect("a file for the test");
        from_gguf(&Gguf::open(&path).expect("a valid file"))
    }

    #[test]
    fn tokens_are_recognised_by_their_text() {
        let spec = read(&[("tokenizer.ggml.eos_token_id", Value::U32(1))]).expect("valid");
        assert_eq!(spec.tokens[3], "[EMPTY_3]");
        assert_eq!(spec.eot, Some(5), "the preferred end of turn");
        assert_eq!(spec.end_of_generation, [1, 4, 5, 6, 7]);
        assert_eq!(spec.kinds[4], TokenKind::Control);
        assert_eq!((spec.bos, spec.add_bos), (None, false));
        let Algorithm::Bpe(bpe) = &spec.algorithm else {
            panic!("gpt2 is BPE");
        };
        assert_eq!(bpe.merges, [(0, 1)]);
        assert!(Tokenizer::new(spec).is_ok());
    }

    #[test]
    fn ends_inside_a_turn_do_not_end_it() {
        let tokens = [
            "<|return|>",
            "<|call|>",
            "<|end|>",
            "<|message|>",
            "</s>",
            "<|tool_response>",
        ];
        let spec = read(&[
            ("tokenizer.ggml.tokens", texts(&tokens)),
            ("tokenizer.ggml.merges", texts(&[])),
        ])
        .expect("valid");
        assert_eq!(spec.end_of_generation, [0, 1, 5]);
        assert_eq!(
            spec.kinds[2..5],
            [
                TokenKind::UserDefined,
                TokenKind::UserDefined,
                TokenKind::Normal
            ]
        );
    }

    #[test]
    fn ids_out_of_range_count_as_absent() {
        let spec = read(&[
            ("tokenizer.ggml.bos_token_id", Value::U32(u32::MAX)),
            ("tokenizer.ggml.padding_token_id", Value::I32(-1)),
        ])
        .expect("valid");
        assert_eq!((spec.bos, spec.pad), (None, None));
    }

    #[test]
    fn unknown_names_are_refused_with_the_known_ones() {
        let unknown = |key, name: &str| {
            let error = read(&[(key, Value::Str(name.to_owned()))]).expect_err("must be refused");
            assert_eq!(error.exit_code(), 3);
            error.to_string()
        };
        let model = unknown("tokenizer.ggml.model", "t5");
        assert!(
            model.contains("`t5`") && model.contains("gemma4"),
            "{model}"
        );
        let pre = unknown("tokenizer.ggml.pre", "qwen-99");
        assert!(
            pre.contains("`qwen-99`") && pre.contains("llama-bpe"),
            "{pre}"
        );
    }

    #[test]
    fn contradicting_metadata_is_an_error_naming_the_key() {
        let cases = [
            ("tokenizer.ggml.merges", texts(&["a c"]), "merges[0]"),
            ("tokenizer.ggml.merges", texts(&["ab"]), "merges[0]"),
            ("tokenizer.ggml.merges", texts(&["b a"]), "merges[0]"),
            ("tokenizer.ggml.merges", texts(&[""]), "merges[0]"),
            (
                "tokenizer.ggml.tokens",
                texts(&["a", "b", "ab", "a"]),
                "tokens 0 and 3",
            ),
            (
                "tokenizer.ggml.token_type",
                Value::Array(Array::I32(vec![1; 3])),
                "token_type",
            ),
            (
                "tokenizer.ggml.tokens",
                Value::U32(1),
                "tokenizer.ggml.tokens",
            ),
        ];
        for (key, value, named) in cases {
            let error = read(&[(key, value)])
                .expect_err("must be refused")
                .to_string();
            assert!(error.contains(named), "{error}");
        }
        let scores = read(&[
            ("tokenizer.ggml.model", Value::Str("llama".to_owned())),
            (
                "tokenizer.ggml.scores",
                Value::Array(Array::F32(vec![0.0; 2])),
            ),
        ]);
        assert!(scores.is_err_and(|error| error.to_string().contains("scores")));
    }
}
