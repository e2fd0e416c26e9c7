//! From a variant to its kernel, geometry, memory and arguments.

use super::{Class, Epilogue, Family, Gate, Query, Variant};
use crate::gpu::abi::{ActForm, TILE_K};
use crate::gpu::metal;
use crate::gpu::tile::{self, TILE_N};
use crate::gpu::{Constant, Geometry, Kernel};
use crate::quant::{PackedLayout, Scale, Store};

/// Arguments of every matmul kernel, in order.
pub mod args {
    /// Activation rows.
    pub const ACT: usize = 0;
    /// Bytes between them.
    pub const ACT_STRIDE: usize = 1;
    /// Rows.
    pub const ROWS: usize = 2;
    /// Units along k.
    pub const UNITS: usize = 3;
    /// Partial sums of a k split.
    pub const SCRATCH: usize = 4;
    /// Thread blocks that have brought theirs.
    pub const COUNTERS: usize = 5;
    /// Bytes from an activation row to its sums of squares, if its norm is pending; else 0.
    pub const PENDING: usize = 6;
    /// Elements of such a row.
    pub const WIDTH: usize = 7;
    /// Added to their mean square (f32).
    pub const EPS: usize = 8;
    /// Weight of the norm that is left pending (f32).
    pub const NORM_WEIGHT: usize = 9;
    /// Rows whose norm is left pending.
    pub const NORMED: usize = 10;
    /// Bytes between them.
    pub const NORMED_STRIDE: usize = 11;
    /// Parts in use.
    pub const PARTS: usize = 12;
    /// First of a part's: weights, n, out, its stride, extra, its stride.
    pub const fn part(i: usize) -> usize {
        13 + 6 * i
    }
    /// All of them, but for those of matmuls by expert.
    pub const COUNT: usize = part(3);
    /// What the router left.
    pub const ROUTES: usize = COUNT;
    /// Bytes from there to the items.
    pub const ITEMS: usize = COUNT + 1;
    /// Bytes from there to the order.
    pub const ORDER: usize = COUNT + 2;
    /// Routed rows that read the same row of activations.
    pub const SHARE: usize = COUNT + 3;
    /// 2 where gate and up of an expert follow each other in one matrix, which both parts name; else 1.
    pub const JOINED: usize = COUNT + 4;
    /// All of a matmul by expert.
    pub const ROUTED_COUNT: usize = COUNT + 5;
}

/// What a warp copies at a time: about 2 KB of each tile row, whole units.
const STEP_BYTES: usize = 3072;
/// Weights that a thread block keeps under way or at hand.
const RING_BYTES: u64 = 64 << 10;

/// Units of one step of a warp.
pub(super) const fn step_units(layout: &PackedLayout) -> u32 {
    let (mut units, bytes) = (1, tile::unit_bytes(layout));
    while units < 4 && tile::unit_k(layout) < 256 && 2 * units * bytes <= STEP_BYTES {
        units *= 2;
    }
    units as u32
}

/// Bytes of one step of all warps.
pub(super) fn step_bytes(
    variant: &Variant,
    class: Class,
    layout: &PackedLayout,
    epilogue: Epilogue,
) -> u64 {
    let unit = tile::unit_bytes(layout) as u64;
    let tiles = variant.tiles / variant.family.row_warps();
    u64::from(class.warps * tiles * epilogue.abreast() * step_units(layout)) * unit
}

/// Steps that each warp has room for.
pub(super) fn stages(
    variant: &Variant,
    class: Class,
    layout: &PackedLayout,
    epilogue: Epilogue,
) -> u64 {
    (RING_BYTES / step_bytes(variant, class, layout, epilogue)).clamp(2, 4)
}

/// Shared memory of a thread block: first the rings of weights, then in their place the sums of its warps and a factor for
/// each row; and barriers.
pub(super) fn shared_bytes(
    variant: &Variant,
    class: Class,
    layout: &PackedLayout,
    epilogue: Epilogue,
) -> u64 {
    if variant.family.is_metal() {
        return metal::matmul_shared(variant, class, epilogue);
    }
    let ring =
        step_bytes(variant, class, layout, epilogue) * stages(variant, class, layout, epilogue);
    let teams = class.warps / variant.family.row_warps();
    let rows = match variant.family {
        // Activations of two steps for every warpgroup.
        Family::Wgmma => {
            let k = step_units(layout) as usize * tile::unit_k(layout);
            u64::from(2 * teams * variant.stamp) * ActForm::F16.stride(k) as u64
        }
        _ => 0,
    };
    let row = u64::from(16 * variant.tiles * epilogue.abreast() + 4) * 4;
    let factors = u64::from(variant.stamp) * 4;
    let most = (ring + rows).max(u64::from(teams * variant.stamp) * row + factors);
    most.next_multiple_of(8) + barrier_bytes(variant, class, layout, epilogue)
}

