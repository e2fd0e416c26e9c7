//! Checks a finished plan without trusting how it was made: arguments inside their memory, tiles and rows covered
//! exactly once, and, between two barriers, no byte written by one worker and touched by another.

use super::schedule::span_end;
use super::{
    Access, Arg, Buffer, Init, Launch, Matmul, Plan, ProgramPlan, Space, Split, Work, share,
};
use crate::error::Error;
use std::ops::Range;

/// Fails with the first broken rule.
pub fn check(plan: &Plan) -> Result<(), Error> {
    weights(plan)?;
    for program in &plan.programs {
        for launch in &program.launches {
            arguments(plan, program, launch).map_err(|why| broken(program, launch, &why))?;
        }
        races(plan, program)?;
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

fn arguments(plan: &Plan, program: &ProgramPlan, launch: &Launch) -> Result<(), String> {
    for access in &launch.accesses {
        if access.space == Space::Arena && span_end(access) > plan.arena_bytes {
            return Err(format!(
                "{access:?} leaves the arena of {} bytes",
                plan.arena_bytes
            ));
        }
    }
    let inside_arena = |offset: usize| offset < plan.arena_bytes;
    match &launch.work {
        Work::Call { args, units, .. } => {
            for arg in args {
                let ok = match *arg {
                    Arg::Weights(offset) => offset < plan.weight_bytes,
                    Arg::Kv(offset) => offset < plan.kv.bytes,
                    Arg::Arena(offset) => inside_arena(offset),
                    Arg::ArenaAt { offset, stride } => {
                        inside_arena(offset + stride * units.saturating_sub(1))
                    }
                    _ => true,
                };
                if !ok {
                    return Err(format!("argument {arg:?} out of bounds"));
                }
            }
            if *units == 0 || units % program.rows != 0 {
                return Err(format!("{units} units for {} rows", program.rows));
            }
        }
        Work::Matmul(matmul) => covered(plan, matmul)?,
        Work::Elementwise { op, inputs, .. } => {
            if inputs.len() != op.arity() {
                return Err(format!("{op:?} with {} inputs", inputs.len()));
            }
        }
    }
    Ok(())
}

/// Every tile belongs to exactly one worker and every row to exactly one stamp.
fn covered(plan: &Plan, matmul: &Matmul) -> Result<(), String> {
    let shares: Vec<Vec<Range<usize>>> = (0..plan.workers)
        .map(|w| matmul.tile_shares(plan.workers, w))
        .collect();
    for (i, part) in matmul.parts.iter().enumerate() {
        let mut next = 0;
        for worker in &shares {
            if worker[i].start != next && !worker[i].is_empty() {
                return Err(format!("{}: tile {next} is not covered", part.label));
            }
            next = next.max(worker[i].end);
        }
        if next != part.tiles {
            return Err(format!(
                "{}: {next} of {} tiles covered",
                part.label, part.tiles
            ));
        }
        let mut row = 0;
        for stamp in &part.stamps {
            if stamp.first != row {
                return Err(format!("{}: row {row} is not covered", part.label));
            }
            row += stamp.rows;
        }
        if row != matmul.rows {
            return Err(format!(
                "{}: {row} of {} rows covered",
                part.label, matmul.rows
            ));
        }
        if part.weights + (part.tiles * part.tile_bytes) as u64 > plan.weight_bytes {
            return Err(format!("{}: tiles leave the weights section", part.label));
        }
        if let Init::Bias(offset) = part.init
            && offset + (part.tiles * 64) as u64 > plan.weight_bytes
        {
            return Err(format!("{}: bias leaves the weights section", part.label));
        }
        if part.output.stride < part.tiles * 64 {
            return Err(format!(
                "{}: output rows are narrower than its tiles",
                part.label
            ));
        }
    }
    Ok(())
}

/// A rectangle of arena bytes one worker touches.
#[derive(Clone, Copy)]
struct Touch {
    worker: usize,
    first_row: usize,
    rows: usize,
    column: usize,
    width: usize,
    buffer: Buffer,
    write: bool,
}

fn races(plan: &Plan, program: &ProgramPlan) -> Result<(), Error> {
    if plan.workers == 1 {
        return Ok(());
    }
    let mut touches: Vec<Touch> = Vec::new();
    let mut kv: Vec<(usize, bool)> = Vec::new();
    for launch in &program.launches {
        if launch.barrier {
            touches.clear();
            kv.clear();
        }
        let mut new = Vec::new();
        for access in &launch.accesses {
            match access.space {
                Space::Kv(layer) => {
                    // One launch's own writes are disjoint by row: each row has its own position.
                    if kv.iter().any(|&(l, w)| l == layer && (w || access.write)) {
                        return Err(broken(
                            program,
                            launch,
                            "meets the KV cache of another launch without a barrier",
                        ));
                    }
                    new.push((layer, access.write));
                }
                Space::Arena => {
                    for worker in 0..plan.workers {
                        for touch in touched(plan, launch, access, worker) {
                            if touch.rows == 0 || touch.width == 0 {
                                continue;
                            }
                            if touches.iter().any(|other| clash(other, &touch)) {
                                return Err(broken(program, launch, "races with another worker"));
                            }
                            touches.push(touch);
                        }
                    }
                }
            }
        }
        kv.extend(new);
    }
    Ok(())
}

/// The rectangles of `access` that `worker` touches.
fn touched(plan: &Plan, launch: &Launch, access: &Access, worker: usize) -> Vec<Touch> {
    let buffer = Buffer {
        offset: access.offset,
        stride: access.stride,
    };
    let whole = Touch {
        worker,
        first_row: 0,
        rows: access.rows,
        column: 0,
        width: access.width,
        buffer,
        write: access.write,
    };
    match (access.split, &launch.work) {
        (Split::Rows, _) => {
            let rows = share(access.rows, plan.workers, worker);
            vec![Touch {
                first_row: rows.start,
                rows: rows.len(),
                ..whole
            }]
        }
        (Split::Tiles(part), Work::Matmul(matmul)) => {
            let tiles = &matmul.tile_shares(plan.workers, worker)[part];
            vec![Touch {
                column: tiles.start * 64,
                width: tiles.len() * 64,
                ..whole
            }]
        }
        (Split::Cells { per_row, bytes }, _) => {
            let units = share(access.rows * per_row, plan.workers, worker);
            (0..access.rows)
                .map(|row| {
                    let first =
                        units.start.clamp(row * per_row, (row + 1) * per_row) - row * per_row;
                    let last = units.end.clamp(row * per_row, (row + 1) * per_row) - row * per_row;
                    Touch {
                        first_row: row,
                        rows: 1,
                        column: first * bytes,
                        width: (last - first) * bytes,
                        ..whole
                    }
                })
                .collect()
        }
        _ => vec![whole],
    }
}

/// Whether two workers' rectangles share a byte and one writes it.
fn clash(a: &Touch, b: &Touch) -> bool {
    if a.worker == b.worker || !(a.write || b.write) {
        return false;
    }
    let span = |t: &Touch| {
        let start = t.buffer.offset + t.first_row * t.buffer.stride + t.column;
        start..start + (t.rows - 1) * t.buffer.stride + t.width
    };
    let (x, y) = (span(a), span(b));
    if x.start >= y.end || y.start >= x.end {
        return false;
    }
    if a.buffer.stride != b.buffer.stride || a.buffer.offset != b.buffer.offset {
        return true;
    }
    let rows = a.first_row < b.first_row + b.rows && b.first_row < a.first_row + a.rows;
    let columns = a.column < b.column + b.width && b.column < a.column + a.width;
    rows && columns
}
