//! Weights, activations and what a matmul of them should give.

use super::*;
use coldpress_kernels::gpu::tile::{TILE_N, matrix_bytes, pack_tile_row};
use coldpress_kernels::quant::{Scale, Store, Unpacked, dequantise_row};
use half::f16;

/// Parts of one launch.
pub struct Case {
    pub fmt: &'static QuantFormat,
    pub k: usize,
    pub parts: Vec<Part>,
    /// Whether gate and up have their biases.
    pub biased_gates: bool,
}

/// One matrix.
pub struct Part {
    pub n: usize,
    pub packed: Vec<u8>,
    pub bias: Vec<f32>,
    weights: Vec<f32>,
}

impl Part {
    /// What a residual adds: rows of f32, `stride` bytes apart.
    pub fn residual(&self, rows: usize, stride: usize) -> Vec<u8> {
        let mut bytes = vec![0xff; rows * stride];
        for (row, bytes) in bytes.chunks_exact_mut(stride).enumerate() {
            for (n, bytes) in bytes.chunks_exact_mut(4).take(self.n).enumerate() {
                bytes.copy_from_slice(&residual_at(row, n).to_le_bytes());
            }
        }
        bytes
    }
}

impl Part {
    /// Weight of the norm that follows a residual.
    pub fn norm_weight(&self) -> Vec<f32> {
        (0..self.n).map(|n| (n % 11) as f32 * 0.5 - 2.0).collect()
    }
}

fn residual_at(row: usize, n: usize) -> f32 {
    ((row * 31 + n * 7) % 23) as f32 * 0.5 - 4.0
}

/// What norms add to mean squares.
pub const EPS: f32 = 1e-3;
/// Rows whose norm is pending are smaller by this factor.
const NORM_SCALE: f64 = 32.0;

/// Bytes of f32s.
pub fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Bytes that an output row has, and those between rows.
pub fn out_row(epilogue: Epilogue, n: usize) -> (usize, usize) {
    let bytes = match epilogue {
        Epilogue::Store | Epilogue::Residual | Epilogue::ResidualNorm(_) => 4 * n,
        Epilogue::Gated(_, ActForm::F32) => 4 * n,
        Epilogue::Gated(_, ActForm::F16) => ActForm::F16.stride(n),
        Epilogue::Gated(_, ActForm::Q8) => {
            let padded = n.next_multiple_of(64);
            padded + padded / 32 * 8
        }
    };
    (bytes, bytes.next_multiple_of(64) + 64)
}

impl Case {
    /// Random weights of ordinary size.
    pub fn new(fmt: &'static QuantFormat, outputs: &[usize], k: usize, seed: u64) -> Case {
        let parts = outputs.iter().enumerate().map(|(i, &n)| {
            let raw = raw_rows(fmt, n, k, seed * 1000 + i as u64);
            let rows: Vec<&[u8]> = raw.chunks_exact(raw.len() / n).collect();
            let mut packed = vec![0xff; matrix_bytes(&fmt.layout, n, k).expect("legal k")];
            let tile_row = matrix_bytes(&fmt.layout, TILE_N, k).expect("legal k");
            for (rows, out) in rows.chunks(TILE_N).zip(packed.chunks_exact_mut(tile_row)) {
                pack_tile_row(fmt, k, rows, out);
            }
            let mut weights = vec![0.0; n * k];
            for (row, out) in rows.iter().zip(weights.chunks_exact_mut(k)) {
                dequantise_row(fmt, row, out);
            }
            Part {
                n,
                packed,
                bias: (0..n).map(|i| (i * 13 % 29) as f32 * 0.25 - 3.0).collect(),
                weights,
            }
        });
        Case {
            fmt,
            k,
            parts: parts.collect(),
            biased_gates: false,
        }
    }

    /// Outputs of each part.
    pub fn outputs(&self) -> Vec<usize> {
        self.parts.iter().map(|part| part.n).collect()
    }