/// Bytes of the barriers that bulk copies arrive at, the last of a thread block's shared memory: one for each slot.
fn barrier_bytes(
    variant: &Variant,
    class: Class,
    layout: &PackedLayout,
    epilogue: Epilogue,
) -> u64 {
    match variant.family {
        Family::Wgmma => u64::from(class.warps) * stages(variant, class, layout, epilogue) * 8,
        _ => 0,
    }
}

/// Thread blocks that a multiprocessor's registers are to hold: threads with few sums get
/// 128 registers, or 168 if much else is under way, others all.
fn resident(variant: &Variant, class: Class, layout: &PackedLayout, epilogue: Epilogue) -> u32 {
    let tiles = variant.tiles / variant.family.row_warps() * epilogue.abreast();
    let sums = variant.family.sums(variant.stamp, tiles);
    // Mins of 16 need sums of activations, too.
    let few = if layout.min && layout.group == 16 {
        8
    } else {
        16
    };
    let registers = match variant.family {
        _ if sums > few => 255,
        Family::MmaI8 if variant.stamp > 32 => 255,
        Family::Wgmma if tiles > 1 => 168,
        Family::MmaI8 if variant.stamp > 24 => 168,
        _ => 128,
    };
    (65536 / (registers * class.warps * 32)).max(1)
}

/// The kernel of a variant, of routed rows or of others; its name says all that its text depends on.
pub fn kernel(
    variant: &Variant,
    class: Class,
    layout: &PackedLayout,
    epilogue: Epilogue,
    routed: bool,
) -> Kernel {
    if variant.family.is_metal() {
        return metal::matmul_kernel(variant, class, layout, epilogue, routed);
    }
    let word = |word: &str| Constant::Word(word.into());
    let int = |value: u64| Constant::Int(value as i64);
    let (store, bits) = match layout.store {
        Store::Int(bits) => ("int", bits),
        Store::Code(_) => ("code", 4),
        Store::F16 => ("f16", 16),
        Store::Bf16 => ("bf16", 16),
        Store::F32 => ("f32", 32),
    };
    let scale = match layout.scale {
        Scale::None => "none",
        Scale::F16 => "f16",
        Scale::U8F16 => "u8f16",
        Scale::I8F16 => "i8f16",
        Scale::U4F16 => "u4f16",
        Scale::E8 => "e8",
    };
    let codes = match layout.store {
        Store::Code(codebook) => codebook.values(),
        _ => [0; 16],
    };
    let code_word = |w: usize| {
        let bytes = [0, 1, 2, 3].map(|i| codes[4 * w + i] as u8);
        int(u64::from(u32::from_le_bytes(bytes)))
    };
    let (what, form) = match epilogue {
        Epilogue::Store => ("store", ActForm::F32),
        Epilogue::Residual => ("residual", ActForm::F32),
        Epilogue::ResidualNorm(form) => ("residual_norm", form),
        Epilogue::Gated(Gate::Silu, form) => ("gated_silu", form),
        Epilogue::Gated(Gate::Gelu, form) => ("gated_gelu", form),
        Epilogue::Gated(Gate::Clamped, form) => ("gated_clamped", form),
    };
    let Variant {
        family,
        stamp,
        tiles,
        ..
    } = *variant;
    let barriers = barrier_bytes(variant, class, layout, epilogue);
    Kernel {
        name: format!(
            "matmul_{}_{layout}_n{stamp}_m{tiles}_w{}_{}{}",
            family.name(),
            class.warps,
            epilogue.name(),
            if routed { "_experts" } else { "" }
        ),
        template: match family {
            Family::MmaI8 | Family::MmaF16 => "matmul_mma",
            Family::Wgmma => "matmul_wgmma",
            Family::Fma => "matmul_fma",
            _ => "matmul_dp4a",
        },
        constants: vec![
            ("store", word(store)),
            ("bits", int(bits.into())),
            ("group", int(layout.group.into())),
            ("zero", int(layout.zero.into())),
            ("scale", word(scale)),
            ("min", Constant::Flag(layout.min)),
            ("codes0", code_word(0)),
            ("codes1", code_word(1)),
            ("codes2", code_word(2)),
            ("codes3", code_word(3)),
            ("unit_k", int(tile::unit_k(layout) as u64)),
            ("unit_bytes", int(tile::unit_bytes(layout) as u64)),
            ("step_units", int(step_units(layout).into())),
            ("act", word(family.act().name())),
            ("stamp", int(stamp.into())),
            ("tiles", int(tiles.into())),
            ("warps", int(class.warps.into())),
            ("row_warps", int(family.row_warps().into())),
            ("stages", int(stages(variant, class, layout, epilogue))),
            ("bulk", Constant::Flag(barriers > 0)),
            (
                "barriers",
                int(shared_bytes(variant, class, layout, epilogue) - barriers),
            ),
            ("unroll", int(unroll(variant, epilogue).into())),
            ("epilogue", word(what)),
            ("out_form", word(form.name())),
            ("alone", Constant::Flag(true)),
            ("routed", Constant::Flag(routed)),
            (
                "resident",
                int(resident(variant, class, layout, epilogue).into()),
            ),
        ],
        threads: class.warps * 32,
    }
}

