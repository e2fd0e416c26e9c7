//! The matmul family on GPUs: `y[m, n] = sum_k x[m, k] * w[n, k]` with weights in tiles ([`super::tile`]). Variants, what
//! they can compute and what they cost; the kernels are `templates/cuda/matmul_*` and `templates/metal/matmul_*`. Which one wins
//! is the plan's decision.
//!
//! A thread block owns `16 * tiles` outputs of one matrix, or of gate and up both, and `stamp` rows. Its warps divide k in
//! steps, taken in turn; their sums are added in order, and so are those of thread blocks that share a `k_split`. A row's
//! bits therefore depend on its [`Class`] and never on the stamp or on other rows.
//!
//! Matmuls by expert ([`Query::routed`]) are the same kernels but for which rows a thread block takes: along x there are
//! items of routed rows ([`super::experts`]) instead of neighbours.
//!
//! # Arguments
//!
//! `act`, its stride ([`super::abi::ActForm::stride`] of k), rows, units along k ([`super::tile::units`]), scratch,
//! counters; of a pending norm ([`super::abi`]) that is read the offset of its sums (0: none), its width and eps, of one that
//! is left its weight, its rows and their stride; number of parts; then for each of 3 parts: weights, n, out, its stride, extra, its stride. Parts share layout,
//! k and activations; those beyond the number are ignored. Strides are in bytes. Matmuls by expert also take what the router
//! left, bytes to the items of their stamp, bytes to the order, how many routed rows read one row of activations, and how many
//! parts are in one matrix.

mod cost;
mod kernel;
mod pair;
mod reason;
#[cfg(test)]
mod tests;

use std::fmt;

use super::abi::ActForm;
use super::experts::Routed;
use super::metal;
use super::rates::shared_limit;
use super::tile::{self, TILE_N};
use crate::quant::{PackedLayout, Store};

pub(in crate::gpu) use cost::Sizes;
pub use cost::{Cost, Resources, cost};
pub use kernel::{args, counters, geometry, kernel, scratch_bytes, weights_per_pass};
pub use pair::{Half, joinable, pair_geometry, pair_kernel};
pub use reason::Reason;

/// How products are made. Families may differ in the last bits of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// int8 activations and integer weights, tensor cores.
    MmaI8,
    /// f16 activations; weights become halves on the way to tensor cores.
    MmaF16,
    /// As `MmaF16`, by the tensor cores of warpgroups; Hopper's own (compile for `sm_90a`).
    Wgmma,
    /// f32 activations and float weights, exact products, f32 sums.
    Fma,
    /// int8 activations and integer weights, dot products of four.
    Dp4a,
    /// Apple's: f16 activations; weights become halves, products and sums are f32, a lane at a time.
    Simd,
    /// As `Simd`, of f32 activations and float weights.
    SimdF32,
    /// As `Simd`, in 8 x 8 matrices.
    Matrix,
    /// As `Simd`, by `matmul2d` of Metal 4, 16 rows at a time; from M5 on.
    Tensor,
    /// As `Tensor`, 32 rows at a time.
    Tensor32,
}

impl Family {
    /// Name inside kernel names.
    pub const fn name(self) -> &'static str {
        match self {
            Family::MmaI8 => "mma_i8",
            Family::MmaF16 => "mma_f16",
            Family::Wgmma => "wgmma",
            Family::Fma => "fma",
            Family::Dp4a => "dp4a",
            Family::Simd => "simd",
            Family::SimdF32 => "simd_f32",
            Family::Matrix => "matrix",
            Family::Tensor => "tensor",
            Family::Tensor32 => "tensor32",
        }
    }

    /// Whether it is for Apple GPUs, all others being for NVIDIA's.
    pub const fn is_metal(self) -> bool {
        matches!(
            self,
            Family::Simd | Family::SimdF32 | Family::Matrix | Family::Tensor | Family::Tensor32
        )
    }

    /// Form of the activations it reads.
    pub const fn act(self) -> ActForm {
        match self {
            Family::MmaI8 | Family::Dp4a => ActForm::Q8,
            Family::MmaF16 | Family::Wgmma => ActForm::F16,
            Family::Simd | Family::Matrix | Family::Tensor | Family::Tensor32 => ActForm::F16,
            Family::Fma | Family::SimdF32 => ActForm::F32,
        }
    }

    /// Whether an architecture, compute capability times 10, has it.
    pub fn exists_on(self, arch: u32) -> bool {
        let mut own = VARIANTS.iter().filter(|v| v.family == self);
        own.any(|v| (v.min_arch..=v.max_arch).contains(&arch))
    }

    /// Whether it has kernels of routed rows, which are no neighbours.
    pub const fn routes(self) -> bool {
        metal::tensor_rows(self) == 0
    }

    /// Whether its kernels read the layout.
    pub const fn reads(self, layout: &PackedLayout) -> bool {
        match self {
            Family::MmaI8 | Family::Dp4a => layout.int_bits().is_some(),
            Family::Fma | Family::SimdF32 => layout.int_bits().is_none(),
            _ => !matches!(layout.store, Store::F32),
        }
    }
}

