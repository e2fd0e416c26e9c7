//! Evaluates a graph one op at a time in f64 over plain vectors: the oracle that passes, kernels and engines are
//! compared with. Slow on purpose and free of any kernel; nothing here decides how a real step runs.

use std::collections::BTreeMap;

use coldpress_kernels::cpu::abi::ACT_GROUP;
use coldpress_kernels::quant::{self, QuantFormat};

use super::{
    Activation, HeadNorm, Op, OpGraph, RopeShape, RopeStyle, Source, Value, Weight, WeightId,
};
use crate::error::Error;
use crate::gguf::Gguf;

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

/// Values of every weight of a graph, dequantised. Passes keep weights, so one set serves before and after.
#[derive(Clone)]
pub struct Weights<'g> {
    /// By weight; `None` for a matrix that is read from `gguf` row by row when it is needed.
    held: Vec<Option<Vec<f32>>>,
    gguf: Option<&'g Gguf>,
}

impl<'g> Weights<'g> {
    /// Reads and dequantises all weights of `graph`.
    ///
    /// # Errors
    /// `Error::Model` when a tensor is not in the file or has another size, `Error::Unsupported` for its type.
    pub fn read(graph: &OpGraph, gguf: &'g Gguf) -> Result<Weights<'g>, Error> {
        Weights::held(graph, gguf, |_| true)
    }

    /// Holds vectors only and dequantises matrices row by row at each use: a large model in little memory.
    ///
    /// # Errors
    /// As [`Weights::read`].
    pub fn stream(graph: &OpGraph, gguf: &'g Gguf) -> Result<Weights<'g>, Error> {
        Weights::held(graph, gguf, |weight| weight.n == 1)
    }

    fn held(
        graph: &OpGraph,
        gguf: &'g Gguf,
        hold: impl Fn(&Weight) -> bool,
    ) -> Result<Weights<'g>, Error> {
        let mut held = Vec::with_capacity(graph.weights.len());
        for weight in &graph.weights {
            held.push(match &weight.source {
                Source::Computed(values) => Some(values.clone()),
                Source::Gguf => {
                    let (format, data) = stored(weight, gguf)?;
                    hold(weight).then(|| {
                        let mut values = vec![0.0; weight.n * weight.k];
                        quant::dequantise_row(format, data, &mut values);
                        values
                    })
                }
            });
        }
        Ok(Weights {
            held,
            gguf: Some(gguf),
        })
    }

    /// Values of each weight, in the order of `OpGraph::weights`.
    pub fn new(values: Vec<Vec<f32>>) -> Weights<'static> {
        Weights {
            held: values.into_iter().map(Some).collect(),
            gguf: None,
        }
    }

    fn vector(&self, id: WeightId) -> &[f32] {
        self.held[id.0 as usize].as_deref().unwrap_or_default()
    }

    /// Row `row` of a matrix, in `buffer` if it is not held.
    fn row<'b>(
        &'b self,
        weight: &Weight,
        id: WeightId,
        row: usize,
        buffer: &'b mut Vec<f32>,
    ) -> &'b [f32] {
        if let Some(values) = &self.held[id.0 as usize] {
            return &values[row * weight.k..(row + 1) * weight.k];
        }
        buffer.resize(weight.k, 0.0);
        // `held` has looked every weight up; without a file nothing is streamed.
        if let Some(Ok((format, data))) = self.gguf.map(|gguf| stored(weight, gguf)) {
            let bytes = data.len() / weight.n;
            quant::dequantise_row(format, &data[row * bytes..(row + 1) * bytes], buffer);
        }
        buffer
    }
}

/// Format and bytes of a weight in the file.
fn stored<'g>(weight: &Weight, gguf: &'g Gguf) -> Result<(&'static QuantFormat, &'g [u8]), Error> {
    let tensor = gguf.tensor(&weight.name);
    let tensor = tensor.filter(|t| t.n() * t.k() == (weight.n * weight.k) as u64);
    let tensor = tensor.ok_or_else(|| Error::Model {
        what: weight.name.clone(),
        why: format!("not in the file as [{},{}]", weight.n, weight.k),
    })?;
    let format = quant::format(tensor.ty).ok_or_else(|| Error::Unsupported {
        what: weight.name.clone(),
        why: format!("{} cannot be dequantised", tensor.ty),
    })?;
    Ok((format, gguf.data(tensor)))
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

/// A graph being evaluated, with its KV cache.
pub struct Interpreter<'a> {
    graph: &'a OpGraph,
    weights: &'a Weights<'a>,
    rounding: Rounding,
    cache: BTreeMap<CacheKey, KeyValue>,
}

