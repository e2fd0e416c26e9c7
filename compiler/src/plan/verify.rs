//! Checks a finished plan without trusting how it was made: every address of a launch inside its memory and named by its
//! accesses, tiles and rows covered exactly once, values intact until their last reader (`values`), and, between two
//! barriers, no byte written by one worker and touched by another (`races`).

mod grid;
mod races;
#[cfg(test)]
mod tests;
mod values;

use super::memory::ALIGN;
use super::schedule::span_end;
use super::{
    Access, Arg, Attention, Buffer, Experts, Form, Init, Launch, Matmul, Plan, ProgramPlan, Space,
    Split, Work,
};
use crate::error::Error;
use coldpress_kernels::attention::{partial_bytes, splits};
use coldpress_kernels::cpu::abi::TILE_N;
use coldpress_kernels::experts::{legal, route_bytes};
use coldpress_runtime::manifest::Stage;
use std::ops::Range;

/// Bytes of one output tile's columns in a row.
const TILE_COLUMNS: usize = TILE_N * 4;

/// Fails with the first broken rule.
pub fn check(plan: &Plan) -> Result<(), Error> {
    weights(plan)?;
    buckets(plan)?;
    for program in &plan.programs {
        for launch in &program.launches {
            addresses(plan, program, launch).map_err(|why| broken(program, launch, &why))?;
        }
        values::check(plan, program)?;
        races::check(plan, program)?;
    }
    Ok(())
}

fn broken(program: &ProgramPlan, launch: &Launch, why: &str) -> Error {
    Error::Internal(format!(
        "plan {:?} {} rows, {}: {why}",
        program.stage, program.rows, launch.label
    ))
}

fn weights(plan: &Plan) -> Result<(), Error> {
    let mut end = 0;
    for p in &plan.weights {
        if p.offset < end || p.offset % 64 != 0 || p.offset + p.bytes > plan.weight_bytes {
            return Err(Error::Internal(format!(
                "weight {} overlaps another or leaves the section",
                p.weight.0
            )));
        }
        end = p.offset + p.bytes;
    }
    Ok(())
}

/// The largest step and the largest batch have buckets, and the rows that outlive programs have room for them.
fn buckets(plan: &Plan) -> Result<(), Error> {
    let (batch, rows) = (
        plan.limits.max_batch as usize,
        plan.limits.max_rows as usize,
    );
    for (stage, rows) in [
        (Stage::Trunk, rows),
        (Stage::Trunk, batch),
        (Stage::Head, batch),
    ] {
        let exists = |p: &ProgramPlan| p.stage == stage && p.rows == rows;
        if !plan.programs.iter().any(exists) {
            return Err(Error::Internal(format!("no {stage:?} of {rows} rows")));
        }
    }
    let head = plan.programs.iter().filter(|p| p.stage == Stage::Head);
    let head_rows = head.map(|p| p.rows).max().unwrap_or(batch);
    for (name, access, rows) in [
        ("hidden", &plan.hidden, rows),
        ("logits", &plan.logits, head_rows),
    ] {
        if access.rows != rows || span_end(access) > plan.arena_bytes {
            return Err(Error::Internal(format!(
                "{name} rows: {access:?} instead of {rows} rows in {} bytes",
                plan.arena_bytes
            )));
        }
    }
    Ok(())
}

/// What a launch is given agrees with what it says it touches, and lies inside its memory.
fn addresses(plan: &Plan, program: &ProgramPlan, launch: &Launch) -> Result<(), String> {
    for access in &launch.accesses {
        match access.space {
            Space::Arena if span_end(access) > plan.arena_bytes => {
                return Err(format!(
                    "{access:?} leaves the arena of {} bytes",
                    plan.arena_bytes
                ));
            }
            Space::Arena if access.value.is_none() => {
                return Err(format!("{access:?} belongs to no value"));
            }
            Space::Kv(layer) if layer >= plan.kv.layers.len() => {
                return Err(format!("no KV cache for layer {layer}"));
            }
            Space::State(state) if state >= plan.kv.states.len() => {
                return Err(format!("no state {state}"));
            }
            _ => {}
        }
    }
    match &launch.work {
        Work::Call { args, units, .. } => {
            if *units == 0 || units % program.rows != 0 {
                return Err(format!("{units} units for {} rows", program.rows));
            }
            arguments(plan, launch, args)
        }
        Work::Attention(attention) => {
            arguments(plan, launch, &attention.args)?;
            divided(plan, program, launch, attention)
        }
        Work::Recurrent { args, .. } => {
            arguments(plan, launch, args)?;
            live_cells(launch, args)?;
            match launch
                .accesses
                .iter()
                .any(|a| matches!(a.space, Space::State(_)) && a.write)
            {
                true => Ok(()),
                false => Err("keeps no state".into()),
            }
        }
        Work::Matmul(matmul) => {
            let mut named = vec![(matmul.input, false, Split::Whole)];
            for (i, part) in matmul.parts.iter().enumerate() {
                named.push((part.output, true, Split::Tiles(i)));
                if let Init::Rows(rows) = part.init {
                    named.push((rows, false, Split::Tiles(i)));
                }
            }
            same_accesses(launch, &named)?;
            covered(plan, program, matmul)
        }
        Work::Experts(work) => {
            let mut named = vec![
                (work.input, false, Split::Whole),
                (work.routes, false, Split::Whole),
            ];
            for part in &work.parts {
                let cells = Split::Live {
                    per_row: part.tiles,
                    bytes: TILE_COLUMNS,
                };
                named.push((part.output, true, cells));
            }
            same_accesses(launch, &named)?;
            experts(plan, program, launch, work)
        }
        Work::Grid(grid) => grid::arguments(plan, launch, grid),
        Work::Elementwise {
            op,
            inputs,
            output,
            width,
            rows,
        } => {
            let of_all = launch.accesses.iter().all(|a| a.rows == *rows);
            if inputs.len() != op.arity() || rows % program.rows != 0 || !of_all {
                return Err(format!("{op:?} with {} inputs, {rows} rows", inputs.len()));
            }
            if output.stride < width * 4 {
                return Err(format!("{op:?} writes rows wider than their stride"));
            }
            let mut named = vec![(*output, true, Split::Rows)];
            named.extend(inputs.iter().map(|&b| (b, false, Split::Rows)));
            same_accesses(launch, &named)
        }
    }
}

