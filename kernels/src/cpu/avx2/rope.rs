//! RoPE stamped for AVX2 with FMA and F16C; the body is in `cpu/lanes/rope.rs`. The table is f64 arithmetic
//! on a few numbers per row, so the portable version serves.

use crate::cpu::abi::Step;
use crate::cpu::avx2::lanes::F32x8;
use crate::cpu::lanes::rope as lanes;
use crate::cpu::scalar::rope::rope_table;
use crate::cpu::symbols::{Named, Symbol};
use crate::rope::{RopeHeadsFn, RopeTableFn};

/// `rope_table_avx2` of type [`RopeTableFn`] and `rope_heads_avx2` of type [`RopeHeadsFn`].
pub const SYMBOLS: &[Named] = &[
    (
        "rope_table_avx2",
        Symbol(rope_table as RopeTableFn as *const ()),
    ),
    (
        "rope_heads_avx2",
        Symbol(rope_heads as RopeHeadsFn as *const ()),
    ),
];

/// # Safety
/// The contract of [`RopeHeadsFn`]; AVX2 is there.
#[allow(clippy::too_many_arguments)]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe extern "C" fn rope_heads(
    x: *mut f32,
    w: *const f32,
    table: *const f32,
    heads: usize,
    head_dim: usize,
    rot_dim: usize,
    neox: usize,
    row_begin: usize,
    row_end: usize,
    x_stride: usize,
    table_stride: usize,
    eps_bits: usize,
    step: *const Step,
) {
    // SAFETY: promised by the caller.
    unsafe {
        lanes::rope_heads::<F32x8>(
            x,
            w,
            table,
            heads,
            head_dim,
            rot_dim,
            neox,
            row_begin,
            row_end,
            x_stride,
            table_stride,
            eps_bits,
            step,
        )
    }
}
