//! Where prompts come from: flags, files, stdin, and the chat template around them.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::chat::{ChatOptions, Message, render};
use crate::cli::output::io_error;
use crate::engine::Prompt;
use crate::error::Error;
use crate::tokenizer::Tokenizer;

/// Prompts of a `run`.
#[derive(Clone, Debug, clap::Args)]
pub struct PromptArgs {
    /// A prompt (may be repeated)
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Vec<String>,
    /// A file that holds a prompt, `-` for stdin; one newline at its end is dropped (may be repeated)
    #[arg(short, long, value_name = "FILE")]
    pub file: Vec<PathBuf>,
    /// Treat each prompt as a user message and apply the model's chat template
    #[arg(long)]
    pub chat: bool,
    /// System message for --chat
    #[arg(
        long,
        aliases = ["sys", "system-prompt"],
        value_name = "TEXT",
        requires = "chat",
        allow_hyphen_values = true
    )]
    pub system: Option<String>,
}

impl PromptArgs {
    /// The prompts as the user wrote them: `-p` first, then files.
    pub(super) fn texts(&self) -> Result<Vec<String>, Error> {
        let mut texts = self.prompt.clone();
        for path in &self.file {
            let mut text = read(path).map_err(io_error("reading", path))?;
            if text.ends_with('\n') {
                text.pop();
            }
            texts.push(text);
        }
        if texts.is_empty() {
            return Err(Error::Usage(
                "nothing to continue; give a prompt with -p TEXT or -f FILE".into(),
            ));
        }
        Ok(texts)
    }

    /// What the engine is to continue, per text.
    pub(super) fn prompts(
        &self,
        texts: &[String],
        tokenizer: Option<&Tokenizer>,
    ) -> Result<Vec<Prompt>, Error> {
        if !self.chat {
            return Ok(texts
                .iter()
                .map(|text| Prompt::Text {
                    text: text.clone(),
                    parse_special: false,
                })
                .collect());
        }
        let template = tokenizer.and_then(|t| Some((t, t.chat_template()?)));
        let Some((tokenizer, template)) = template else {
            return Err(Error::Usage(
                "the model has no chat template; run it without --chat".into(),
            ));
        };
        texts
            .iter()
            .map(|text| self.chat_prompt(text, tokenizer, template))
            .collect()
    }

    fn chat_prompt(
        &self,
        user: &str,
        tokenizer: &Tokenizer,
        template: &str,
    ) -> Result<Prompt, Error> {
        let special = |id: Option<u32>| {
            let bytes = id.map_or(&[][..], |id| tokenizer.token_bytes(id, true));
            String::from_utf8_lossy(bytes).into_owned()
        };
        let system = self
            .system
            .iter()
            .map(|text| Message::new("system", text.as_str()));
        let messages: Vec<Message> = system.chain([Message::new("user", user)]).collect();
        let bos = special(tokenizer.bos());
        let options = ChatOptions {
            add_generation_prompt: true,
            bos: bos.clone(),
            eos: special(tokenizer.eos()),
            variables: Vec::new(),
        };
        let rendered = render(template, &messages, &options)
            .map_err(|error| Error::Tokenizer(Box::new(error)))?;
        // Many templates write the begin token themselves; encoding adds it anyway.
        let text = match rendered.strip_prefix(bos.as_str()) {
            Some(rest) if tokenizer.adds_bos() => rest.to_owned(),
            _ => rendered,
        };
        Ok(Prompt::Text {
            text,
            parse_special: true,
        })
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    if path == Path::new("-") {
        let mut text = String::new();
        return std::io::stdin().read_to_string(&mut text).map(|_| text);
    }
    std::fs::read_to_string(path)
}
