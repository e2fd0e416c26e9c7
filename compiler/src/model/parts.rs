//! A graph in the making: tensors of the file checked against what metadata says of them, and the ops that every room of a
//! decoder is built from. Attention, feed-forward, rotation, windows, embedding and head have files of their own.

use std::collections::BTreeSet;
use std::ops::Range;

use coldpress_kernels::quant;
use coldpress_kernels::tensor_type::TensorType;

use super::DEFAULT_CONTEXT;
use super::metadata::{Hparams, Metadata};
use crate::error::Error;
use crate::gguf::{Gguf, TensorInfo};
use crate::graph::{Op, OpGraph, Part, Source, Value, Weight, WeightId};

/// A graph in the making, and the tensors it has read.
pub(super) struct Builder<'a> {
    pub metadata: Metadata<'a>,
    pub hparams: Hparams,
    pub graph: OpGraph,
    /// Tokens per sequence that the graph is for.
    pub context: usize,
    /// Above this context the graph would be another one, if it would.
    pub switches_above: Option<usize>,
    /// Elements of tensors that are in computed weights.
    pub folded: u64,
    used: BTreeSet<String>,
    ignored: BTreeSet<String>,
}

/// Rows of a tensor that holds several matrices, one after the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows<'n> {
    /// Tensor name without `.weight` or `.bias`.
    pub of: &'n str,
    /// Rows of the whole tensor.
    pub total: usize,
    /// The first that is meant.
    pub first: usize,
}

/// Rows of a tensor in which those of several matrices take turns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Runs<'n> {
    /// Tensor name without `.weight` or `.bias`.
    pub of: &'n str,
    /// Rows of the whole tensor, a multiple of `stride`.
    pub total: usize,
    /// The first that is meant.
    pub first: usize,
    /// Rows that follow each other.
    pub run: usize,
    /// Rows from one run to the next.
    pub stride: usize,
}

impl Runs<'_> {
    /// Rows that are meant.
    fn count(&self) -> usize {
        self.total / self.stride * self.run
    }
}

impl<'a> Builder<'a> {
    pub fn new(
        gguf: &'a Gguf,
        architecture: &'a str,
        context: Option<usize>,
    ) -> Result<Self, Error> {
        let metadata = Metadata { gguf, architecture };
        let hparams = Hparams::read(metadata)?;
        let context = context.unwrap_or(hparams.context.min(DEFAULT_CONTEXT));
        Ok(Builder {
            metadata,
            hparams,
            graph: OpGraph::default(),
            context,
            switches_above: None,
            folded: 0,
            used: BTreeSet::new(),
            ignored: BTreeSet::new(),
        })
    }

    /// Every tensor of the file must have been read.
    pub fn check_all_read(&self) -> Result<(), Error> {
        let tensors = self.metadata.gguf.tensors().iter();
        let known = |name: &String| self.used.contains(name) || self.ignored.contains(name);
        let mut unread = tensors.filter(|t| !known(&t.name) && !is_leftover(&t.name));
        match unread.next() {
            Some(tensor) => Err(Error::Unsupported {
                what: tensor.name.clone(),
                why: format!(
                    "no {} model has this tensor, so its effect would be lost",
                    self.metadata.architecture
                ),
            }),
            None => Ok(()),
        }
    }

    /// RMS norm by the vector `LABEL.weight`.
    pub fn norm(&mut self, label: &str, x: Value) -> Result<Value, Error> {
        let width = self.graph.value_type(x).width;
        let weight = self.vector(&format!("{label}.weight"), width)?;
        let eps = self.hparams.rms_eps;
        self.graph.add_one(Op::RmsNorm { weight, eps }, label, &[x])
    }

    /// x W^T with the matrix `LABEL.weight`, times `LABEL.scale` where the file has it, plus `LABEL.bias` when the
    /// architecture may have one and the file does.
    pub fn linear(&mut self, label: &str, x: Value, n: usize, bias: bool) -> Result<Value, Error> {
        let k = self.graph.value_type(x).width;
        let part = self.part(label, (n, k), bias)?;
        self.scaled_matmul(label, x, part, label)
    }

