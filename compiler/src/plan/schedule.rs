//! Where workers must meet: a barrier stands before a launch that touches what another worker may have written, or
//! writes what another may still read, since the last barrier. Two launches that divide the same rows the same way need
//! none between them.

use super::{Access, Launch, Space, Split};

/// Sets `barrier` on every launch of a program.
pub fn barriers(launches: &mut [Launch]) {
    let mut since: Vec<Access> = Vec::new();
    for launch in launches {
        launch.barrier = launch
            .accesses
            .iter()
            .any(|a| since.iter().any(|b| conflict(a, b)));
        if launch.barrier {
            since.clear();
        }
        since.extend(launch.accesses.iter().copied());
    }
}

/// Whether two launches' accesses may meet from different workers, at least one writing.
fn conflict(a: &Access, b: &Access) -> bool {
    if a.space != b.space || !(a.write || b.write) {
        return false;
    }
    if let Space::Kv(_) | Space::State(_) = a.space {
        return true;
    }
    if a.offset >= span_end(b) || b.offset >= span_end(a) {
        return false;
    }
    let same_shape = a.offset == b.offset && a.stride == b.stride && a.rows == b.rows;
    let by_unit = matches!(a.split, Split::Rows | Split::Cells { .. });
    !(by_unit && a.split == b.split && same_shape)
}

/// One past the last byte of an access.
pub(super) fn span_end(a: &Access) -> usize {
    a.offset + a.stride * a.rows.saturating_sub(1) + a.width
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Work;

    const ROWS: Access = Access {
        space: Space::Arena,
        value: None,
        offset: 0,
        stride: 64,
        rows: 4,
        width: 64,
        write: false,
        split: Split::Rows,
    };
    const CELLS: Split = Split::Cells {
        per_row: 2,
        bytes: 32,
    };

    fn launch(accesses: &[Access]) -> Launch {
        Launch {
            label: String::new(),
            work: Work::Call {
                symbol: String::new(),
                args: vec![],
                units: 4,
            },
            barrier: false,
            accesses: accesses.to_vec(),
            reason: String::new(),
            bytes: 0,
            macs: 0,
            seconds: 0.0,
        }
    }

    #[test]
    fn a_barrier_stands_where_workers_may_meet() {
        let read = |a: Access| Access { write: false, ..a };
        let write = |a: Access| Access { write: true, ..a };
        let split = |split: Split| Access { split, ..ROWS };
        let at = |offset: usize| Access { offset, ..ROWS };
        let kv = |layer: usize| Access {
            space: Space::Kv(layer),
            ..split(Split::Whole)
        };
        for (first, second, expected) in [
            (write(ROWS), read(ROWS), false),
            (write(ROWS), read(split(Split::Whole)), true),
            (read(split(Split::Whole)), write(ROWS), true),
            (read(split(Split::Whole)), read(ROWS), false),
            (
                write(split(Split::Tiles(0))),
                read(split(Split::Tiles(0))),
                true,
            ),
            (write(split(CELLS)), read(split(CELLS)), false),
            (write(split(CELLS)), read(ROWS), true),
            (write(ROWS), write(at(256)), false),
            (write(ROWS), write(at(192)), true),
            (write(ROWS), read(Access { rows: 3, ..ROWS }), true),
            (
                write(ROWS),
                read(Access {
                    stride: 128,
                    ..ROWS
                }),
                true,
            ),
            (write(kv(1)), read(kv(1)), true),
            (read(kv(1)), write(kv(1)), true),
            (read(kv(1)), read(kv(1)), false),
            (write(kv(1)), read(kv(2)), false),
            (write(kv(0)), read(split(Split::Whole)), false),
        ] {
            let mut launches = [launch(&[first]), launch(&[second])];
            barriers(&mut launches);
            assert!(!launches[0].barrier, "nothing stands before the first");
            assert_eq!(launches[1].barrier, expected, "{first:?} {second:?}");
        }
    }

    #[test]
    fn a_barrier_settles_everything_before_it() {
        let write = Access {
            write: true,
            ..ROWS
        };
        let whole = Access {
            split: Split::Whole,
            ..ROWS
        };
        let mut launches = [write, whole, whole, write, whole].map(|a| launch(&[a]));
        barriers(&mut launches);
        let found = launches.map(|l| l.barrier);
        assert_eq!(found, [false, true, false, true, true]);
    }
}
