//! Why a variant is no candidate, for the report.

use std::fmt;

use super::{Class, Family};
use crate::gpu::abi::ActForm;
use crate::gpu::metal::is_metal;
use crate::quant::PackedLayout;

/// Why a variant cannot compute a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The architecture has no such instructions.
    Arch {
        /// Compute capability times 10 of the target.
        arch: u32,
        /// The first that has them.
        min: u32,
        /// The last that has them.
        max: u32,
    },
    /// The family does not read the layout.
    Layout(Family, PackedLayout),
    /// The variant is of another family than the class.
    Class(Family, Class),
    /// k does not fit the layout or the activations.
    KMultiple {
        /// Reduction length asked for.
        k: usize,
        /// What it must be a multiple of.
        multiple: usize,
    },
    /// Parts, outputs or rows that no launch can have.
    Shape {
        /// Parts.
        parts: usize,
        /// Outputs of all parts.
        outputs: usize,
        /// Rows.
        rows: usize,
    },
    /// k has fewer steps than there are warps to take them.
    Steps {
        /// Steps along k.
        steps: usize,
        /// Warps of all thread blocks that share k.
        warps: usize,
    },
    /// Warps that do not make up whole teams.
    Warps {
        /// Warps of a thread block.
        warps: u32,
        /// Warps that multiply together.
        team: u32,
    },
    /// An int8 scale needs more outputs than a thread block has.
    Outputs {
        /// Outputs of a thread block.
        outputs: u32,
        /// Outputs that share a scale.
        needed: u32,
    },
    /// The thread block has more outputs or fewer than the family multiplies at once.
    Together {
        /// Outputs of a thread block.
        outputs: u32,
        /// Outputs that are multiplied at once.
        needed: u32,
    },
    /// What a thread holds does not fit in registers.
    Values {
        /// Sums, weights and scales of a thread.
        values: u32,
        /// The most.
        limit: u32,
    },
    /// A core has no registers for so many threads that hold as much.
    Threads {
        /// Threads of a thread block.
        threads: u32,
        /// The most.
        limit: u32,
    },
    /// Thread blocks of the family do not share k.
    Split(Family),
    /// The family has no kernels of routed rows.
    Experts(Family),
    /// The family leaves no rows in such a form.
    Form(Family, ActForm),
    /// The thread block needs too much shared memory.
    Shared {
        /// Bytes needed.
        bytes: u64,
        /// Bytes of the architecture.
        limit: u32,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Arch { arch, min, .. } if is_metal(*arch) != is_metal(*min) => {
                write!(
                    f,
                    "is for {}",
                    if is_metal(*min) {
                        "Apple GPUs"
                    } else {
                        "NVIDIA GPUs"
                    }
                )
            }
            Reason::Arch { arch, min, max } if arch > max => {
                write!(f, "ends with sm_{max}, the target is sm_{arch}")
            }
            Reason::Arch { arch, min, .. } => {
                write!(f, "needs sm_{min}, the target is sm_{arch}")
            }
            Reason::Layout(family, layout) => {
                write!(f, "{} does not read {layout} weights", family.name())
            }
            Reason::Class(family, class) => write!(f, "{} is not {class}", family.name()),
            Reason::KMultiple { k, multiple } => write!(f, "k={k} is not a multiple of {multiple}"),
            Reason::Shape {
                parts,
                outputs,
                rows,
            } => write!(f, "{parts} parts, {outputs} outputs, {rows} rows"),
            Reason::Steps { steps, warps } => {
                write!(f, "k has {steps} steps for {warps} warps")
            }
            Reason::Warps { warps, team } => {
                write!(f, "{warps} warps, {team} multiply together")
            }
            Reason::Outputs { outputs, needed } => {
                write!(f, "{outputs} outputs at once, an int8 scale has {needed}")
            }
            Reason::Together { outputs, needed } => {
                write!(f, "{outputs} outputs at once, not {needed}")
            }
            Reason::Values { values, limit } => {
                write!(f, "{values} values in a thread, at most {limit} fit")
            }
            Reason::Threads { threads, limit } => {
                write!(f, "{threads} threads, registers are for {limit}")
            }
            Reason::Split(family) => {
                write!(f, "thread blocks of {} do not share k", family.name())
            }
            Reason::Experts(family) => {
                write!(f, "{} does not multiply by expert", family.name())
            }
            Reason::Form(family, form) => {
                write!(f, "{} leaves no rows in {}", family.name(), form.name())
            }
            Reason::Shared { bytes, limit } => {
                write!(f, "{bytes} bytes of shared memory, there are {limit}")
            }
        }
    }
}
