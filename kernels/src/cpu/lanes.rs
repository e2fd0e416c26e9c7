//! What a vector ISA must offer so that norm, rope, attention, gated activations and recurrent layers are written once: `Lanes`, a vector of
//! f32. The bodies in `lanes/` are inlined into `#[target_feature]` functions, which `lanes/stamp.rs` makes for `avx2` and
//! `avx512`. Matmul and quantise, whose instructions differ by ISA, are no business of this trait.

pub mod attention;
pub mod cache;
pub mod gated;
pub mod mix;
pub mod norm;
pub mod partial;
pub mod queries;
pub mod recurrent;
pub mod rope;
pub mod score;
pub(crate) mod stamp;

use crate::cpu::abi::Q8Block;

/// A vector of f32 in a register.
///
/// # Safety
/// Every function expects that this CPU has the ISA; those with pointers, that the `N` elements (or as many as said) are
/// readable or writable. No alignment beyond the element's is needed.
pub trait Lanes: Copy {
    /// Elements, a divisor of 16.
    const N: usize;
    /// Query heads whose dot products with four tokens fit in registers.
    const SCORE_HEADS: usize;
    /// Elements of four query heads' weighted sums that fit in registers.
    const MIX_WIDTH: usize;

    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self;
    /// `N` floats.
    unsafe fn load(p: *const f32) -> Self;
    /// Writes `N` floats.
    unsafe fn store(p: *mut f32, a: Self);
    /// `n < N` floats, then zeros; only those are read.
    unsafe fn load_part(p: *const f32, n: usize) -> Self;
    /// Writes the first `n < N` lanes.
    unsafe fn store_part(p: *mut f32, n: usize, a: Self);
    /// `2 N` floats as their even and odd elements.
    unsafe fn load_pairs(p: *const f32) -> (Self, Self);
    /// Undoes [`Lanes::load_pairs`].
    unsafe fn store_pairs(p: *mut f32, even: Self, odd: Self);
    /// `N` halves.
    unsafe fn load_f16(p: *const u16) -> Self;
    /// All lanes the half at `p`.
    unsafe fn splat_f16(p: *const u16) -> Self;
    /// Writes `N` halves, rounded to nearest even.
    unsafe fn store_f16(p: *mut u16, a: Self);
    /// `N` signed bytes.
    unsafe fn load_i8(p: *const i8) -> Self;
    /// Writes `N` signed bytes, rounded to nearest even and saturated.
    unsafe fn store_i8(p: *mut i8, a: Self);
    /// `a + b`.
    unsafe fn add(a: Self, b: Self) -> Self;
    /// `a - b`.
    unsafe fn sub(a: Self, b: Self) -> Self;
    /// `a * b`.
    unsafe fn mul(a: Self, b: Self) -> Self;
    /// `a / b`.
    unsafe fn div(a: Self, b: Self) -> Self;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self, b: Self, c: Self) -> Self;
    /// The larger; `b` where either is NaN.
    unsafe fn max(a: Self, b: Self) -> Self;
    /// The smaller; `b` where either is NaN.
    unsafe fn min(a: Self, b: Self) -> Self;
    /// Magnitude.
    unsafe fn abs(a: Self) -> Self;
    /// Nearest integer, ties to even.
    unsafe fn round(a: Self) -> Self;
    /// `2^n` for integers -126..=127.
    unsafe fn exp2_int(n: Self) -> Self;
    /// `yes` where `a < b`, else `no`.
    unsafe fn select_less(a: Self, b: Self, yes: Self, no: Self) -> Self;
    /// Lane 0.
    unsafe fn first(a: Self) -> f32;
    /// Sum of all lanes, in a fixed order.
    unsafe fn sum(a: Self) -> f32;
    /// Largest lane.
    unsafe fn largest(a: Self) -> f32;
    /// The sums of four vectors, to `p[0..4]`.
    unsafe fn store_sums(p: *mut f32, a: [Self; 4]);
    /// Asks for the cache line at `p`, which may be anywhere, into L2: it is not used soon, and L2 can wait for more lines
    /// of memory at once than L1.
    unsafe fn prefetch(p: *const u8);
    /// The ISA's own row quantiser, see `scalar::quantise::quantise_row`.
    unsafe fn quantise_row(x: *const f32, out: *mut Q8Block, k: usize);
}

/// Smallest argument whose exponential is a normal number; [`exp`] is 0 below it.
const EXP_MIN: f32 = -87.336_55;
/// Largest argument before [`exp`] saturates.
const EXP_MAX: f32 = 88.0;

