//! Evaluates a graph one op at a time in f64 over plain vectors: the oracle that passes, kernels and engines are
//! compared with. Slow on purpose and free of any kernel; nothing here decides how a real step runs.
//! Formulas are in `interpret/arithmetic.rs`, the reading of weights in `interpret/weights.rs`.

mod arithmetic;
mod experts;
mod recurrent;
#[cfg(test)]
mod tests;
mod weights;

pub use weights::Weights;

use std::collections::BTreeMap;
use std::ops::Range;

use coldpress_kernels::cpu::abi::ACT_GROUP;

use super::{HeadNorm, Op, OpGraph, Value, WeightId};
use crate::error::Error;
use crate::gguf::Gguf;
use arithmetic::{activate, dot, gated, map, normalise, rotate, sigmoid, soften, zip};
use recurrent::{Delta, State};

/// One token of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Token id.
    pub token: u32,
    /// Sequence it belongs to.
    pub slot: usize,
    /// Position in the sequence.
    pub position: usize,
    /// Whether its logits are computed.
    pub wants_logits: bool,
}

/// What `Quantise` ops do to values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Nothing: results are exact.
    Exact,
    /// Round to int8 with one f32 scale per 16 values, as kernels do.
    Int8,
}

/// Exact logits of every position of one prompt, in a fresh cache; weights are streamed from the file.
///
/// # Errors
/// As [`Weights::read`] and [`Interpreter::step`].
pub fn prompt_logits(graph: &OpGraph, gguf: &Gguf, tokens: &[u32]) -> Result<Vec<Vec<f32>>, Error> {
    let weights = Weights::stream(graph, gguf)?;
    let row = |(position, &token)| Row {
        token,
        slot: 0,
        position,
        wants_logits: true,
    };
    let rows: Vec<Row> = tokens.iter().enumerate().map(row).collect();
    let logits = Interpreter::new(graph, &weights, Rounding::Exact).step(&rows)?;
    Ok(logits
        .into_iter()
        .map(|row| row.into_iter().map(|x| x as f32).collect())
        .collect())
}

/// Rows of one value, each `width` long; none for `KvWritten`.
type Table = Vec<Vec<f64>>;

/// KV layer, slot and position.
type CacheKey = (usize, usize, usize);

/// K and V of one token, all heads.
type KeyValue = (Vec<f64>, Vec<f64>);

/// A graph being evaluated, with its KV cache and its recurrent states.
pub struct Interpreter<'a> {
    graph: &'a OpGraph,
    weights: &'a Weights<'a>,
    rounding: Rounding,
    cache: BTreeMap<CacheKey, KeyValue>,
    /// By state and slot.
    states: BTreeMap<(usize, usize), State>,
}

impl<'a> Interpreter<'a> {
    /// An interpreter that has seen no sequence.
    pub fn new(graph: &'a OpGraph, weights: &'a Weights<'a>, rounding: Rounding) -> Self {
        Interpreter {
            graph,
            weights,
            rounding,
            cache: BTreeMap::new(),
            states: BTreeMap::new(),
        }
    }

    /// Runs one step and returns the logits of the rows that want them, in row order.
    ///
    /// # Errors
    /// `Error::Usage` for a token outside the vocabulary or a gap before a row's position.
    pub fn step(&mut self, rows: &[Row]) -> Result<Vec<Vec<f64>>, Error> {
        let mut values = BTreeMap::<Value, Table>::new();
        let mut logits = Vec::new();
        for index in self.graph.order() {
            let node = &self.graph.nodes[index];
            let inputs = self.graph.inputs(index);
            let inputs: Vec<&Table> = inputs.iter().map(|input| &values[input]).collect();
            if node.op == Op::Logits {
                logits = inputs[0].clone();
                continue;
            }
            let outputs = self.evaluate(&node.op, &inputs, rows)?;
            values.extend(self.graph.outputs(index).into_iter().zip(outputs));
        }
        Ok(logits)
    }

