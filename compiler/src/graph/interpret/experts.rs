//! Routing, matmuls by expert and weighted sums on plain rows of f64. A row of routes is expert and weight of each expert
//! by rank; the routed rows of a row follow each other by rank.

use super::{Interpreter, Table};
use crate::graph::{Gating, Part, Routing};

/// Shazeer et al. 2017, with the softmax over all experts or over those that are used.
pub(super) fn route(logits: &Table, routing: &Routing) -> Table {
    let row = |logits: &Vec<f64>| {
        let mut ranked: Vec<usize> = (0..logits.len()).collect();
        ranked.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        let exp = |&e: &usize| (logits[e] - logits[ranked[0]]).exp();
        let used = &ranked[..routing.used];
        let total: f64 = match routing.gating {
            Gating::Softmax => ranked.iter().map(exp).sum(),
            Gating::SoftmaxOfUsed => used.iter().map(exp).sum(),
        };
        let sum: f64 = used.iter().map(|e| exp(e) / total).sum();
        // The smallest normal number of half precision, as in llama.cpp.
        let share = match routing.normalise {
            true => sum.max(6.103_515_625e-5),
            false => 1.0,
        };
        let pairs = used.iter().map(|e| [*e as f64, exp(e) / total / share]);
        pairs.flatten().collect()
    };
    logits.iter().map(row).collect()
}

/// Each routed row times the factor of its expert.
pub(super) fn scale(x: &Table, routes: &Table, factors: &[f32]) -> Table {
    let chosen = routes.iter().flat_map(|row| row.iter().step_by(2));
    let rows = x.iter().zip(chosen);
    rows.map(|(x, &expert)| {
        let factor = f64::from(factors[expert as usize]);
        x.iter().map(|x| x * factor).collect()
    })
    .collect()
}

/// Each row's routed rows times their weights, added by rank.
pub(super) fn sum(x: &Table, routes: &Table) -> Table {
    let mut x = x.iter();
    let row = |routes: &Vec<f64>| {
        let (pairs, _) = routes.as_chunks::<2>();
        let mut out = Vec::new();
        for ([_, weight], x) in pairs.iter().zip(&mut x) {
            out.resize(x.len(), 0.0);
            out.iter_mut().zip(x).for_each(|(o, x)| *o += weight * x);
        }
        out
    };
    routes.iter().map(row).collect()
}

impl Interpreter<'_> {
    /// `x` has a row for each row of `routes`, or is routed.
    pub(super) fn expert_matmul(
        &self,
        x: &Table,
        routes: &Table,
        part: &Part,
        experts: usize,
    ) -> Table {
        let chosen: Vec<usize> = routes
            .iter()
            .flat_map(|row| row.iter().step_by(2).map(|&e| e as usize))
            .collect();
        let copies = chosen.len() / x.len().max(1);
        let weight = self.graph.weight(part.weight);
        let n = weight.n / experts;
        let mut out = vec![Vec::new(); chosen.len()];
        for expert in 0..experts {
            let mine = chosen.iter().enumerate();
            let mine: Vec<usize> = mine
                .filter(|(_, e)| **e == expert)
                .map(|(i, _)| i)
                .collect();
            if mine.is_empty() {
                continue;
            }
            let rows: Vec<&Vec<f64>> = mine.iter().map(|&i| &x[i / copies]).collect();
            let products = self.matmul(&rows, part.weight, expert * n..(expert + 1) * n);
            let mut buffer = Vec::new();
            let bias = part.bias.map(|id| {
                let bias = self.graph.weight(id);
                self.weights.row(bias, id, expert, &mut buffer)
            });
            for (i, mut product) in mine.into_iter().zip(products) {
                if let Some(bias) = bias {
                    let pairs = product.iter_mut().zip(bias);
                    pairs.for_each(|(y, &b)| *y += f64::from(b));
                }
                out[i] = product;
            }
        }
        out
    }
}
