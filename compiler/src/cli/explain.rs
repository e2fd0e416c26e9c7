//! `coldpress explain`.

use crate::error::Error;
use crate::explain::{self, Notes};
use clap::Args;
use coldpress_runtime::bundle::{Bundle, SectionKind};
use coldpress_runtime::cli as rt;
use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use std::fmt::Write;
use std::path::PathBuf;

/// Arguments of `coldpress explain`.
#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// A bundle.
    bundle: PathBuf,
    /// Tensor or launch: `blk.0.ffn_down`.
    tensor: String,
}

impl ExplainArgs {
    /// Prints how the tensor got from GGUF to machine code.
    pub fn execute(self) -> Result<(), Error> {
        let bundle = Bundle::open(&self.bundle)?;
        let notes: Vec<Notes> = bundle.section_value(SectionKind::Notes)?;
        let mut text = String::new();
        for (plan, notes) in bundle.manifest().plans.iter().zip(&notes) {
            if bundle.manifest().plans.len() > 1 {
                let _ = writeln!(text, "=== {}", plan.requires.target);
            }
            let section = plan
                .gpu
                .as_ref()
                .map_or(plan.code_section, |g| g.source_section);
            let code = bundle.section_bytes(section).unwrap_or_default();
            let shown = |start: u64, end: u64| {
                let bytes = code.get(start as usize..end as usize).unwrap_or_default();
                match plan.requires.arch.as_str() {
                    "cuda" | "metal" => String::from_utf8_lossy(bytes).into_owned(),
                    "x86_64" => disassembled(bytes, start),
                    _ => hexadecimal(bytes, start),
                }
            };
            let explained =
                explain::explain(notes, &self.tensor, &shown).map_err(|why| Error::Model {
                    what: self.tensor.clone(),
                    why,
                })?;
            text.push_str(&explained);
        }
        Ok(rt::print(&text)?)
    }
}

fn disassembled(bytes: &[u8], address: u64) -> String {
    let mut formatter = IntelFormatter::new();
    let mut text = String::new();
    for instruction in &mut Decoder::with_ip(64, bytes, address, DecoderOptions::NONE) {
        let _ = write!(text, "  {:#08x}  ", instruction.ip());
        formatter.format(&instruction, &mut text);
        text.push('\n');
    }
    text
}

fn hexadecimal(bytes: &[u8], address: u64) -> String {
    let mut text = String::new();
    for (i, words) in bytes.chunks(16).enumerate() {
        let _ = write!(text, "  {:#08x} ", address + 16 * i as u64);
        for word in words.chunks(4) {
            text.push(' ');
            word.iter().rev().for_each(|b| {
                let _ = write!(text, "{b:02x}");
            });
        }
        text.push('\n');
    }
    text
}