    /// Bytes that a row with a pending norm has, and those between rows, if the epilogue leaves any.
    pub fn normed_row(&self, epilogue: Epilogue) -> Option<(usize, usize)> {
        let Epilogue::ResidualNorm(form) = epilogue else {
            return None;
        };
        let n = self.parts[0].n;
        let bytes = form.pending_offset(n) + n.next_multiple_of(64) / 4;
        Some((bytes, form.pending_stride(n) + 64))
    }

    /// Compares output rows with sums in f64, allowing for f32 sums, and for halves where weights become halves.
    pub fn compare(
        &self,
        epilogue: Epilogue,
        form: ActForm,
        rows: &Rows,
        results: &[Vec<u8>],
    ) -> Result<(), String> {
        let rows_factor = |r: usize| rows.factor(r);
        for (r, (x, result)) in rows.values(form).iter().zip(results).enumerate() {
            let mut rest = &result[..];
            // Sum and tolerance of every output of every part.
            let sums = |part: &Part| -> Vec<(f64, f64)> {
                let rows = part.weights.chunks_exact(self.k);
                let factor = rows_factor(r);
                let sums = rows.map(|w| dot(w, x, form == ActForm::F16));
                sums.map(|(s, t)| (s * factor, (t + s.abs() * 1e-6) * factor))
                    .collect()
            };
            if let Epilogue::Gated(gate, out) = epilogue {
                let biased = |part: &Part| -> Vec<(f64, f64)> {
                    let bias = part.bias.iter().map(|&b| match self.biased_gates {
                        true => f64::from(b),
                        false => 0.0,
                    });
                    let sums = sums(part).into_iter().zip(bias);
                    sums.map(|((sum, t), b)| (sum + b, t + b.abs() * 1e-6))
                        .collect()
                };
                let (gates, ups) = (biased(&self.parts[0]), biased(&self.parts[1]));
                let expected: Vec<(f64, f64)> = gates
                    .iter()
                    .zip(&ups)
                    .map(|(g, u)| gated(gate, *g, *u))
                    .collect();
                check_activations(out, &expected, result).map_err(|e| format!("row {r}: {e}"))?;
                continue;
            }
            for part in &self.parts {
                let (now, later) = rest.split_at(4 * part.n);
                rest = later;
                for (n, ((sum, tolerance), got)) in
                    sums(part).into_iter().zip(now.chunks_exact(4)).enumerate()
                {
                    let got = f64::from(f32::from_le_bytes(got.try_into().expect("4 bytes")));
                    let added = match epilogue {
                        Epilogue::Residual | Epilogue::ResidualNorm(_) => residual_at(r, n),
                        _ => part.bias[n],
                    };
                    let want = sum + f64::from(added);
                    near(want, got, tolerance + 1e-6)
                        .map_err(|e| format!("row {r} output {n}: {e}"))?;
                }
            }
            if let Epilogue::ResidualNorm(out) = epilogue {
                let part = &self.parts[0];
                let left = &result[..4 * part.n];
                let left: Vec<f64> = left
                    .chunks_exact(4)
                    .map(|b| f64::from(f32::from_le_bytes(b.try_into().expect("4 bytes"))))
                    .collect();
                check_pending(out, &left, &part.norm_weight(), rest)
                    .map_err(|e| format!("row {r}, its norm: {e}"))?;
            }
        }
        Ok(())
    }
}

fn near(want: f64, got: f64, tolerance: f64) -> Result<(), String> {
    if (want - got).abs() <= tolerance {
        return Ok(());
    }
    Err(format!("{got} instead of {want} (+-{tolerance:.2e})"))
}

