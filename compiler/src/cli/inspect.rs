//! `coldpress inspect`: of a GGUF, what it holds and whether it can be compiled, or everything that it would take. Bundles
//! are the runtime's.

use crate::compile::size;
use crate::error::Error;
use crate::gguf::Gguf;
use crate::model::{ModelInfo, Verdict, judge};
use crate::tokenizer;
use clap::Args;
use coldpress_runtime::cli as rt;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Arguments of `coldpress inspect`.
#[derive(Args, Clone, Debug)]
pub struct InspectModelArgs {
    /// A bundle or a GGUF.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Everything, as JSON.
    #[arg(long)]
    json: bool,
}

/// What there is to say of a GGUF.
struct View<'a> {
    path: &'a Path,
    gguf: &'a Gguf,
    architecture: &'a str,
    /// None where the model cannot be compiled.
    info: Option<ModelInfo>,
    /// Why not.
    missing: Vec<String>,
}

impl InspectModelArgs {
    /// Shows the file. A GGUF that cannot be compiled is shown, and then an error.
    ///
    /// # Errors
    /// `Error::Unsupported` for a GGUF that cannot be compiled; a file that is damaged or neither kind.
    pub fn execute(self) -> Result<(), Error> {
        if !super::is_gguf(&self.file)? {
            let bundle = rt::inspect::InspectArgs {
                bundle: self.file,
                json: self.json,
            };
            return Ok(bundle.execute()?);
        }
        let gguf = Gguf::open(&self.file)?;
        let (info, mut lacking) = match judge(&gguf)? {
            Verdict::Supported(model) => (Some(model.info), Vec::new()),
            Verdict::Lacking(causes) => (None, causes),
        };
        if let Err(error @ Error::Unsupported { .. }) = tokenizer::optional(&gguf) {
            lacking.push(error);
        }
        let view = View {
            path: &self.file,
            gguf: &gguf,
            architecture: gguf.str("general.architecture")?.unwrap_or_default(),
            info,
            missing: lacking.iter().map(Error::to_string).collect(),
        };
        rt::print(&if self.json { view.json() } else { view.text() })?;
        let more = lacking.len().saturating_sub(1);
        match (lacking.into_iter().next(), more) {
            (Some(Error::Unsupported { what, why }), 1..) => Err(Error::Unsupported {
                what,
                why: format!("{why} (and {more} more, see above)"),
            }),
            (Some(error), _) => Err(error),
            (None, _) => Ok(()),
        }
    }
}

impl View<'_> {
    fn text(&self) -> String {
        let mut out = String::new();
        let bytes = size(self.gguf.total_bytes());
        let _ = writeln!(out, "file      {}: {bytes}", self.path.display());
        match &self.info {
            Some(info) => {
                let _ = writeln!(
                    out,
                    "model     {} ({}): {:.1} M parameters, {} layers, {} tokens, trained for {}",
                    info.name,
                    self.architecture,
                    info.parameters as f64 / 1e6,
                    info.layers,
                    info.vocab_size,
                    info.max_context
                );
            }
            None => {
                let _ = writeln!(out, "model     {}", self.architecture);
            }
        }
        for (at, (ty, (tensors, bytes))) in self.types().into_iter().enumerate() {
            let title = if at == 0 { "tensors" } else { "" };
            let _ = writeln!(out, "{title:<9} {ty:<8} {tensors:>5}  {}", size(bytes));
        }
        match &self.missing[..] {
            [] => out.push_str("verdict   can be compiled\n"),
            missing => {
                out.push_str("verdict   cannot be compiled:\n");
                missing.iter().for_each(|line| {
                    let _ = writeln!(out, "          - {line}");
                });
            }
        }
        out
    }

    fn json(&self) -> String {
        let types = self.types().into_iter().map(|(ty, (tensors, bytes))| {
            let held = serde_json::json!({ "tensors": tensors, "bytes": bytes });
            (ty.to_string(), held)
        });
        let mut value = serde_json::json!({
            "file": self.path.display().to_string(),
            "bytes": self.gguf.total_bytes(),
            "architecture": self.architecture,
            "tensor_types": types.collect::<serde_json::Map<_, _>>(),
            "supported": self.missing.is_empty(),
            "missing": self.missing,
        });
        if let Some(info) = &self.info {
            value["model"] = serde_json::json!({
                "name": info.name,
                "parameters": info.parameters,
                "layers": info.layers,
                "hidden": info.hidden,
                "vocab_size": info.vocab_size,
                "max_context": info.max_context,
            });
        }
        format!("{value:#}\n")
    }

    /// Tensors and bytes of each type.
    fn types(&self) -> BTreeMap<&'static str, (usize, u64)> {
        let mut types = BTreeMap::new();
        for tensor in self.gguf.tensors() {
            let (tensors, bytes) = types.entry(tensor.ty.name()).or_insert((0, 0));
            *tensors += 1;
            *bytes += tensor.bytes();
        }
        types
    }
}
