//! `coldpress compile`.

use super::progress::Bars;
use crate::compile::{self, DEFAULT_BATCH, Options, size};
use crate::error::Error;
use crate::plan::{MAX_BATCH, MAX_CONTEXT, MAX_WORKERS, Plan, Work, in_range};
use crate::target::metal::Candidates;
use crate::target::{Target, TargetProfile};
use crate::tokenizer;
use crate::tune::cache::{Cache, Device};
use clap::{Args, ValueEnum};
use coldpress_kernels::cpu::abi::KvType;
use coldpress_runtime::cli as rt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Choices that `compile` and `run MODEL.gguf` share.
#[derive(Args, Clone, Debug)]
pub struct CompileFlags {
    /// Machine to compile for, see `coldpress targets`; several by commas or by repeating it.
    #[arg(long, default_value = "native", value_delimiter = ',')]
    pub target: Vec<String>,
    /// Tokens per sequence [default: the model's, at most 4096].
    #[arg(short = 'c', long, visible_aliases = ["max-model-len", "context-length"])]
    pub ctx_size: Option<usize>,
    /// Element type of the KV cache.
    #[arg(long, value_enum, default_value_t = KvFlag::F16, visible_alias = "kv-cache-dtype")]
    pub kv_type: KvFlag,
    /// Worker threads of the compiled program [default: physical cores].
    #[arg(short = 't', long)]
    pub threads: Option<usize>,
    /// Times measured by `coldpress tune` [default: tune.json in the user's cache folder, if there].
    #[arg(long, value_name = "FILE", conflicts_with = "no_tune_cache")]
    pub tune_cache: Option<PathBuf>,
    /// Compile every GPU kernel again, and keep none.
    #[arg(long)]
    pub no_kernel_cache: bool,
    /// Use the built-in table of kernel speeds only.
    #[arg(long)]
    pub no_tune_cache: bool,
}

/// `--kv-type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KvFlag {
    /// Half precision.
    F16,
    /// int8 with a scale per 32.
    #[value(name = "q8_0")]
    Q8_0,
    /// Single precision.
    F32,
}

impl CompileFlags {
    /// As pipeline options.
    pub fn options(&self, max_batch: usize) -> Result<Options, Error> {
        for (flag, value, most) in [
            ("--max-batch", Some(max_batch), MAX_BATCH),
            ("--ctx-size", self.ctx_size, MAX_CONTEXT),
            ("--threads", self.threads, MAX_WORKERS),
        ] {
            if let Some(value) = value {
                in_range(flag, value, most)?;
            }
        }
        let kv_type = match self.kv_type {
            KvFlag::F16 => KvType::F16,
            KvFlag::Q8_0 => KvType::Q8_0,
            KvFlag::F32 => KvType::F32,
        };
        let mut options = Options {
            max_batch,
            max_context: self.ctx_size,
            kv_type,
            threads: self.threads,
            kernel_cache: (!self.no_kernel_cache)
                .then(|| coldpress_runtime::cache::home().join("kernels")),
            ..Options::new(TargetProfile::native())
        };
        let targets = self.target.iter().map(|name| Target::parse(name));
        options.targets = targets.collect::<Result<_, _>>()?;
        if let Some(cache) = self.cache()? {
            let workers = options.workers();
            for target in &mut options.targets {
                if let Target::Cpu(profile) = target {
                    profile.measured = cache.measured(&Device::here(profile, workers));
                }
            }
        }
        Ok(options)
    }

    /// The tune cache that was asked for, or the user's if there is one.
    fn cache(&self) -> Result<Option<Cache>, Error> {
        match &self.tune_cache {
            _ if self.no_tune_cache => Ok(None),
            None => Cache::load(&super::tune::default_cache()),
            Some(path) => match Cache::load(path)? {
                Some(cache) => Ok(Some(cache)),
                None => Err(Error::Usage(format!(
                    "--tune-cache {}: no such file (`coldpress tune MODEL -o FILE` makes one)",
                    path.display()
                ))),
            },
        }
    }
}

