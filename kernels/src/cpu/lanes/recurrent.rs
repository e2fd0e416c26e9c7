//! Short convolution and gated delta rule over vectors of any ISA. Sums run in an order that depends on nothing but the
//! shape, and a row reads what the row before it left in memory, so that neither chunks nor company change a bit.

use super::{Lanes, exp};
use crate::cpu::abi::{Step, TILE_N};
use crate::cpu::scalar::recurrent::{Gates, channels_of, gates, owns, rows};
use crate::recurrent::Heads;

/// Channels whose taps and state stay in L1 while rows pass over them.
const SPAN: usize = 256;

/// Chains that a sum over keys is divided among, so that additions do not wait for each other.
const CHAINS: usize = 4;

/// `x / (1 + e^-x)`.
///
/// # Safety
/// The CPU has the ISA.
#[inline(always)]
unsafe fn silu<V: Lanes>(x: V) -> V {
    // SAFETY: promised by the caller.
    unsafe {
        let e = exp::<V>(V::sub(V::splat(0.0), x));
        V::div(x, V::add(e, V::splat(1.0)))
    }
}

/// Body of a [`crate::recurrent::ShortConvFn`].
///
/// # Safety
/// The CPU has the ISA; the contract of [`crate::recurrent::ShortConvFn`].
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub unsafe fn short_conv<V: Lanes>(
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
    let mine = channels_of(channels, worker, workers);
    // SAFETY: the step is valid, rows are live, channels are whole vectors, and slots have a state of `taps - 1` rows of
    // channels.
    unsafe {
        for first in mine.clone().step_by(SPAN) {
            let end = (first + SPAN).min(mine.end);
            for (row, (slot, begins)) in rows(step).enumerate() {
                let x = x.byte_add(row * x_stride);
                let y = y.byte_add(row * y_stride);
                let history = state.byte_add(slot * slot_stride);
                for c in (first..end).step_by(V::N) {
                    let mut sum = V::splat(0.0);
                    for tap in 0..taps - 1 {
                        let past = match begins {
                            true => V::splat(0.0),
                            false => V::load(history.add(tap * channels + c)),
                        };
                        sum = V::fma(V::load(w.add(tap * channels + c)), past, sum);
                        if tap > 0 {
                            V::store(history.add((tap - 1) * channels + c), past);
                        }
                    }
                    let newest = V::load(x.add(c));
                    V::store(history.add((taps - 2) * channels + c), newest);
                    sum = V::fma(V::load(w.add((taps - 1) * channels + c)), newest, sum);
                    V::store(y.add(c), silu::<V>(sum));
                }
            }
        }
    }
}

/// Body of a [`crate::recurrent::DeltaRuleFn`]. A head's matrix lies in columns of `V::N` values: `[dim / N][dim][N]`.
///
/// # Safety
/// The CPU has the ISA; the contract of [`crate::recurrent::DeltaRuleFn`].
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub unsafe fn delta_rule<V: Lanes>(
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
    let shape = Heads {
        key_heads,
        heads,
        dim,
        grouped: grouped == 1,
    };
    let eps = f32::from_bits(eps_bits as u32);
    for head in 0..heads {
        let key = shape.key_of(head);
        // SAFETY: the step is valid, rows are live, and slots have a state of `heads` matrices.
        unsafe {
            for (row, (slot, begins)) in rows(step).enumerate() {
                if !owns(slot, head, heads, worker, workers) {
                    continue;
                }
                let matrix = state.byte_add(slot * slot_stride).add(head * dim * dim);
                if begins {
                    matrix.write_bytes(0, dim * dim);
                }
                let x = x.byte_add(row * x_stride);
                let operands = Operands {
                    q: x.add(key * dim),
                    k: x.add((key_heads + key) * dim),
                    v: x.add((2 * key_heads + head) * dim),
                    out: out.byte_add(row * out_stride).add(head * dim),
                };
                let gates = gates(
                    *alpha.byte_add(row * alpha_stride).add(head),
                    *a.add(head),
                    *dt.add(head),
                    *beta.byte_add(row * beta_stride).add(head),
                );
                update::<V>(operands, gates, eps, dim, matrix);
            }
        }
    }
}

/// Where one head of one row is.
#[derive(Clone, Copy)]
struct Operands {
    q: *const f32,
    k: *const f32,
    v: *const f32,
    out: *mut f32,
}

/// `sum_i a[i] b[i]` over `dim` elements, a multiple of 16.
///
/// # Safety
/// The CPU has the ISA; both hold `dim` floats.
#[inline(always)]
unsafe fn dot<V: Lanes>(a: *const f32, b: *const f32, dim: usize) -> f32 {
    // SAFETY: every load is below `dim`.
    unsafe {
        let mut sum = V::splat(0.0);
        for i in (0..dim).step_by(V::N) {
            sum = V::fma(V::load(a.add(i)), V::load(b.add(i)), sum);
        }
        V::sum(sum)
    }
}

/// One head of one row. One pass over a column reads what the state says of key and query, another moves it:
///
/// ```text
/// m = S^T k, p = S^T q;   d = (v - g m) b;   S = g S + k d^T;   out = g p + (k q) d
/// ```
///
/// # Safety
/// The CPU has the ISA; the operands hold `dim` floats each, a multiple of 16, and `matrix` the head's state.
#[inline(always)]
unsafe fn update<V: Lanes>(
    Operands { q, k, v, out }: Operands,
    gates: Gates,
    eps: f32,
    dim: usize,
    matrix: *mut f32,
) {
    // SAFETY: promised by the caller; a column is `dim` vectors.
    unsafe {
        let of_k = 1.0 / (dot::<V>(k, k, dim) + eps).sqrt();
        let of_q = 1.0 / (dot::<V>(q, q, dim) + eps).sqrt() / (dim as f32).sqrt();
        let both = V::splat(dot::<V>(k, q, dim) * of_k * of_q);
        let (decay, step) = (V::splat(gates.decay), V::splat(gates.step));
        let of_m = V::splat(-gates.decay * of_k);
        let of_p = V::splat(gates.decay * of_q);
        let unit = V::splat(of_k);
        for j in (0..dim).step_by(V::N) {
            let column = matrix.add(j * dim);
            let (mut m, mut p) = ([V::splat(0.0); CHAINS], [V::splat(0.0); CHAINS]);
            for i in (0..dim).step_by(CHAINS) {
                for chain in 0..CHAINS {
                    let s = V::load(column.add((i + chain) * V::N));
                    m[chain] = V::fma(s, V::splat(*k.add(i + chain)), m[chain]);
                    p[chain] = V::fma(s, V::splat(*q.add(i + chain)), p[chain]);
                }
            }
            let m = V::add(V::add(m[0], m[2]), V::add(m[1], m[3]));
            let p = V::add(V::add(p[0], p[2]), V::add(p[1], p[3]));
            let d = V::mul(V::fma(m, of_m, V::load(v.add(j))), step);
            V::store(out.add(j), V::fma(d, both, V::mul(p, of_p)));
            let d = V::mul(d, unit);
            for i in 0..dim {
                let s = column.add(i * V::N);
                let kept = V::mul(V::load(s), decay);
                V::store(s, V::fma(V::splat(*k.add(i)), d, kept));
            }
        }
    }
}

const _: () = assert!(TILE_N.is_multiple_of(CHAINS) && SPAN.is_multiple_of(TILE_N));