    fn evaluate(&mut self, op: &Op, inputs: &[&Table], rows: &[Row]) -> Result<Vec<Table>, Error> {
        let one = |table| Ok(vec![table]);
        match op {
            Op::Embed { weight, scale } => {
                let matrix = self.graph.weight(*weight);
                let mut buffer = Vec::new();
                let embed = |row: &Row| {
                    if row.token as usize >= matrix.n {
                        return Err(Error::Usage(format!("token {} of {}", row.token, matrix.n)));
                    }
                    let weights =
                        self.weights
                            .row(matrix, *weight, row.token as usize, &mut buffer);
                    Ok(weights
                        .iter()
                        .map(|&w| f64::from(w) * f64::from(*scale))
                        .collect())
                };
                one(rows.iter().map(embed).collect::<Result<_, Error>>()?)
            }
            Op::RmsNorm { weight, eps } => one(self.rms_norm(inputs[0], *weight, *eps)),
            Op::NormQuantise { weight, eps } => {
                let normed = self.rms_norm(inputs[0], *weight, *eps);
                one(self.quantise(&normed))
            }
            Op::MatMul { parts, residual } => {
                let mut outputs = Vec::with_capacity(parts.len());
                for part in parts {
                    let x: Vec<&Vec<f64>> = inputs[0].iter().collect();
                    let n = self.graph.weight(part.weight).n;
                    let mut output = self.matmul(&x, part.weight, 0..n);
                    if let Some(bias) = part.bias {
                        let bias = self.weights.vector(bias);
                        for row in &mut output {
                            row.iter_mut()
                                .zip(bias)
                                .for_each(|(y, &b)| *y += f64::from(b));
                        }
                    }
                    if *residual {
                        output = zip(&output, inputs[1], |y, r| y + r);
                    }
                    outputs.push(output);
                }
                Ok(outputs)
            }
            Op::Route(routing) => one(experts::route(inputs[0], routing)),
            Op::ExpertMatMul { parts, experts } => {
                let parts = parts.iter();
                Ok(parts
                    .map(|part| self.expert_matmul(inputs[0], inputs[1], part, *experts))
                    .collect())
            }
            Op::ExpertScale { factors } => {
                let factors = self.weights.vector(*factors);
                one(experts::scale(inputs[0], inputs[1], factors))
            }
            Op::ExpertSum => one(experts::sum(inputs[0], inputs[1])),
            Op::RopeTable { inv_freq, mscale } => {
                let inv_freq = self.weights.vector(*inv_freq);
                let angles = |row: &Row| {
                    let turn = |&frequency: &f32| {
                        let (sin, cos) = (row.position as f64 * f64::from(frequency)).sin_cos();
                        [cos * f64::from(*mscale), sin * f64::from(*mscale)]
                    };
                    inv_freq.iter().flat_map(turn).collect()
                };
                one(rows.iter().map(angles).collect())
            }
            Op::HeadNorm { norm, .. } => one(self.head_norm(inputs[0], norm)),
            Op::Rope { shape, .. } => one(rotate(inputs[0], inputs[1], shape)),
            Op::KvAppend { layer } => {
                self.append(*layer, inputs[0], inputs[1], rows);
                one(Table::new())
            }
            Op::RopeAppend {
                layer,
                shape,
                q_norm,
                k_norm,
                ..
            } => {
                let normed = |x: &Table, norm: &Option<HeadNorm>| match norm {
                    Some(norm) => self.head_norm(x, norm),
                    None => x.clone(),
                };
                let (q, k) = (normed(inputs[0], q_norm), normed(inputs[1], k_norm));
                let k = rotate(&k, inputs[3], shape);
                self.append(*layer, &k, inputs[2], rows);
                Ok(vec![rotate(&q, inputs[3], shape), Table::new()])
            }
            Op::Attention {
                layer,
                heads,
                scale,
                softcap,
                sinks,
            } => {
                let sinks = sinks.map(|id| self.weights.vector(id));
                let rows = inputs[0].iter().zip(rows);
                let attend = |(q, row): (&Vec<f64>, &Row)| {
                    self.attend(*layer, (*heads, sinks), f64::from(*scale), *softcap, q, row)
                };
                one(rows.map(attend).collect::<Result<_, Error>>()?)
            }
            Op::ShortConv { state, weight } => {
                one(self.short_conv(*state, *weight, inputs[0], rows)?)
            }
            Op::DeltaRule {
                state,
                heads,
                a,
                dt,
                eps,
            } => {
                let delta = Delta {
                    heads,
                    a: *a,
                    dt: *dt,
                    eps: *eps,
                };
                one(self.delta_rule(*state, &delta, inputs, rows)?)
            }
            Op::Act(act) => one(map(inputs[0], |x| activate(*act, x))),
            Op::Mul => one(zip(inputs[0], inputs[1], |a, b| a * b)),
            Op::Add => one(zip(inputs[0], inputs[1], |a, b| a + b)),
            Op::GatedAct(act) => one(zip(inputs[0], inputs[1], |a, b| gated(*act, a, b))),
            Op::GatedActQuantise(act) => {
                let gated = zip(inputs[0], inputs[1], |a, b| gated(*act, a, b));
                one(self.quantise(&gated))
            }
            Op::GateRows => {
                let rows = inputs[0].iter().zip(inputs[1]);
                let gate = |(x, gate): (&Vec<f64>, &Vec<f64>)| {
                    x.iter().map(|x| x * sigmoid(gate[0])).collect()
                };
                one(rows.map(gate).collect())
            }
            Op::Scale(factor) => one(map(inputs[0], |x| x * f64::from(*factor))),
            Op::Columns { start, width } => {
                let columns = *start..start + width;
                one(inputs[0]
                    .iter()
                    .map(|row| row[columns.clone()].to_vec())
                    .collect())
            }
            Op::Softcap(cap) => one(map(inputs[0], |x| soften(x, *cap))),
            Op::Quantise => one(self.quantise(inputs[0])),
            Op::SelectRows => {
                let wanted = inputs[0].iter().zip(rows);
                let wanted = wanted.filter(|(_, row)| row.wants_logits);
                one(wanted.map(|(x, _)| x.clone()).collect())
            }
            Op::Logits => Ok(Vec::new()),
        }
    }