/// One stamped kernel shape of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// How products are made.
    pub family: Family,
    /// Activation rows of a thread block.
    pub stamp: u32,
    /// Tiles of 16 outputs of a thread block, of one part: all of them each warp's, or one each of a warpgroup's.
    pub tiles: u32,
    /// The first architecture that has it.
    pub min_arch: u32,
    /// The last one.
    pub max_arch: u32,
}

const fn row(family: Family, stamp: u32, tiles: u32) -> Variant {
    let (min_arch, max_arch) = match family {
        Family::Wgmma => (90, 90),
        Family::Tensor | Family::Tensor32 => (metal::TENSOR_ARCH, u32::MAX),
        _ if family.is_metal() => (metal::FIRST_ARCH, u32::MAX),
        _ => (75, 999),
    };
    Variant {
        family,
        stamp,
        tiles,
        min_arch,
        max_arch,
    }
}

/// Every variant: wider stamps read weights for more rows at once, more tiles read activations for more outputs at once.
pub const VARIANTS: &[Variant] = &[
    row(Family::MmaI8, 8, 1),
    row(Family::MmaI8, 8, 2),
    row(Family::MmaI8, 16, 1),
    row(Family::MmaI8, 16, 2),
    row(Family::MmaI8, 16, 4),
    row(Family::MmaI8, 24, 1),
    row(Family::MmaI8, 24, 2),
    row(Family::MmaI8, 24, 4),
    row(Family::MmaI8, 32, 1),
    row(Family::MmaI8, 32, 2),
    row(Family::MmaI8, 48, 1),
    row(Family::MmaI8, 48, 2),
    row(Family::MmaF16, 8, 1),
    row(Family::MmaF16, 8, 2),
    row(Family::MmaF16, 16, 1),
    row(Family::MmaF16, 16, 2),
    row(Family::MmaF16, 16, 4),
    row(Family::MmaF16, 24, 1),
    row(Family::MmaF16, 24, 2),
    row(Family::MmaF16, 24, 4),
    row(Family::MmaF16, 32, 1),
    row(Family::MmaF16, 32, 2),
    row(Family::MmaF16, 32, 4),
    row(Family::MmaF16, 40, 1),
    row(Family::MmaF16, 40, 2),
    row(Family::MmaF16, 48, 1),
    row(Family::MmaF16, 48, 2),
    row(Family::MmaF16, 56, 1),
    row(Family::MmaF16, 56, 2),
    row(Family::MmaF16, 64, 1),
    row(Family::MmaF16, 64, 2),
    row(Family::Wgmma, 8, 4),
    row(Family::Wgmma, 16, 4),
    row(Family::Wgmma, 32, 4),
    row(Family::Wgmma, 48, 4),
    row(Family::Wgmma, 64, 4),
    row(Family::Fma, 1, 1),
    row(Family::Fma, 1, 2),
    row(Family::Fma, 2, 1),
    row(Family::Fma, 2, 2),
    row(Family::Fma, 4, 1),
    row(Family::Fma, 4, 2),
    row(Family::Fma, 8, 1),
    row(Family::Fma, 8, 2),
    row(Family::Dp4a, 1, 1),
    row(Family::Dp4a, 1, 2),
    row(Family::Dp4a, 2, 1),
    row(Family::Dp4a, 2, 2),
    row(Family::Dp4a, 4, 1),
    row(Family::Dp4a, 4, 2),
    row(Family::Dp4a, 8, 1),
    row(Family::Dp4a, 8, 2),
    row(Family::Simd, 1, 1),
    row(Family::Simd, 1, 2),
    row(Family::Simd, 2, 1),
    row(Family::Simd, 2, 2),
    row(Family::Simd, 4, 1),
    row(Family::Simd, 4, 2),
    row(Family::Simd, 8, 1),
    row(Family::Simd, 8, 2),
    row(Family::Simd, 14, 1),
    row(Family::Simd, 14, 2),
    row(Family::Simd, 16, 1),
    row(Family::Simd, 16, 2),
    row(Family::Simd, 18, 2),
    row(Family::Simd, 18, 4),
    row(Family::Simd, 24, 1),
    row(Family::Simd, 24, 2),
    row(Family::Simd, 24, 4),
    row(Family::Simd, 32, 1),
    row(Family::Simd, 32, 2),
    row(Family::Simd, 32, 4),
    row(Family::Simd, 48, 1),
    row(Family::Simd, 48, 2),
    row(Family::Simd, 48, 4),
    row(Family::Simd, 64, 1),
    row(Family::Simd, 64, 2),
    row(Family::SimdF32, 1, 1),
    row(Family::SimdF32, 1, 2),
    row(Family::SimdF32, 2, 1),
    row(Family::SimdF32, 2, 2),
    row(Family::SimdF32, 4, 1),
    row(Family::SimdF32, 4, 2),
    row(Family::SimdF32, 8, 1),
    row(Family::SimdF32, 8, 2),
    row(Family::Matrix, 8, 1),
    row(Family::Matrix, 8, 2),
    row(Family::Matrix, 8, 4),
    row(Family::Matrix, 16, 1),
    row(Family::Matrix, 16, 2),
    row(Family::Matrix, 16, 4),
    row(Family::Matrix, 32, 1),
    row(Family::Matrix, 32, 2),
    row(Family::Matrix, 32, 4),
    row(Family::Tensor, 16, 2),
    row(Family::Tensor, 16, 1),
    row(Family::Tensor, 32, 2),
    row(Family::Tensor, 32, 1),
    row(Family::Tensor, 48, 2),
    row(Family::Tensor, 48, 1),
    row(Family::Tensor, 64, 2),
    row(Family::Tensor, 64, 1),
    row(Family::Tensor32, 32, 2),
    row(Family::Tensor32, 32, 1),
    row(Family::Tensor32, 64, 2),
    row(Family::Tensor32, 64, 1),
];

