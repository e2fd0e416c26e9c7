//! CPU code: cranelift turns each program's launch list into one straight-line function per worker. Addresses, strides,
//! row and tile ranges are immediates; micro-kernels are called through the symbol table in `WorkerContext`, so the code
//! has no relocations and can be mapped anywhere. Element-wise loops are emitted inline (`elementwise`).

mod elementwise;
mod emit;
#[cfg(test)]
mod tests;

use crate::error::Error;
use crate::plan::{Plan, ProgramPlan};
use crate::target::TargetProfile;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::isa::{self, OwnedTargetIsa};
use cranelift_codegen::settings::{self, Configurable};
use cranelift_codegen::{Context, ir};
use std::collections::BTreeMap;
use std::ops::Range;

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

/// Position of each micro-kernel in the table that code loads function pointers from.
#[derive(Debug, Default)]
pub(crate) struct SymbolTable(BTreeMap<String, usize>);

impl SymbolTable {
    /// Index of `name`, added at the end when it is new.
    fn index(&mut self, name: &str) -> usize {
        let next = self.0.len();
        match self.0.get(name) {
            Some(&i) => i,
            None => {
                self.0.insert(name.to_string(), next);
                next
            }
        }
    }

    fn into_names(self) -> Vec<String> {
        let mut names: Vec<(usize, String)> = self.0.into_iter().map(|(n, i)| (i, n)).collect();
        names.sort_unstable();
        names.into_iter().map(|(_, n)| n).collect()
    }
}

/// The symbol every program calls where its workers meet; the runtime provides it.
pub const BARRIER: &str = "barrier";

/// Generates code for every program and worker of `plan`. `progress` is called after each program.
pub fn generate(plan: &Plan, mut progress: impl FnMut()) -> Result<CpuCode, Error> {
    let isa = target_isa(&plan.target)?;
    let mut symbols = SymbolTable::default();
    let mut code = CpuCode {
        bytes: Vec::new(),
        entries: Vec::new(),
        symbols: Vec::new(),
        launches: Vec::new(),
    };
    for program in &plan.programs {
        let mut entries = Vec::with_capacity(plan.workers);
        for worker in 0..plan.workers {
            let function = emit::function(isa.as_ref(), plan, program, worker, &mut symbols);
            code.bytes.resize(code.bytes.len().next_multiple_of(64), 0);
            let start = code.bytes.len() as u64;
            let compiled = compile(isa.as_ref(), function, program)?;
            if worker == 0 {
                code.launches.push(
                    compiled
                        .launches
                        .iter()
                        .map(|r| start + u64::from(r.start)..start + u64::from(r.end))
                        .collect(),
                );
            }
            entries.push(start);
            code.bytes.extend_from_slice(&compiled.bytes);
        }
        code.entries.push(entries);
        progress();
    }
    code.symbols = symbols.into_names();
    Ok(code)
}

/// Cranelift's text for one worker of one program, for `--emit` and `explain`.
pub fn clif(plan: &Plan, program: &ProgramPlan, worker: usize) -> Result<String, Error> {
    let isa = target_isa(&plan.target)?;
    Ok(emit::function(
        isa.as_ref(),
        plan,
        program,
        worker,
        &mut SymbolTable::default(),
    )
    .display()
    .to_string())
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
