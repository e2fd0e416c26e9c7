//! CPU code: cranelift turns each program's launch list into one straight-line function per worker. Addresses, strides,
//! row and tile ranges are immediates; micro-kernels are called through the symbol table in `WorkerContext`, so the code
//! has no relocations and can be mapped anywhere. Element-wise loops are emitted inline (`elementwise`).

mod elementwise;
mod emit;
#[cfg(test)]
mod tests;

use crate::error::Error;
use crate::plan::{Attention, Plan, ProgramPlan, Work};
use crate::target::TargetProfile;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::isa::{self, OwnedTargetIsa};
use cranelift_codegen::settings::{self, Configurable};
use cranelift_codegen::{Context, ir};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

/// Machine code of every program of a plan.
#[derive(Debug)]
pub struct CpuCode {
    /// Code bytes; entries are 64-byte aligned.
    pub bytes: Vec<u8>,
    /// For each program of the plan, each worker's entry offset in `bytes`.
    pub entries: Vec<Vec<u64>>,
    /// Micro-kernel symbols in table order.
    pub symbols: Vec<String>,
    /// For each program and launch, where worker 0's instructions for it lie in `bytes`.
    pub launches: Vec<Vec<Range<u64>>>,
}

/// Position of each micro-kernel in the table that code loads function pointers from, in order of first use by the plan.
#[derive(Debug)]
pub(crate) struct SymbolTable<'p>(BTreeMap<&'p str, usize>);

impl<'p> SymbolTable<'p> {
    fn of(plan: &'p Plan) -> SymbolTable<'p> {
        let mut table = BTreeMap::new();
        let mut add = |name: &'p str| {
            let next = table.len();
            table.entry(name).or_insert(next);
        };
        for launch in plan.programs.iter().flat_map(|p| &p.launches) {
            if launch.barrier {
                add(BARRIER);
            }
            match &launch.work {
                Work::Call { symbol, .. }
                | Work::Recurrent { symbol, .. }
                | Work::Attention(Attention { symbol, .. }) => add(symbol),
                Work::Matmul(matmul) => matmul
                    .parts
                    .iter()
                    .flat_map(|p| &p.stamps)
                    .for_each(|s| add(&s.symbol)),
                Work::Experts(experts) => experts.parts.iter().for_each(|p| add(&p.symbol)),
                // No plan for a CPU has grids.
                Work::Elementwise { .. } | Work::Grid(_) => {}
            }
        }
        SymbolTable(table)
    }

    /// Index of `name`, which some launch of the plan calls.
    fn index(&self, name: &str) -> usize {
        self.0[name]
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<(usize, &str)> = self.0.iter().map(|(&n, &i)| (i, n)).collect();
        names.sort_unstable();
        names.into_iter().map(|(_, n)| n.to_string()).collect()
    }
}

/// The symbol every program calls where its workers meet; the runtime provides it.
pub const BARRIER: &str = "barrier";

