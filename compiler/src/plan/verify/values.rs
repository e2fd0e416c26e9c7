//! Values keep their memory while somebody still reads them: runs a program on stamps instead of numbers. Every write
//! stamps its bytes with its value, and every read must find all of its bytes stamped with the value it wants. Knows
//! nothing of lifetimes, so it finds whatever `memory` gets wrong about them.

use super::broken;
use crate::error::Error;
use crate::graph::Value;
use crate::plan::schedule::span_end;
use crate::plan::{Access, Plan, ProgramPlan, Space};
use coldpress_runtime::manifest::Stage;
use std::collections::BTreeMap;
use std::ops::Range;

/// Fails with the first read of `program` that does not find its value.
pub(super) fn check(plan: &Plan, program: &ProgramPlan) -> Result<(), Error> {
    let mut stamps = Stamps::default();
    if program.stage == Stage::Head {
        stamps.write(&plan.hidden);
    }
    for launch in &program.launches {
        let arena = || launch.accesses.iter().filter(|a| a.space == Space::Arena);
        for read in arena().filter(|a| !a.write) {
            stamps
                .expect(read)
                .map_err(|why| broken(program, launch, &why))?;
        }
        for write in arena().filter(|a| a.write) {
            if arena().any(|other| !std::ptr::eq(other, write) && overwrites(write, other)) {
                return Err(broken(
                    program,
                    launch,
                    "writes over what it also reads or writes elsewhere",
                ));
            }
            stamps.write(write);
        }
    }
    // What the head reads must be there whatever the trunk's bucket, and stay for another head.
    let results: &[(Access, usize)] = match program.stage {
        Stage::Trunk => &[(plan.hidden, program.rows)],
        Stage::Head => &[(plan.logits, program.rows), (plan.hidden, plan.hidden.rows)],
    };
    for &(result, rows) in results {
        let wanted = Access { rows, ..result };
        stamps.expect(&wanted).map_err(|why| {
            Error::Internal(format!(
                "plan {:?} {} rows, at its end: {why}",
                program.stage, program.rows
            ))
        })?;
    }
    Ok(())
}

/// Whether a launch's write harms another access of the launch: they overlap, other than row for row in place. Other columns
/// of the same rows do not.
fn overwrites(write: &Access, other: &Access) -> bool {
    let apart =
        write.offset >= span_end(other) || other.offset >= span_end(write) || beside(write, other);
    let in_place = !other.write
        && (write.offset, write.stride, write.split) == (other.offset, other.stride, other.split);
    !apart && !in_place
}

/// Whether two accesses are of different columns of rows that are equally far apart.
fn beside(a: &Access, b: &Access) -> bool {
    if a.stride != b.stride || a.stride == 0 {
        return false;
    }
    let column = (b.offset % a.stride + a.stride - a.offset % a.stride) % a.stride;
    column >= a.width && column + b.width <= a.stride
}

/// Disjoint byte ranges by start, each with its end and the value it holds.
#[derive(Default)]
struct Stamps(BTreeMap<usize, (usize, Option<Value>)>);

impl Stamps {
    fn write(&mut self, access: &Access) {
        for bytes in ranges(access) {
            self.cut(bytes.start);
            self.cut(bytes.end);
            let covered: Vec<usize> = self.0.range(bytes.clone()).map(|(&s, _)| s).collect();
            for start in covered {
                self.0.remove(&start);
            }
            self.0.insert(bytes.start, (bytes.end, access.value));
        }
    }

    /// Splits the range that `at` lies in.
    fn cut(&mut self, at: usize) {
        let Some((&start, &(end, value))) = self.0.range(..at).next_back() else {
            return;
        };
        if end > at {
            self.0.insert(start, (at, value));
            self.0.insert(at, (end, value));
        }
    }

    fn expect(&self, access: &Access) -> Result<(), String> {
        for bytes in ranges(access) {
            let mut at = bytes.start;
            while at < bytes.end {
                match self.0.range(..=at).next_back() {
                    Some((_, &(end, value))) if end > at && value == access.value => at = end,
                    Some((_, &(end, value))) if end > at => {
                        return Err(format!(
                            "byte {at} of the arena holds {value:?} instead of {:?}",
                            access.value
                        ));
                    }
                    _ => {
                        return Err(format!(
                            "byte {at} of the arena was never written with {:?}",
                            access.value
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}

/// The bytes of an access: one range where its rows leave no gaps, otherwise one for each row.
fn ranges(access: &Access) -> impl Iterator<Item = Range<usize>> + use<> {
    let &Access {
        offset,
        stride,
        rows,
        width,
        ..
    } = access;
    let (count, bytes) = match stride == width {
        true => (rows.min(1), stride * rows),
        false => (rows, width),
    };
    (0..count)
        .map(move |row| offset + row * stride..offset + row * stride + bytes)
        .filter(|r| !r.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Split;

    #[test]
    fn columns_beside_each_other_do_not_meet() {
        let rows = |offset: usize, width: usize, write: bool| Access {
            space: Space::Arena,
            value: None,
            offset,
            stride: 256,
            rows: 3,
            width,
            write,
            split: Split::Rows,
        };
        let write = rows(1024, 128, true);
        for (other, harmed) in [
            (rows(1152, 128, false), false),
            (rows(1152, 64, false), false),
            (rows(1152 + 256, 128, false), false),
            (rows(1024, 128, false), false),
            (rows(1024, 128, true), true),
            (rows(1024, 64, true), true),
            (rows(1088, 128, false), true),
            (rows(1216, 128, false), true),
            (rows(1024 + 256, 128, false), true),
            (rows(1152, 192, false), true),
            (rows(4096, 256, false), false),
        ] {
            assert_eq!(overwrites(&write, &other), harmed, "{other:?}");
        }
        let longer = Access {
            stride: 320,
            ..rows(1152, 64, false)
        };
        assert!(overwrites(&write, &longer), "rows of another length");
    }
}
