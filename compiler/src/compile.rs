//! The pipeline: GGUF to bundle, as a list of steps. Each step is a module; nothing here decides anything.

use crate::bundle::{self, Contents};
use crate::codegen::{self, Code};
use crate::error::Error;
use crate::explain::Notes;
use crate::gguf::Gguf;
use crate::golden;
use crate::graph::dump;
use crate::model::{self, DEFAULT_CONTEXT, Model};
use crate::pass;
use crate::plan::{self, MAX_WORKERS, Plan};
use crate::target::Target;
use crate::tokenizer;
use coldpress_kernels::cpu::abi::{KvType, PAGE_TOKENS};
use coldpress_runtime::bundle::{embedded, folder_of};
use std::path::{Path, PathBuf};

/// What to compile for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Machines; the bundle has a plan for each, and the runtime takes the first that it can run.
    pub targets: Vec<Target>,
    /// Sequences that decode together.
    pub max_batch: usize,
    /// Tokens per sequence; `None` takes the model's own, at most `DEFAULT_CONTEXT`.
    pub max_context: Option<usize>,
    /// KV cache element type.
    pub kv_type: KvType,
    /// Worker threads of the compiled program; `None` takes this machine's physical cores.
    pub threads: Option<usize>,
    /// Largest total memory; the context is lowered until the plan fits.
    pub fit: Option<u64>,
    /// Whether a predicted fall in tokens/s is an error.
    pub deny_cliffs: bool,
    /// Where to write graph, plan and code as text.
    pub emit: Option<PathBuf>,
    /// Where compiled GPU kernels are kept for the next compile; none are without.
    pub kernel_cache: Option<PathBuf>,
}

/// Sequences compiled for when nothing else is asked for.
pub const DEFAULT_BATCH: usize = 8;

/// Times a plan is made again with what is known of its kernels.
const MOST_ROUNDS: usize = 6;

impl Options {
    /// Defaults for `target`: batch 8, f16 KV, physical cores.
    pub fn new(target: impl Into<Target>) -> Options {
        Options {
            targets: vec![target.into()],
            max_batch: DEFAULT_BATCH,
            max_context: None,
            kv_type: KvType::F16,
            threads: None,
            fit: None,
            deny_cliffs: false,
            emit: None,
            kernel_cache: None,
        }
    }

    /// Instruction streams: as asked for, or this machine's physical cores.
    pub fn workers(&self) -> usize {
        self.threads.unwrap_or_else(native_workers)
    }
}

/// This machine's physical cores, as instruction streams.
pub fn native_workers() -> usize {
    num_cpus::get_physical().clamp(1, MAX_WORKERS)
}

