//! Matmuls: the cheapest variant of the matrix's class for the bucket, its arguments, what it touches. Parts of different
//! layouts run one after the other; a gated pair is one launch, as is a residual with the norm after it.

use super::choices::Chosen;
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
        let launches = self
            .gpu
            .choices
            .launches(self.graph, node, parts, self.rows)?;
        let launches = launches.iter().map(|launch| {
            // Halves of a launch have scratch memory and counters of their own.
            let (mut scratch, mut counters) = (0, 0);
            let mut halves = Vec::new();
            for chosen in launch {
                let (ends, accesses) = self.ends(node, parts, chosen)?;
                let own: Vec<Part> = chosen.places.iter().map(|&place| parts[place]).collect();
                let from = (scratch, counters);
                let ends = (&ends[..], norm);
                halves.push(self.multiply(label, node, (chosen, &own), ends, accesses, from)?);
                let needs = self.gpu.choices.needs(chosen, self.rows);
                (scratch, counters) = (scratch + needs.0, counters + needs.1);
            }
            match <[Launch; 2]>::try_from(halves) {
                Ok(halves) => Ok(self.join(halves, [&launch[0], &launch[1]])),
                Err(mut one) => one
                    .pop()
                    .ok_or_else(|| Error::Internal(format!("{label}: a launch of nothing"))),
            }
        });
        launches.collect()
    }

    /// Where the parts of a shape end, and what is touched there.
    fn ends(
        &self,
        node: NodeIndex,
        parts: &[Part],
        chosen: &Chosen,
    ) -> Result<(Vec<Ends>, Vec<Access>), Error> {
        let inputs = self.graph.inputs(node);
        let residual = matches!(self.graph.nodes[node].op, Op::MatMul { residual: true, .. });
        let (mut ends, mut accesses) = (Vec::new(), Vec::new());
        for &place in &chosen.places {
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
        Ok((ends, accesses))
    }

    /// Two launches that do not depend on each other as one.
    fn join(&self, [first, second]: [Launch; 2], chosen: [&Chosen; 2]) -> Launch {
        let [a, b] = chosen.map(|c| {
            let query = self.gpu.choices.query(&c.shape, self.rows);
            (c.pick.variant, c.pick.class, query)
        });
        let common = chosen.map(|c| c.pick.cost.fixed_seconds);
        let twice = self.gpu.profile.launch_seconds + common[0].min(common[1]);
        let mut accesses = first.accesses;
        for access in second.accesses {
            if !accesses.contains(&access) {
                accesses.push(access);
            }
        }
        let work = match (first.work, second.work) {
            (Work::Grid(mut grid), Work::Grid(other)) => {
                grid.kernel = matmul::pair_kernel([&a, &b]);
                grid.geometry = matmul::pair_geometry([&a, &b]);
                grid.args.extend(other.args);
                grid.weights.extend(other.weights);
                // One of its two loops would not speak for the other.
                grid.main_loop = None;
                Work::Grid(grid)
            }
            (work, _) => work,
        };
        Launch {
            work,
            accesses,
            reason: format!("{}; beside it {}", first.reason, second.reason),
            bytes: first.bytes + second.bytes,
            macs: first.macs + second.macs,
            seconds: first.seconds + second.seconds - twice,
            label: first.label,
            barrier: first.barrier,
        }
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
        let launches = self
            .gpu
            .choices
            .launches(self.graph, node, parts, self.rows)?;
        let [[chosen]] = launches.iter().map(Vec::as_slice).collect::<Vec<_>>()[..] else {
            return Err(Error::Internal(format!("{label}: gate and up differ")));
        };
        let launch = self.multiply(
            label,
            node,
            (chosen, parts),
            (&ends, None),
            accesses,
            (0, 0),
        )?;
        Ok(vec![launch])
    }

    /// One shape's launch, whose scratch memory and counters begin so many bytes into the node's.
    fn multiply(
        &self,
        label: &str,
        node: NodeIndex,
        (chosen, parts): (&Chosen, &[Part]),
        (ends, norm): (&[Ends], Option<(WeightId, Value)>),
        mut accesses: Vec<Access>,
        (scratch_from, counters_from): (usize, usize),
    ) -> Result<Launch, Error> {
        let x = self.graph.inputs(node)[0];
        let form = self.gpu.choices.read_form(self.graph, x);
        let (shape, pick) = (&chosen.shape, &chosen.pick);
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
        let (scratch_bytes, _) = self.gpu.choices.needs(chosen, self.rows);
        if scratch_bytes > 0 {
            let scratch = scratch_value(self.graph, node);
            let offset = self.buffer(scratch)?.offset + scratch_from;
            list[args::SCRATCH] = GridArg::Arena(offset as u64);
            list[args::COUNTERS] = GridArg::Arena(counters_from as u64);
            accesses.push(Access {
                space: Space::Arena,
                value: Some(scratch),
                offset,
                stride: scratch_bytes,
                rows: 1,
                width: scratch_bytes,
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
