//! `coldpress tokenize`: token ids of a text, from a bundle or any GGUF with a vocabulary.

use crate::error::Error;
use crate::gguf::Gguf;
use crate::tokenizer;
use clap::Args;
use coldpress_runtime::bundle::{Bundle, SectionKind};
use coldpress_runtime::cli as rt;
use coldpress_runtime::tokenizer::{EncodeOptions, Tokenizer};
use std::io::Read;
use std::path::PathBuf;

/// Arguments of `coldpress tokenize`.
#[derive(Args, Clone, Debug)]
pub struct TokenizeArgs {
    /// A bundle or a GGUF (a vocabulary-only one will do).
    model: PathBuf,
    /// The text; `-f` reads it from a file instead.
    #[arg(
        conflicts_with = "file",
        required_unless_present = "file",
        allow_hyphen_values = true
    )]
    text: Option<String>,
    /// File with the text, `-` for standard input.
    #[arg(short, long)]
    file: Option<PathBuf>,
    /// Do not add BOS (or EOS) even if the model wants it.
    #[arg(long)]
    no_bos: bool,
    /// Read special tokens such as `<|im_end|>` in the text as tokens.
    #[arg(long)]
    parse_special: bool,
}

impl TokenizeArgs {
    /// Prints a JSON array of ids.
    pub fn execute(self) -> Result<(), Error> {
        let text = match (&self.text, &self.file) {
            (Some(text), _) => text.clone(),
            (None, Some(path)) => read(path)?,
            (None, None) => String::new(),
        };
        let spec = if super::is_gguf(&self.model)? {
            tokenizer::from_gguf(&Gguf::open(&self.model)?)?
        } else {
            Bundle::open(&self.model)?.section_value(SectionKind::Tokenizer)?
        };
        let tokenizer =
            Tokenizer::new(spec).map_err(|e| coldpress_runtime::Error::Tokenizer(Box::new(e)))?;
        let options = EncodeOptions {
            add_special: !self.no_bos,
            parse_special: self.parse_special,
        };
        let ids = tokenizer
            .encode(&text, options)
            .map_err(|e| coldpress_runtime::Error::Tokenizer(Box::new(e)))?;
        let list: Vec<String> = ids.iter().map(u32::to_string).collect();
        Ok(rt::print(&format!("[{}]\n", list.join(", ")))?)
    }
}

fn read(path: &PathBuf) -> Result<String, Error> {
    let io = |source| Error::Io {
        doing: format!("reading {}", path.display()),
        source,
    };
    let mut text = String::new();
    if path.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text).map_err(io)?;
    } else {
        text = std::fs::read_to_string(path).map_err(io)?;
    }
    Ok(text)
}
