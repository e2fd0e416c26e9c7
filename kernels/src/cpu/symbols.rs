//! Every micro-kernel by name. A kernel file lists its own `SYMBOLS`; this file concatenates the lists, and stamps the
//! names of matmul and embed kernels, which exist once per packed layout.

use super::scalar;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512, avxvnni};

/// Address of a micro-kernel: an `extern "C"` function of the type its family documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol(pub *const ());

// SAFETY: the address of a function is valid and immutable for the whole life of the process.
unsafe impl Send for Symbol {}
// SAFETY: as above.
unsafe impl Sync for Symbol {}

/// Name and address, the row of every `SYMBOLS` list.
pub type Named = (&'static str, Symbol);

/// `y[r][c] = init[r][c] + sum_k x[r][k] * w[c][k]` for the N rows of the stamp and the 16 * `tiles` outputs of
/// consecutive tiles: `(w, x, init, y, k, tiles, x_stride, init_stride, y_stride)`, strides in bytes.
///
/// `x` rows are int8 rows ([`super::abi::Q8Block`]) for integer layouts and f32 for float layouts. `init` may be null
/// (zeros), alias `y`, or have stride 0 (one bias row for all). A row's result does not depend on the stamp, bit by bit.
pub type MatmulFn = unsafe extern "C" fn(
    *const u8,
    *const u8,
    *const f32,
    *mut f32,
    usize,
    usize,
    usize,
    usize,
    usize,
);

/// Quantises f32 rows to int8 rows: `(x, out, k, rows, x_stride, out_stride)`, strides in bytes. `out` rows are
/// [`super::abi::Q8Block`]s of k rounded up to 32, the tail quantised as zeros.
pub type QuantiseFn = unsafe extern "C" fn(*const f32, *mut u8, usize, usize, usize, usize);

/// Dequantises the embedding of each row's token out of packed tiles:
/// `(w, step, out, k, row_begin, row_end, out_stride, scale_bits)`; rows are clamped to `step.rows`.
pub type EmbedFn = unsafe extern "C" fn(
    *const u8,
    *const super::abi::Step,
    *mut f32,
    usize,
    usize,
    usize,
    usize,
    usize,
);

/// Copies `width` floats of the rows that want logits: `out[i] = x[step.logit_rows[i]]`,
/// `(x, step, out, width, row_begin, row_end, x_stride, out_stride)`; rows are clamped to `step.logits`.
pub type GatherRowsFn = unsafe extern "C" fn(
    *const f32,
    *const super::abi::Step,
    *mut f32,
    usize,
    usize,
    usize,
    usize,
    usize,
);

const LISTS: &[&[Named]] = &[
    scalar::matmul::SYMBOLS,
    scalar::quantise::SYMBOLS,
    scalar::embed::SYMBOLS,
    scalar::experts::SYMBOLS,
    scalar::norm::SYMBOLS,
    scalar::gated::SYMBOLS,
    scalar::rope::SYMBOLS,
    scalar::attention::SYMBOLS,
    scalar::recurrent::SYMBOLS,
    #[cfg(target_arch = "x86_64")]
    avx2::matmul::SYMBOLS,
    #[cfg(target_arch = "x86_64")]
    avx2::quantise::SYMBOLS,
    #[cfg(target_arch = "x86_64")]
    avx2::norm::SYMBOLS,
    #[cfg(target_arch = "x86_64")]
    avx2::gated::SYMBOLS,
    #[cfg(target_arch = "x86_64")]
    avx2::rope::SYMBOLS,
    #[cfg(target_arch = "x86_64")]
    avx2::attention::SYMBOLS,
    #[cfg(target_arch = "x86_64")]
    avx2::recurrent::SYMBOLS,
    #[cfg(target_arch = "x86_64")]
    avxvnni::matmul::SYMBOLS,
    #[cfg(target_arch = "x86_64")]
    avx512::matmul::SYMBOLS,
    #[cfg(target_arch = "x86_64")]
    avx512::quantise::SYMBOLS,
    #[cfg(target_arch = "x86_64")]
    avx512::norm::SYMBOLS,
    #[cfg(target_arch = "x86_64")]
    avx512::gated::SYMBOLS,
    #[cfg(target_arch = "x86_64")]
    avx512::rope::SYMBOLS,
    #[cfg(target_arch = "x86_64")]
    avx512::attention::SYMBOLS,
    #[cfg(target_arch = "x86_64")]
    avx512::recurrent::SYMBOLS,
];

/// The micro-kernel called `name` in this build, whether or not this CPU can run it.
pub fn lookup(name: &str) -> Option<Symbol> {
    let mut all = LISTS.iter().flat_map(|list| list.iter());
    all.find(|(known, _)| *known == name)
        .map(|&(_, symbol)| symbol)
}

/// The `SYMBOLS` of a matmul file: `$int` for each integer layout and `$float` for each float layout, at each of the
/// stamps given; and all stamps of a layout together as the kernel that multiplies by expert. The first const argument is
/// the layout's place in `quant::FORMATS`.
macro_rules! matmul_symbols {
    ($isa:literal, $int:ident [$($ni:literal)*], $float:ident [$($($nf:literal)+)?]) => {{
        use $crate::cpu::groups::{Stamps, expert_matmul};
        use $crate::cpu::symbols::{MatmulFn, Named, Symbol};
        use $crate::experts::ExpertMatmulFn;
        struct Int<const L: usize>;
        impl<const L: usize> Stamps for Int<L> {
            const LAYOUT: usize = L;
            const STAMPS: &'static [(usize, MatmulFn)] = &[$(($ni, $int::<L, $ni>)),*];
        }
        // An ISA may have no kernels for floats.
        #[allow(dead_code)]
        struct Float<const L: usize>;
        impl<const L: usize> Stamps for Float<L> {
            const LAYOUT: usize = L;
            const STAMPS: &'static [(usize, MatmulFn)] = &[$($(($nf, $float::<L, $nf>)),+)?];
        }
        /// Any number of rows can be cut into `stamps`.
        const fn by_expert<S: Stamps>(stamps: &[usize]) -> Symbol {
            assert!(stamps[0] == 1);
            Symbol(expert_matmul::<S> as ExpertMatmulFn as *const ())
        }
        const LIST: &[Named] = &[
            $($(
                (concat!("matmul_f32_", $isa, "_n", $nf), Symbol($float::<0, $nf> as MatmulFn as *const ())),
                (concat!("matmul_f16_", $isa, "_n", $nf), Symbol($float::<1, $nf> as MatmulFn as *const ())),
                (concat!("matmul_bf16_", $isa, "_n", $nf), Symbol($float::<2, $nf> as MatmulFn as *const ())),
            )+
            (concat!("expert_matmul_f32_", $isa), by_expert::<Float<0>>(&[$($nf),+])),
            (concat!("expert_matmul_f16_", $isa), by_expert::<Float<1>>(&[$($nf),+])),
            (concat!("expert_matmul_bf16_", $isa), by_expert::<Float<2>>(&[$($nf),+])),
            )?
            $(
                (concat!("matmul_i8f16_", $isa, "_n", $ni), Symbol($int::<3, $ni> as MatmulFn as *const ())),
                (concat!("matmul_i4f16_", $isa, "_n", $ni), Symbol($int::<4, $ni> as MatmulFn as *const ())),
                (concat!("matmul_i4f16m_", $isa, "_n", $ni), Symbol($int::<5, $ni> as MatmulFn as *const ())),
                (concat!("matmul_i5f16_", $isa, "_n", $ni), Symbol($int::<6, $ni> as MatmulFn as *const ())),
                (concat!("matmul_i5f16m_", $isa, "_n", $ni), Symbol($int::<7, $ni> as MatmulFn as *const ())),
                (concat!("matmul_i4u8m_", $isa, "_n", $ni), Symbol($int::<8, $ni> as MatmulFn as *const ())),
                (concat!("matmul_i5u8m_", $isa, "_n", $ni), Symbol($int::<9, $ni> as MatmulFn as *const ())),
                (concat!("matmul_i6i8_", $isa, "_n", $ni), Symbol($int::<10, $ni> as MatmulFn as *const ())),
                (concat!("matmul_i2u4m_", $isa, "_n", $ni), Symbol($int::<11, $ni> as MatmulFn as *const ())),
                (concat!("matmul_i3i8_", $isa, "_n", $ni), Symbol($int::<12, $ni> as MatmulFn as *const ())),
                (concat!("matmul_nl4f16_", $isa, "_n", $ni), Symbol($int::<13, $ni> as MatmulFn as *const ())),
                (concat!("matmul_nl4i8_", $isa, "_n", $ni), Symbol($int::<14, $ni> as MatmulFn as *const ())),
                (concat!("matmul_fp4e8_", $isa, "_n", $ni), Symbol($int::<15, $ni> as MatmulFn as *const ())),
            )*
            (concat!("expert_matmul_i8f16_", $isa), by_expert::<Int<3>>(&[$($ni),*])),
            (concat!("expert_matmul_i4f16_", $isa), by_expert::<Int<4>>(&[$($ni),*])),
            (concat!("expert_matmul_i4f16m_", $isa), by_expert::<Int<5>>(&[$($ni),*])),
            (concat!("expert_matmul_i5f16_", $isa), by_expert::<Int<6>>(&[$($ni),*])),
            (concat!("expert_matmul_i5f16m_", $isa), by_expert::<Int<7>>(&[$($ni),*])),
            (concat!("expert_matmul_i4u8m_", $isa), by_expert::<Int<8>>(&[$($ni),*])),
            (concat!("expert_matmul_i5u8m_", $isa), by_expert::<Int<9>>(&[$($ni),*])),
            (concat!("expert_matmul_i6i8_", $isa), by_expert::<Int<10>>(&[$($ni),*])),
            (concat!("expert_matmul_i2u4m_", $isa), by_expert::<Int<11>>(&[$($ni),*])),
            (concat!("expert_matmul_i3i8_", $isa), by_expert::<Int<12>>(&[$($ni),*])),
            (concat!("expert_matmul_nl4f16_", $isa), by_expert::<Int<13>>(&[$($ni),*])),
            (concat!("expert_matmul_nl4i8_", $isa), by_expert::<Int<14>>(&[$($ni),*])),
            (concat!("expert_matmul_fp4e8_", $isa), by_expert::<Int<15>>(&[$($ni),*])),
        ];
        LIST
    }};
}
pub(crate) use matmul_symbols;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = LISTS
            .iter()
            .flat_map(|list| list.iter().map(|(name, _)| name))
            .collect();
        let listed = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), listed);
        assert!(lookup("matmul_i4u8m_scalar_n1").is_some());
        assert!(lookup("matmul_i4u8m_scalar_n99").is_none());
    }
}