/// Exact sum, and how far f32 sums of it (of products with halves) may be.
fn dot(w: &[f32], x: &[f64], halves: bool) -> (f64, f64) {
    let sum: f64 = w.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum();
    // A weight is the difference of numbers as large as the largest of its neighbours.
    let largest = w.iter().fold(0.0f32, |m, w| m.max(w.abs()));
    let size: f64 = x.iter().map(|x| x.abs()).sum::<f64>() * f64::from(largest);
    (sum, size * if halves { 4e-4 } else { 4e-7 } + 1e-30)
}

fn gated(gate: Gate, (g, dg): (f64, f64), (u, du): (f64, f64)) -> (f64, f64) {
    let u = match gate {
        Gate::Clamped => 1.0 + u.clamp(-7.0, 7.0),
        Gate::Silu | Gate::Gelu => u,
    };
    let act = match gate {
        Gate::Clamped => {
            let g = g.min(7.0);
            g / (1.0 + (-1.702 * g).exp())
        }
        Gate::Silu => g / (1.0 + (-g).exp()),
        Gate::Gelu => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g * g * g);
            0.5 * g * (1.0 + inner.tanh())
        }
    };
    // Neither function is steeper than 1.2.
    let tolerance = 1.2 * dg * (u.abs() + du) + act.abs() * du;
    (act * u, tolerance + 2e-6 * (g * u).abs() + 1e-6)
}

/// Checks one row in the form of activations, its padding included.
fn check_activations(form: ActForm, expected: &[(f64, f64)], row: &[u8]) -> Result<(), String> {
    let n = expected.len();
    let single = |at: usize| f32::from_le_bytes(row[at..at + 4].try_into().expect("4 bytes"));
    let padded = match form {
        ActForm::F32 => n,
        ActForm::F16 | ActForm::Q8 => n.next_multiple_of(64),
    };
    let limit = if form == ActForm::F16 {
        65504.0
    } else {
        f64::MAX
    };
    let want = |k: usize| match expected.get(k) {
        Some(&(want, tolerance)) => (want.clamp(-limit, limit), tolerance),
        None => (0.0, 0.0),
    };
    for k in 0..padded {
        let (at, (want, tolerance)) = (form.position(k), want(k));
        let (got, rounding) = match form {
            ActForm::F32 => (single(4 * at), 0.0),
            ActForm::F16 => {
                let half = f16::from_le_bytes([row[2 * at], row[2 * at + 1]]);
                (half.to_f32(), want.abs() * 5e-4 + 1e-7)
            }
            ActForm::Q8 => {
                let d = single(padded + k / 32 * 8);
                (d * f32::from(row[at] as i8), f64::from(d) * 0.501)
            }
        };
        let rounding = if k < n { rounding } else { 0.0 };
        near(want, got.into(), tolerance + rounding).map_err(|e| format!("element {k}: {e}"))?;
    }
    if form == ActForm::Q8 {
        for group in 0..padded / 32 {
            let ks = group * 32..group * 32 + 32;
            let largest = ks.clone().map(|k| want(k).0.abs()).fold(0.0, f64::max);
            let tolerance = ks.clone().map(|k| want(k).1).fold(0.0, f64::max);
            let d = single(padded + group * 8);
            near(
                largest / 127.0,
                d.into(),
                tolerance / 127.0 + largest * 1e-6,
            )
            .map_err(|e| format!("scale {group}: {e}"))?;
            let sum: i32 = ks.map(|k| i32::from(row[form.position(k)] as i8)).sum();
            let scaled = single(padded + group * 8 + 4);
            if scaled != d * sum as f32 {
                return Err(format!("sum {group}: {scaled} instead of {d} * {sum}"));
            }
        }
    }
    Ok(())
}

