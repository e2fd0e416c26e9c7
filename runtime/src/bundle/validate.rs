//! Checks a decoded manifest against the section table, so that a damaged or hostile one is refused here and every
//! later use may trust its numbers. It cannot vouch for the machine code: a bundle is an executable.

mod gpu;

use super::header::{Header, SectionKind};
use crate::manifest::{KvPlan, KvWindow, Limits, Manifest, Program, Stage, TargetPlan};
use coldpress_kernels::cpu::abi::PAGE_TOKENS;

const MAX_VOCAB: u32 = 1 << 26;
const MAX_BATCH: u32 = 1 << 16;
const MAX_CONTEXT: u32 = 1 << 26;
const MAX_WORKERS: u32 = 1024;
const MAX_PLANS: usize = 64;
const MAX_SYMBOLS: usize = 1 << 16;
/// Pages of the pool, and entries of the page table: both are lists in memory.
const MAX_PAGES: u64 = 1 << 28;
const MAX_LAYERS: usize = 1 << 16;
const MAX_STATES: usize = 1 << 17;
/// 16 TiB: more is a damaged number. Keeps every sum below far from overflow.
const MAX_BYTES: u64 = 1 << 44;
/// Arena regions, KV layers and rows of logits start at multiples of this.
const REGION_ALIGN: u64 = 64;

/// The first thing that is wrong, in words.
pub(super) fn manifest(manifest: &Manifest, header: &Header) -> Result<(), String> {
    let vocab = manifest.model.vocab_size;
    bounded("vocabulary size", vocab.into(), 1, MAX_VOCAB.into())?;
    limits(&manifest.limits)?;
    bounded("plans", manifest.plans.len() as u64, 1, MAX_PLANS as u64)?;
    let required = manifest.plans.iter().map(|plan| &plan.requires);
    if !required.eq(&header.targets) {
        return Err("header and manifest name different targets".into());
    }
    for plan in &manifest.plans {
        target_plan(plan, vocab, &manifest.limits, header)
            .map_err(|why| format!("plan {}: {why}", plan.requires.target))?;
    }
    Ok(())
}

fn bounded(what: &str, value: u64, least: u64, most: u64) -> Result<(), String> {
    if value < least || value > most {
        return Err(format!("{what} is {value}, {least} to {most} are possible"));
    }
    Ok(())
}

fn limits(limits: &Limits) -> Result<(), String> {
    bounded("max_batch", limits.max_batch.into(), 1, MAX_BATCH.into())?;
    bounded(
        "max_context",
        limits.max_context.into(),
        1,
        MAX_CONTEXT.into(),
    )?;
    bounded(
        "max_rows",
        limits.max_rows.into(),
        limits.max_batch.into(),
        MAX_BATCH.into(),
    )
}

fn target_plan(
    plan: &TargetPlan,
    vocab: u32,
    limits: &Limits,
    header: &Header,
) -> Result<(), String> {
    if plan.gpu.is_some() != ["cuda", "metal"].contains(&plan.requires.arch.as_str()) {
        return Err(format!(
            "architecture {} contradicts what its launches are for",
            plan.requires.arch
        ));
    }
    bounded("workers", plan.workers.into(), 1, MAX_WORKERS.into())?;
    bounded("symbols", plan.symbols.len() as u64, 0, MAX_SYMBOLS as u64)?;
    let section = |what: &str, index: u32, kind| match header.sections.get(index as usize) {
        Some(section) if section.kind == kind => Ok(section),
        Some(section) => Err(format!(
            "{what} section {index} holds {:?} instead",
            section.kind
        )),
        None => Err(format!("{what} section {index} does not exist")),
    };
    let weights = section("weights", plan.weights_section, SectionKind::Weights)?.bytes;
    let code_bytes = section("code", plan.code_section, SectionKind::Code)?.bytes;
    bounded("arena bytes", plan.arena_bytes, 1, MAX_BYTES)?;
    programs(plan, limits, code_bytes)?;
    logits(plan, vocab)?;
    curve(plan, limits)?;
    kv(&plan.kv, limits)?;
    let mut allocated = plan.arena_bytes + plan.kv.bytes;
    if let Some(gpu) = &plan.gpu {
        let source = section("source", gpu.source_section, SectionKind::Source)?.bytes;
        let sections = gpu::SectionBytes {
            weights,
            code: code_bytes,
            source,
        };
        gpu::plan(plan, gpu, limits, &sections)?;
        allocated = gpu::allocated(plan, gpu, weights);
    }
    bounded(
        "required memory",
        plan.requires.memory_bytes,
        allocated,
        2 * MAX_BYTES,
    )
}

fn programs(plan: &TargetPlan, limits: &Limits, code_bytes: u64) -> Result<(), String> {
    let mut previous: Option<&Program> = None;
    for (index, program) in plan.programs.iter().enumerate() {
        let most = limits.max_rows.into();
        bounded(
            &format!("rows of program {index}"),
            program.rows.into(),
            1,
            most,
        )?;
        let key = |p: &Program| (p.stage == Stage::Head, p.rows);
        if previous.is_some_and(|p| key(p) >= key(program)) {
            return Err(format!("program {index} is not ordered by stage and rows"));
        }
        if !(program.predicted_seconds >= 0.0 && program.predicted_seconds.is_finite()) {
            return Err(format!("predicted time of program {index} is not a time"));
        }
        // A GPU's programs are their launches.
        let entries = match plan.gpu {
            None => plan.workers as usize,
            Some(_) => 0,
        };
        if program.entries.len() != entries {
            return Err(format!(
                "program {index} has {} entry points instead of {entries}",
                program.entries.len()
            ));
        }
        if plan.gpu.is_none() && program.launches.iter().any(|l| l.grid.is_some()) {
            return Err(format!("program {index} launches kernels without a GPU"));
        }
        if let Some(entry) = program.entries.iter().find(|&&e| e >= code_bytes) {
            return Err(format!(
                "program {index} starts at byte {entry} of {code_bytes} bytes of code"
            ));
        }
        previous = Some(program);
    }
    let largest = |stage| plan.programs.iter().rfind(|p| p.stage == stage);
    if largest(Stage::Trunk).is_none_or(|p| p.rows != limits.max_rows) {
        return Err(format!(
            "no trunk program takes max_rows = {} rows",
            limits.max_rows
        ));
    }
    if largest(Stage::Head).is_none() {
        return Err("there is no head program".into());
    }
    Ok(())
}

