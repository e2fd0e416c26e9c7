//! Which tokens are special and what each is for: the tables of known texts, the roles metadata or a text gives, and the
//! tokens that swallow white space. The vocabulary itself and its algorithm are `tokenizer.rs`'s.

use std::collections::HashMap;

use coldpress_runtime::tokenizer::TokenKind;

use crate::error::Error;
use crate::gguf::Gguf;

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

/// Special tokens found so far.
pub(super) struct Specials<'a> {
    gguf: &'a Gguf,
    /// Token ids by text.
    ids: &'a HashMap<&'a str, u32>,
    /// By token, as corrected so far.
    kinds: Vec<TokenKind>,
    /// SentencePiece files may leave `unk`, `bos` and `eos` unsaid: they are 0, 1 and 2.
    is_spm: bool,
}

/// Token ids by what they are for; `None` where the model has no such token.
pub(super) struct Roles {
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) eot: Option<u32>,
    pub(super) eom: Option<u32>,
    pub(super) unk: Option<u32>,
    pub(super) pad: Option<u32>,
    pub(super) end_of_generation: Vec<u32>,
}

impl<'a> Specials<'a> {
    pub(super) fn new(
        gguf: &'a Gguf,
        ids: &'a HashMap<&'a str, u32>,
        kinds: Vec<TokenKind>,
        is_spm: bool,
    ) -> Specials<'a> {
        Specials {
            gguf,
            ids,
            kinds,
            is_spm,
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

    /// The roles, and the kinds as corrected by texts that are known to be special.
    pub(super) fn resolve(mut self) -> Result<(Roles, Vec<TokenKind>), Error> {
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
        Ok((roles, self.kinds))
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
pub(super) fn stripping(
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
