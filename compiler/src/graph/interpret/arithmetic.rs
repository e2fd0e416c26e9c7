//! Formulas of the ops on plain rows of f64: norm, RoPE, activations, softcap. No graph, no weights table, no cache.

use super::Table;
use crate::graph::{Activation, RopeShape, RopeStyle};

/// Eight sums side by side: fast enough for whole models, and still f64.
pub(super) fn dot(x: &[f64], w: &[f32]) -> f64 {
    let mut sums = [0.0f64; 8];
    let (xs, ws) = (x.chunks_exact(8), w.chunks_exact(8));
    let rest: f64 = xs
        .remainder()
        .iter()
        .zip(ws.remainder())
        .map(|(x, &w)| x * f64::from(w))
        .sum();
    for (x, w) in xs.zip(ws) {
        for i in 0..8 {
            sums[i] += x[i] * f64::from(w[i]);
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// RMSNorm of one row (Zhang and Sennrich 2019): `x / sqrt(mean(x^2) + eps) * weight`.
pub(super) fn normalise(x: &[f64], weight: &[f32], eps: f32) -> Vec<f64> {
    let square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (square + f64::from(eps)).sqrt();
    x.iter()
        .zip(weight)
        .map(|(x, &w)| x * scale * f64::from(w))
        .collect()
}

/// RoPE on the first `rot_dim` values of every head; a row of `table` is `[cos, sin]` per pair.
pub(super) fn rotate(x: &Table, table: &Table, shape: &RopeShape) -> Table {
    let half = shape.rot_dim / 2;
    let row = |(x, table): (&Vec<f64>, &Vec<f64>)| {
        let mut out = x.clone();
        for head in out.chunks_exact_mut(shape.head_dim) {
            for pair in 0..half {
                let (cos, sin) = (table[2 * pair], table[2 * pair + 1]);
                let (i, j) = match shape.style {
                    RopeStyle::Interleaved => (2 * pair, 2 * pair + 1),
                    RopeStyle::Neox => (pair, pair + half),
                };
                (head[i], head[j]) = (head[i] * cos - head[j] * sin, head[i] * sin + head[j] * cos);
            }
        }
        out
    };
    x.iter().zip(table).map(row).collect()
}

/// The logistic function.
pub(super) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// A gate and a value through a gated activation.
pub(super) fn gated(act: Activation, gate: f64, up: f64) -> f64 {
    match act {
        // Agarwal et al. 2025 (gpt-oss).
        Activation::ClampedSwish => activate(act, gate) * (up.clamp(-7.0, 7.0) + 1.0),
        _ => activate(act, gate) * up,
    }
}

/// One value through an activation.
pub(super) fn activate(act: Activation, x: f64) -> f64 {
    match act {
        Activation::Silu => x * sigmoid(x),
        Activation::Sigmoid => sigmoid(x),
        Activation::ClampedSwish => {
            let x = x.min(7.0);
            x * sigmoid(1.702 * x)
        }
        // Hendrycks and Gimpel 2016, tanh form.
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
    }
}

/// Softcap: `cap * tanh(x / cap)`.
pub(super) fn soften(x: f64, cap: f32) -> f64 {
    f64::from(cap) * (x / f64::from(cap)).tanh()
}

/// `f` of every value.
pub(super) fn map(x: &Table, f: impl Fn(f64) -> f64) -> Table {
    x.iter()
        .map(|row| row.iter().map(|&x| f(x)).collect())
        .collect()
}

/// `f` of the values of two tables of the same shape.
pub(super) fn zip(a: &Table, b: &Table, f: impl Fn(f64, f64) -> f64) -> Table {
    let rows = a.iter().zip(b);
    rows.map(|(a, b)| a.iter().zip(b).map(|(&a, &b)| f(a, b)).collect())
        .collect()
}
