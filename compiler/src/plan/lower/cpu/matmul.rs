//! Matmul nodes: one launch for all parts that share an input, a variant picked for each part.

use super::Lowering;
use crate::error::Error;
use crate::graph::{Part, Value};
use crate::plan::select::{packed_layout, tile_bytes};
use crate::plan::{Form, Init, Launch, Matmul, MatmulPart, Split, Work};
use coldpress_kernels::cpu::abi::TILE_N;
use coldpress_kernels::matmul::Cost;
use petgraph::stable_graph::NodeIndex;

impl Lowering<'_> {
    pub(super) fn matmul(
        &self,
        label: &str,
        node: NodeIndex,
        parts: &[Part],
        residual: bool,
    ) -> Result<Launch, Error> {
        let inputs = self.graph.inputs(node);
        let mut matmul = Matmul {
            input: self.buffer(inputs[0])?,
            k: self.graph.value_type(inputs[0]).width,
            rows: self.rows,
            parts: Vec::with_capacity(parts.len()),
        };
        let mut accesses = vec![self.read(inputs[0], Split::Whole)?];
        let (mut bytes, mut macs) = (0, 0);
        let mut costs = Vec::with_capacity(parts.len());
        let mut legal = usize::MAX;
        for (i, part) in parts.iter().enumerate() {
            let w = &self.graph.weights[part.weight.0 as usize];
            let out = Value {
                node,
                port: i as u16,
            };
            let pick = self.selector.pick(w, self.rows)?;
            let tile_bytes = tile_bytes(&packed_layout(w)?, w)?;
            let init = match (residual, part.bias) {
                (true, _) => {
                    accesses.push(self.read(inputs[1], Split::Tiles(i))?);
                    Init::Rows(self.buffer(inputs[1])?)
                }
                (false, Some(bias)) => Init::Bias(self.placement(bias, Form::Vector)?.offset),
                (false, None) => Init::Zero,
            };
            accesses.push(self.write(out, Split::Tiles(i))?);
            let tiles = w.n.div_ceil(TILE_N);
            bytes += (tiles * tile_bytes) as u64;
            macs += (w.n * w.k * self.rows) as u64;
            costs.push(pick.cost);
            legal = legal.min(pick.legal);
            matmul.parts.push(MatmulPart {
                label: w.name.trim_end_matches(".weight").to_string(),
                weights: self.placement(part.weight, Form::Tiles)?.offset,
                tile_bytes,
                tiles,
                init,
                output: self.buffer(out)?,
                stamps: pick.stamps,
            });
        }
        let cost: Cost = costs.into_iter().sum();
        Ok(Launch {
            label: label.to_string(),
            work: Work::Matmul(matmul),
            barrier: false,
            accesses,
            reason: format!("{cost}; cheapest of {legal}"),
            bytes,
            macs,
            seconds: cost.seconds,
        })
    }
}
