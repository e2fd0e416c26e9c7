//! Which patterns cut text for each `tokenizer.ggml.pre`, and the flags that come with the name. One table; how the
//! patterns run is the runtime's business. Facts from llama.cpp (src/llama-vocab.cpp, src/unicode.cpp), including
//! where its patterns differ from the model's own: ids must equal what GGUF files are used with.
//!
//! Left out, because their algorithm is more than patterns and flags: `whitespace`, and the models `hybriddna` and
//! `plamo2`.

use coldpress_runtime::tokenizer::Split;

/// What a pre-tokenizer name stands for.
pub(super) struct Pre {
    pub names: &'static [&'static str],
    cuts: &'static [Cut],
    /// Pieces that are tokens are not merged.
    pub ignore_merges: bool,
    /// A begin token is added unless metadata says otherwise.
    pub add_bos: bool,
    /// Tokens are raw text with U+2581 for a space, instead of GPT-2's byte alphabet.
    pub space_marker: bool,
    /// Runs of newlines that are tokens are not merged.
    pub whole_newline_runs: bool,
}

enum Cut {
    Pattern(&'static str),
    Triples { run: &'static str, cut_after: bool },
}

use Cut::{Pattern, Triples};

impl Pre {
    /// The steps, with categories as of llama.cpp's Unicode version.
    pub(super) fn splits(&self) -> Vec<Split> {
        let split = |cut: &Cut| match cut {
            Pattern(pattern) => Split::Pattern(pinned(pattern)),
            Triples { run, cut_after } => Split::Triples {
                run: pinned(run),
                cut_after: *cut_after,
            },
        };
        self.cuts.iter().map(split).collect()
    }
}

/// Looks a name up.
pub(super) fn find(name: &str) -> Option<&'static Pre> {
    TABLE.iter().find(|pre| pre.names.contains(&name))
}

/// Every known name, in alphabetical order.
pub(super) fn names() -> Vec<&'static str> {
    let mut names: Vec<_> = TABLE.iter().flat_map(|pre| pre.names).copied().collect();
    names.sort_unstable();
    names
}

/// Restricts general categories to the characters llama.cpp's tables know: those of Unicode 15.1. Later characters
/// count as unassigned, whatever version the regex library has.
fn pinned(pattern: &str) -> String {
    let mut out = pattern.to_owned();
    for category in ["L", "M", "N", "P", "S"] {
        let class = format!(r"\p{{{category}}}");
        out = out.replace(&class, &format!("[{class}&&\\p{{Age=15.1}}]"));
    }
    out
}

/// English contractions in either case.
macro_rules! contractions {
    () => {
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    };
}

/// White space: a newline run with what precedes it, then everything but the last character before a word.
macro_rules! spaces {
    () => {
        r"\s*[\r\n]+|\s+(?!\S)|\s+"
    };
}

/// A run of symbols with a space before and newlines behind.
macro_rules! symbols {
    () => {
        r" ?[^\s\p{L}\p{N}]+[\r\n]*"
    };
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";

const LLAMA3: &str = concat!(
    contractions!(),
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
    symbols!(),
    "|",
    spaces!()
);

const JAIS2: &str = concat!(
    contractions!(),
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
    symbols!(),
    r"|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)",
    r"|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}"
);

const QWEN2: &str = concat!(
    contractions!(),
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    symbols!(),
    "|",
    spaces!()
);

/// As `QWEN2`, with combining marks inside words.
const QWEN35: &str = concat!(
    contractions!(),
    r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|",
    spaces!()
);

/// As `QWEN2`, without contractions.
const UFAKZEKA: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    symbols!(),
    "|",
    spaces!()
);

const MINICPM5: &str = concat!(
    contractions!(),
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+|",
    symbols!(),
    "|",
    spaces!()
);

const SEED_CODER: &str = concat!(
    contractions!(),
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|",
    spaces!()
);

const BAILING: &str = concat!(
    r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    symbols!(),
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
);

const EXAONE_MOE: &str = concat!(
    contractions!(),
    r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
);

/// Letters in two runs: first none of a-z, then none of A-Z.
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{L}--[a-z]]*[\p{L}--[A-Z]]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{L}--[a-z]]+[\p{L}--[A-Z]]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|",
    spaces!()
);

const GPT4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{L}--[a-z]]*[\p{L}--[A-Z]]+",
    contractions!(),
    r"?|[^\r\n\p{L}\p{N}]?[\p{L}--[a-z]]+[\p{L}--[A-Z]]*",
    contractions!(),
    r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|",
    spaces!()
);

/// As `GPT4O`, with combining marks inside words.
const GPT4O_MARKS: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}--[a-z]]*[\p{L}\p{M}--[A-Z]]+",
    contractions!(),
    r"?|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}--[a-z]]+[\p{L}\p{M}--[A-Z]]*",
    contractions!(),
    r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|",
    spaces!()
);

