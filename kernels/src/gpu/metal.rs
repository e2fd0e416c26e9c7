//! What is Apple's alone: the numbers of its GPU families, the matmul families that exist there with their shared memory
//! and cost, and attention. Everything else runs from the kernels of all GPUs. Templates are in `templates/metal`.
//!
//! There is one numeric form of activations, halves (floats where weights are f32). M1 to M4 multiply 8 x 8 matrices with the
//! same pipes as everything else, so [`Family::Simd`], which computes no row that is not there, loses nothing by doing without
//! them; [`Family::Matrix`] reads activations less often. From M5 on [`Family::Tensor`] and [`Family::Tensor32`] have pipes
//! of their own, which multiply so many rows in about the time that weights take to come. Thread blocks never share k: their memory is only coherent
//! between launches.

mod attention;
mod cost;

pub use attention::{
    AttentionArgs, attention, attention_bytes, attention_geometry, attention_legal, split,
};
pub use cost::cost;

use super::abi::{ActForm, TILE_K};
use super::embed::layout_constants;
use super::matmul::{Class, Epilogue, Family, Gate, Variant};
use super::tile::{self, TILE_N};
use super::{Constant, Kernel};
use crate::quant::PackedLayout;

/// Architectures of Apple GPUs are 1000 and the number of the GPU family: 1007 is that of M1, 1009 that of M3 and M4.
pub const FIRST_ARCH: u32 = 1007;

/// The first architecture that multiplies matrices with pipes of their own: that of M5.
pub const TENSOR_ARCH: u32 = 1010;

/// Outputs that `matmul2d` is given at once.
pub(super) const TENSOR_OUTPUTS: u32 = 32;

/// Rows that `matmul2d` is given at once, the same for every stamp of a family; 0 of others.
pub(super) const fn tensor_rows(family: Family) -> u32 {
    match family {
        Family::Tensor => 16,
        Family::Tensor32 => 32,
        _ => 0,
    }
}

/// Whether an architecture is Apple's.
pub const fn is_metal(arch: u32) -> bool {
    arch >= 1000
}

/// Shared memory of a thread block, bytes.
pub const SHARED_BYTES: u32 = 32 << 10;

/// Sums, weights and scales that a thread can hold.
pub(super) const MAX_VALUES: u32 = 112;

/// Registers of a core, 32 bits each: 208 KB on M1 and M2 by the microbenchmarks of github.com/philipturner/metal-benchmarks.
pub(super) const REGISTERS: u32 = 208 << 8;

/// Halves between rows of a tile in shared memory.
const MATRIX_ROW: u64 = 64 + 8;

/// From so many rows on, warps of [`Family::Simd`] share the making of halves.
const SHARED_ROWS: u32 = 17;

/// Warps that divide the rows of a thread block between them: as many as keep the sums of each in registers, and 1 where
/// they share no weights.
pub(super) const fn row_warps(variant: &Variant, epilogue: Epilogue) -> u32 {
    match variant.family {
        Family::Simd if variant.stamp >= SHARED_ROWS => {
            let rows = match variant.tiles * epilogue.abreast() {
                ..=2 => 16,
                streams => 32 / streams,
            };
            let warps = variant.stamp.div_ceil(rows);
            if warps < 2 { 2 } else { warps }
        }
        family if tensor_rows(family) > 0 => variant.stamp / tensor_rows(family),
        _ => 1,
    }
}

/// Whether warps of [`Family::Simd`] share the making of halves.
const fn shares(variant: &Variant) -> bool {
    matches!(variant.family, Family::Simd) && variant.stamp >= SHARED_ROWS
}

/// Whether each of two warps that share weights keeps the halves it has made, and loads only those of the other.
pub(super) const fn keeps(variant: &Variant, epilogue: Epilogue) -> bool {
    let streams = variant.tiles * epilogue.abreast();
    shares(variant) && row_warps(variant, epilogue) == 2 && variant.stamp * streams <= 2 * 24
}