/// What a row's bits depend on besides its activations and the weights. One is chosen per matrix, for all row counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Class {
    /// How products are made.
    pub family: Family,
    /// Warps of a thread block, among which k is divided; where others of [`Family::Simd`] divide the rows, the shares of k
    /// that fewer warps take in turn.
    pub warps: u32,
    /// Thread blocks among which k is divided.
    pub k_split: u32,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} w{}", self.family.name(), self.warps)?;
        match self.k_split {
            1 => Ok(()),
            split => write!(f, " k/{split}"),
        }
    }
}

/// Function of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gate {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// GELU, its tanh form.
    Gelu,
    /// `x / (1 + exp(-1.702 x))` of a gate of at most 7; what it is multiplied with is 1 plus the value within -7..7.
    Clamped,
}

/// What happens to sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Epilogue {
    /// f32 rows; extra, if not null, is a bias `[n]` of f32.
    Store,
    /// f32 rows plus the f32 rows at extra, which may be where the result goes.
    Residual,
    /// As `Residual`, of one part, and the rows of the norm that comes next, pending.
    ResidualNorm(ActForm),
    /// `gate(part 0) * part 1` into the out of part 0, padded with zeros to 64 outputs unless f32. Of routed rows, extra, if
    /// not null, is a bias of each part.
    Gated(Gate, ActForm),
}

impl Epilogue {
    /// Name inside kernel names: `store`, `gated_silu_q8`.
    pub const fn name(self) -> &'static str {
        use {ActForm::*, Gate::*};
        match self {
            Epilogue::Store => "store",
            Epilogue::Residual => "residual",
            Epilogue::ResidualNorm(F32) => "residual_norm_f32",
            Epilogue::ResidualNorm(F16) => "residual_norm_f16",
            Epilogue::ResidualNorm(Q8) => "residual_norm_q8",
            Epilogue::Gated(Silu, F32) => "gated_silu_f32",
            Epilogue::Gated(Silu, F16) => "gated_silu_f16",
            Epilogue::Gated(Silu, Q8) => "gated_silu_q8",
            Epilogue::Gated(Gelu, F32) => "gated_gelu_f32",
            Epilogue::Gated(Gelu, F16) => "gated_gelu_f16",
            Epilogue::Gated(Gelu, Q8) => "gated_gelu_q8",
            Epilogue::Gated(Clamped, F32) => "gated_clamped_f32",
            Epilogue::Gated(Clamped, F16) => "gated_clamped_f16",
            Epilogue::Gated(Clamped, Q8) => "gated_clamped_q8",
        }
    }

    /// Matrices whose same outputs one thread block computes.
    pub(super) const fn abreast(self) -> u32 {
        match self {
            Epilogue::Gated(..) => 2,
            Epilogue::Store | Epilogue::Residual | Epilogue::ResidualNorm(_) => 1,
        }
    }
}