/// What the pipeline tells whoever watches it.
pub trait Progress {
    /// A phase begins; `total` is its length in units of its own (bytes, programs).
    fn phase(&mut self, name: &'static str, total: u64);
    /// The current phase has advanced.
    fn advance(&mut self, units: u64);
}

/// Watches nothing.
pub struct Silent;

impl Progress for Silent {
    fn phase(&mut self, _: &'static str, _: u64) {}
    fn advance(&mut self, _: u64) {}
}

/// A model that has been read, built and planned, ready to be packed.
pub struct Prepared {
    /// The file.
    pub gguf: Gguf,
    /// Its graph after all passes, and what it is.
    pub model: Model,
    /// The plans, one per target.
    pub plans: Vec<Plan>,
}

/// Reads, builds and plans without writing anything: all of `--dry-run`.
pub fn prepare(path: &Path, options: &Options) -> Result<Prepared, Error> {
    let gguf = Gguf::open(path)?;
    let mut prepared = prepare_for(&gguf, options, options.max_context)?;
    // A context that had to be lowered may be one for which the model rotates otherwise. Nothing else depends on it, so the
    // same context fits again.
    let contexts = prepared.1.iter().map(|p| p.limits.max_context as usize);
    let (least, most) = (contexts.clone().min(), contexts.max());
    if let (Some(above), Some(least), Some(most)) = (prepared.0.switches_above, least, most) {
        let asked = wanted_context(&prepared.0, options);
        if least <= above && most > above {
            return Err(Error::DoesNotFit(format!(
                "--fit: contexts of {least} and {most} tokens on several targets, and this model rotates otherwise above {above}: give --ctx-size"
            )));
        }
        if asked > above && most <= above {
            prepared = prepare_for(&gguf, options, Some(most))?;
        }
    }
    let (model, plans) = prepared;
    Ok(Prepared { gguf, model, plans })
}

/// Graph and plans of the model in `gguf`, the graph for sequences of `context` tokens.
fn prepare_for(
    gguf: &Gguf,
    options: &Options,
    context: Option<usize>,
) -> Result<(Model, Vec<Plan>), Error> {
    let mut model = model::build_for(gguf, context)?;
    let mut emitter = Emitter::new(options.emit.as_deref())?;
    emitter.graph("built", &dump::dump(&model.graph))?;
    let mut failed = None;
    pass::run_all(
        &mut model.graph,
        Some(&mut |name: &str, text: &str| {
            if let Err(e) = emitter.graph(name, text) {
                failed = Some(e);
            }
        }),
    )?;
    if let Some(e) = failed {
        return Err(e);
    }
    let mut plans = Vec::with_capacity(options.targets.len());
    for target in &options.targets {
        let plan = fit(&model, target, options)?;
        emitter.write(&emitted(&plan, options, "plan.txt"), plan.dump().as_bytes())?;
        if options.deny_cliffs {
            deny_cliffs(&plan)?;
        }
        plans.push(plan);
    }
    Ok((model, plans))
}

/// Tokens per sequence that are planned for unless memory forbids it.
fn wanted_context(model: &Model, options: &Options) -> usize {
    options
        .max_context
        .unwrap_or(model.info.max_context.clamp(1, DEFAULT_CONTEXT))
}

/// Compiles `path` into the bundle `out`.
pub fn compile(
    path: &Path,
    out: &Path,
    options: &Options,
    progress: &mut dyn Progress,
) -> Result<Prepared, Error> {
    let mut prepared = prepare(path, options)?;
    check_output(out, &prepared.gguf)?;
    write(&mut prepared, path, out, options, progress)?;
    Ok(prepared)
}

/// Generates code and writes the bundle of what was prepared.
fn write(
    prepared: &mut Prepared,
    path: &Path,
    out: &Path,
    options: &Options,
    progress: &mut dyn Progress,
) -> Result<(), Error> {
    let Prepared { gguf, model, plans } = prepared;
    let spec = tokenizer::optional(gguf)?;

    let programs: usize = plans.iter().map(|p| p.programs.len()).sum();
    progress.phase("generating code", programs as u64);
    let contexts = plans.iter().map(|p| p.limits.max_context);
    let context = contexts.min().unwrap_or(0);
    let (codes, golden) = std::thread::scope(|scope| {
        let golden = scope.spawn(|| golden::prompts(gguf, model, context, options.kv_type));
        let codes: Result<Vec<Code>, Error> = plans
            .iter_mut()
            .map(|plan| generate(model, plan, options, progress))
            .collect();
        progress.phase("golden prompts", 1);
        let golden = golden
            .join()
            .unwrap_or_else(|_| Err(Error::Internal("the reference stopped".into())));
        progress.advance(1);
        (codes, golden)
    });
    let (codes, golden) = (codes?, golden?);
    let mut emitter = Emitter::new(options.emit.as_deref())?;
    for (plan, code) in plans.iter().zip(&codes) {
        emitter.code(plan, code, options)?;
    }

    let notes = plans.iter().zip(&codes);
    let notes: Result<Vec<Notes>, Error> = notes
        .map(|(plan, code)| Notes::new(&model.graph, plan, code))
        .collect();
    let notes = notes?;
    let sections = bundle::weight_sections(plans);
    let bytes = sections.iter().map(|s| plans[s[0]].weight_bytes).sum();
    progress.phase("packing weights", bytes);
    let contents = Contents {
        gguf,
        model,
        plans,
        codes: &codes,
        spec: spec.as_ref(),
        golden: &golden,
        notes: &notes,
        path,
    };
    bundle::write(out, &contents, |bytes| progress.advance(bytes))
}

/// Generates the code of `plan`. For a GPU the plan is made again with what the assembler says of its kernels, until it
/// chooses none that it does not know.
fn generate(
    model: &Model,
    plan: &mut Plan,
    options: &Options,
    progress: &mut dyn Progress,
) -> Result<Code, Error> {
    let mut target = match plan.target.clone() {
        Target::Cpu(target) => {
            let code = codegen::cpu::generate(plan, &target, || progress.advance(1))?;
            return Ok(Code::Cpu(code));
        }
        Target::Metal(_) => {
            let code = codegen::metal::MetalCode::of(plan)?;
            progress.advance(plan.programs.len() as u64);
            return Ok(Code::Metal(code));
        }
        Target::Cuda(target) => target,
    };
    let cache = options.kernel_cache.as_deref();
    let mut compiler = codegen::cuda::Compiler::new(target.profile.arch, cache)?;
    for _ in 0..MOST_ROUNDS {
        let found = compiler.compile(plan, || ())?;
        if found.is_empty() {
            break;
        }
        target.compiled.extend(found);
        *plan = fit(model, &Target::Cuda(target.clone()), options)?;
    }
    compiler.compile(plan, || ())?;
    progress.advance(plan.programs.len() as u64);
    Ok(Code::Cuda(compiler.code(plan, &target.profile)?))
}

/// Compiles `path` into one executable: this program, then the bundle. It runs the bundle unless told otherwise.
pub fn compile_exe(
    path: &Path,
    out: &Path,
    options: &Options,
    progress: &mut dyn Progress,
) -> Result<Prepared, Error> {
    let mut prepared = prepare(path, options)?;
    check_output(out, &prepared.gguf)?;
    let io = |source| Error::Io {
        doing: format!("writing {}", out.display()),
        source,
    };
    let bundle = tempfile::Builder::new()
        .prefix(".press-")
        .tempfile_in(folder_of(out))
        .map_err(io)?
        .into_temp_path();
    write(&mut prepared, path, &bundle, options, progress)?;
    let launcher = std::env::current_exe().map_err(io)?;
    embedded::write(&launcher, &bundle, out)?;
    Ok(prepared)
}

/// Fails if predicted tokens/s fall anywhere.
fn deny_cliffs(plan: &Plan) -> Result<(), Error> {
    let falls: Vec<String> = plan
        .cliffs()
        .iter()
        .map(|(b, rate, best)| format!("batch {b}: {rate:.0} tok/s after {best:.0}"))
        .collect();
    if falls.is_empty() {
        return Ok(());
    }
    Err(Error::Cliff(format!(
        "predicted tokens/s fall ({})",
        falls.join("; ")
    )))
}

/// What is written takes the place of what was there: never of a folder or device, and never of the model itself.
fn check_output(out: &Path, gguf: &Gguf) -> Result<(), Error> {
    let refuse = |why: &str| Err(Error::Usage(format!("--output {} {why}", out.display())));
    if std::fs::metadata(out).is_ok_and(|m| !m.is_file()) {
        return refuse("is not a regular file");
    }
    let Ok(full) = out.canonicalize() else {
        return Ok(());
    };
    let mut inputs = gguf.paths().iter().filter_map(|p| p.canonicalize().ok());
    match inputs.any(|input| input == full) {
        true => refuse("is the model; give another name"),
        false => Ok(()),
    }
}

/// Plans for the asked context, or for the largest that `fit` allows.
fn fit(model: &Model, target: &Target, options: &Options) -> Result<Plan, Error> {
    let wanted = wanted_context(model, options);
    let workers = options.workers();
    let build = |max_context: usize| {
        let sized = plan::Options {
            max_batch: options.max_batch,
            max_context,
            kv_type: options.kv_type,
            workers,
        };
        plan::build(&model.graph, target, sized)
    };
    let Some(limit) = options.fit else {
        return build(wanted);
    };
    // Only the KV pool depends on the context: one page per sequence shows the cost of everything else, and of a page.
    let least = build(wanted.min(PAGE_TOKENS))?;
    let memory = least.memory();
    let Some(room) = limit.checked_sub(memory.total()) else {
        return Err(Error::DoesNotFit(format!(
            "--fit: weights {}, activations {} and the smallest KV cache {} of {} sequences exceed {} (lower --max-batch, or take a smaller quantisation)",
            size(memory.weights),
            size(memory.arena),
            size(memory.kv),
            options.max_batch,
            size(limit)
        )));
    };
    let more = room.checked_div(memory.kv).map_or(usize::MAX, |pages| {
        usize::try_from(pages).unwrap_or(usize::MAX)
    });
    let context = more
        .saturating_add(1)
        .saturating_mul(PAGE_TOKENS)
        .min(wanted);
    build(context)
}

/// `1.5 GiB`.
pub fn size(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

/// Name of an emitted file: with several targets each has its own.
fn emitted(plan: &Plan, options: &Options, name: &str) -> String {
    match options.targets.len() {
        1 => name.to_string(),
        _ => format!("{}-{name}", plan.target.name().replace(':', "-")),
    }
}

/// Writes intermediate text into the `--emit` folder; does nothing without one.
struct Emitter<'a> {
    folder: Option<&'a Path>,
    graphs: usize,
}

impl<'a> Emitter<'a> {
    fn new(folder: Option<&'a Path>) -> Result<Emitter<'a>, Error> {
        if let Some(folder) = folder {
            std::fs::create_dir_all(folder).map_err(|source| Error::Io {
                doing: format!("creating {}", folder.display()),
                source,
            })?;
        }
        Ok(Emitter { folder, graphs: 0 })
    }

    fn graph(&mut self, name: &str, text: &str) -> Result<(), Error> {
        let number = self.graphs * 10;
        self.graphs += 1;
        self.write(&format!("{number:02}-{name}.txt"), text.as_bytes())
    }

    fn code(&mut self, plan: &Plan, code: &Code, options: &Options) -> Result<(), Error> {
        if self.folder.is_none() {
            return Ok(());
        }
        let write = |name: &str, bytes: &[u8]| self.write(&emitted(plan, options, name), bytes);
        match (code, &plan.target) {
            (Code::Cpu(code), Target::Cpu(target)) => {
                for program in &plan.programs {
                    for worker in 0..plan.workers {
                        let name =
                            format!("{:?}-{}-worker{worker}.clif", program.stage, program.rows);
                        let text = codegen::cpu::clif(plan, target, program, worker)?;
                        write(&name.to_lowercase(), text.as_bytes())?;
                    }
                }
                write("code.bin", &code.bytes)?;
                write("symbols.txt", code.symbols.join("\n").as_bytes())
            }
            (Code::Cuda(code), _) => {
                for kernel in &code.kernels {
                    let bytes = |(offset, bytes): (u64, u64), of: &[u8]| {
                        of[offset as usize..][..bytes as usize].to_vec()
                    };
                    write(
                        &format!("{}.cubin", kernel.name),
                        &bytes(kernel.code, &code.bytes),
                    )?;
                    write(
                        &format!("{}.cu", kernel.name),
                        &bytes(kernel.source, &code.sources),
                    )?;
                }
                Ok(())
            }
            (Code::Metal(code), _) => write("kernels.metal", code.library.as_bytes()),
            (Code::Cpu(_), Target::Cuda(_) | Target::Metal(_)) => {
                Err(Error::Internal("code of another target".into()))
            }
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let Some(folder) = self.folder else {
            return Ok(());
        };
        let path = folder.join(name);
        std::fs::write(&path, bytes).map_err(|source| Error::Io {
            doing: format!("writing {}", path.display()),
            source,
        })
    }
}

#[cfg(test)]
mod tests;