/// Generates code for every program and worker of `plan`, on all cores; the bytes do not depend on how many. `progress`
/// is called after each program.
pub fn generate(
    plan: &Plan,
    target: &TargetProfile,
    mut progress: impl FnMut(),
) -> Result<CpuCode, Error> {
    let isa = target_isa(target)?;
    let symbols = SymbolTable::of(plan);
    let functions = plan.programs.len() * plan.workers;
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .clamp(1, functions.max(1));
    let next = AtomicUsize::new(0);
    let (send, receive) = mpsc::channel();
    let mut compiled: Vec<Option<Compiled>> = Vec::new();
    compiled.resize_with(functions, || None);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (send, next, symbols, isa) = (send.clone(), &next, &symbols, isa.as_ref());
            scope.spawn(move || {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= functions {
                        break;
                    }
                    let (program, worker) = (&plan.programs[i / plan.workers], i % plan.workers);
                    let function = emit::function(isa, (plan, target), program, worker, symbols);
                    // A closed queue means another function failed, which is reported.
                    if send.send((i, compile(isa, function, program))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(send);
        let mut done = 0;
        for (i, function) in receive {
            compiled[i] = Some(function?);
            done += 1;
            if done % plan.workers == 0 {
                progress();
            }
        }
        Ok::<(), Error>(())
    })?;

    let mut code = CpuCode {
        bytes: Vec::new(),
        entries: Vec::with_capacity(plan.programs.len()),
        symbols: symbols.names(),
        launches: Vec::with_capacity(plan.programs.len()),
    };
    for (i, function) in compiled.into_iter().enumerate() {
        let function = function
            .ok_or_else(|| Error::Internal("a thread of the code generator stopped".into()))?;
        code.bytes.resize(code.bytes.len().next_multiple_of(64), 0);
        let start = code.bytes.len() as u64;
        if i % plan.workers == 0 {
            code.entries.push(Vec::with_capacity(plan.workers));
            let at = |r: &Range<u32>| start + u64::from(r.start)..start + u64::from(r.end);
            code.launches
                .push(function.launches.iter().map(at).collect());
        }
        if let Some(entries) = code.entries.last_mut() {
            entries.push(start);
        }
        code.bytes.extend_from_slice(&function.bytes);
    }
    Ok(code)
}

/// Cranelift's text for one worker of one program, for `--emit`.
pub fn clif(
    plan: &Plan,
    target: &TargetProfile,
    program: &ProgramPlan,
    worker: usize,
) -> Result<String, Error> {
    let isa = target_isa(target)?;
    let symbols = SymbolTable::of(plan);
    let function = emit::function(isa.as_ref(), (plan, target), program, worker, &symbols);
    Ok(function.display().to_string())
}

/// One function's machine code.
struct Compiled {
    bytes: Vec<u8>,
    launches: Vec<Range<u32>>,
}

fn compile(
    isa: &dyn isa::TargetIsa,
    function: ir::Function,
    program: &ProgramPlan,
) -> Result<Compiled, Error> {
    let internal = |why: String| {
        Error::Internal(format!(
            "{:?} program of {} rows: {why}",
            program.stage, program.rows
        ))
    };
    let mut context = Context::for_function(function);
    let compiled = context
        .compile(isa, &mut ControlPlane::default())
        .map_err(|e| internal(format!("{:?}", e.inner)))?;
    // Bundle code is mapped wherever there is room, by a loader that does not link.
    if !compiled.buffer.relocs().is_empty() {
        return Err(internal(format!(
            "code needs relocations: {:?}",
            compiled.buffer.relocs()
        )));
    }
    let mut launches = vec![0..0; program.launches.len()];
    for span in compiled.buffer.get_srclocs_sorted() {
        if let Some(range) = launches.get_mut(span.loc.bits() as usize) {
            let start = if range.start == range.end {
                span.start
            } else {
                range.start.min(span.start)
            };
            *range = start..range.end.max(span.end);
        }
    }
    Ok(Compiled {
        bytes: compiled.code_buffer().to_vec(),
        launches,
    })
}

fn target_isa(target: &TargetProfile) -> Result<OwnedTargetIsa, Error> {
    let internal = |why: String| Error::Internal(format!("cranelift for {}: {why}", target.name));
    let mut flags = settings::builder();
    for (name, value) in [
        ("opt_level", "speed"),
        ("enable_verifier", "false"),
        ("regalloc_algorithm", "backtracking"),
    ] {
        flags
            .set(name, value)
            .map_err(|e| internal(e.to_string()))?;
    }
    let mut builder = isa::lookup_by_name(target.arch).map_err(|e| internal(e.to_string()))?;
    if target.arch == "x86_64" {
        for feature in ["has_sse3", "has_ssse3", "has_sse41", "has_sse42"] {
            builder
                .enable(feature)
                .map_err(|e| internal(e.to_string()))?;
        }
        if target.has_fma() {
            for feature in ["has_avx", "has_avx2", "has_fma"] {
                builder
                    .enable(feature)
                    .map_err(|e| internal(e.to_string()))?;
            }
        }
    }
    builder
        .finish(settings::Flags::new(flags))
        .map_err(|e| internal(e.to_string()))
}