/// Every address a micro-kernel receives is one the launch's accesses name, and the other way round.
fn arguments(plan: &Plan, launch: &Launch, args: &[Arg]) -> Result<(), String> {
    let mut given: Vec<(usize, Option<usize>)> = Vec::new();
    let mut layers = Vec::new();
    for arg in args {
        match *arg {
            Arg::Weights(offset) if !plan.weights.iter().any(|p| p.offset == offset) => {
                return Err(format!("no weight begins at {offset}"));
            }
            Arg::Kv(offset) => layers.push(offset),
            Arg::Arena(offset) => given.push((offset, None)),
            Arg::ArenaAt { offset, stride } => given.push((offset, Some(stride))),
            _ => {}
        }
    }
    let fits = |access: &Access, offset: usize, stride: Option<usize>| {
        access.space == Space::Arena
            && access.offset == offset
            && stride.is_none_or(|s| s == access.stride)
    };
    for (i, &(offset, stride)) in given.iter().enumerate() {
        if !launch.accesses.iter().any(|a| fits(a, offset, stride)) {
            return Err(format!("nothing says that arena+{offset} is touched"));
        }
        if given[..i].iter().any(|g| g.0 == offset) {
            return Err(format!("arena+{offset} is passed twice"));
        }
    }
    for access in &launch.accesses {
        let reached = match access.space {
            Space::Arena => given.iter().any(|&(o, s)| fits(access, o, s)),
            Space::Kv(layer) => layers.contains(&plan.kv.layers[layer].offset),
            Space::State(state) => layers.contains(&plan.kv.states[state].offset),
        };
        if !reached {
            return Err(format!("{access:?} is not passed"));
        }
    }
    Ok(())
}

/// Workers that divide live work know who they are, and write nothing in the arena but cells that do not overlap.
fn live_cells(launch: &Launch, args: &[Arg]) -> Result<(), String> {
    if !args.contains(&Arg::Worker) || !args.contains(&Arg::Workers) {
        return Err("its workers do not know their share".into());
    }
    let arena = |a: &&Access| a.write && !matches!(a.space, Space::State(_));
    for access in launch.accesses.iter().filter(arena) {
        let fits = match access.split {
            Split::Live { per_row, bytes } => {
                per_row * bytes <= access.width && access.width <= access.stride
            }
            _ => false,
        };
        if !fits {
            return Err(format!("workers may write the same bytes of {access:?}"));
        }
    }
    Ok(())
}

/// As [`live_cells`]; and where the division may cut through a query, there is room for its partial results.
fn divided(
    plan: &Plan,
    program: &ProgramPlan,
    launch: &Launch,
    attention: &Attention,
) -> Result<(), String> {
    live_cells(launch, &attention.args)?;
    let (slots, cells) = (plan.workers - 1, splits(plan.limits.max_context as usize));
    let shape = &attention.shape;
    let cell = shape.queries_per_unit(program.rows) * partial_bytes(shape.head_dim);
    match attention.scratch {
        None if slots > 0 && cells > 1 => Err("has no room for partial results".into()),
        None => Ok(()),
        Some(s) => {
            if s.slots < slots || s.cells < cells || s.cell < cell {
                return Err(format!(
                    "{s:?} is too small for {slots} slots of {cells} times {cell} bytes"
                ));
            }
            let named = launch.accesses.iter().any(|a| {
                (a.offset, a.stride, a.rows, a.width)
                    == (s.buffer.offset, s.buffer.stride, s.slots, s.cells * s.cell)
            });
            match named {
                true => Ok(()),
                false => Err(format!("nothing says that {s:?} is touched")),
            }
        }
    }
}