impl<'a> Interpreter<'a> {
    /// An interpreter with an empty KV cache.
    pub fn new(graph: &'a OpGraph, weights: &'a Weights<'a>, rounding: Rounding) -> Self {
        Interpreter {
            graph,
            weights,
            rounding,
            cache: BTreeMap::new(),
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
                    let mut output = self.matmul(inputs[0], part.weight);
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
            } => {
                let rows = inputs[0].iter().zip(rows);
                let attend = |(q, row): (&Vec<f64>, &Row)| {
                    self.attend(*layer, *heads, f64::from(*scale), *softcap, q, row)
                };
                one(rows.map(attend).collect::<Result<_, Error>>()?)
            }
            Op::Act(act) => one(map(inputs[0], |x| activate(*act, x))),
            Op::Mul => one(zip(inputs[0], inputs[1], |a, b| a * b)),
            Op::Add => one(zip(inputs[0], inputs[1], |a, b| a + b)),
            Op::GatedAct(act) => one(zip(inputs[0], inputs[1], |a, b| activate(*act, a) * b)),
            Op::GatedActQuantise(act) => {
                let gated = zip(inputs[0], inputs[1], |a, b| activate(*act, a) * b);
                one(self.quantise(&gated))
            }
            Op::Scale(factor) => one(map(inputs[0], |x| x * f64::from(*factor))),
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

    /// Threads take spans of the matrix's rows; each output is one dot product, so the split changes nothing.
    fn matmul(&self, x: &Table, id: WeightId) -> Table {
        let weight = self.graph.weight(id);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let span = weight.n.div_ceil(threads).max(64);
        let columns: Vec<Vec<f64>> = std::thread::scope(|scope| {
            let spans = (0..weight.n).step_by(span).map(|start| {
                scope.spawn(move || {
                    let mut buffer = Vec::new();
                    let rows = start..(start + span).min(weight.n);
                    rows.flat_map(|row| {
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
        heads: usize,
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
            let largest = scores.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
            let weights: Vec<_> = scores.iter().map(|s| (s - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            out.extend(span.map(|i| {
                let mixed = weights.iter().zip(&cached).map(|(w, (_, v))| w * v[i]);
                mixed.sum::<f64>() / total
            }));
        }
        Ok(out)
    }
}

/// Eight sums side by side: fast enough for whole models, and still f64.
fn dot(x: &[f64], w: &[f32]) -> f64 {
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

fn normalise(x: &[f64], weight: &[f32], eps: f32) -> Vec<f64> {
    let square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (square + f64::from(eps)).sqrt();
    x.iter()
        .zip(weight)
        .map(|(x, &w)| x * scale * f64::from(w))
        .collect()
}

fn rotate(x: &Table, table: &Table, shape: &RopeShape) -> Table {
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

fn activate(act: Activation, x: f64) -> f64 {
    match act {
        Activation::Silu => x / (1.0 + (-x).exp()),
        // Hendrycks and Gimpel 2016, tanh form.
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
    }
}

fn soften(x: f64, cap: f32) -> f64 {
    f64::from(cap) * (x / f64::from(cap)).tanh()
}

fn map(x: &Table, f: impl Fn(f64) -> f64) -> Table {
    x.iter()
        .map(|row| row.iter().map(|&x| f(x)).collect())
        .collect()
}

fn zip(a: &Table, b: &Table, f: impl Fn(f64, f64) -> f64) -> Table {
    let rows = a.iter().zip(b);
    rows.map(|(a, b)| a.iter().zip(b).map(|(&a, &b)| f(a, b)).collect())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::pass;

    fn fixtures() -> Option<PathBuf> {
        let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/fixtures");
        let root = std::env::var_os("COLDPRESS_FIXTURES").unwrap_or_else(|| default.into());
        let root = PathBuf::from(root);
        if !root.is_dir() {
            let ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
            assert!(!ci, "fixtures not found");
            println!("skipped: fixtures not found");
            return None;
        }
        Some(root)
    }

    fn nmse(found: &[Vec<f64>], expected: &[f32]) -> f64 {
        let (mut error, mut energy) = (0.0, 0.0);
        for (a, &b) in found.iter().flatten().zip(expected) {
            error += (a - f64::from(b)).powi(2);
            energy += f64::from(b).powi(2);
        }
        error / energy
    }

    struct Fixture {
        gguf: Gguf,
        rows: Vec<Row>,
        exact: Vec<f32>,
    }

    fn fixture(root: &Path, entry: &serde_json::Value) -> Fixture {
        let path = |key: &str| root.join(entry[key].as_str().unwrap());
        let tokens = entry["tokens"].as_array().unwrap().iter();
        let row = |(position, token): (usize, &serde_json::Value)| Row {
            token: token.as_u64().unwrap() as u32,
            slot: 0,
            position,
            wants_logits: true,
        };
        let bytes = std::fs::read(path("logits")).unwrap();
        let (values, _) = bytes.as_chunks::<4>();
        Fixture {
            gguf: Gguf::open(&path("file")).unwrap(),
            rows: tokens.enumerate().map(row).collect(),
            exact: values.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        }
    }

    /// Logits in two steps, so that the second reads the cache of the first.
    fn logits(
        graph: &OpGraph,
        weights: &Weights,
        rows: &[Row],
        rounding: Rounding,
    ) -> Vec<Vec<f64>> {
        let mut interpreter = Interpreter::new(graph, weights, rounding);
        let (first, second) = rows.split_at(rows.len() / 3);
        let mut logits = interpreter.step(first).unwrap();
        logits.extend(interpreter.step(second).unwrap());
        logits
    }

    #[test]
    fn logits_are_the_golden_ones_before_and_after_all_passes() {
        let Some(root) = fixtures() else { return };
        let index = std::fs::read_to_string(root.join("index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_str(&index).unwrap();
        let mut compared = 0;
        for entry in index["models"].as_array().unwrap() {
            let name = entry["name"].as_str().unwrap();
            let known = crate::model::ARCHITECTURES
                .iter()
                .any(|a| entry["arch"] == a.name);
            let types = entry["tensor_types"].as_object().unwrap();
            let readable = types
                .keys()
                .all(|ty| quant::FORMATS.iter().any(|format| format.ty.name() == ty));
            if !known || !readable {
                continue;
            }
            let Fixture { gguf, rows, exact } = fixture(&root, entry);
            let mut graph = crate::model::build(&gguf).unwrap().graph;
            let weights = Weights::read(&graph, &gguf).unwrap();
            let before = logits(&graph, &weights, &rows, Rounding::Exact);
            assert_eq!(before.len() * before[0].len(), exact.len());
            let error = nmse(&before, &exact);
            println!("{name}: {error:e}");
            assert!(error < 1e-9, "{name}: {error:e}");
            compared += 1;

            pass::run_all(&mut graph, None).unwrap();
            let few = &rows[..6];
            let after = logits(&graph, &weights, few, Rounding::Exact);
            for (a, b) in before.iter().zip(&after) {
                let close = a
                    .iter()
                    .zip(b)
                    .all(|(a, b)| (a - b).abs() < 1e-11 * (1.0 + a.abs()));
                assert!(close, "{name} changes in the passes");
            }
            if entry["quant"] == "Q8_0" {
                let rounded = logits(&graph, &weights, few, Rounding::Int8);
                let native = entry["native_nmse"].as_f64().unwrap();
                let error = nmse(&rounded, &exact[..rounded.len() * rounded[0].len()]);
                assert!(
                    (native / 10.0..native * 10.0).contains(&error),
                    "{name}: {error:e} against {native:e}"
                );
            }
        }
        assert!(compared >= 8, "only {compared} fixtures compared");
    }

    #[test]
    fn wrong_rows_are_refused() {
        let tiny = crate::pass::tests::Tiny::PLAIN;
        let (graph, gguf) = (tiny.graph(), tiny.gguf());
        let weights = Weights::read(&graph, &gguf).unwrap();
        let row = |token, position| Row {
            token,
            slot: 0,
            position,
            wants_logits: true,
        };
        let mut interpreter = Interpreter::new(&graph, &weights, Rounding::Exact);
        let error = interpreter.step(&[row(8, 0)]).unwrap_err();
        assert_eq!(error.to_string(), "token 8 of 8");
        let error = interpreter.step(&[row(1, 0), row(1, 2)]).unwrap_err();
        assert!(error.to_string().contains("never run"), "{error}");
    }
}
