//! Matmuls: the cheapest variant of the matrix's class for the bucket, its arguments, what it touches. Parts of different
//! layouts run one after the other; a gated pair is one launch, as is a residual with the norm after it.

use super::select::Shape;
use super::{Lowering, NULL, adapt, bits, number};
use crate::error::Error;
use crate::graph::{Op, Part, Value, WeightId};
use crate::plan::memory::scratch_value;
use crate::plan::{Access, Form, Launch, MainLoop, Space, Split, Work};
use coldpress_kernels::gpu::matmul::{self, args};
use coldpress_kernels::gpu::tile;
use coldpress_runtime::manifest::GridArg;
use petgraph::stable_graph::NodeIndex;

/// What a part adds to its sums, where it leaves them.
struct Ends {
    out: Option<Value>,
    extra: GridArg,
    extra_stride: GridArg,
}

impl Lowering<'_> {
    /// The matmul at `node`. `norm`: the weight of the norm that follows its residual, and the rows that are to be left for
    /// the matmuls after it.
    pub(super) fn matmul(
        &self,
        label: &str,
        node: NodeIndex,
        parts: &[Part],
        norm: Option<(WeightId, Value)>,
    ) -> Result<Vec<Launch>, Error> {
        let inputs = self.graph.inputs(node);
        let residual = matches!(self.graph.nodes[node].op, Op::MatMul { residual: true, .. });
        let mut launches = Vec::new();
        for (shape, places) in self.gpu.choices.shapes(self.graph, node, parts)? {
            let mut accesses = Vec::new();
            let mut ends = Vec::new();
            for &place in &places {
                let out = Value {
                    node,
                    port: place as u16,
                };
                accesses.push(self.writes(out)?);
                let (extra, extra_stride) = match (residual, parts[place].bias) {
                    (true, _) => {
                        accesses.push(self.reads(inputs[1])?);
                        (self.arena(inputs[1])?, self.row_stride(inputs[1])?)
                    }
                    (false, Some(bias)) => {
                        let offset = self.placement(bias, Form::Vector)?.offset;
                        (GridArg::Weights(offset), number(0))
                    }
                    (false, None) => (NULL, number(0)),
                };
                ends.push(Ends {
                    out: Some(out),
                    extra,
                    extra_stride,
                });
            }
            let own: Vec<Part> = places.iter().map(|&place| parts[place]).collect();
            launches.push(self.multiply(label, node, (&shape, &own), &ends, norm, accesses)?);
        }
        Ok(launches)
    }

    /// Gate and up in one launch, which leaves activation(gate) * up as `out`.
    pub(super) fn gated_matmul(
        &self,
        label: &str,
        node: NodeIndex,
        parts: &[Part],
        out: Value,
    ) -> Result<Vec<Launch>, Error> {
        let accesses = vec![self.writes(out)?];
        let ends = [Some(out), None].map(|out| Ends {
            out,
            extra: NULL,
            extra_stride: number(0),
        });
        let shapes = self.gpu.choices.shapes(self.graph, node, parts)?;
        let [(shape, _)] = shapes.as_slice() else {
            return Err(Error::Internal(format!("{label}: gate and up differ")));
        };
        let launch = self.multiply(label, node, (shape, parts), &ends, None, accesses)?;
        Ok(vec![launch])
    }

    fn multiply(
        &self,
        label: &str,
        node: NodeIndex,
        (shape, parts): (&Shape, &[Part]),
        ends: &[Ends],
        norm: Option<(WeightId, Value)>,
        mut accesses: Vec<Access>,
    ) -> Result<Launch, Error> {
        let x = self.graph.inputs(node)[0];
        let form = self.gpu.choices.read_form(self.graph, x);
        let pick = self
            .gpu
            .choices
            .pick(self.graph, parts, shape, form, self.rows)?;
        let query = self.gpu.choices.query(shape, self.rows);
        accesses.push(self.reads(x)?);
        let mut list = vec![NULL; args::COUNT];
        list[args::ACT] = self.arena(x)?;
        list[args::ACT_STRIDE] = self.row_stride(x)?;
        list[args::ROWS] = number(self.rows);
        list[args::UNITS] = number(tile::units(&shape.layout, shape.k));
        if let Some(eps) = adapt::pending_norm(self.graph, x) {
            list[args::PENDING] = number(form.pending_offset(shape.k));
            list[args::WIDTH] = number(shape.k);
            list[args::EPS] = bits(eps);
        }
        if let Some((weight, rows)) = norm {
            let placed = self.placement(weight, Form::Vector)?;
            list[args::NORM_WEIGHT] = GridArg::Weights(placed.offset);
            list[args::NORMED] = self.arena(rows)?;
            list[args::NORMED_STRIDE] = self.row_stride(rows)?;
            accesses.push(self.writes(rows)?);
        }
        list[args::PARTS] = number(parts.len());
        if matmul::scratch_bytes(pick.variant, pick.class, &query) > 0 {
            let scratch = scratch_value(self.graph, node);
            let at = self.buffer(scratch)?;
            list[args::SCRATCH] = GridArg::Arena(at.offset as u64);
            list[args::COUNTERS] = GridArg::Arena(0);
            accesses.push(Access {
                space: Space::Arena,
                value: Some(scratch),
                offset: at.offset,
                stride: at.stride,
                rows: 1,
                width: at.stride,
                write: true,
                split: Split::Whole,
            });
        }
        let (mut bytes, mut macs) = (0, 0);
        for (i, (part, end)) in parts.iter().zip(ends).enumerate() {
            let w = self.graph.weight(part.weight);
            let placed = self.placement(part.weight, Form::Tiles)?;
            let at = args::part(i);
            list[at] = GridArg::Weights(placed.offset);
            list[at + 1] = number(w.n);
            if let Some(out) = end.out {
                list[at + 2] = self.arena(out)?;
                list[at + 3] = self.row_stride(out)?;
            }
            list[at + 4] = end.extra;
            list[at + 5] = end.extra_stride;
            bytes += placed.bytes;
            macs += (w.n * w.k * self.rows) as u64;
        }
        let kernel = matmul::kernel(pick.variant, pick.class, &shape.layout, shape.epilogue);
        let geometry = matmul::geometry(pick.variant, pick.class, &query);
        let mut launch = self.grid(label, (kernel, geometry), list, accesses, 0);
        if let Work::Grid(grid) = &mut launch.work {
            let per_unit = (tile::unit_k(&shape.layout) * tile::TILE_N) as f64;
            let name = |part: &Part| self.graph.weight(part.weight).name.as_str();
            let labels = parts.iter().map(|p| name(p).trim_end_matches(".weight"));
            grid.weights = labels.map(str::to_string).collect();
            grid.main_loop = Some(MainLoop {
                weights: matmul::weights_per_pass(
                    pick.variant,
                    pick.class,
                    &shape.layout,
                    shape.epilogue,
                ),
                weight_bytes: tile::unit_bytes(&shape.layout) as f64 / per_unit,
            });
        }
        let seconds = launch.seconds + pick.cost.seconds;
        let wall = bytes as f64 / self.gpu.profile.bandwidth / seconds;
        let reason = format!(
            "{}; {:.0} % of the memory wall; {}, cheapest of {}",
            pick.cost,
            wall * 100.0,
            pick.class,
            pick.legal
        );
        Ok(Launch {
            reason,
            bytes,
            macs,
            seconds,
            ..launch
        })
    }
}