/// `e^x`, relative error about 1e-7; 0 below [`EXP_MIN`], saturated above [`EXP_MAX`].
///
/// Range reduction and polynomial: Moshier, Cephes 2.2, `expf.c`.
///
/// # Safety
/// The CPU has the ISA.
#[inline(always)]
pub unsafe fn exp<V: Lanes>(x: V) -> V {
    // SAFETY: promised by the caller.
    unsafe {
        let bounded = V::min(V::splat(EXP_MAX), V::max(V::splat(EXP_MIN), x));
        let n = V::round(V::mul(bounded, V::splat(std::f32::consts::LOG2_E)));
        let r = V::fma(n, V::splat(-0.693_359_4), bounded);
        let r = V::fma(n, V::splat(2.121_944_4e-4), r);
        let mut p = V::splat(1.987_569_1e-4);
        for c in [
            1.398_199_9e-3,
            8.333_452e-3,
            4.166_579_6e-2,
            1.666_666_5e-1,
            0.5,
        ] {
            p = V::fma(p, r, V::splat(c));
        }
        let y = V::add(V::fma(p, V::mul(r, r), r), V::splat(1.0));
        let y = V::mul(y, V::exp2_int(n));
        V::select_less(x, V::splat(EXP_MIN), V::splat(0.0), y)
    }
}

/// `tanh(x)`, relative error about 2e-7.
///
/// Polynomial below 0.625: Moshier, Cephes 2.2, `tanhf.c`; above, `1 - 2 / (e^2x + 1)`.
///
/// # Safety
/// The CPU has the ISA.
#[inline(always)]
pub unsafe fn tanh<V: Lanes>(x: V) -> V {
    // SAFETY: promised by the caller.
    unsafe {
        let one = V::splat(1.0);
        let magnitude = V::abs(x);
        let e = exp::<V>(V::add(magnitude, magnitude));
        let large = V::sub(one, V::div(V::splat(2.0), V::add(e, one)));
        let large = V::select_less(x, V::splat(0.0), V::sub(V::splat(0.0), large), large);
        let z = V::mul(x, x);
        let mut p = V::splat(-5.704_988_7e-3);
        for c in [2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1] {
            p = V::fma(p, z, V::splat(c));
        }
        let small = V::fma(V::mul(p, z), x, x);
        V::select_less(magnitude, V::splat(0.625), small, large)
    }
}

/// Asks for all cache lines of `bytes` bytes.
///
/// # Safety
/// The CPU has the ISA.
#[inline(always)]
unsafe fn prefetch<V: Lanes>(p: *const u8, bytes: usize) {
    for at in (0..bytes).step_by(64) {
        // SAFETY: promised by the caller.
        unsafe { V::prefetch(p.wrapping_add(at)) };
    }
}

/// Implements [`Lanes`] functions whose bodies are intrinsics.
macro_rules! lane_functions {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) $(-> $out:ty)? { $($body:tt)* })*) => {$(
        #[inline(always)]
        unsafe fn $name($($arg: $ty),*) $(-> $out)? {
            // SAFETY: the caller promises the ISA and the memory.
            unsafe { $($body)* }
        }
    )*};
}
pub(crate) use lane_functions;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;
    use crate::cpu::avx2::lanes::F32x8;
    use crate::cpu::avx512::lanes::F32x16;

    /// Largest relative error over every argument from `begin` on, `1 / 64` apart.
    fn worst<V: Lanes>(begin: f32, end: f32, f: unsafe fn(V) -> V, exact: fn(f64) -> f64) -> f64 {
        let count = ((end - begin) * 64.0) as usize;
        let errors = (0..count).map(|i| {
            let x = begin + i as f32 / 64.0 + 1e-3;
            // SAFETY: only called for an ISA of this CPU.
            let y = unsafe { V::first(f(V::splat(x))) };
            (f64::from(y) / exact(f64::from(x)) - 1.0).abs()
        });
        errors.fold(0.0, f64::max)
    }

    fn check<V: Lanes>(isa: Isa) {
        if !isa.available() {
            println!("skipped: {}", isa.name());
            return;
        }
        let error = worst::<V>(-87.3, 88.0, exp::<V>, f64::exp);
        assert!(error < 2e-7, "exp is off by {error}");
        for range in [(-12.0, -0.01), (0.01, 50.0)] {
            let error = worst::<V>(range.0, range.1, tanh::<V>, f64::tanh);
            assert!(error < 3e-7, "tanh is off by {error}");
        }
        // SAFETY: this CPU has the ISA.
        unsafe {
            let exp = |x: f32| V::first(exp::<V>(V::splat(x)));
            assert_eq!(
                [exp(f32::NEG_INFINITY), exp(-90.0), exp(0.0)],
                [0.0, 0.0, 1.0]
            );
            assert!(exp(f32::NAN).is_nan());
        }
    }

    #[test]
    fn exponentials_are_f32_exact() {
        check::<F32x8>(Isa::Avx2);
        check::<F32x16>(Isa::Avx512Vnni);
    }
}