/// Warps that divide k between them; those that share weights take several of the class's slices, one after the other, as few
/// as leave registers and shared memory for the rest.
pub(super) const fn k_warps(variant: &Variant, class: Class, epilogue: Epilogue) -> u32 {
    let most = match row_warps(variant, epilogue) {
        _ if !shares(variant) => return class.warps,
        2 if variant.tiles * epilogue.abreast() <= 2 => 4,
        _ => 2,
    };
    if class.warps < most {
        class.warps
    } else {
        most
    }
}

/// Warps of a matmul's thread block.
pub(super) const fn warps(variant: &Variant, class: Class, epilogue: Epilogue) -> u32 {
    k_warps(variant, class, epilogue) * row_warps(variant, epilogue)
}

/// Sums, weights, scales and places of rows that a thread holds.
pub(super) fn values(variant: &Variant, layout: &PackedLayout, epilogue: Epilogue) -> u32 {
    let (stamp, streams) = (variant.stamp, variant.tiles * epilogue.abreast());
    let warps = row_warps(variant, epilogue);
    let rows = stamp / warps;
    match variant.family {
        // Matrices of rows, and a tile on its way.
        Family::Matrix => stamp * streams / 2 + stamp + 24,
        family if tensor_rows(family) > 0 => tensor_rows(family) + 24,
        // Halves of all streams and a row; or one tile on its way to them.
        Family::Simd if shares(variant) => {
            let kept = if keeps(variant, epilogue) { 8 } else { 0 };
            2 * rows * streams + rows + ((8 + kept) * streams + 4).max(24)
        }
        // Levels of the second 32 k as they are stored; halves of the first, a row, and what is computed of a stream.
        Family::Simd => {
            let stored = match layout.int_bits() {
                Some(8) | None => 4,
                Some(bits) => u32::from(bits),
            };
            2 * rows * streams + rows + streams * (8 + stored) + 8
        }
        _ => 2 * rows * streams + rows + streams * 16,
    }
}

/// Registers of a thread: what it holds, addresses and what is being computed.
pub(super) fn registers(variant: &Variant, layout: &PackedLayout, epilogue: Epilogue) -> u32 {
    values(variant, layout, epilogue) + 16
}

/// Shared memory of a matmul's thread block: what its warps multiply from, then in its place their sums, or sums and behind
/// them what they share; behind all the factors of rows.
pub(super) fn matmul_shared(variant: &Variant, class: Class, epilogue: Epilogue) -> u64 {
    let stamp = u64::from(variant.stamp);
    let streams = u64::from(variant.tiles * epilogue.abreast());
    let k_warps = u64::from(k_warps(variant, class, epilogue));
    let sums = stamp * (16 * streams + 4) * 4;
    let bytes = match variant.family {
        Family::Simd if shares(variant) => sums + k_warps * streams * (TILE_N * TILE_K * 2) as u64,
        Family::Matrix => k_warps * sums.max((16 + stamp) * MATRIX_ROW * 2),
        Family::Tensor | Family::Tensor32 => k_warps * sums.max(16 * streams * MATRIX_ROW * 2),
        _ => k_warps * sums,
    };
    bytes + stamp * 4
}

/// The template whose kernels need the names of Metal 4.
pub const TENSOR_TEMPLATE: &str = "matmul_tensor";

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
        ("warps", int(warps(variant, class, epilogue))),
        ("slices", int(class.warps)),
        ("row_warps", int(row_warps(variant, epilogue))),
        (
            "sum_slices",
            int(if shares(variant) { 1 } else { class.warps }),
        ),
        ("keeps", Constant::Flag(keeps(variant, epilogue))),
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
            Family::Tensor | Family::Tensor32 => TENSOR_TEMPLATE,
            _ => "matmul_simd",
        },
        constants,
        threads: warps(variant, class, epilogue) * 32,
    }
}

/// Weights that a thread block multiplies while each of its warps takes one step.
pub(super) fn weights_per_pass(
    variant: &Variant,
    class: Class,
    layout: &PackedLayout,
    epilogue: Epilogue,
) -> u32 {
    let k_warps = k_warps(variant, class, epilogue);
    let units = k_warps * variant.tiles * epilogue.abreast() * step_units(layout);
    units * (tile::unit_k(layout) * TILE_N) as u32
}