    /// As [`Builder::linear`], with `n` rows of a tensor that holds more; so does its bias, unless `LABEL.bias` exists.
    pub fn linear_rows(
        &mut self,
        label: &str,
        x: Value,
        n: usize,
        rows: Rows,
        bias: bool,
    ) -> Result<Value, Error> {
        let k = self.graph.value_type(x).width;
        let part = self.part_of(label, (n, k), rows, bias)?;
        self.scaled_matmul(label, x, part, rows.of)
    }

    /// As [`Builder::linear`], with rows of a tensor in which others take turns with them; so do the elements of its bias.
    pub fn linear_runs(
        &mut self,
        label: &str,
        x: Value,
        runs: Runs,
        bias: bool,
    ) -> Result<Value, Error> {
        let (n, k) = (runs.count(), self.graph.value_type(x).width);
        let whole = format!("{}.weight", runs.of);
        let ty = self.matrix_type(&whole, runs.total, k)?;
        let weight = self.runs(whole, ty, runs, (n, k));
        let whole = format!("{}.bias", runs.of);
        let bias = match bias && self.has(&whole) {
            true => {
                let ty = self.vector_type(&whole, runs.total)?;
                Some(self.runs(whole, ty, runs, (1, n)))
            }
            false => None,
        };
        self.scaled_matmul(label, x, Part { weight, bias }, runs.of)
    }

    /// The matrix `LABEL.weight` and, where it may have one and does, its bias.
    pub fn part(&mut self, label: &str, (n, k): (usize, usize), bias: bool) -> Result<Part, Error> {
        let weight = self.matrix(&format!("{label}.weight"), n, k)?;
        let bias = match bias {
            true => self.bias(label, n)?,
            false => None,
        };
        Ok(Part { weight, bias })
    }

    /// As [`Builder::part`], with `n` rows of a tensor that holds more.
    pub fn part_of(
        &mut self,
        label: &str,
        (n, k): (usize, usize),
        rows: Rows,
        bias: bool,
    ) -> Result<Part, Error> {
        let span = rows.first..rows.first + n;
        let whole = format!("{}.weight", rows.of);
        let ty = self.matrix_type(&whole, rows.total, k)?;
        let weight = self.slice(whole, ty, span.clone(), (n, k));
        let together = format!("{}.bias", rows.of);
        let bias = match bias && self.has(&together) {
            true => {
                let ty = self.vector_type(&together, rows.total)?;
                Some(self.slice(together, ty, span, (1, n)))
            }
            false if bias => self.bias(label, n)?,
            false => None,
        };
        Ok(Part { weight, bias })
    }

    /// The number that products with the tensor `of` are multiplied by: `OF.scale`, or 1.
    pub fn scale_of(&mut self, of: &str) -> Result<f32, Error> {
        let name = format!("{of}.scale");
        match self.has(&name) {
            true => Ok(self.numbers(&name, 1)?[0]),
            false => Ok(1.0),
        }
    }

    /// scale x W^T + bias, with the scale of the tensor `of`. The product gets bias / scale, so that what scales it
    /// may come after.
    fn scaled_matmul(
        &mut self,
        label: &str,
        x: Value,
        part: Part,
        of: &str,
    ) -> Result<Value, Error> {
        let scale = self.scale_of(of)?;
        let bias = match part.bias {
            Some(bias) if scale != 1.0 => Some(self.divided(bias, scale, of)?),
            bias => bias,
        };
        let y = self.matmul(label, x, Part { bias, ..part })?;
        self.scale(&format!("{label}_scaled"), y, scale)
    }

    /// The vector of that id over the scale of the tensor `of`.
    fn divided(&mut self, id: WeightId, scale: f32, of: &str) -> Result<WeightId, Error> {
        if scale == 0.0 {
            return Err(Error::Model {
                what: format!("{of}.scale"),
                why: "is 0, and the product has a bias".into(),
            });
        }
        let weight = self.graph.weight(id);
        let mut values = weight.stored(self.metadata.gguf)?.values();
        let name = format!("<{} / {scale}>", weight.name);
        values.iter_mut().for_each(|value| *value /= scale);
        Ok(self.computed(&name, values))
    }

    pub fn matmul(&mut self, label: &str, x: Value, part: Part) -> Result<Value, Error> {
        let op = Op::MatMul {
            parts: vec![part],
            residual: false,
        };
        self.graph.add_one(op, label, &[x])
    }

    pub fn add(&mut self, label: &str, a: Value, b: Value) -> Result<Value, Error> {
        self.graph.add_one(Op::Add, label, &[a, b])
    }