/// One launch to find kernels for.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// Layout of the weights of all parts.
    pub layout: PackedLayout,
    /// Outputs of each part, 1 to 3 of them; of gate and up, two equal ones. Of matmuls by expert, those of one expert.
    pub outputs: &'a [usize],
    /// Reduction length.
    pub k: usize,
    /// Activation rows of the bucket.
    pub rows: usize,
    /// What happens to sums.
    pub epilogue: Epilogue,
    /// Whether the norm of the activations is pending.
    pub pending: bool,
    /// How rows meet experts, if each part is a matrix for each expert.
    pub routed: Option<Routed>,
    /// Compute capability times 10, or an Apple GPU ([`metal::FIRST_ARCH`]).
    pub arch: u32,
}

/// Sums, weights and scales that a thread can hold beside addresses and activations; the compiler spills above.
const MAX_VALUES: u32 = 144;

/// Whether the variant computes the query in that class.
///
/// # Errors
/// The first reason why not.
pub fn legal(variant: &Variant, class: Class, query: &Query) -> Result<(), Reason> {
    let Variant {
        family,
        stamp,
        tiles,
        min_arch: min,
        max_arch: max,
    } = *variant;
    let Query {
        layout,
        outputs,
        k,
        rows,
        epilogue,
        routed,
        arch,
        ..
    } = *query;
    if class.family != family {
        return Err(Reason::Class(family, class));
    }
    if !(min..=max).contains(&arch) {
        return Err(Reason::Arch { arch, min, max });
    }
    if !family.reads(&layout) {
        return Err(Reason::Layout(family, layout));
    }
    let multiple = match family.act() {
        // Rows of f32 are not padded further than to 64 bytes.
        ActForm::F32 => TILE_N,
        ActForm::F16 | ActForm::Q8 => layout.k_multiple(),
    };
    if k == 0 || !k.is_multiple_of(multiple) {
        return Err(Reason::KMultiple { k, multiple });
    }
    let parts = outputs.len();
    let parts_fit = match epilogue {
        Epilogue::Gated(..) => parts == 2 && outputs[0] == outputs[1],
        // Rows of f32 are normalised by themselves.
        Epilogue::ResidualNorm(form) => parts == 1 && form != ActForm::F32,
        Epilogue::Store | Epilogue::Residual => (1..=3).contains(&parts),
    };
    // Routed rows are added up by another kernel, and read rows that are ready.
    let routed_fits = routed.is_none_or(|routed| {
        let act = family.act().stride(k) as u64 * (rows * routed.used) as u64;
        let ends = matches!(epilogue, Epilogue::Store | Epilogue::Gated(..));
        ends && !query.pending && rows * routed.used < 1 << 16 && act < 1 << 32
    });
    let total = outputs.iter().fold(0usize, |sum, &n| sum.saturating_add(n));
    // What the kernels count in 32 bits, and thread blocks along y, those of a second matmul beside this one included.
    let (limit, most_outputs) = (1 << 28, (1 << 19) - 128);
    if !parts_fit
        || !routed_fits
        || outputs.contains(&0)
        || total > most_outputs
        || rows == 0
        || rows > 1 << 16
        || k > limit
    {
        return Err(Reason::Shape {
            parts,
            outputs: total,
            rows,
        });
    }
    if family.is_metal() {
        if class.k_split > 1 {
            return Err(Reason::Split(family));
        }
        if routed.is_some() && !family.routes() {
            return Err(Reason::Experts(family));
        }
        if let Epilogue::Gated(_, form @ ActForm::Q8) | Epilogue::ResidualNorm(form @ ActForm::Q8) =
            epilogue
        {
            return Err(Reason::Form(family, form));
        }
    }
    let together = 16 * tiles * epilogue.abreast();
    if metal::tensor_rows(family) > 0 && together != metal::TENSOR_OUTPUTS {
        return Err(Reason::Together {
            outputs: together,
            needed: metal::TENSOR_OUTPUTS,
        });
    }
    let team = family.row_warps();
    if class.warps == 0 || class.warps > 32 || !class.warps.is_multiple_of(team) {
        return Err(Reason::Warps {
            warps: class.warps,
            team,
        });
    }
    let takers = class.warps / team * class.k_split;
    let (steps, warps) = (steps(&layout, k), takers as usize);
    if class.k_split == 0 || class.k_split > 1 && steps < warps {
        return Err(Reason::Steps { steps, warps });
    }
    if let Epilogue::Gated(_, ActForm::Q8) | Epilogue::ResidualNorm(ActForm::Q8) = epilogue
        && tiles % 2 == 1
    {
        return Err(Reason::Outputs {
            outputs: 16 * tiles,
            needed: 32,
        });
    }
    let (values, limit) = match family.is_metal() {
        true => (metal::values(variant, &layout, epilogue), metal::MAX_VALUES),
        false => {
            let tiles = tiles / team * epilogue.abreast();
            (family.values(&layout, stamp, tiles), MAX_VALUES)
        }
    };
    if values > limit {
        return Err(Reason::Values { values, limit });
    }
    if family.is_metal() {
        let threads = 32 * metal::warps(variant, class, epilogue);
        let limit = metal::REGISTERS / metal::registers(variant, &layout, epilogue);
        if threads > limit {
            return Err(Reason::Threads { threads, limit });
        }
    }
    let (bytes, limit) = (
        kernel::shared_bytes(variant, class, &layout, epilogue),
        shared_limit(arch),
    );
    if bytes > u64::from(limit) {
        return Err(Reason::Shared { bytes, limit });
    }
    Ok(())
}

