//! Inline loops for element-wise work: four f32 lanes at a time, transcendental functions as polynomials, so that the
//! step program calls no libm and a row's result does not depend on where it runs.

use super::emit::Emit;
use crate::graph::Activation;
use crate::plan::{Buffer, Elementwise};
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Value, types};
use std::ops::Range;

/// f32 lanes of one vector and vectors of one loop trip. Rows are padded to 16 elements, so a trip never leaves a row.
const LANES: usize = 4;
const UNROLL: usize = 4;

/// Emits `output[r][i] = op(inputs[r][i]...)` for `rows` and i in 0..width (rounded up to the row's padding).
pub(super) fn emit(
    emit: &mut Emit<'_>,
    op: Elementwise,
    inputs: &[Buffer],
    output: Buffer,
    width: usize,
    rows: Range<usize>,
    fma: bool,
) {
    let trips = width.div_ceil(LANES * UNROLL);
    let step = LANES * UNROLL * 4;
    emit.counted_loop(0, 1, rows.len(), |emit, row| {
        let base = |emit: &mut Emit<'_>, b: Buffer| {
            let first = emit.arena_at(b.offset + rows.start * b.stride);
            emit.scaled(first, row, b.stride)
        };
        let sources: Vec<Value> = inputs.iter().map(|&b| base(emit, b)).collect();
        let target = base(emit, output);
        emit.counted_loop(0, step, trips, |emit, byte| {
            let at = |emit: &mut Emit<'_>, p: Value| emit.pos.ins().iadd(p, byte);
            let sources: Vec<Value> = sources.iter().map(|&p| at(emit, p)).collect();
            let target = at(emit, target);
            for u in 0..UNROLL {
                let offset = (u * LANES * 4) as i32;
                let x: Vec<Value> = sources
                    .iter()
                    .map(|&p| {
                        emit.pos
                            .ins()
                            .load(types::F32X4, MemFlagsData::trusted(), p, offset)
                    })
                    .collect();
                let y = Lanes { emit, fma }.apply(op, &x);
                emit.pos
                    .ins()
                    .store(MemFlagsData::trusted(), y, target, offset);
            }
        });
    });
}

/// Vector arithmetic on F32X4 values.
struct Lanes<'e, 'f> {
    emit: &'e mut Emit<'f>,
    fma: bool,
}

impl Lanes<'_, '_> {
    fn apply(&mut self, op: Elementwise, x: &[Value]) -> Value {
        match op {
            Elementwise::Add => self.emit.pos.ins().fadd(x[0], x[1]),
            Elementwise::Mul => self.mul(x[0], x[1]),
            Elementwise::Act(a) => self.activation(a, x[0]),
            Elementwise::GatedAct(Activation::ClampedSwish) => {
                let gate = self.activation(Activation::ClampedSwish, x[0]);
                let (low, high) = (self.constant(-7.0), self.constant(7.0));
                let value = self.emit.pos.ins().fmax(x[1], low);
                let value = self.emit.pos.ins().fmin(value, high);
                self.mul_add(gate, value, gate)
            }
            Elementwise::GatedAct(a) => {
                let gate = self.activation(a, x[0]);
                self.mul(gate, x[1])
            }
            Elementwise::Scale(factor) => {
                let factor = self.constant(factor);
                self.mul(x[0], factor)
            }
            Elementwise::Softcap(cap) => {
                let (inverse, cap) = (self.constant(1.0 / cap), self.constant(cap));
                let scaled = self.mul(x[0], inverse);
                let t = self.tanh(scaled);
                self.mul(t, cap)
            }
        }
    }

