//! What each op accepts and what it produces: the one place that knows the arity, row domains, widths, element types
//! and weight shapes of an op. Used when a node is made and again by `graph::verify`.

use coldpress_kernels::experts::legal;
use coldpress_kernels::quant;
use coldpress_kernels::recurrent::{conv_legal, conv_state_floats, delta_state_floats};

use super::{
    Activation, DType, HeadNorm, Op, OpGraph, Part, RopeShape, Routing, Rows, VIEW_COLUMNS,
    ValueType, WeightId,
};
use crate::error::Error;

impl ValueType {
    /// f32 values.
    pub fn f32(rows: Rows, width: usize) -> ValueType {
        ValueType {
            rows,
            width,
            dtype: DType::F32,
        }
    }

    /// int8 activations.
    pub fn q8(rows: Rows, width: usize) -> ValueType {
        ValueType {
            rows,
            width,
            dtype: DType::Q8,
        }
    }

    /// The experts of each row.
    pub fn routes(used: usize) -> ValueType {
        ValueType {
            rows: Rows::Step,
            width: used,
            dtype: DType::Routes,
        }
    }

    /// The order token of a KV cache write.
    pub fn kv_written() -> ValueType {
        ValueType {
            rows: Rows::Step,
            width: 0,
            dtype: DType::KvWritten,
        }
    }
}

/// Widths of int8 rows are multiples of this.
const Q8_WIDTH: usize = coldpress_kernels::cpu::tile::GROUP_K;

impl OpGraph {
    /// Whether kernels read the weight as integers, and so its input as int8.
    pub fn is_integer(&self, weight: WeightId) -> bool {
        let format = quant::format(self.weight(weight).ty);
        format.is_some_and(|format| format.layout.int_bits().is_some())
    }

    /// Output types of `op` over inputs of these types.
    pub(super) fn infer(
        &self,
        op: &Op,
        label: &str,
        inputs: &[ValueType],
    ) -> Result<Vec<ValueType>, Error> {
        let checker = Checker { graph: self, label };
        checker.infer(op, inputs)
    }
}

struct Checker<'a> {
    graph: &'a OpGraph,
    label: &'a str,
}

