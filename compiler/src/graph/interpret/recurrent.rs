//! Ops that remember a sequence in a state: each row of a slot continues from the one before it.

use coldpress_kernels::recurrent::{DeltaRow, Heads, conv_reference, delta_reference};

use super::{Interpreter, Row, Table};
use crate::error::Error;
use crate::graph::WeightId;

/// The state of a slot, as rows, and how many of its tokens are in it.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    rows: Vec<Vec<f64>>,
    tokens: usize,
}

/// The parameters of a delta rule.
pub(super) struct Delta<'a> {
    pub heads: &'a Heads,
    pub a: WeightId,
    pub dt: WeightId,
    pub eps: f32,
}

impl Interpreter<'_> {
    /// The state of the row's slot as the row before it left it; zeros, `height` rows of `width`, where a sequence begins.
    fn state(
        &mut self,
        state: usize,
        row: &Row,
        (height, width): (usize, usize),
    ) -> Result<&mut Vec<Vec<f64>>, Error> {
        let held = self.states.entry((state, row.slot)).or_default();
        if row.position == 0 {
            *held = State {
                rows: vec![vec![0.0; width]; height],
                tokens: 0,
            };
        } else if held.tokens != row.position {
            return Err(Error::Usage(format!(
                "slot {}: position {} follows a state of {} tokens",
                row.slot, row.position, held.tokens
            )));
        }
        held.tokens += 1;
        Ok(&mut held.rows)
    }

    pub(super) fn short_conv(
        &mut self,
        state: usize,
        weight: WeightId,
        x: &Table,
        rows: &[Row],
    ) -> Result<Table, Error> {
        let (taps, channels) = {
            let weight = self.graph.weight(weight);
            (weight.n, weight.k)
        };
        let weights = self.weights;
        let mut out = Table::with_capacity(x.len());
        for (x, row) in x.iter().zip(rows) {
            let history = self.state(state, row, (taps - 1, channels))?;
            out.push(conv_reference(x, weights.vector(weight), history));
        }
        Ok(out)
    }

    pub(super) fn delta_rule(
        &mut self,
        state: usize,
        delta: &Delta,
        inputs: &[&Table],
        rows: &[Row],
    ) -> Result<Table, Error> {
        let &Delta { heads, a, dt, eps } = delta;
        let (dim, weights) = (heads.dim, self.weights);
        let (a, dt) = (weights.vector(a), weights.vector(dt));
        let mut out = Table::with_capacity(rows.len());
        for (i, row) in rows.iter().enumerate() {
            let [x, alpha, beta] = [0, 1, 2].map(|input: usize| &inputs[input][i]);
            let matrices = self.state(state, row, (heads.heads, dim * dim))?;
            let part = |at: usize| &x[at * dim..(at + 1) * dim];
            let mut y = Vec::with_capacity(heads.heads * dim);
            for (head, matrix) in matrices.iter_mut().enumerate() {
                let key = heads.key_of(head);
                let row = DeltaRow {
                    q: part(key),
                    k: part(heads.key_heads + key),
                    v: part(2 * heads.key_heads + head),
                    alpha: alpha[head],
                    a: a[head],
                    dt: dt[head],
                    beta: beta[head],
                    eps,
                };
                y.extend(delta_reference(&row, matrix));
            }
            out.push(y);
        }
        Ok(out)
    }
}