    fn activation(&mut self, activation: Activation, x: Value) -> Value {
        match activation {
            Activation::Sigmoid => {
                let minus = self.emit.pos.ins().fneg(x);
                let e = self.exp(minus);
                let one = self.constant(1.0);
                let denominator = self.emit.pos.ins().fadd(e, one);
                self.emit.pos.ins().fdiv(one, denominator)
            }
            Activation::Silu => {
                let minus = self.emit.pos.ins().fneg(x);
                let e = self.exp(minus);
                let one = self.constant(1.0);
                let denominator = self.emit.pos.ins().fadd(e, one);
                self.emit.pos.ins().fdiv(x, denominator)
            }
            // min(x, 7) sigmoid(1.702 min(x, 7)): gpt-oss.
            Activation::ClampedSwish => {
                let (high, slope) = (self.constant(7.0), self.constant(-1.702));
                let x = self.emit.pos.ins().fmin(x, high);
                let minus = self.mul(x, slope);
                let e = self.exp(minus);
                let one = self.constant(1.0);
                let denominator = self.emit.pos.ins().fadd(e, one);
                self.emit.pos.ins().fdiv(x, denominator)
            }
            // 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): Hendrycks & Gimpel, arXiv 1606.08415.
            Activation::GeluTanh => {
                let (half, one) = (self.constant(0.5), self.constant(1.0));
                let (c, root) = (self.constant(0.044_715), self.constant(0.797_884_6));
                let square = self.mul(x, x);
                let cubic = self.mul(square, c);
                let factor = self.emit.pos.ins().fadd(cubic, one);
                let scaled = self.mul(x, root);
                let inner = self.mul(scaled, factor);
                let t = self.tanh(inner);
                let t1 = self.emit.pos.ins().fadd(t, one);
                let half_x = self.mul(x, half);
                self.mul(half_x, t1)
            }
        }
    }

    /// tanh(x) = 1 - 2 / (exp(2x) + 1).
    fn tanh(&mut self, x: Value) -> Value {
        let (one, two) = (self.constant(1.0), self.constant(2.0));
        let double = self.mul(x, two);
        let e = self.exp(double);
        let denominator = self.emit.pos.ins().fadd(e, one);
        let quotient = self.emit.pos.ins().fdiv(two, denominator);
        self.emit.pos.ins().fsub(one, quotient)
    }

    /// exp(x) after Cephes `expf` (S. Moshier): x = n ln 2 + r, polynomial in r, exponent bits from n. n comes out of
    /// the low mantissa bits after adding 1.5 * 2^23. Arguments are clamped to +-87, inside the range of normal floats.
    fn exp(&mut self, x: Value) -> Value {
        let (low, high) = (self.constant(-87.0), self.constant(87.0));
        let x = self.emit.pos.ins().fmax(x, low);
        let x = self.emit.pos.ins().fmin(x, high);
        let magic = self.constant(12_582_912.0);
        let log2e = self.constant(std::f32::consts::LOG2_E);
        let shifted = self.mul_add(x, log2e, magic);
        let n = self.emit.pos.ins().fsub(shifted, magic);
        let ln2_high = self.constant(-0.693_359_4);
        let ln2_low = self.constant(2.121_944_4e-4);
        let r = self.mul_add(n, ln2_high, x);
        let r = self.mul_add(n, ln2_low, r);
        let coefficients = [
            1.987_569_1e-4,
            1.398_199_9e-3,
            8.333_452e-3,
            4.166_579_6e-2,
            1.666_666_5e-1,
            5.0e-1,
        ];
        let mut p = self.constant(coefficients[0]);
        for c in &coefficients[1..] {
            let c = self.constant(*c);
            p = self.mul_add(p, r, c);
        }
        let square = self.mul(r, r);
        let one = self.constant(1.0);
        let p = self.mul_add(p, square, r);
        let p = self.emit.pos.ins().fadd(p, one);
        let flags = MemFlagsData::new().with_endianness(cranelift_codegen::ir::Endianness::Little);
        let bits = self.emit.pos.ins().bitcast(types::I32X4, flags, shifted);
        let shift = self.emit.pos.ins().iconst(types::I32, 23);
        let exponent = self.emit.pos.ins().ishl(bits, shift);
        let bits = self.emit.pos.ins().bitcast(types::I32X4, flags, p);
        let scaled = self.emit.pos.ins().iadd(bits, exponent);
        self.emit.pos.ins().bitcast(types::F32X4, flags, scaled)
    }

    fn constant(&mut self, value: f32) -> Value {
        let scalar = self.emit.pos.ins().f32const(value);
        self.emit.pos.ins().splat(types::F32X4, scalar)
    }

    fn mul(&mut self, a: Value, b: Value) -> Value {
        self.emit.pos.ins().fmul(a, b)
    }

    /// a * b + c, fused where the target has it.
    fn mul_add(&mut self, a: Value, b: Value, c: Value) -> Value {
        if self.fma {
            self.emit.pos.ins().fma(a, b, c)
        } else {
            let product = self.mul(a, b);
            self.emit.pos.ins().fadd(product, c)
        }
    }
}
