//! Weights as the interpreter reads them: dequantised at once, or matrices row by row from the file. No arithmetic.

use std::ops::Range;

use coldpress_kernels::quant;

use crate::error::Error;
use crate::gguf::Gguf;
use crate::graph::{OpGraph, Source, Weight, WeightId};

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
                Source::Gguf | Source::Slice { .. } | Source::Runs { .. } => {
                    let stored = weight.stored(gguf)?;
                    hold(weight).then(|| stored.values())
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

    /// All values of a vector (`n` = 1).
    pub(super) fn vector(&self, id: WeightId) -> &[f32] {
        self.held[id.0 as usize].as_deref().unwrap_or_default()
    }

    /// Row `row` of a matrix, in `buffer` if it is not held.
    pub(super) fn row<'b>(
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
        if let Some(Ok(stored)) = self.gguf.map(|gguf| weight.stored(gguf)) {
            quant::dequantise_row(stored.format, stored.row(row), buffer);
        }
        buffer
    }

    /// Rows that are read from the file are not needed soon.
    pub(super) fn release(&self, weight: &Weight, id: WeightId, rows: Range<usize>) {
        let streamed = self.gguf.filter(|_| self.held[id.0 as usize].is_none());
        if let Some((gguf, Ok(stored))) = streamed.map(|gguf| (gguf, weight.stored(gguf))) {
            gguf.release(stored.span(rows));
        }
    }
}
