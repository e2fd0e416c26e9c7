//! Between two barriers, no byte that one worker writes may be touched by another. Works on the bytes each worker really
//! touches, not on what `schedule` concludes from equal splits.

use super::broken;
use crate::error::Error;
use crate::plan::schedule::span_end;
use crate::plan::{Access, Buffer, Launch, Plan, ProgramPlan, Space, Split, Work, share};

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

/// Fails with the first race of `program`.
pub(super) fn check(plan: &Plan, program: &ProgramPlan) -> Result<(), Error> {
    if plan.workers == 1 {
        return Ok(());
    }
    let mut since: Vec<(&Launch, &Access)> = Vec::new();
    for launch in &program.launches {
        if launch.barrier {
            since.clear();
        }
        // One launch's own appends to a KV cache are disjoint: each row has its own position; and workers divide the
        // channels or heads of a state.
        let earlier = since.len();
        for access in &launch.accesses {
            for (i, (other, touched)) in since.iter().enumerate() {
                if !may_meet(access, touched) {
                    continue;
                }
                match access.space {
                    Space::Kv(_) | Space::State(_) if i >= earlier => {}
                    Space::Kv(_) => {
                        let why =
                            format!("meets the KV cache of {} without a barrier", other.label);
                        return Err(broken(program, launch, &why));
                    }
                    Space::State(_) => {
                        let why = format!("meets the state of {} without a barrier", other.label);
                        return Err(broken(program, launch, &why));
                    }
                    // Within a launch each live cell is one worker's.
                    Space::Arena if i >= earlier && same_cells(access, touched) => {}
                    Space::Arena => {
                        if meet(plan, (launch, access), (other, touched)) {
                            let why = format!("races with another worker in {}", other.label);
                            return Err(broken(program, launch, &why));
                        }
                    }
                }
            }
            since.push((launch, access));
            if access.space == Space::Arena
                && access.write
                && !same_cells(access, access)
                && meet(plan, (launch, access), (launch, access))
            {
                return Err(broken(program, launch, "two workers write the same bytes"));
            }
        }
    }
    Ok(())
}

/// Whether two accesses come near each other, at least one writing.
fn may_meet(a: &Access, b: &Access) -> bool {
    a.space == b.space
        && (a.write || b.write)
        && (a.space != Space::Arena || (a.offset < span_end(b) && b.offset < span_end(a)))
}

/// Whether two accesses of one launch are divided cell by cell, by a division that only the step knows but all workers
/// agree on.
fn same_cells(a: &Access, b: &Access) -> bool {
    matches!(a.split, Split::Live { .. })
        && (a.split, a.offset, a.stride, a.rows) == (b.split, b.offset, b.stride, b.rows)
}

/// Whether some worker's share of `a` meets another worker's of `b`.
fn meet(plan: &Plan, a: (&Launch, &Access), b: (&Launch, &Access)) -> bool {
    let touches = |(launch, access): (&Launch, &Access)| -> Vec<Touch> {
        (0..plan.workers)
            .flat_map(|worker| touched(plan, launch, access, worker))
            .filter(|t| t.rows > 0 && t.width > 0)
            .collect()
    };
    let theirs = touches(b);
    touches(a)
        .iter()
        .any(|x| theirs.iter().any(|y| clash(x, y)))
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