impl Family {
    /// Warps that divide the outputs of a thread block, while others divide k.
    const fn row_warps(self) -> u32 {
        match self {
            Family::Wgmma => 4,
            _ => 1,
        }
    }

    /// Sums of one thread that has so many tiles.
    const fn sums(self, stamp: u32, tiles: u32) -> u32 {
        match self {
            Family::MmaI8 | Family::MmaF16 | Family::Wgmma => stamp * tiles / 2,
            Family::Fma => stamp * tiles * 4,
            _ => stamp * tiles * 2,
        }
    }

    /// Sums, weights and scales of one thread; Apple's families have [`metal::values`].
    fn values(self, layout: &PackedLayout, stamp: u32, tiles: u32) -> u32 {
        let scales = 128 / u32::from(layout.group) * if layout.min { 2 } else { 1 };
        let of_tile = match self {
            Family::MmaI8 | Family::Dp4a => 8 + scales,
            Family::MmaF16 => 16,
            Family::Wgmma => 32,
            _ => 4,
        };
        // The exact integers of a product, before they are scaled; twice as many in groups of 16.
        let products = match self {
            Family::MmaI8 if layout.group == 16 => 24 + stamp,
            Family::MmaI8 => 24,
            _ => 0,
        };
        self.sums(stamp, tiles) + tiles * of_tile + products
    }
}

/// Steps along k: what a warp copies and multiplies at a time.
fn steps(layout: &PackedLayout, k: usize) -> usize {
    tile::units(layout, k).div_ceil(kernel::step_units(layout) as usize)
}

/// Every class in which some variant computes the query, at any number of rows.
pub fn classes(query: &Query) -> Vec<Class> {
    let mut found = vec![];
    for family in [
        Family::MmaI8,
        Family::MmaF16,
        Family::Wgmma,
        Family::Fma,
        Family::Dp4a,
        Family::Simd,
        Family::SimdF32,
        Family::Matrix,
        Family::Tensor,
        Family::Tensor32,
    ] {
        for warps in [2, 4, 8] {
            for k_split in [1, 2, 4, 8, 16] {
                let class = Class {
                    family,
                    warps,
                    k_split,
                };
                let takers = (warps / family.row_warps()) as usize;
                let idle = warps > 2 && takers > 1 && steps(&query.layout, query.k) < takers;
                if !idle && variants(class, query).next().is_some() {
                    found.push(class);
                }
            }
        }
    }
    found
}

/// The variants that compute the query in a class.
pub fn variants(class: Class, query: &Query) -> impl Iterator<Item = &'static Variant> {
    VARIANTS
        .iter()
        .filter(move |variant| legal(variant, class, query).is_ok())
}
