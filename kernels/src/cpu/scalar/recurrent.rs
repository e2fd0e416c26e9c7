//! Portable short convolution and gated delta rule, and how workers divide them.

use std::ops::Range;

use crate::cpu::abi::{Step, TILE_N};
use crate::cpu::symbols::{Named, Symbol};
use crate::recurrent::{DeltaRuleFn, Heads, MAX_DIM, ShortConvFn};

/// `short_conv_scalar` of type [`ShortConvFn`] and `delta_rule_scalar` of type [`DeltaRuleFn`].
pub const SYMBOLS: &[Named] = &[
    (
        "short_conv_scalar",
        Symbol(short_conv as ShortConvFn as *const ()),
    ),
    (
        "delta_rule_scalar",
        Symbol(delta_rule as DeltaRuleFn as *const ()),
    ),
];

/// The live rows of a step: slot, and whether the row begins a sequence.
///
/// # Safety
/// `step` is valid for the launch.
pub(crate) unsafe fn rows<'s>(
    step: *const Step,
) -> impl Iterator<Item = (usize, bool)> + Clone + 's {
    // SAFETY: promised by the caller.
    let (slots, positions) = unsafe {
        let step = &*step;
        (
            std::slice::from_raw_parts(step.slots, step.rows),
            std::slice::from_raw_parts(step.positions, step.rows),
        )
    };
    let rows = slots.iter().zip(positions);
    rows.map(|(&slot, &position)| (slot as usize, position == 0))
}

/// A worker's share of the channels: whole tiles, the same for every row.
pub(crate) fn channels_of(channels: usize, worker: usize, workers: usize) -> Range<usize> {
    let tiles = channels / TILE_N;
    let at = |worker: usize| tiles * worker / workers * TILE_N;
    at(worker)..at(worker + 1)
}

/// Whether a head of a slot is the worker's: all heads of all slots take turns.
pub(crate) fn owns(slot: usize, head: usize, heads: usize, worker: usize, workers: usize) -> bool {
    (slot * heads + head) % workers == worker
}

/// Numbers of one head of one row: see [`crate::recurrent::delta_reference`].
#[derive(Clone, Copy)]
pub(crate) struct Gates {
    /// Factor of the state.
    pub decay: f32,
    /// How far the state moves towards the value.
    pub step: f32,
}

/// Computed the same on every ISA.
pub(crate) fn gates(alpha: f32, a: f32, dt: f32, beta: f32) -> Gates {
    let x = alpha + dt;
    let softplus = x.max(0.0) + (-x.abs()).exp().ln_1p();
    Gates {
        decay: (a * softplus).exp(),
        step: 1.0 / (1.0 + (-beta).exp()),
    }
}

/// # Safety
/// The contract of [`ShortConvFn`].
#[allow(clippy::too_many_arguments)]
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
    let mine = channels_of(channels, worker, workers);
    // SAFETY: the step is valid, rows are live, and slots have a state of `taps - 1` rows of channels.
    unsafe {
        for (row, (slot, begins)) in rows(step).enumerate() {
            let x = x.byte_add(row * x_stride);
            let y = y.byte_add(row * y_stride);
            let history = state.byte_add(slot * slot_stride);
            for c in mine.clone() {
                let mut sum = 0.0;
                for tap in 0..taps - 1 {
                    let past = history.add(tap * channels + c);
                    let input = if begins { 0.0 } else { *past };
                    sum += *w.add(tap * channels + c) * input;
                    if tap > 0 {
                        *history.add((tap - 1) * channels + c) = input;
                    }
                }
                let newest = *x.add(c);
                *history.add((taps - 2) * channels + c) = newest;
                sum += *w.add((taps - 1) * channels + c) * newest;
                *y.add(c) = sum / (1.0 + (-sum).exp());
            }
        }
    }
}

/// # Safety
/// The contract of [`DeltaRuleFn`].
#[allow(clippy::too_many_arguments)]
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
                let matrix = std::slice::from_raw_parts_mut(matrix, dim * dim);
                if begins {
                    matrix.fill(0.0);
                }
                let x = x.byte_add(row * x_stride);
                let part = |at: usize| std::slice::from_raw_parts(x.add(at * dim), dim);
                let (q, k) = (part(key), part(key_heads + key));
                let v = part(2 * key_heads + head);
                let gates = gates(
                    *alpha.byte_add(row * alpha_stride).add(head),
                    *a.add(head),
                    *dt.add(head),
                    *beta.byte_add(row * beta_stride).add(head),
                );
                let out = out.byte_add(row * out_stride).add(head * dim);
                let out = std::slice::from_raw_parts_mut(out, dim);
                update((q, k, v), gates, eps, matrix, out);
            }
        }
    }
}

/// One head of one row. `matrix` is `[dim of keys][dim of values]`.
fn update(
    (q, k, v): (&[f32], &[f32], &[f32]),
    gates: Gates,
    eps: f32,
    matrix: &mut [f32],
    out: &mut [f32],
) {
    let dim = q.len();
    let dot = |a: &[f32], b: &[f32]| -> f32 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    let of_k = 1.0 / (dot(k, k) + eps).sqrt();
    let of_q = 1.0 / (dot(q, q) + eps).sqrt() / (dim as f32).sqrt();
    // What the decayed state says of the key, then how far it moves.
    let mut moves = [0.0f32; MAX_DIM];
    let moves = &mut moves[..dim];
    for (row, &k) in matrix.chunks_exact(dim).zip(k) {
        moves.iter_mut().zip(row).for_each(|(m, s)| *m += s * k);
    }
    for (m, v) in moves.iter_mut().zip(v) {
        *m = (v - gates.decay * of_k * *m) * gates.step;
    }
    out.fill(0.0);
    for ((row, &k), &q) in matrix.chunks_exact_mut(dim).zip(k).zip(q) {
        let k = k * of_k;
        for ((s, m), o) in row.iter_mut().zip(moves.iter()).zip(out.iter_mut()) {
            *s = *s * gates.decay + k * m;
            *o += *s * q;
        }
    }
    out.iter_mut().for_each(|o| *o *= of_q);
}
