//! `extern "C"` functions around the bodies in this folder, one set per ISA: the same arguments, compiled with the ISA's
//! features so that its [`Lanes`](super::Lanes) are inlined. What a kernel computes is in the bodies.
//!
//! Every macro takes the ISA's name inside symbols, its vector and its target features, and makes the `SYMBOLS` of a file.

/// Kernels of [`crate::norm`].
macro_rules! stamp_norm {
    ($isa:literal, $vector:ty, $features:literal) => {
        use $crate::cpu::lanes::norm as lanes;
        use $crate::cpu::symbols::{Named, Symbol};
        use $crate::norm::{NormFn, NormQ8Fn};

        /// `rmsnorm_<isa>` of type [`NormFn`] and `rmsnorm_q8_<isa>` of type [`NormQ8Fn`].
        pub const SYMBOLS: &[Named] = &[
            (
                concat!("rmsnorm_", $isa),
                Symbol(rmsnorm as NormFn as *const ()),
            ),
            (
                concat!("rmsnorm_q8_", $isa),
                Symbol(rmsnorm_q8 as NormQ8Fn as *const ()),
            ),
        ];

        /// # Safety
        /// The contract of [`NormFn`]; the CPU has the features.
        #[allow(clippy::too_many_arguments)]
        #[target_feature(enable = $features)]
        unsafe extern "C" fn rmsnorm(
            x: *const f32,
            w: *const f32,
            y: *mut f32,
            width: usize,
            rows: usize,
            x_stride: usize,
            y_stride: usize,
            eps_bits: usize,
        ) {
            // SAFETY: promised by the caller.
            unsafe { lanes::rmsnorm::<$vector>(x, w, y, width, rows, x_stride, y_stride, eps_bits) }
        }

        /// # Safety
        /// The contract of [`NormQ8Fn`]; the CPU has the features.
        #[allow(clippy::too_many_arguments)]
        #[target_feature(enable = $features)]
        unsafe extern "C" fn rmsnorm_q8(
            x: *const f32,
            w: *const f32,
            out: *mut u8,
            width: usize,
            rows: usize,
            x_stride: usize,
            out_stride: usize,
            eps_bits: usize,
        ) {
            // SAFETY: promised by the caller.
            unsafe {
                lanes::rmsnorm_q8::<$vector>(x, w, out, width, rows, x_stride, out_stride, eps_bits)
            }
        }
    };
}

/// Kernels of [`crate::gated`].
macro_rules! stamp_gated {
    ($isa:literal, $vector:ty, $features:literal) => {
        use $crate::cpu::lanes::gated as lanes;
        use $crate::cpu::symbols::{Named, Symbol};
        use $crate::gated::GatedQ8Fn;

        /// `gated_<activation>_q8_<isa>`, of type [`GatedQ8Fn`].
        pub const SYMBOLS: &[Named] = &[
            (
                concat!("gated_silu_q8_", $isa),
                Symbol(gated_q8::<0> as GatedQ8Fn as *const ()),
            ),
            (
                concat!("gated_sigmoid_q8_", $isa),
                Symbol(gated_q8::<1> as GatedQ8Fn as *const ()),
            ),
            (
                concat!("gated_gelu_tanh_q8_", $isa),
                Symbol(gated_q8::<2> as GatedQ8Fn as *const ()),
            ),
            (
                concat!("gated_clamped_swish_q8_", $isa),
                Symbol(gated_q8::<3> as GatedQ8Fn as *const ()),
            ),
        ];

        /// # Safety
        /// The contract of [`GatedQ8Fn`]; the CPU has the features.
        #[allow(clippy::too_many_arguments)]
        #[target_feature(enable = $features)]
        unsafe extern "C" fn gated_q8<const A: usize>(
            gate: *const f32,
            up: *const f32,
            out: *mut u8,
            width: usize,
            rows: usize,
            gate_stride: usize,
            up_stride: usize,
            out_stride: usize,
        ) {
            // SAFETY: promised by the caller.
            unsafe {
                lanes::gated_q8::<$vector, A>(
                    gate,
                    up,
                    out,
                    width,
                    rows,
                    gate_stride,
                    up_stride,
                    out_stride,
                )
            }
        }
    };
}