/// Arguments of `coldpress compile`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  coldpress compile model.gguf -o model.press\n  coldpress compile model.gguf --max-batch 32 -c 8192 --fit 24GiB --dry-run"
)]
pub struct CompileArgs {
    /// The model: a GGUF, or any file of a split one.
    pub model: PathBuf,
    /// Sequences that decode together.
    #[arg(long, default_value_t = DEFAULT_BATCH, visible_aliases = ["parallel", "max-num-seqs", "max-batch-size"], alias = "np")]
    max_batch: usize,
    #[command(flatten)]
    flags: CompileFlags,
    /// Bundle to write [default: MODEL.press in the current folder].
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// Write graph, plan and code as text into this folder.
    #[arg(long, value_name = "DIR")]
    emit: Option<PathBuf>,
    /// Plan and print memory and predictions; write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Largest total memory; lowers the context until the plan fits.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    fit: Option<u64>,
    /// Fail if predicted tokens/s fall anywhere between 1 and --max-batch sequences.
    #[arg(long)]
    deny_cliffs: bool,
    /// Apple GPUs: thread blocks of matmuls take as many rows as one of these, as in 8,32; to measure what is estimated.
    #[arg(long, value_name = "N", value_delimiter = ',')]
    matmul_rows: Vec<u32>,
    /// Apple GPUs: thread blocks of matmuls have as many tiles of 16 outputs as one of these.
    #[arg(long, value_name = "N", value_delimiter = ',')]
    matmul_tiles: Vec<u32>,
    /// Write a self-contained executable instead of a bundle.
    #[arg(long)]
    exe: bool,
}

impl CompileArgs {
    /// Leaves targets the matmul variants that were asked for.
    fn restrict(&self, options: &mut Options) -> Result<(), Error> {
        if self.matmul_rows.is_empty() && self.matmul_tiles.is_empty() {
            return Ok(());
        }
        let candidates = Candidates::of(&self.matmul_rows, &self.matmul_tiles)?;
        for target in &mut options.targets {
            let Target::Metal(profile) = target else {
                let (name, why) = (target.name(), "--matmul-rows and --matmul-tiles are for");
                let why = format!("{why} Apple GPUs, {name} is none (see --target)");
                return Err(Error::Usage(why));
            };
            profile.candidates = candidates;
        }
        Ok(())
    }

    /// Compiles.
    pub fn execute(self) -> Result<(), Error> {
        let mut options = self.flags.options(self.max_batch)?;
        options.fit = self.fit;
        options.deny_cliffs = self.deny_cliffs;
        options.emit = self.emit.clone();
        self.restrict(&mut options)?;
        if self.dry_run {
            let prepared = compile::prepare(&self.model, &options)?;
            let summaries: Vec<String> = prepared.plans.iter().map(summary).collect();
            return Ok(rt::print(&format!("{}\n", summaries.join("\n")))?);
        }
        let out = match &self.output {
            Some(path) => path.clone(),
            None => default_output(&self.model, self.exe),
        };
        let start = Instant::now();
        let prepared = if self.exe {
            compile::compile_exe(&self.model, &out, &options, &mut Bars::new())?
        } else {
            compile::compile(&self.model, &out, &options, &mut Bars::new())?
        };
        let written = std::fs::metadata(&out).map(|m| m.len()).unwrap_or(0);
        for plan in &prepared.plans {
            eprintln!("{}", summary(plan));
        }
        if !tokenizer::is_there(&prepared.gguf)? {
            eprintln!("note     the model has no tokenizer: prompts are token ids");
        }
        let (context, trained) = (
            options.max_context.unwrap_or(0),
            prepared.model.info.max_context,
        );
        if context > trained {
            eprintln!(
                "note     the model was trained for a context of {trained} tokens, not {context}"
            );
        }
        eprintln!(
            "wrote {} ({}) in {:.1} s",
            out.display(),
            size(written),
            start.elapsed().as_secs_f64()
        );
        Ok(())
    }
}

/// The model's name with another ending, in the current folder.
fn default_output(model: &Path, exe: bool) -> PathBuf {
    // Not `with_extension`: what follows the last dot of `qwen2.5-0.5b` is part of the name.
    let mut name = model.file_stem().unwrap_or_default().to_os_string();
    name.push(if exe { ".exe" } else { ".press" });
    PathBuf::from(name)
}