/// Words of letters and marks of any case, with their contraction; digits in threes.
const TINY_AYA: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    contractions!(),
    r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|",
    spaces!()
);

const YOUTU_SCRIPTS: &str = concat!(
    r"[\u{ac00}-\u{d7a3}\u{3131}-\u{318e}]+",
    r"|[\u{ff01}\u{2026}\u{201c}\u{201d}\u{2018}\u{2019}\u{2014}\u{ff1a}\u{ff1b}\u{ff0c}",
    r"\u{3001}-\u{303f}\u{fe30}-\u{fe4f}]+",
    r"|[\u{3105}-\u{312f}]+",
    r"|[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+"
);

const YOUTU: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    contractions!(),
    r"?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|",
    spaces!()
);

/// Han as llama.cpp has it: whole ranges, assigned or not.
macro_rules! han {
    () => {
        r"\u{4e00}-\u{9fff}\u{3400}-\u{4dbf}\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2b81f}\u{2b820}-\u{2ceaf}\u{2ceb0}-\u{2ebef}\u{f900}-\u{faff}\u{2f800}-\u{2fa1f}"
    };
}

const KIMI_K2: &str = concat!(
    "[",
    han!(),
    r"]+|[^\r\n\p{L}\p{N}]?[\p{L}--[",
    han!(),
    "]]+",
    contractions!(),
    r"?|\p{N}{1,3}|",
    symbols!(),
    "|",
    spaces!()
);

const CJK_KANA: &str = r"[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+";

/// `[!-/]`-style ASCII punctuation followed by letters, written out.
macro_rules! ascii_punctuated {
    () => {
        r##"[!"#$%\&'()*+,\-./:;<=>?@\[\\\]^_`{|}\~][A-Za-z]+"##
    };
}

const DEEPSEEK3: &str = concat!(
    ascii_punctuated!(),
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|",
    spaces!()
);

const SPARK: &str = concat!(
    ascii_punctuated!(),
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"
);

const AFMOE_SCRIPTS: &str = concat!(
    r"[\u{4e00}-\u{9fff}\u{3400}-\u{4dbf}\u{8c48}-\u{faff}\u{3040}-\u{309f}\u{30a0}-\u{30ff}",
    r"\u{ff65}-\u{ff9f}\u{2f00}-\u{2fdf}\u{e40}-\u{e7f}\u{e80}-\u{eff}\u{1780}-\u{17ff}",
    r"\u{1000}-\u{109f}\u{aa60}-\u{aa7f}\u{a9e0}-\u{a9ff}\u{ac00}-\u{d7af}\u{1100}-\u{11ff}]+"
);

const BLOOM: &str = r" ?[^(\s|.,!?\u{2026}\u{3002}\u{ff0c}\u{3001}\u{964}\u{6d4}\u{60c})]+";

/// Letters with case, listed.
const DEEPSEEK_LLM_WORDS: &str = concat!(
    r"\s?[",
    r"A-Za-z\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}\u{295}-\u{2af}",
    r"\u{370}-\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}\u{386}\u{388}-\u{38a}\u{38c}\u{38e}-\u{3a1}",
    r"\u{3a3}-\u{3f5}\u{3f7}-\u{481}\u{48a}-\u{52f}\u{531}-\u{556}\u{10a0}-\u{10c5}\u{13a0}-\u{13f5}",
    r"\u{13f8}-\u{13fd}\u{1c90}-\u{1cba}\u{1cbd}-\u{1cbf}\u{1d00}-\u{1d2b}\u{1d6b}-\u{1d77}",
    r"\u{1d79}-\u{1d9a}\u{1e00}-\u{1f15}\u{1f18}-\u{1f1d}\u{1f20}-\u{1f45}\u{1f48}-\u{1f4d}",
    r"\u{1f50}-\u{1f57}\u{1f59}\u{1f5b}\u{1f5d}\u{1f5f}-\u{1f7d}\u{1f80}-\u{1fb4}\u{1fb6}-\u{1fbc}\u{1fbe}",
    r"\u{1fc2}-\u{1fc4}\u{1fc6}-\u{1fcc}\u{1fd0}-\u{1fd3}\u{1fd6}-\u{1fdb}\u{1fe0}-\u{1fec}",
    r"\u{1ff2}-\u{1ff4}\u{1ff6}-\u{1ffc}\u{2102}\u{2107}\u{210a}-\u{2113}\u{2115}\u{2119}-\u{211d}\u{2124}",
    r"\u{2126}\u{2128}\u{212a}-\u{212d}\u{212f}-\u{2134}\u{2139}\u{213c}-\u{213f}\u{2145}-\u{2149}\u{214e}",
    r"\u{2183}\u{2184}\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}\u{2ceb}-\u{2cee}\u{2cf2}\u{2cf3}\u{a640}-\u{a66d}",
    r"\u{a680}-\u{a69b}\u{a722}-\u{a76f}\u{a771}-\u{a787}\u{a78b}-\u{a78e}\u{ab70}-\u{abbf}",
    r"\u{fb00}-\u{fb06}\u{fb13}-\u{fb17}\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}\u{10400}-\u{1044f}",
    r"\u{104b0}-\u{104d3}\u{104d8}-\u{104fb}\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}",
    r"\u{1e900}-\u{1e943}",
    r"]+"
);