    /// x * factor; x itself where the factor is 1.
    pub fn scale(&mut self, label: &str, x: Value, factor: f32) -> Result<Value, Error> {
        match factor {
            1.0 => Ok(x),
            _ => self.graph.add_one(Op::Scale(factor), label, &[x]),
        }
    }

    /// cap * tanh(x / cap); x itself without a cap.
    pub fn softcap(&mut self, label: &str, x: Value, cap: Option<f32>) -> Result<Value, Error> {
        match cap {
            Some(cap) => self.graph.add_one(Op::Softcap(cap), label, &[x]),
            None => Ok(x),
        }
    }

    /// Whether the file has a tensor of that name that may be read.
    pub fn has(&self, name: &str) -> bool {
        self.metadata.gguf.tensor(name).is_some() && !self.ignored.contains(name)
    }

    /// A tensor that files may have and that changes nothing: from here on the file is as good as without it.
    pub fn ignore(&mut self, name: String) {
        self.ignored.insert(name);
    }

    /// `LABEL.bias`, if the file has it.
    pub fn bias(&mut self, label: &str, n: usize) -> Result<Option<WeightId>, Error> {
        let name = format!("{label}.bias");
        match self.has(&name) {
            true => self.vector(&name, n).map(Some),
            false => Ok(None),
        }
    }

    /// `count` matrices `[n, k]` in one tensor, whose rows the weight has on top of each other.
    pub fn matrices(
        &mut self,
        name: &str,
        (n, k): (usize, usize),
        count: usize,
    ) -> Result<WeightId, Error> {
        let ty = self.matrices_type(name, (n, k), count)?;
        Ok(self.weight(name, ty, (n * count, k), Source::Gguf))
    }

    /// `count` vectors in one tensor.
    pub fn vectors(&mut self, name: &str, len: usize, count: usize) -> Result<WeightId, Error> {
        let ty = self.vectors_type(name, len, count)?;
        Ok(self.weight(name, ty, (count, len), Source::Gguf))
    }

    pub fn matrix(&mut self, name: &str, n: usize, k: usize) -> Result<WeightId, Error> {
        let ty = self.matrix_type(name, n, k)?;
        Ok(self.weight(name, ty, (n, k), Source::Gguf))
    }

    pub fn vector(&mut self, name: &str, len: usize) -> Result<WeightId, Error> {
        let ty = self.vector_type(name, len)?;
        Ok(self.weight(name, ty, (1, len), Source::Gguf))
    }

    /// A vector of `len` ones, for norms without a weight.
    pub fn ones(&mut self, len: usize) -> WeightId {
        let values = Source::Computed(vec![1.0; len]);
        self.weight(&format!("<ones[{len}]>"), TensorType::F32, (1, len), values)
    }

    /// A vector that was computed from metadata.
    pub fn computed(&mut self, name: &str, values: Vec<f32>) -> WeightId {
        let shape = (1, values.len());
        self.weight(name, TensorType::F32, shape, Source::Computed(values))
    }

    /// `count` vectors of `len` elements in one tensor, the elements of one index after the other: `[len, count]`.
    pub fn transposed(&mut self, name: &str, len: usize, count: usize) -> Result<WeightId, Error> {
        let rows = Weight {
            name: name.into(),
            ty: self.vectors_type(name, len, count)?,
            n: count,
            k: len,
            source: Source::Gguf,
        };
        let values = rows.stored(self.metadata.gguf)?.values();
        let column = |i| values.iter().skip(i).step_by(len).copied();
        let values = Source::Computed((0..len).flat_map(column).collect());
        self.folded += (len * count) as u64;
        let name = format!("<{name} transposed>");
        Ok(self.weight(&name, TensorType::F32, (len, count), values))
    }

    /// The numbers of a vector that becomes part of the graph itself.
    pub fn numbers(&mut self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        let ty = self.vector_type(name, len)?;
        let mut values = vec![0.0; len];
        let tensor = self.metadata.gguf.tensor(name);
        if let (Some(tensor), Some(format)) = (tensor, quant::format(ty)) {
            quant::dequantise_row(format, self.metadata.gguf.data(tensor), &mut values);
        }
        match values.iter().position(|value| !value.is_finite()) {
            Some(at) => Err(Error::Model {
                what: name.into(),
                why: format!("element {at} is {}", values[at]),
            }),
            None => Ok(values),
        }
    }