/// Tiles of a step that a warp multiplies side by side: all where it has few sums; with many, one after the other, or
/// registers run out.
fn unroll(variant: &Variant, epilogue: Epilogue) -> u32 {
    let streams = variant.tiles / variant.family.row_warps() * epilogue.abreast();
    let few = match variant.family {
        Family::MmaI8 | Family::MmaF16 => variant.stamp == 8 && streams <= 2,
        Family::Dp4a => variant.stamp * streams <= 2,
        // Steps of a tile, and products that go on while the next tile is made halves.
        _ => true,
    };
    if few { 4 } else { 1 }
}

/// Weights that a thread block multiplies in one pass of its innermost loop, with its warps together.
pub fn weights_per_pass(
    variant: &Variant,
    class: Class,
    layout: &PackedLayout,
    epilogue: Epilogue,
) -> u32 {
    if variant.family.is_metal() {
        return metal::weights_per_pass(variant, class, layout, epilogue);
    }
    let units = step_bytes(variant, class, layout, epilogue) / tile::unit_bytes(layout) as u64;
    let step_tiles = step_units(layout) * (tile::unit_k(layout) / TILE_K) as u32;
    let step = units as u32 * (tile::unit_k(layout) * TILE_N) as u32;
    step / step_tiles * unroll(variant, epilogue).min(step_tiles)
}

/// Thread blocks along the outputs of all parts.
fn blocks(variant: &Variant, query: &Query) -> u32 {
    let width = variant.tiles as usize * TILE_N;
    let blocks = |n: usize| n.div_ceil(width) as u32;
    match query.epilogue {
        Epilogue::Gated(_, ActForm::F32) => blocks(query.outputs[0]),
        // Rows of activations are written up to their padding.
        Epilogue::Gated(_, ActForm::F16 | ActForm::Q8) | Epilogue::ResidualNorm(_) => {
            blocks(query.outputs[0].next_multiple_of(TILE_K))
        }
        Epilogue::Store | Epilogue::Residual => query.outputs.iter().map(|&n| blocks(n)).sum(),
    }
}

/// The thread blocks of a legal query.
pub fn geometry(variant: &Variant, class: Class, query: &Query) -> Geometry {
    let stamp = variant.stamp as usize;
    let columns = match query.routed {
        Some(routed) => routed.most_items(query.rows, stamp),
        None => query.rows.div_ceil(stamp),
    };
    Geometry {
        grid: [columns as u32, blocks(variant, query), class.k_split],
        shared_bytes: shared_bytes(variant, class, &query.layout, query.epilogue) as u32,
    }
}

/// Bytes of scratch memory that a legal query needs, whatever they hold; 0 without a k split.
pub fn scratch_bytes(variant: &Variant, class: Class, query: &Query) -> u64 {
    if class.k_split == 1 {
        return 0;
    }
    let [x, y, z] = geometry(variant, class, query).grid.map(u64::from);
    let sums = variant.stamp * 16 * variant.tiles * query.epilogue.abreast();
    x * y * z * u64::from(sums) * 4
}

/// u32 counters that a legal query needs, zero before the first launch; every launch leaves them zero.
pub fn counters(variant: &Variant, class: Class, query: &Query) -> u64 {
    match class.k_split {
        1 => 0,
        _ => {
            let [x, y, _] = geometry(variant, class, query).grid.map(u64::from);
            x * y
        }
    }
}