    /// The products with some rows of a matrix. Threads take spans of them; each output is one dot product, so the split
    /// changes nothing.
    fn matmul(&self, x: &[&Vec<f64>], id: WeightId, rows: Range<usize>) -> Table {
        let weight = self.graph.weight(id);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let span = rows.len().div_ceil(threads).max(64);
        let columns: Vec<Vec<f64>> = std::thread::scope(|scope| {
            let spans = rows.clone().step_by(span).map(|start| {
                let end = (start + span).min(rows.end);
                scope.spawn(move || {
                    let mut buffer = Vec::new();
                    (start..end)
                        .flat_map(|row| {
                            let w = self.weights.row(weight, id, row, &mut buffer);
                            x.iter().map(|x| dot(x, w)).collect::<Vec<_>>()
                        })
                        .collect::<Vec<f64>>()
                })
            });
            let spans: Vec<_> = spans.collect();
            spans
                .into_iter()
                .map(|s| s.join().unwrap_or_default())
                .collect()
        });
        self.weights.release(weight, id, rows.clone());
        let columns = columns.concat();
        (0..x.len())
            .map(|i| columns.iter().skip(i).step_by(x.len()).copied().collect())
            .collect()
    }

    fn rms_norm(&self, x: &Table, weight: WeightId, eps: f32) -> Table {
        let weight = self.weights.vector(weight);
        x.iter().map(|row| normalise(row, weight, eps)).collect()
    }

    fn head_norm(&self, x: &Table, norm: &HeadNorm) -> Table {
        let weight = self.weights.vector(norm.weight);
        let heads = |row: &Vec<f64>| {
            let heads = row.chunks_exact(weight.len());
            heads
                .flat_map(|head| normalise(head, weight, norm.eps))
                .collect()
        };
        x.iter().map(heads).collect()
    }

    fn quantise(&self, x: &Table) -> Table {
        let round = |group: &[f64]| {
            let largest = group.iter().fold(0.0f64, |max, x| max.max(x.abs()));
            let scale = f64::from((largest / 127.0) as f32);
            let rounded = |&x: &f64| match scale {
                0.0 => 0.0,
                _ => (x / scale).round().clamp(-127.0, 127.0) * scale,
            };
            group.iter().map(rounded).collect::<Vec<_>>()
        };
        match self.rounding {
            Rounding::Exact => x.clone(),
            Rounding::Int8 => {
                let row = |row: &Vec<f64>| row.chunks(ACT_GROUP).flat_map(round).collect();
                x.iter().map(row).collect()
            }
        }
    }

    fn append(&mut self, layer: usize, k: &Table, v: &Table, rows: &[Row]) {
        for ((k, v), row) in k.iter().zip(v).zip(rows) {
            let key = (layer, row.slot, row.position);
            self.cache.insert(key, (k.clone(), v.clone()));
        }
    }

    fn attend(
        &self,
        layer: usize,
        (heads, sinks): (usize, Option<&[f32]>),
        scale: f64,
        softcap: Option<f32>,
        q: &[f64],
        row: &Row,
    ) -> Result<Vec<f64>, Error> {
        let kv = self.graph.kv[layer];
        let first = match kv.window {
            Some(window) => (row.position + 1).saturating_sub(window),
            None => 0,
        };
        let cached = (first..=row.position).map(|position| {
            self.cache.get(&(layer, row.slot, position)).ok_or_else(|| {
                let (slot, at) = (row.slot, row.position);
                Error::Usage(format!(
                    "slot {slot}: position {at} attends to {position}, which was never run"
                ))
            })
        });
        let cached = cached.collect::<Result<Vec<_>, _>>()?;
        let mut out = Vec::with_capacity(q.len());
        for (head, q) in q.chunks_exact(kv.head_dim).enumerate() {
            let at = head / (heads / kv.kv_heads) * kv.head_dim;
            let span = at..at + kv.head_dim;
            let score = |k: &Vec<f64>| {
                let dot: f64 = k[span.clone()].iter().zip(q).map(|(k, q)| k * q).sum();
                softcap.map_or(dot * scale, |cap| soften(dot * scale, cap))
            };
            let scores: Vec<_> = cached.iter().map(|(k, _)| score(k)).collect();
            let sink = sinks.map_or(f64::NEG_INFINITY, |sinks| f64::from(sinks[head]));
            let largest = scores.iter().fold(sink, |a, &b| a.max(b));
            let weights: Vec<_> = scores.iter().map(|s| (s - largest).exp()).collect();
            let total: f64 = weights.iter().sum::<f64>() + (sink - largest).exp();
            out.extend(span.map(|i| {
                let mixed = weights.iter().zip(&cached).map(|(w, (_, v))| w * v[i]);
                mixed.sum::<f64>() / total
            }));
        }
        Ok(out)
    }
}