/// Kernels of [`crate::rope`]. The table is f64 arithmetic on a few numbers per row, so the portable version serves.
macro_rules! stamp_rope {
    ($isa:literal, $vector:ty, $features:literal) => {
        use $crate::cpu::abi::Step;
        use $crate::cpu::lanes::rope as lanes;
        use $crate::cpu::scalar::rope::rope_table;
        use $crate::cpu::symbols::{Named, Symbol};
        use $crate::rope::{RopeHeadsFn, RopeTableFn};

        /// `rope_table_<isa>` of type [`RopeTableFn`] and `rope_heads_<isa>` of type [`RopeHeadsFn`].
        pub const SYMBOLS: &[Named] = &[
            (
                concat!("rope_table_", $isa),
                Symbol(rope_table as RopeTableFn as *const ()),
            ),
            (
                concat!("rope_heads_", $isa),
                Symbol(rope_heads as RopeHeadsFn as *const ()),
            ),
        ];

        /// # Safety
        /// The contract of [`RopeHeadsFn`]; the CPU has the features.
        #[allow(clippy::too_many_arguments)]
        #[target_feature(enable = $features)]
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
                lanes::rope_heads::<$vector>(
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
    };
}

/// Kernels of [`crate::attention`], for each cache type.
macro_rules! stamp_attention {
    ($isa:literal, $vector:ty, $features:literal) => {
        use $crate::attention::{AttentionFn, CombineFn, KvAppendFn};
        use $crate::cpu::abi::Step;
        use $crate::cpu::lanes::attention as lanes;
        use $crate::cpu::lanes::cache::{self, Cache, CacheF16, CacheF32, CacheQ8};
        use $crate::cpu::lanes::partial;
        use $crate::cpu::symbols::{Named, Symbol};

        /// `attention_<kv>_<isa>` of type [`AttentionFn`] and `kv_append_<kv>_<isa>` of type [`KvAppendFn`], and
        /// `attention_combine_<isa>` of type [`CombineFn`].
        pub const SYMBOLS: &[Named] = &[
            (
                concat!("attention_combine_", $isa),
                Symbol(combine as CombineFn as *const ()),
            ),
            (
                concat!("attention_f32_", $isa),
                Symbol(attention::<CacheF32> as AttentionFn as *const ()),
            ),
            (
                concat!("kv_append_f32_", $isa),
                Symbol(kv_append::<CacheF32> as KvAppendFn as *const ()),
            ),
            (
                concat!("attention_f16_", $isa),
                Symbol(attention::<CacheF16> as AttentionFn as *const ()),
            ),
            (
                concat!("kv_append_f16_", $isa),
                Symbol(kv_append::<CacheF16> as KvAppendFn as *const ()),
            ),
            (
                concat!("attention_q8_0_", $isa),
                Symbol(attention::<CacheQ8> as AttentionFn as *const ()),
            ),
            (
                concat!("kv_append_q8_0_", $isa),
                Symbol(kv_append::<CacheQ8> as KvAppendFn as *const ()),
            ),
        ];

        /// # Safety
        /// The contract of [`AttentionFn`]; the CPU has the features.
        #[allow(clippy::too_many_arguments)]
        #[target_feature(enable = $features)]
        unsafe extern "C" fn attention<C: Cache>(
            q: *const f32,
            kv: *const u8,
            out: *mut f32,
            scratch: *mut u8,
            step: *const Step,
            heads: usize,
            kv_heads: usize,
            head_dim: usize,
            worker: usize,
            workers: usize,
            q_stride: usize,
            out_stride: usize,
            scratch_stride: usize,
            cell_stride: usize,
            scale_bits: usize,
            window: usize,
            softcap_bits: usize,
            sinks: *const f32,
        ) {
            // SAFETY: promised by the caller.
            unsafe {
                lanes::attention::<$vector, C>(
                    q,
                    kv,
                    out,
                    scratch,
                    step,
                    heads,
                    kv_heads,
                    head_dim,
                    worker,
                    workers,
                    q_stride,
                    out_stride,
                    scratch_stride,
                    cell_stride,
                    scale_bits,
                    window,
                    softcap_bits,
                    sinks,
                )
            }
        }

        /// # Safety
        /// The contract of [`CombineFn`]; the CPU has the features.
        #[allow(clippy::too_many_arguments)]
        #[target_feature(enable = $features)]
        unsafe extern "C" fn combine(
            scratch: *const u8,
            out: *mut f32,
            step: *const Step,
            heads: usize,
            kv_heads: usize,
            head_dim: usize,
            worker: usize,
            workers: usize,
            out_stride: usize,
            scratch_stride: usize,
            cell_stride: usize,
            window: usize,
            sinks: *const f32,
        ) {
            // SAFETY: promised by the caller.
            unsafe {
                partial::combine::<$vector>(
                    scratch,
                    out,
                    step,
                    heads,
                    kv_heads,
                    head_dim,
                    worker,
                    workers,
                    out_stride,
                    scratch_stride,
                    cell_stride,
                    window,
                    sinks,
                )
            }
        }

        /// # Safety
        /// The contract of [`KvAppendFn`]; the CPU has the features.
        #[allow(clippy::too_many_arguments)]
        #[target_feature(enable = $features)]
        unsafe extern "C" fn kv_append<C: Cache>(
            k: *const f32,
            v: *const f32,
            kv: *mut u8,
            step: *const Step,
            kv_heads: usize,
            head_dim: usize,
            row_begin: usize,
            row_end: usize,
            k_stride: usize,
            v_stride: usize,
        ) {
            // SAFETY: promised by the caller.
            unsafe {
                cache::kv_append::<$vector, C>(
                    k, v, kv, step, kv_heads, head_dim, row_begin, row_end, k_stride, v_stride,
                )
            }
        }
    };
}

/// Kernels of [`crate::recurrent`].
macro_rules! stamp_recurrent {
    ($isa:literal, $vector:ty, $features:literal) => {
        use $crate::cpu::abi::Step;
        use $crate::cpu::lanes::recurrent as lanes;
        use $crate::cpu::symbols::{Named, Symbol};
        use $crate::recurrent::{DeltaRuleFn, ShortConvFn};

        /// `short_conv_<isa>` of type [`ShortConvFn`] and `delta_rule_<isa>` of type [`DeltaRuleFn`].
        pub const SYMBOLS: &[Named] = &[
            (
                concat!("short_conv_", $isa),
                Symbol(short_conv as ShortConvFn as *const ()),
            ),
            (
                concat!("delta_rule_", $isa),
                Symbol(delta_rule as DeltaRuleFn as *const ()),
            ),
        ];

        /// # Safety
        /// The contract of [`ShortConvFn`]; the CPU has the features.
        #[allow(clippy::too_many_arguments)]
        #[target_feature(enable = $features)]
        unsafe extern "C" fn short_conv(
            x: *const f32,
            w: *const f32,
            y: *mut f32,
            state: *mut f32,
            step: *const Step,
            channels: usize,
            taps: usize,
            worker: usize,
            workers: usize,
            x_stride: usize,
            y_stride: usize,
            slot_stride: usize,
        ) {
            // SAFETY: promised by the caller.
            unsafe {
                lanes::short_conv::<$vector>(
                    x,
                    w,
                    y,
                    state,
                    step,
                    channels,
                    taps,
                    worker,
                    workers,
                    x_stride,
                    y_stride,
                    slot_stride,
                )
            }
        }

        /// # Safety
        /// The contract of [`DeltaRuleFn`]; the CPU has the features.
        #[allow(clippy::too_many_arguments)]
        #[target_feature(enable = $features)]
        unsafe extern "C" fn delta_rule(
            x: *const f32,
            alpha: *const f32,
            beta: *const f32,
            a: *const f32,
            dt: *const f32,
            out: *mut f32,
            state: *mut f32,
            step: *const Step,
            key_heads: usize,
            heads: usize,
            dim: usize,
            grouped: usize,
            worker: usize,
            workers: usize,
            x_stride: usize,
            alpha_stride: usize,
            beta_stride: usize,
            out_stride: usize,
            slot_stride: usize,
            eps_bits: usize,
        ) {
            // SAFETY: promised by the caller.
            unsafe {
                lanes::delta_rule::<$vector>(
                    x,
                    alpha,
                    beta,
                    a,
                    dt,
                    out,
                    state,
                    step,
                    key_heads,
                    heads,
                    dim,
                    grouped,
                    worker,
                    workers,
                    x_stride,
                    alpha_stride,
                    beta_stride,
                    out_stride,
                    slot_stride,
                    eps_bits,
                )
            }
        }
    };
}

pub(crate) use {stamp_attention, stamp_gated, stamp_norm, stamp_recurrent, stamp_rope};