/// ASCII, full-width and CJK punctuation; U+3000 counts as white space.
const DEEPSEEK_LLM_SYMBOLS: &str =
    r"\s?[!-/:-\~\u{ff01}-\u{ff0f}\u{ff1a}-\u{ff5e}\u{2018}-\u{201f}\u{3001}-\u{3002}]+";

const DEEPSEEK_CJK: &str = r"[[\u{800}-\u{9fa5}\u{ac00}-\u{d7ff}]--\s]+";

const NEWLINE_RUNS: &str = r"[^\n]+|[\n]+";

const PLAIN: Pre = Pre {
    names: &[],
    cuts: &[],
    ignore_merges: false,
    add_bos: false,
    space_marker: false,
    whole_newline_runs: false,
};

const TABLE: &[Pre] = &[
    Pre {
        names: &["default"],
        cuts: &[
            Pattern(r"[\p{P}\$\+<=>\^\~\|]+"),
            Pattern(GPT2),
            Pattern(r"\p{N}+"),
            Pattern("[0-9][0-9][0-9]"),
        ],
        ..PLAIN
    },
    Pre {
        names: &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "gigachat",
            "jina-v2-es",
            "jina-v2-de",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "exaone4",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
        ],
        cuts: &[Pattern(GPT2)],
        ..PLAIN
    },
    Pre {
        names: &[
            "starcoder",
            "refact",
            "command-r",
            "smollm",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        cuts: &[Pattern(r"\p{N}"), Pattern(GPT2)],
        ..PLAIN
    },
    Pre {
        names: &[
            "llama3",
            "llama-v3",
            "llama-bpe",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        cuts: &[Pattern(LLAMA3)],
        ignore_merges: true,
        add_bos: true,
        ..PLAIN
    },
    Pre {
        names: &["dbrx", "smaug-bpe", "chatglm-bpe"],
        cuts: &[Pattern(LLAMA3)],
        ..PLAIN
    },
    Pre {
        names: &["glm4", "glm5"],
        cuts: &[Pattern(LLAMA3)],
        ignore_merges: true,
        ..PLAIN
    },
    Pre {
        names: &["jais-2"],
        cuts: &[Pattern(JAIS2)],
        ..PLAIN
    },
    Pre {
        names: &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        cuts: &[Pattern(QWEN2)],
        ..PLAIN
    },
    Pre {
        names: &["qwen35"],
        cuts: &[Pattern(QWEN35)],
        ..PLAIN
    },
    Pre {
        names: &["ufakzeka"],
        cuts: &[Pattern(UFAKZEKA)],
        ..PLAIN
    },
    Pre {
        names: &["laguna"],
        cuts: &[Pattern(NEWLINE_RUNS), Pattern(QWEN2)],
        ..PLAIN
    },
    Pre {
        names: &["minicpm5"],
        cuts: &[Pattern(r"\p{N}{1,3}"), Pattern(MINICPM5)],
        ignore_merges: true,
        ..PLAIN
    },
    Pre {
        names: &["seed-coder"],
        cuts: &[Pattern(SEED_CODER)],
        ..PLAIN
    },
    Pre {
        names: &["bailingmoe", "bailingmoe2", "llada-moe"],
        cuts: &[Pattern(BAILING)],
        ..PLAIN
    },
    Pre {
        names: &["exaone-moe"],
        cuts: &[Pattern(EXAONE_MOE)],
        ..PLAIN
    },
    Pre {
        names: &["tekken"],
        cuts: &[Pattern(TEKKEN)],
        ignore_merges: true,
        add_bos: true,
        ..PLAIN
    },
    Pre {
        names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
        cuts: &[Pattern(GPT4O)],
        ..PLAIN
    },
    Pre {
        names: &["granite-embed-multi-97m"],
        cuts: &[Pattern(GPT4O_MARKS)],
        ignore_merges: true,
        ..PLAIN
    },
    Pre {
        names: &["tiny_aya", "cohere2moe"],
        cuts: &[
            Triples {
                run: r"\p{N}+",
                cut_after: true,
            },
            Pattern(TINY_AYA),
        ],
        ..PLAIN
    },
    Pre {
        names: &["youtu"],
        cuts: &[Pattern(YOUTU_SCRIPTS), Pattern(YOUTU)],
        ignore_merges: true,
        ..PLAIN
    },
    Pre {
        names: &["kimi-k2"],
        cuts: &[Pattern(KIMI_K2)],
        ..PLAIN
    },
    Pre {
        names: &["deepseek-llm"],
        cuts: &[
            Pattern(r"[\r\n]"),
            Pattern(DEEPSEEK_LLM_WORDS),
            Pattern(DEEPSEEK_LLM_SYMBOLS),
            Pattern(r"\s+\z"),
            Pattern(DEEPSEEK_CJK),
            Pattern(r"\p{N}+"),
        ],
        ..PLAIN
    },
    Pre {
        names: &["deepseek-coder"],
        cuts: &[
            Pattern(r"[\r\n]"),
            Pattern(r"\s?\p{L}+"),
            Pattern(r"\s?\p{P}+"),
            Pattern(DEEPSEEK_CJK),
            Pattern(r"\p{N}"),
        ],
        ..PLAIN
    },
    Pre {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        cuts: &[
            Pattern(r"\p{N}{1,3}"),
            Pattern(CJK_KANA),
            Pattern(DEEPSEEK3),
        ],
        ..PLAIN
    },
    Pre {
        names: &["spark2_5"],
        cuts: &[
            Pattern(r"\p{N}{1,3}"),
            Pattern(CJK_KANA),
            Pattern(SPARK),
            Pattern(r"\p{N}"),
        ],
        ..PLAIN
    },
    Pre {
        names: &["afmoe"],
        cuts: &[
            Triples {
                run: r"\p{N}+",
                cut_after: true,
            },
            Pattern(AFMOE_SCRIPTS),
            Pattern(DEEPSEEK3),
        ],
        ..PLAIN
    },
    Pre {
        names: &["superbpe"],
        cuts: &[
            Pattern(r"\p{N}+"),
            Triples {
                run: "[0-9]+",
                cut_after: false,
            },
        ],
        ..PLAIN
    },
    Pre {
        names: &["falcon"],
        cuts: &[
            Pattern(r"[\p{P}\$\+<=>\^\~\|`]+"),
            Pattern(GPT2),
            Pattern("[0-9][0-9][0-9]"),
        ],
        ..PLAIN
    },
    Pre {
        names: &["poro-chat", "bloom", "gpt3-finnish"],
        cuts: &[Pattern(BLOOM)],
        ..PLAIN
    },
    Pre {
        names: &["viking"],
        cuts: &[Pattern(BLOOM), Pattern(r"\p{N}")],
        ..PLAIN
    },
    Pre {
        names: &["chameleon"],
        cuts: &[
            Pattern("<sentinel:[0-9]+>"),
            Pattern("IMGIMG[A-I]{1,4}Z"),
            Pattern(r"[\t\n]|    |  "),
            Pattern(r"\p{N}"),
            Pattern(r"[\p{P}!-/:-@\[-`{-\~]"),
            Pattern(GPT2),
        ],
        add_bos: true,
        ..PLAIN
    },
    Pre {
        names: &["gemma4", "granite-embed-multi-311m"],
        cuts: &[Pattern(NEWLINE_RUNS)],
        add_bos: true,
        space_marker: true,
        whole_newline_runs: true,
        ..PLAIN
    },
    Pre {
        names: &["sarvam-moe"],
        cuts: &[Pattern(NEWLINE_RUNS)],
        space_marker: true,
        ..PLAIN
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use coldpress_runtime::tokenizer::{
        Algorithm, Alphabet, BpeSpec, TokenKind, Tokenizer, TokenizerSpec,
    };

    fn spec(splits: Vec<Split>) -> TokenizerSpec {
        TokenizerSpec {
            tokens: vec!["a".to_owned()],
            kinds: vec![TokenKind::Normal],
            algorithm: Algorithm::Bpe(BpeSpec {
                merges: Vec::new(),
                splits,
                alphabet: Alphabet::ByteLevel,
                ignore_merges: false,
                whole_newline_runs: false,
            }),
            bos: None,
            eos: None,
            eot: None,
            eom: None,
            unk: None,
            pad: None,
            end_of_generation: Vec::new(),
            add_bos: false,
            add_eos: false,
            strip_left: Vec::new(),
            strip_right: Vec::new(),
            chat_template: None,
        }
    }

    #[test]
    fn every_pattern_compiles_and_names_are_unique() {
        for pre in TABLE {
            let built = Tokenizer::new(spec(pre.splits()));
            assert!(built.is_ok(), "{:?}: {:?}", pre.names, built.err());
        }
        let names = names();
        let mut unique = names.clone();
        unique.dedup();
        assert_eq!(names, unique);
        assert!(find("llama-bpe").is_some() && find("nonsense").is_none());
    }
}