impl Checker<'_> {
    fn infer(&self, op: &Op, inputs: &[ValueType]) -> Result<Vec<ValueType>, Error> {
        let one = |ty| Ok(vec![ty]);
        match op {
            Op::Embed { weight, .. } => {
                let [] = self.arity(inputs)?;
                one(ValueType::f32(Rows::Step, self.matrix(*weight)?.1))
            }
            Op::RmsNorm { weight, .. } => {
                let [x] = self.arity(inputs)?;
                self.float(x)?;
                self.vector(*weight, x.width)?;
                one(x)
            }
            Op::MatMul { parts, residual } => self.matmul(parts, *residual, inputs),
            Op::Route(routing) => {
                let [logits] = self.arity(inputs)?;
                one(self.routed(routing, logits)?)
            }
            Op::ExpertMatMul { parts, experts } => {
                let [x, routes] = self.arity(inputs)?;
                self.expert_matmul(parts, *experts, x, routes)
            }
            Op::ExpertScale { factors } => {
                let [x, routes] = self.arity(inputs)?;
                self.float(x)?;
                let used = self.used(routes)?;
                self.rows("x", x, Rows::Routed { used })?;
                let experts = self.known(*factors)?.k;
                self.vector(*factors, experts)?;
                self.ensure(legal(experts, used).is_ok(), || {
                    format!("{used} of {experts} experts")
                })?;
                one(x)
            }
            Op::ExpertSum => {
                let [x, routes] = self.arity(inputs)?;
                self.float(x)?;
                let used = self.used(routes)?;
                self.rows("x", x, Rows::Routed { used })?;
                one(ValueType::f32(Rows::Step, x.width))
            }
            Op::RopeTable { inv_freq, .. } => {
                let [] = self.arity(inputs)?;
                let half = self.graph.weight(*inv_freq).k;
                self.vector(*inv_freq, half)?;
                one(ValueType::f32(Rows::Step, 2 * half))
            }
            Op::HeadNorm { norm, heads } => {
                let [x] = self.arity(inputs)?;
                self.float(x)?;
                let head_dim = self.graph.weight(norm.weight).k;
                self.head_norm(norm, head_dim)?;
                self.width("x", x, heads * head_dim)?;
                one(x)
            }
            Op::Rope { heads, shape } => {
                let [x, table] = self.arity(inputs)?;
                self.rotates("x", x, *heads, shape)?;
                self.table(table, x, shape)?;
                one(x)
            }
            Op::KvAppend { layer } => {
                let [k, v] = self.arity(inputs)?;
                self.key_value(*layer, k, v)?;
                one(ValueType::kv_written())
            }
            Op::RopeAppend {
                layer,
                heads,
                shape,
                q_norm,
                k_norm,
            } => {
                let [q, k, v, table] = self.arity(inputs)?;
                self.key_value(*layer, k, v)?;
                self.rotates("q", q, *heads, shape)?;
                self.rotates("k", k, self.graph.kv[*layer].kv_heads, shape)?;
                self.table(table, q, shape)?;
                for norm in q_norm.iter().chain(k_norm) {
                    self.head_norm(norm, shape.head_dim)?;
                }
                Ok(vec![q, ValueType::kv_written()])
            }
            Op::Attention {
                layer,
                heads,
                sinks,
                ..
            } => {
                if let Some(sinks) = sinks {
                    self.vector(*sinks, *heads)?;
                }
                let [q, written] = self.arity(inputs)?;
                let kv = self.layer(*layer)?;
                self.float(q)?;
                self.rows("q", q, Rows::Step)?;
                self.width("q", q, heads * kv.head_dim)?;
                self.ensure(written.dtype == DType::KvWritten, || {
                    "input 1 is no KvWritten".into()
                })?;
                self.ensure(kv.kv_heads > 0 && heads.is_multiple_of(kv.kv_heads), || {
                    format!("{heads} heads over {} KV heads", kv.kv_heads)
                })?;
                one(q)
            }
            Op::ShortConv { state, weight } => {
                let [x] = self.arity(inputs)?;
                self.float(x)?;
                self.rows("x", x, Rows::Step)?;
                let (taps, channels) = self.matrix(*weight)?;
                self.width("x", x, channels)?;
                conv_legal(channels, taps).map_err(|why| self.error(why))?;
                self.state(*state, conv_state_floats(channels, taps))?;
                one(x)
            }
            Op::DeltaRule {
                state,
                heads,
                a,
                dt,
                ..
            } => {
                let [x, alpha, beta] = self.arity(inputs)?;
                heads.legal().map_err(|why| self.error(why))?;
                for (name, x, width) in [
                    ("x", x, heads.width()),
                    ("alpha", alpha, heads.heads),
                    ("beta", beta, heads.heads),
                ] {
                    self.float(x)?;
                    self.rows(name, x, Rows::Step)?;
                    self.width(name, x, width)?;
                }
                self.vector(*a, heads.heads)?;
                self.vector(*dt, heads.heads)?;
                self.state(*state, delta_state_floats(heads.heads, heads.dim))?;
                one(ValueType::f32(Rows::Step, heads.heads * heads.dim))
            }
            Op::Act(_) | Op::Scale(_) | Op::Softcap(_) => {
                let [x] = self.arity(inputs)?;
                self.float(x)?;
                self.ensure(*op != Op::Act(Activation::ClampedSwish), || {
                    "an activation that needs a gate and a value".into()
                })?;
                one(x)
            }
            Op::Columns { start, width } => {
                let [x] = self.arity(inputs)?;
                self.float(x)?;
                let whole =
                    start.is_multiple_of(VIEW_COLUMNS) && width.is_multiple_of(VIEW_COLUMNS);
                let inside = start.checked_add(*width).is_some_and(|end| end <= x.width);
                self.ensure(whole && inside && *width > 0, || {
                    format!("views {width} columns from {start} of {}", x.width)
                })?;
                one(ValueType::f32(x.rows, *width))
            }
            Op::Mul | Op::Add | Op::GatedAct(_) | Op::GatedActQuantise(_) => {
                let [a, b] = self.arity(inputs)?;
                self.float(a)?;
                self.ensure(a == b, || format!("inputs differ: {a:?} and {b:?}"))?;
                match op {
                    Op::GatedActQuantise(_) => one(self.quantised(a)?),
                    _ => one(a),
                }
            }
            Op::GateRows => {
                let [x, gate] = self.arity(inputs)?;
                self.float(x)?;
                self.float(gate)?;
                self.rows("gate", gate, x.rows)?;
                self.width("gate", gate, 1)?;
                one(x)
            }
            Op::Quantise => {
                let [x] = self.arity(inputs)?;
                one(self.quantised(x)?)
            }
            Op::NormQuantise { weight, .. } => {
                let [x] = self.arity(inputs)?;
                self.vector(*weight, x.width)?;
                one(self.quantised(x)?)
            }
            Op::SelectRows => {
                let [x] = self.arity(inputs)?;
                self.float(x)?;
                self.rows("x", x, Rows::Step)?;
                one(ValueType::f32(Rows::Logits, x.width))
            }
            Op::Logits => {
                let [x] = self.arity(inputs)?;
                self.float(x)?;
                self.rows("x", x, Rows::Logits)?;
                Ok(Vec::new())
            }
        }
    }

    fn matmul(
        &self,
        parts: &[Part],
        residual: bool,
        inputs: &[ValueType],
    ) -> Result<Vec<ValueType>, Error> {
        self.ensure(!parts.is_empty(), || "has no parts".into())?;
        let plain = parts.len() == 1 && parts[0].bias.is_none();
        self.ensure(!residual || plain, || {
            "a residual beside a bias or several parts".into()
        })?;
        let x = match residual {
            true => self.arity::<2>(inputs)?[0],
            false => self.arity::<1>(inputs)?[0],
        };
        let integers = self.integers(parts)?;
        self.activations(x, integers)?;
        let mut outputs = Vec::with_capacity(parts.len());
        for part in parts {
            let (n, k) = self.matrix(part.weight)?;
            self.width("x", x, k)?;
            if let Some(bias) = part.bias {
                self.vector(bias, n)?;
            }
            outputs.push(ValueType::f32(x.rows, n));
        }
        self.ensure(!residual || inputs[1] == outputs[0], || {
            format!("residual is {:?}, output {:?}", inputs[1], outputs[0])
        })?;
        Ok(outputs)
    }

    /// Whether all weights are integers; none may be while others are not.
    fn integers(&self, parts: &[Part]) -> Result<bool, Error> {
        let integers = parts
            .iter()
            .filter(|part| self.graph.is_integer(part.weight))
            .count();
        self.ensure(integers == 0 || integers == parts.len(), || {
            "integer and float weights share a matmul".into()
        })?;
        Ok(integers > 0)
    }

    /// Rows that matmuls of integer or float weights read.
    fn activations(&self, x: ValueType, integers: bool) -> Result<(), Error> {
        match x.dtype {
            DType::F32 => Ok(()),
            DType::Q8 => self.ensure(integers, || "float weights read int8 rows".into()),
            DType::KvWritten | DType::Routes => Err(self.error("input 0 has no data")),
        }
    }

    fn routed(&self, routing: &Routing, logits: ValueType) -> Result<ValueType, Error> {
        self.float(logits)?;
        self.rows("logits", logits, Rows::Step)?;
        let (used, experts) = (routing.used, logits.width);
        self.ensure(legal(experts, used).is_ok(), || {
            format!("{used} of {experts} experts")
        })?;
        Ok(ValueType::routes(used))
    }

    fn expert_matmul(
        &self,
        parts: &[Part],
        experts: usize,
        x: ValueType,
        routes: ValueType,
    ) -> Result<Vec<ValueType>, Error> {
        self.ensure(!parts.is_empty(), || "has no parts".into())?;
        let used = self.used(routes)?;
        self.ensure(legal(experts, used).is_ok(), || {
            format!("{used} of {experts} experts")
        })?;
        let rows = Rows::Routed { used };
        self.ensure(x.rows == Rows::Step || x.rows == rows, || {
            format!("x has {:?} rows, routes are {routes:?}", x.rows)
        })?;
        self.activations(x, self.integers(parts)?)?;
        let mut outputs = Vec::with_capacity(parts.len());
        for part in parts {
            let (n, k) = self.matrix(part.weight)?;
            self.width("x", x, k)?;
            self.ensure(n.is_multiple_of(experts), || {
                format!("{n} outputs of {experts} experts")
            })?;
            if let Some(bias) = part.bias {
                let bias = self.known(bias)?;
                self.ensure((bias.n, bias.k) == (experts, n / experts), || {
                    format!("{} is [{},{}]", bias.name, bias.n, bias.k)
                })?;
            }
            outputs.push(ValueType::f32(rows, n / experts));
        }
        Ok(outputs)
    }

    /// Experts that a row uses by these routes.
    fn used(&self, routes: ValueType) -> Result<usize, Error> {
        self.ensure(routes.dtype == DType::Routes, || {
            format!("reads {routes:?}, needs routes")
        })?;
        Ok(routes.width)
    }

    fn error(&self, what: impl std::fmt::Display) -> Error {
        Error::Internal(format!("node {}: {what}", self.label))
    }

    fn ensure(&self, holds: bool, what: impl FnOnce() -> String) -> Result<(), Error> {
        match holds {
            true => Ok(()),
            false => Err(self.error(what())),
        }
    }

    fn arity<const N: usize>(&self, inputs: &[ValueType]) -> Result<[ValueType; N], Error> {
        inputs
            .try_into()
            .map_err(|_| self.error(format!("{} inputs, needs {N}", inputs.len())))
    }

    fn float(&self, x: ValueType) -> Result<(), Error> {
        self.ensure(x.dtype == DType::F32, || format!("reads {x:?}, needs f32"))
    }

    fn rows(&self, name: &str, x: ValueType, rows: Rows) -> Result<(), Error> {
        self.ensure(x.rows == rows, || {
            format!("{name} has {:?} rows, needs {rows:?} rows", x.rows)
        })
    }

    fn width(&self, name: &str, x: ValueType, width: usize) -> Result<(), Error> {
        self.ensure(x.width == width, || {
            format!("{name} is {} wide, needs {width}", x.width)
        })
    }

    fn matrix(&self, id: WeightId) -> Result<(usize, usize), Error> {
        let weight = self.known(id)?;
        self.ensure(weight.n > 0 && weight.k > 0, || {
            format!("{} is empty", weight.name)
        })?;
        Ok((weight.n, weight.k))
    }

    fn vector(&self, id: WeightId, len: usize) -> Result<(), Error> {
        let weight = self.known(id)?;
        self.ensure((weight.n, weight.k) == (1, len), || {
            let (name, n, k) = (&weight.name, weight.n, weight.k);
            format!("{name} is [{n},{k}], needs [1,{len}]")
        })
    }

    fn known(&self, id: WeightId) -> Result<&super::Weight, Error> {
        let weight = self.graph.weights.get(id.0 as usize);
        weight.ok_or_else(|| self.error(format!("no weight {}", id.0)))
    }

    fn layer(&self, layer: usize) -> Result<super::KvLayer, Error> {
        let kv = self.graph.kv.get(layer).copied();
        kv.ok_or_else(|| self.error(format!("no KV layer {layer}")))
    }

    fn state(&self, state: usize, floats: usize) -> Result<(), Error> {
        let found = self.graph.states.get(state).map(|state| state.floats);
        self.ensure(found == Some(floats), || {
            format!("state {state} has {found:?} elements, needs {floats}")
        })
    }

    fn head_norm(&self, norm: &HeadNorm, head_dim: usize) -> Result<(), Error> {
        self.vector(norm.weight, head_dim)
    }

    fn rotates(
        &self,
        name: &str,
        x: ValueType,
        heads: usize,
        shape: &RopeShape,
    ) -> Result<(), Error> {
        self.float(x)?;
        self.width(name, x, heads * shape.head_dim)?;
        self.ensure(
            shape.rot_dim.is_multiple_of(2) && shape.rot_dim <= shape.head_dim,
            || format!("rotates {} of {}", shape.rot_dim, shape.head_dim),
        )
    }

    fn table(&self, table: ValueType, x: ValueType, shape: &RopeShape) -> Result<(), Error> {
        self.float(table)?;
        self.rows("table", table, x.rows)?;
        self.width("table", table, shape.rot_dim)
    }

    fn key_value(&self, layer: usize, k: ValueType, v: ValueType) -> Result<(), Error> {
        let kv = self.layer(layer)?;
        for (name, x) in [("k", k), ("v", v)] {
            self.float(x)?;
            self.rows(name, x, Rows::Step)?;
            self.width(name, x, kv.kv_heads * kv.head_dim)?;
        }
        Ok(())
    }

    fn quantised(&self, x: ValueType) -> Result<ValueType, Error> {
        self.float(x)?;
        self.ensure(x.width.is_multiple_of(Q8_WIDTH), || {
            format!("quantises {} values, no multiple of {Q8_WIDTH}", x.width)
        })?;
        Ok(ValueType::q8(x.rows, x.width))
    }
}