/// The launch's accesses are exactly the named buffers, used as named.
fn same_accesses(launch: &Launch, named: &[(Buffer, bool, Split)]) -> Result<(), String> {
    let is = |access: &Access, &(buffer, write, split): &(Buffer, bool, Split)| {
        access.space == Space::Arena
            && (access.offset, access.stride) == (buffer.offset, buffer.stride)
            && (access.write, access.split) == (write, split)
    };
    for name in named {
        if !launch.accesses.iter().any(|a| is(a, name)) {
            return Err(format!("nothing says that {name:?} is touched"));
        }
    }
    for access in &launch.accesses {
        if !named.iter().any(|n| is(access, n)) {
            return Err(format!("{access:?} is not part of the work"));
        }
    }
    Ok(())
}

/// Every tile belongs to exactly one worker and every row to exactly one stamp; weights, biases and output rows hold all
/// tiles.
fn covered(plan: &Plan, program: &ProgramPlan, matmul: &Matmul) -> Result<(), String> {
    if matmul.rows != program.rows {
        return Err(format!("{} of {} rows", matmul.rows, program.rows));
    }
    let shares: Vec<Vec<Range<usize>>> = (0..plan.workers)
        .map(|w| matmul.tile_shares(plan.workers, w))
        .collect();
    for (i, part) in matmul.parts.iter().enumerate() {
        let label = &part.label;
        shared(shares.iter().map(|worker| &worker[i]), part.tiles)
            .map_err(|why| format!("{label}: {why}"))?;
        let mut row = 0;
        for stamp in &part.stamps {
            if stamp.first != row || stamp.rows == 0 {
                return Err(format!("{label}: row {row} is not covered"));
            }
            row += stamp.rows;
        }
        if row != matmul.rows {
            return Err(format!("{label}: {row} of {} rows covered", matmul.rows));
        }
        let placed = |form: Form, offset: u64, bytes: usize| {
            plan.weights.iter().any(|p| {
                p.form == form
                    && p.offset == offset
                    && p.bytes == bytes.next_multiple_of(ALIGN) as u64
            })
        };
        if !placed(Form::Tiles, part.weights, part.tiles * part.tile_bytes) {
            return Err(format!("{label}: its tiles are not a weight's"));
        }
        if let Init::Bias(offset) = part.init
            && !placed(Form::Vector, offset, part.tiles * TILE_COLUMNS)
        {
            return Err(format!("{label}: its bias is not a weight's"));
        }
        if part.output.stride < part.tiles * TILE_COLUMNS {
            return Err(format!("{label}: output rows are narrower than its tiles"));
        }
    }
    Ok(())
}

/// Weights and biases hold all tiles of all experts, rows of routes all experts of a row, and there are input and output
/// rows for all experts of all rows, wide enough for all tiles.
fn experts(
    plan: &Plan,
    program: &ProgramPlan,
    launch: &Launch,
    work: &Experts,
) -> Result<(), String> {
    legal(work.experts, work.used).map_err(|why| why.to_string())?;
    if work.rows != program.rows || work.routes.stride < route_bytes(work.used) {
        return Err(format!("{} rows of {} experts", work.rows, work.used));
    }
    let routed = |buffer: Buffer| {
        let of = |a: &&Access| (a.offset, a.stride) == (buffer.offset, buffer.stride);
        let mut accesses = launch.accesses.iter().filter(of);
        accesses.all(|a| a.rows == work.rows * work.used)
    };
    for part in &work.parts {
        let placed = |form: Form, offset: u64, bytes: usize| {
            plan.weights.iter().any(|p| {
                p.form == form
                    && p.offset == offset
                    && p.bytes == bytes.next_multiple_of(ALIGN) as u64
            })
        };
        let (label, tiles) = (&part.label, part.tiles * work.experts);
        let form = Form::Experts(work.experts);
        if tiles == 0 || !placed(form, part.weights, tiles * part.tile_bytes) {
            return Err(format!("{label}: its tiles are not a weight's"));
        }
        if let Some(bias) = part.bias
            && !placed(Form::Vector, bias, tiles * TILE_COLUMNS)
        {
            return Err(format!("{label}: its biases are not a weight's"));
        }
        if part.output.stride < part.tiles * TILE_COLUMNS {
            return Err(format!("{label}: output rows are narrower than its tiles"));
        }
        if !routed(work.input) || !routed(part.output) {
            return Err(format!("{label}: not a row for every expert of every row"));
        }
    }
    Ok(())
}

/// The ranges follow each other and cover 0..`tiles`.
fn shared<'r>(ranges: impl Iterator<Item = &'r Range<usize>>, tiles: usize) -> Result<(), String> {
    let mut next = 0;
    for range in ranges.filter(|r| !r.is_empty()) {
        if range.start != next {
            return Err(format!("tile {next} belongs to no worker, or to two"));
        }
        next = range.end;
    }
    if next != tiles {
        return Err(format!("{next} of {tiles} tiles covered"));
    }
    Ok(())
}
