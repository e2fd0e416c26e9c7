//! What is Apple's alone: the numbers of its GPU families, the matmul families that exist there with their shared memory
//! and cost, and attention. Everything else runs from the kernels of all GPUs. Templates are in `templates/metal`.
//!
//! There is one numeric form of activations, halves (floats where weights are f32). M1 to M4 multiply 8 x 8 matrices with the
//! same pipes as everything else, so [`Family::Matrix`] pays where its fixed work per weight is shared by many rows; for few
//! rows [`Family::Simd`] computes no row that is not there. Thread blocks never share k: their memory is only coherent
//! between launches.

mod attention;
mod cost;

pub use attention::{
    AttentionArgs, attention, attention_bytes, attention_geometry, attention_legal, split,
};
pub use cost::cost;

use super::abi::ActForm;
use super::embed::layout_constants;
use super::matmul::{Class, Epilogue, Family, Gate, Variant};
use super::tile::{self, TILE_N};
use super::{Constant, Kernel};
use crate::quant::PackedLayout;

/// Architectures of Apple GPUs are 1000 and the number of the GPU family: 1007 is that of M1, 1009 that of M3 and M4.
pub const FIRST_ARCH: u32 = 1007;

/// Whether an architecture is Apple's.
pub const fn is_metal(arch: u32) -> bool {
    arch >= 1000
}

/// Shared memory of a thread block, bytes.
pub const SHARED_BYTES: u32 = 32 << 10;

/// Sums, weights and scales that a thread can hold.
pub(super) const MAX_VALUES: u32 = 112;

/// Halves between rows of a tile in shared memory.
const MATRIX_ROW: u64 = 64 + 8;

/// Shared memory of a matmul's thread block: what its warps multiply from, then in its place their sums; behind both the
/// factors of rows.
pub(super) fn matmul_shared(variant: &Variant, class: Class, epilogue: Epilogue) -> u64 {
    let (warps, stamp) = (u64::from(class.warps), u64::from(variant.stamp));
    let staged = match variant.family {
        Family::Matrix => warps * (16 + stamp) * MATRIX_ROW * 2,
        _ => 0,
    };
    let outputs = u64::from(16 * variant.tiles * epilogue.abreast());
    let sums = warps * stamp * (outputs + 4) * 4;
    staged.max(sums) + stamp * 4
}

/// Units that a warp takes at a time: about 2 KB of each tile row.
pub(super) const fn step_units(layout: &PackedLayout) -> u32 {
    let (mut units, bytes) = (1, tile::unit_bytes(layout));
    while units < 4 && tile::unit_k(layout) < 256 && 2 * units * bytes <= 3072 {
        units *= 2;
    }
    units as u32
}

/// The kernel of a variant; its name says all that its text depends on.
pub(super) fn matmul_kernel(
    variant: &Variant,
    class: Class,
    layout: &PackedLayout,
    epilogue: Epilogue,
    routed: bool,
) -> Kernel {
    let word = |word: &str| Constant::Word(word.into());
    let int = |value: u32| Constant::Int(value.into());
    let (what, form) = match epilogue {
        Epilogue::Store => ("store", ActForm::F32),
        Epilogue::Residual => ("residual", ActForm::F32),
        Epilogue::ResidualNorm(form) => ("residual_norm", form),
        Epilogue::Gated(Gate::Silu, form) => ("gated_silu", form),
        Epilogue::Gated(Gate::Gelu, form) => ("gated_gelu", form),
        Epilogue::Gated(Gate::Clamped, form) => ("gated_clamped", form),
    };
    let family = variant.family;
    let mut constants = layout_constants(layout);
    constants.extend([
        ("step_units", int(step_units(layout))),
        ("act", word(family.act().name())),
        ("stamp", int(variant.stamp)),
        ("tiles", int(variant.tiles)),
        ("warps", int(class.warps)),
        ("epilogue", word(what)),
        ("out_form", word(form.name())),
        ("routed", Constant::Flag(routed)),
    ]);
    Kernel {
        name: format!(
            "matmul_{}_{layout}_n{}_m{}_w{}_{}{}",
            family.name(),
            variant.stamp,
            variant.tiles,
            class.warps,
            epilogue.name(),
            if routed { "_experts" } else { "" }
        ),
        template: match family {
            Family::Matrix => "matmul_matrix",
            _ => "matmul_simd",
        },
        constants,
        threads: class.warps * 32,
    }
}

/// Weights that a thread block multiplies while each of its warps takes one step.
pub(super) fn weights_per_pass(
    variant: &Variant,
    class: Class,
    layout: &PackedLayout,
    epilogue: Epilogue,
) -> u32 {
    let units = class.warps * variant.tiles * epilogue.abreast() * step_units(layout);
    units * (tile::unit_k(layout) * TILE_N) as u32
}