    fn matrix_type(&mut self, name: &str, n: usize, k: usize) -> Result<TensorType, Error> {
        self.matrices_type(name, (n, k), 1)
    }

    fn matrices_type(
        &mut self,
        name: &str,
        (n, k): (usize, usize),
        count: usize,
    ) -> Result<TensorType, Error> {
        let ty = self.tensor(name, &[k as u64, n as u64, count as u64])?.ty;
        if quant::format(ty).is_none() {
            let types: Vec<_> = quant::FORMATS
                .iter()
                .map(|format| format.ty.name())
                .collect();
            return Err(Error::Unsupported {
                what: name.into(),
                why: format!("no kernel reads {ty} (supported: {})", types.join(", ")),
            });
        }
        Ok(ty)
    }

    fn vector_type(&mut self, name: &str, len: usize) -> Result<TensorType, Error> {
        self.vectors_type(name, len, 1)
    }

    fn vectors_type(&mut self, name: &str, len: usize, count: usize) -> Result<TensorType, Error> {
        let ty = self.tensor(name, &[len as u64, count as u64])?.ty;
        if !matches!(ty, TensorType::F32 | TensorType::F16 | TensorType::BF16) {
            return Err(Error::Unsupported {
                what: name.into(),
                why: format!("{ty} is no type for a vector (supported: F32, F16, BF16)"),
            });
        }
        Ok(ty)
    }

    /// Part of the tensor `whole`: `span` of its rows (of its elements where it is a vector), which are `shape`.
    fn slice(
        &mut self,
        whole: String,
        ty: TensorType,
        span: Range<usize>,
        (n, k): (usize, usize),
    ) -> WeightId {
        let name = format!("{whole}[{}..{}]", span.start, span.end);
        let first = span.start * (n * k / span.len().max(1));
        let source = Source::Slice {
            tensor: whole,
            first,
        };
        self.weight(&name, ty, (n, k), source)
    }

    /// As [`Builder::slice`], for runs.
    fn runs(
        &mut self,
        whole: String,
        ty: TensorType,
        runs: Runs,
        (n, k): (usize, usize),
    ) -> WeightId {
        let Runs {
            first, run, stride, ..
        } = runs;
        let name = format!("{whole}[{first}..{} of {stride}]", first + run);
        let elements = n * k / runs.count().max(1);
        let source = Source::Runs {
            tensor: whole,
            first: first * elements,
            run: run * elements,
            stride: stride * elements,
        };
        self.weight(&name, ty, (n, k), source)
    }

    fn weight(
        &mut self,
        name: &str,
        ty: TensorType,
        (n, k): (usize, usize),
        source: Source,
    ) -> WeightId {
        self.graph.add_weight(Weight {
            name: name.into(),
            ty,
            n,
            k,
            source,
        })
    }

    /// The tensor of that name, which must have these dimensions; further ones may be 1.
    fn tensor(&mut self, name: &str, dims: &[u64]) -> Result<&'a TensorInfo, Error> {
        let wrong = |why: String| Error::Model {
            what: name.into(),
            why,
        };
        let stated = dims.iter().rposition(|&dim| dim != 1).unwrap_or(0);
        let dims = &dims[..=stated];
        let tensor = self.metadata.gguf.tensor(name);
        let tensor = tensor.ok_or_else(|| wrong(format!("missing: expected {dims:?}")))?;
        let found = tensor.dims.iter().copied().chain(std::iter::repeat(1));
        let longest = dims.len().max(tensor.dims.len());
        let expected = dims.iter().copied().chain(std::iter::repeat(1));
        if !found.take(longest).eq(expected.take(longest)) {
            return Err(wrong(format!(
                "expected {dims:?}, found {:?} (row length first)",
                tensor.dims
            )));
        }
        self.used.insert(name.into());
        Ok(tensor)
    }
}

/// Tensors that converters leave in files and that llama.cpp does not compute with: precomputed rotary frequencies, scales
/// of activations that were quantised in training.
fn is_leftover(name: &str) -> bool {
    name.ends_with(".attn_rot_embd")
        || name.ends_with(".attn_rot_embd.weight")
        || name.ends_with("rotary_emb.inv_freq")
        || name.ends_with(".input_scale")
}
