//! Two launches that read the same rows as one: matrices of different layouts need different code, but neither needs the
//! other's results. A thread block does what it would do in a launch of its own, so bits are the same.

use super::kernel::{geometry, kernel};
use super::{Class, Query, Variant};
use crate::gpu::{Constant, Geometry, Kernel};

/// Half of a pair: a variant with its class, and what it computes.
pub type Half<'a> = (&'a Variant, Class, Query<'a>);

/// Whether thread blocks of one kernel can have either class.
pub fn joinable(a: Class, b: Class) -> bool {
    (a.warps, a.k_split) == (b.warps, b.k_split) && !a.family.is_metal()
}

/// The kernel of two joinable halves. Its arguments are those of the first, then those of the second.
pub fn pair_kernel(halves: [&Half; 2]) -> Kernel {
    let [first, second] = halves.map(|&(variant, class, query)| {
        let mut half = kernel(variant, class, &query.layout, query.epilogue, false);
        for (name, constant) in &mut half.constants {
            if *name == "alone" {
                *constant = Constant::Flag(false);
            }
        }
        half
    });
    let resident = |half: &Kernel| {
        let found = half.constants.iter().find(|(name, _)| *name == "resident");
        match found {
            Some((_, Constant::Int(blocks))) => *blocks,
            _ => 1,
        }
    };
    Kernel {
        name: format!("{}_and_{}", first.name, second.name),
        template: "matmul_pair",
        threads: first.threads,
        constants: vec![
            // Registers for the one that needs more.
            (
                "resident",
                Constant::Int(resident(&first).min(resident(&second))),
            ),
            ("first", Constant::Kernel(Box::new(first))),
            ("second", Constant::Kernel(Box::new(second))),
        ],
    }
}

/// The thread blocks of two joinable halves.
pub fn pair_geometry(halves: [&Half; 2]) -> Geometry {
    let [a, b] = halves.map(|&(variant, class, query)| geometry(variant, class, &query));
    Geometry {
        grid: [a.grid[0].max(b.grid[0]), a.grid[1] + b.grid[1], a.grid[2]],
        shared_bytes: a.shared_bytes.max(b.shared_bytes),
    }
}