/// Checks one row whose norm is pending: x times the weight, and the sums of squares.
fn check_pending(form: ActForm, x: &[f64], weight: &[f32], row: &[u8]) -> Result<(), String> {
    let weighted = x.iter().zip(weight).map(|(x, &w)| {
        let want = x * f64::from(w) / NORM_SCALE;
        (want, want.abs() * 1e-6)
    });
    check_activations(form, &weighted.collect::<Vec<_>>(), row)?;
    let sums = &row[form.pending_offset(x.len())..];
    for (i, bytes) in sums.chunks_exact(4).enumerate() {
        let got = f64::from(f32::from_le_bytes(bytes.try_into().expect("4 bytes")));
        let squares = x.iter().skip(16 * i).take(16).map(|x| x * x);
        let want: f64 = squares.sum();
        near(want, got, want * 1e-6).map_err(|e| format!("sum {i}: {e}"))?;
    }
    Ok(())
}

/// Activation rows.
pub struct Rows {
    pub count: usize,
    /// Whether their norm is.
    pub pending: bool,
    k: usize,
    x: Vec<f32>,
}

impl Rows {
    /// Rows of different sizes and signs.
    pub fn new(count: usize, k: usize) -> Rows {
        let mut random = Random(count as u64 * 1_000_003 + k as u64);
        let x = (0..count * k).map(|i| random.unit() * (1.0 + (i / k % 5) as f32) + 0.1);
        Rows {
            count,
            pending: false,
            k,
            x: x.collect(),
        }
    }

    /// The same rows, their norm pending.
    pub fn pending(self) -> Rows {
        Rows {
            pending: true,
            ..self
        }
    }

    /// Bytes between rows.
    pub fn stride(&self, form: ActForm) -> usize {
        match self.pending {
            true => form.pending_stride(self.k),
            false => form.stride(self.k),
        }
    }

    /// Sums of squares of a row: of what, only the row and `k` say.
    fn squares(&self, row: usize) -> Vec<f32> {
        let sums = 0..self.k.next_multiple_of(64) / 16;
        sums.map(|i| (1 + (i * 5 + row * 3) % 13) as f32 * 3.25)
            .collect()
    }

    /// What sums with row `row` are multiplied by.
    fn factor(&self, row: usize) -> f64 {
        let squares: f64 = self.squares(row).into_iter().map(f64::from).sum();
        match self.pending {
            true => NORM_SCALE / (squares / self.k as f64 + f64::from(EPS)).sqrt(),
            false => 1.0,
        }
    }

    /// Some of them, in this order.
    pub fn select(&self, rows: &[usize]) -> Rows {
        let x = rows
            .iter()
            .flat_map(|r| &self.x[r * self.k..(r + 1) * self.k]);
        Rows {
            count: rows.len(),
            pending: self.pending,
            k: self.k,
            x: x.copied().collect(),
        }
    }

    /// The first `count` of them.
    pub fn first(&self, count: usize) -> Rows {
        Rows {
            count,
            pending: self.pending,
            k: self.k,
            x: self.x[..count * self.k].to_vec(),
        }
    }

    /// What the kernels multiply, exactly.
    fn values(&self, form: ActForm) -> Vec<Vec<f64>> {
        let rows = self.x.chunks_exact(self.k);
        rows.map(|x| match form {
            ActForm::F32 => x.iter().map(|&v| f64::from(v)).collect(),
            ActForm::F16 => x.iter().map(|&v| f16::from_f32(v).to_f64()).collect(),
            ActForm::Q8 => {
                let groups = x.chunks(32).flat_map(|x| {
                    let (d, q) = quantise(x);
                    (0..x.len()).map(move |i| f64::from(d) * f64::from(q[i]))
                });
                groups.collect()
            }
        })
        .collect()
    }

