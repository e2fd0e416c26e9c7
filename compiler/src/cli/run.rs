//! `coldpress run`: a bundle goes straight to the runtime; a GGUF is compiled for this machine first and the bundle kept
//! in the user's cache folder, keyed by file, options and producer.

use super::compile::CompileFlags;
use super::progress::Bars;
use crate::compile::{self, DEFAULT_BATCH, Options};
use crate::error::Error;
use crate::target::Target;
use clap::Args;
use coldpress_runtime::bundle::Bundle;
use coldpress_runtime::cli::run::RunArgs;
use std::hash::Hasher;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// Arguments of `coldpress run`.
#[derive(Args, Debug)]
pub struct RunModelArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Sequences a GGUF is compiled for.
    #[arg(long, default_value_t = DEFAULT_BATCH, help_heading = "Compiling a GGUF")]
    max_batch: usize,
    #[command(flatten, next_help_heading = "Compiling a GGUF")]
    compile: CompileFlags,
}

impl RunModelArgs {
    /// Runs.
    pub fn execute(mut self) -> Result<(), Error> {
        if super::is_gguf(&self.run.bundle)? {
            self.run.bundle = cached(&self.run.bundle, self.compile.options(self.max_batch)?)?;
        }
        Ok(self.run.execute()?)
    }
}

/// The bundle of `model` in the cache, compiled now if it is not there.
fn cached(model: &Path, options: Options) -> Result<PathBuf, Error> {
    let folder = cache_folder()?;
    let io = |doing: &str, source| Error::Io {
        doing: format!("{doing} {}", model.display()),
        source,
    };
    let full = model.canonicalize().map_err(|e| io("resolving", e))?;
    let meta = full.metadata().map_err(|e| io("reading", e))?;
    let modified = meta
        .modified()
        .ok()
        .and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok())
        .unwrap_or_default();
    let threads = options.workers();
    let targets: Vec<&str> = options.targets.iter().map(Target::name).collect();
    let profiles = options.targets.iter().filter_map(Target::cpu);
    let measured: Vec<_> = profiles.map(|p| &p.measured).collect();
    let mut key = Xxh3::new();
    key.write(
        format!(
            "{}|{}|{}|{}|{}|{}|{:?}|{:?}|{threads}|{:?}",
            full.display(),
            meta.len(),
            modified.as_nanos(),
            crate::bundle::PRODUCER,
            targets.join(","),
            options.max_batch,
            options.max_context,
            options.kv_type,
            measured,
        )
        .as_bytes(),
    );
    let stem = model.file_stem().unwrap_or_default().to_string_lossy();
    let bundle = folder.join(format!("{stem}-{:016x}.press", key.finish()));
    // One that was cut short is made again; opening it checks the rest.
    if Bundle::header(&bundle).is_err() {
        eprintln!(
            "compiling {} for {} (once; kept in {})",
            model.display(),
            targets.join(","),
            bundle.display()
        );
        compile::compile(model, &bundle, &options, &mut Bars::new())?;
    }
    Ok(bundle)
}

fn cache_folder() -> Result<PathBuf, Error> {
    let folder = coldpress_runtime::cache::home();
    std::fs::create_dir_all(&folder).map_err(|source| Error::Io {
        doing: format!("creating {}", folder.display()),
        source,
    })?;
    Ok(folder)
}
