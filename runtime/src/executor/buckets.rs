//! Which program runs a number of rows: the cheapest that is large enough. Decided once, when a plan is loaded.

use crate::manifest::{Program, Stage};

/// A compiled row count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bucket {
    /// Index into the plan's programs.
    pub(super) program: usize,
    /// Rows it was compiled for.
    pub(super) rows: u32,
}

/// The buckets of one stage.
#[derive(Clone, Debug)]
pub(super) struct Buckets {
    largest: u32,
    /// Cheapest bucket for `rows`, at `rows - 1`.
    by_rows: Vec<Bucket>,
}

impl Buckets {
    /// `None` if the stage has no program.
    pub(super) fn new(programs: &[Program], stage: Stage) -> Option<Self> {
        let all = programs.iter().enumerate();
        let mut own: Vec<(usize, &Program)> = all.filter(|(_, p)| p.stage == stage).collect();
        own.sort_by_key(|(_, program)| program.rows);
        let largest = own.last()?.1.rows;
        let mut by_rows = Vec::with_capacity(largest as usize);
        for rows in 1..=largest {
            // Of equally cheap ones the first, which is the smallest.
            let (program, cheapest) = own
                .iter()
                .filter(|(_, program)| program.rows >= rows)
                .min_by(|a, b| a.1.predicted_seconds.total_cmp(&b.1.predicted_seconds))?;
            by_rows.push(Bucket {
                program: *program,
                rows: cheapest.rows,
            });
        }
        (largest > 0).then_some(Self { largest, by_rows })
    }

    /// Most rows one program takes.
    pub(super) fn largest(&self) -> u32 {
        self.largest
    }

    /// The cheapest bucket for `rows`, 1 to [`Buckets::largest`].
    pub(super) fn cheapest(&self, rows: u32) -> Bucket {
        self.by_rows[rows as usize - 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(stage: Stage, rows: u32, predicted_seconds: f64) -> Program {
        Program {
            stage,
            rows,
            entries: Vec::new(),
            predicted_seconds,
            launches: Vec::new(),
        }
    }

    #[test]
    fn cheapest_then_smallest() {
        let programs = [
            program(Stage::Trunk, 1, 0.1),
            program(Stage::Trunk, 4, 0.9),
            program(Stage::Trunk, 8, 0.5),
            program(Stage::Head, 2, 0.0),
            program(Stage::Head, 4, 0.0),
        ];
        let trunk = Buckets::new(&programs, Stage::Trunk).expect("trunks");
        let rows = |n| (trunk.cheapest(n).program, trunk.cheapest(n).rows);
        assert_eq!(
            (rows(1), rows(2), rows(4), rows(8)),
            ((0, 1), (2, 8), (2, 8), (2, 8))
        );
        let head = Buckets::new(&programs, Stage::Head).expect("heads");
        assert_eq!((head.cheapest(1).program, head.cheapest(3).program), (3, 4));
        assert!(Buckets::new(&programs[..3], Stage::Head).is_none());
    }
}