    /// All rows in the form that kernels read, without a byte after the last.
    pub fn bytes(&self, form: ActForm) -> Vec<u8> {
        let (k, stride) = (self.k, self.stride(form));
        let padded = k.next_multiple_of(64);
        let mut all = vec![0; self.count * stride];
        let rows = self.x.chunks_exact(k).zip(all.chunks_exact_mut(stride));
        for (r, (x, row)) in rows.enumerate() {
            if self.pending {
                let sums = bytes(&self.squares(r));
                row[form.pending_offset(k)..][..sums.len()].copy_from_slice(&sums);
            }
            for (i, &v) in x.iter().enumerate() {
                let at = form.position(i);
                match form {
                    ActForm::F32 => row[4 * at..][..4].copy_from_slice(&v.to_le_bytes()),
                    ActForm::F16 => {
                        row[2 * at..][..2].copy_from_slice(&f16::from_f32(v).to_le_bytes());
                    }
                    ActForm::Q8 => {}
                }
            }
            if form == ActForm::Q8 {
                for (group, x) in x.chunks(32).enumerate() {
                    let (d, q) = quantise(x);
                    for (i, q) in q.iter().enumerate() {
                        row[form.position(group * 32 + i)] = *q as u8;
                    }
                    let sum: i32 = q.iter().map(|&q| i32::from(q)).sum();
                    let scales = &mut row[padded + group * 8..][..8];
                    scales[..4].copy_from_slice(&d.to_le_bytes());
                    scales[4..].copy_from_slice(&(d * sum as f32).to_le_bytes());
                }
            }
        }
        all
    }
}

/// Scale and integers of up to 32 activations.
fn quantise(x: &[f32]) -> (f32, [i8; 32]) {
    let d = x.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0;
    let mut q = [0; 32];
    for (q, v) in q.iter_mut().zip(x) {
        *q = if d > 0.0 {
            (v / d).round_ties_even() as i8
        } else {
            0
        };
    }
    (d, q)
}

/// xorshift64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 |= 1;
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// Between -1 and 1.
    fn unit(&mut self) -> f32 {
        (self.next() % (1 << 20)) as f32 / (1 << 19) as f32 - 1.0
    }
}

/// GGUF rows of random bytes, but for floats, and f16 scales and mins, of ordinary size.
fn raw_rows(fmt: &QuantFormat, n: usize, k: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 7);
    let bytes = n * fmt.ty.row_bytes(k as u64).expect("legal k") as usize;
    let mut raw: Vec<u8> = (0..bytes).map(|_| random.next() as u8).collect();
    let block = fmt.ty.block_bytes() as usize;
    match fmt.layout.store {
        Store::F32 => {
            for b in raw.chunks_exact_mut(4) {
                b.copy_from_slice(&random.unit().to_le_bytes());
            }
        }
        Store::F16 => {
            for b in raw.chunks_exact_mut(2) {
                b.copy_from_slice(&f16::from_f32(random.unit()).to_le_bytes());
            }
        }
        Store::Bf16 => {
            for b in raw.chunks_exact_mut(2) {
                b.copy_from_slice(&half::bf16::from_f32(random.unit()).to_le_bytes());
            }
        }
        Store::Int(_) | Store::Code(_) => {
            let fields = [field(fmt, |u| u.d[0]), field(fmt, |u| u.m[0])];
            for b in raw.chunks_exact_mut(block) {
                for at in fields.into_iter().flatten() {
                    let half = f16::from_f32(0.01 + random.unit().abs() * 0.02);
                    b[at..at + 2].copy_from_slice(&half.to_le_bytes());
                }
                if fmt.layout.scale == Scale::E8 {
                    // Exponents whose powers of two lie between 2^-8 and 2^-1.
                    b[0] = 120 + (random.next() % 8) as u8;
                }
            }
        }
    }
    raw
}

/// Where a quant block holds the f16 that `unpack` puts into a field, sign aside; `None` when it has none.
fn field(fmt: &QuantFormat, pick: fn(&Unpacked) -> u16) -> Option<usize> {
    (0..fmt.ty.block_bytes() as usize - 1).find(|&at| {
        let mut block = vec![0; fmt.ty.block_bytes() as usize];
        block[at..at + 2].copy_from_slice(&0x1234u16.to_le_bytes());
        let mut u = Unpacked::zeros(&fmt.layout);
        (fmt.unpack)(&block, &mut u);
        pick(&u) & 0x7fff == 0x1234
    })
}