/// Memory and predicted speed of a plan, as a few lines.
fn summary(plan: &Plan) -> String {
    let m = plan.memory();
    let by = match &plan.target {
        Target::Cpu(_) => format!("{} workers", plan.workers),
        Target::Cuda(target) => target.profile.arch.to_string(),
        Target::Metal(profile) => profile.feature(),
    };
    let windows = match m.kv_windows {
        0 => String::new(),
        windows => format!(", {} per sequence in windows", size(windows)),
    };
    let states = match m.states {
        0 => String::new(),
        states => format!(", {} per sequence in recurrent states", size(states)),
    };
    let mut text = format!(
        "target   {}, {by}, batch {}, context {}\nmemory   weights {} + kv {} ({} per token{windows}{states}) + activations {} = {}",
        plan.target.name(),
        plan.limits.max_batch,
        plan.limits.max_context,
        size(m.weights),
        size(m.kv),
        size(m.kv_per_token),
        size(m.arena),
        size(m.total())
    );
    text.push_str("\ndecode   predicted tok/s");
    let batches = || {
        let all = [1, 2, 4, 8, 16, 32].into_iter();
        all.filter(|&b| b <= plan.limits.max_batch as usize)
    };
    for batch in batches() {
        if let Some(seconds) = plan.predicted_step(batch) {
            text.push_str(&format!("  {batch}: {:.0}", batch as f64 / seconds));
        }
    }
    for (i, batch) in batches().enumerate() {
        if let Some((wall, share)) = plan.bound_by(batch) {
            let head = if i == 0 { "\nbound by" } else { "" };
            text.push_str(&format!("{head}  {batch}: {wall} {:.0} %", share * 100.0));
        }
    }
    let matmuls = || {
        let launches = plan.programs.iter().flat_map(|p| &p.launches);
        launches.filter(|l| matches!(l.work, Work::Matmul(_)))
    };
    let measured = matmuls().filter(|l| l.reason.starts_with("measured"));
    match (measured.count(), matmuls().count()) {
        (0, _) => {}
        (some, all) if some == all => text.push_str("\ntuned    every matmul by measured times"),
        (some, all) => text.push_str(&format!(
            "\ntuned    {some} of {all} matmuls by measured times (`coldpress tune` measures the others)"
        )),
    }
    for (batch, rate, best) in plan.cliffs() {
        text.push_str(&format!(
            "\ncliff    batch {batch}: {rate:.0} tok/s predicted after {best:.0}"
        ));
    }
    text
}

/// `24GiB`, `900M`, `1.5g`, plain bytes.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let number: f64 = text[..digits]
        .parse()
        .map_err(|_| format!("{text} is not a size such as 24GiB"))?;
    let shift = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        unit => return Err(format!("unknown unit {unit} (use KiB, MiB, GiB, TiB)")),
    };
    Ok((number * (1u64 << shift) as f64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("24GiB"), Ok(24 << 30));
        assert_eq!(parse_size("1.5g"), Ok(3 << 29));
        assert_eq!(parse_size("900"), Ok(900));
        assert!(parse_size("").is_err() && parse_size("1.2.3G").is_err());
        assert!(parse_size("lots").is_err() && parse_size("3 parsecs").is_err());
    }

    #[test]
    fn absurd_numbers_are_usage_errors() {
        let flags = |ctx_size, threads| CompileFlags {
            target: vec!["native".into()],
            ctx_size,
            kv_type: KvFlag::F16,
            threads,
            tune_cache: None,
            no_tune_cache: true,
            no_kernel_cache: true,
        };
        assert!(
            flags(Some(MAX_CONTEXT), Some(MAX_WORKERS))
                .options(MAX_BATCH)
                .is_ok()
        );
        for (flags, batch, named) in [
            (flags(None, None), 0, "--max-batch"),
            (flags(Some(1 << 24), None), 1 << 24, "--max-batch"),
            (flags(Some(0), None), 1, "--ctx-size"),
            (flags(Some(usize::MAX), None), 1, "--ctx-size"),
            (flags(None, Some(0)), 1, "--threads"),
            (flags(None, Some(1024)), 1, "--threads"),
        ] {
            let error = flags.options(batch).expect_err("refused");
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(named), "{error}");
        }
    }

    #[test]
    fn a_dot_in_the_name_stays() {
        let model = Path::new("models/qwen2.5-0.5b-q8_0.gguf");
        assert_eq!(
            default_output(model, false),
            Path::new("qwen2.5-0.5b-q8_0.press")
        );
        assert_eq!(
            default_output(Path::new("m.gguf"), true),
            Path::new("m.exe")
        );
    }
}