/// Batch sizes ascending, at most the largest, each with a time.
fn curve(plan: &TargetPlan, limits: &Limits) -> Result<(), String> {
    let mut least = 1;
    for point in &plan.curve {
        let (batch, most) = (point.batch.into(), limits.max_batch.into());
        bounded("batch size of the curve", batch, least, most)?;
        if !(point.predicted_seconds > 0.0 && point.predicted_seconds.is_finite()) {
            return Err(format!(
                "predicted time of batch size {batch} is not a time"
            ));
        }
        least = batch + 1;
    }
    Ok(())
}

fn logits(plan: &TargetPlan, vocab: u32) -> Result<(), String> {
    let row_bytes = u64::from(vocab) * 4;
    bounded("logits stride", plan.logits_stride, row_bytes, MAX_BYTES)?;
    bounded("logits offset", plan.logits_offset, 0, plan.arena_bytes)?;
    if !plan.logits_offset.is_multiple_of(REGION_ALIGN) || !plan.logits_stride.is_multiple_of(4) {
        return Err("logits are not aligned".into());
    }
    let head = plan.programs.iter().filter(|p| p.stage == Stage::Head);
    let rows = u64::from(head.map(|p| p.rows).max().unwrap_or(1));
    let end = (rows - 1)
        .checked_mul(plan.logits_stride)
        .and_then(|bytes| bytes.checked_add(plan.logits_offset + row_bytes));
    if end.is_none_or(|end| end > plan.arena_bytes) {
        return Err(format!(
            "{rows} rows of logits do not fit in the arena of {} bytes",
            plan.arena_bytes
        ));
    }
    Ok(())
}

fn kv(kv: &KvPlan, limits: &Limits) -> Result<(), String> {
    let page_tokens = PAGE_TOKENS as u64;
    bounded(
        "tokens per KV page",
        kv.page_tokens.into(),
        page_tokens,
        page_tokens,
    )?;
    let per_slot = u64::from(limits.max_context).div_ceil(page_tokens);
    bounded(
        "KV pages per slot",
        kv.pages_per_slot.into(),
        per_slot,
        MAX_CONTEXT.into(),
    )?;
    bounded(
        "KV pages",
        kv.pages.into(),
        kv.pages_per_slot.into(),
        MAX_PAGES,
    )?;
    let entries = u64::from(limits.max_batch) * u64::from(kv.pages_per_slot);
    let tables = 1 + kv.windows.len() as u64;
    bounded(
        "page table entries",
        entries.saturating_mul(tables),
        1,
        MAX_PAGES,
    )?;
    for window in &kv.windows {
        let (tokens, rows) = (window.tokens.into(), limits.max_rows.into());
        let least = KvWindow::least_ring(tokens, rows, page_tokens).min(per_slot);
        bounded("window", window.tokens.into(), 1, limits.max_context.into())?;
        bounded("KV pages of a window", window.ring.into(), least, per_slot)?;
    }
    bounded("KV layers", kv.layers.len() as u64, 1, MAX_LAYERS as u64)?;
    bounded("KV bytes", kv.bytes, 1, MAX_BYTES)?;
    let mut spans = Vec::with_capacity(kv.layers.len());
    for (index, layer) in kv.layers.iter().enumerate() {
        let span = kv
            .pages_of(layer.table, limits.max_batch)
            .checked_mul(layer.page_bytes)
            .and_then(|bytes| bytes.checked_add(layer.offset))
            .filter(|&end| end <= kv.bytes)
            .ok_or_else(|| format!("KV pages of layer {index} are outside the pool"))?;
        if u64::from(layer.table) >= tables {
            return Err(format!("KV page table {} of layer {index}", layer.table));
        }
        if layer.page_bytes == 0 || !layer.offset.is_multiple_of(REGION_ALIGN) {
            return Err(format!("KV pages of layer {index} are empty or unaligned"));
        }
        spans.push((layer.offset, span));
    }
    bounded("states", kv.states.len() as u64, 0, MAX_STATES as u64)?;
    for (index, state) in kv.states.iter().enumerate() {
        let end = state
            .slot_bytes
            .checked_mul(limits.max_batch.into())
            .and_then(|bytes| bytes.checked_add(state.offset))
            .filter(|&end| end <= kv.bytes)
            .ok_or_else(|| format!("state {index} is outside the pool"))?;
        let aligned = [state.offset, state.slot_bytes].map(|b| b.is_multiple_of(REGION_ALIGN));
        if state.slot_bytes == 0 || aligned != [true; 2] {
            return Err(format!("state {index} is empty or unaligned"));
        }
        spans.push((state.offset, end));
    }
    spans.sort_unstable();
    if spans.windows(2).any(|pair| pair[0].1 > pair[1].0) {
        return Err("KV pages or states of two layers overlap".into());
    }
    Ok(())
}
