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
                (false, bias) => self.bias(bias)?,
            };
            ends.push(Ends {
                out: Some(out),
                extra,
                extra_stride,
            });
        }
        Ok((ends, accesses))
    }

    /// A bias, and the bytes from that of one expert to that of the next.
    fn bias(&self, bias: Option<WeightId>) -> Result<(GridArg, GridArg), Error> {
        let Some(bias) = bias else {
            return Ok((NULL, number(0)));
        };
        let placed = self.placement(bias, Form::Vector)?;
        let rows = self.graph.weight(bias).n;
        let stride = placed.bytes as usize / rows;
        Ok((
            GridArg::Weights(placed.offset),
            number(if rows > 1 { stride } else { 0 }),
        ))
    }

    /// Two launches that do not depend on each other as one.
    fn join(&self, [first, second]: [Launch; 2], chosen: [&Chosen; 2]) -> Launch {
        let [a, b] = chosen.map(|c| {
            let query = self.gpu.choices.query(&c.shape, self.rows);
            (c.pick.variant, c.pick.class, query)
        });
        let common = chosen.map(|c| c.pick.cost.fixed_seconds);
        let twice = self.gpu.machine.launch_seconds + common[0].min(common[1]);
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
                grid.main_loop = beside(grid.main_loop, other.main_loop);
                if second.seconds > first.seconds {
                    grid.bound_by = other.bound_by;
                }
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
        let halves = parts.repeat(2 / parts.len().max(1));
        let parts = halves.as_slice();
        let mut ends = Vec::with_capacity(parts.len());
        for (part, out) in parts.iter().zip([Some(out), None]) {
            let (extra, extra_stride) = self.bias(part.bias)?;
            ends.push(Ends {
                out,
                extra,
                extra_stride,
            });
        }
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
        let matrices = shape.routed.map_or(1, |routed| routed.experts);
        let mut streamed = 1.0;
        if let Some(routed) = shape.routed {
            let routes = self.graph.inputs(node)[1];
            accesses.push(self.reads(routes)?);
            list.extend(self.routed_args(node, pick.variant.stamp as usize)?);
            streamed = routed.expected(self.rows, pick.variant.stamp as usize).0 / matrices as f64;
        }
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
            let form = match shape.routed {
                Some(routed) => Form::Experts(routed.experts),
                None => Form::Tiles,
            };
            let placed = self.placement(part.weight, form)?;
            let at = args::part(i);
            list[at] = GridArg::Weights(placed.offset);
            let (n, whole) = (shape.outputs[i], w.n / matrices);
            list[at + 1] = number(n);
            if let Some(out) = end.out {
                list[at + 2] = self.arena(out)?;
                list[at + 3] = self.row_stride(out)?;
            }
            list[at + 4] = end.extra;
            list[at + 5] = end.extra_stride;
            bytes += (placed.bytes as f64 * streamed * n as f64 / whole as f64) as u64;
            let rows = self.rows * shape.routed.map_or(1, |routed| routed.used);
            macs += (n * w.k * rows) as u64;
            if shape.routed.is_some() && n < whole {
                list[args::JOINED] = number(2);
            }
        }
        let (variant, class) = (pick.variant, pick.class);
        let routed = shape.routed.is_some();
        let kernel = matmul::kernel(variant, class, &shape.layout, shape.epilogue, routed);
        let geometry = matmul::geometry(pick.variant, pick.class, &query);
        let mut launch = self.grid(label, (kernel, geometry), list, accesses, 0);
        if let Work::Grid(grid) = &mut launch.work {
            let per_unit = (tile::unit_k(&shape.layout) * tile::TILE_N) as f64;
            let name = |part: &Part| self.graph.weight(part.weight).name.as_str();
            let labels = parts.iter().map(|p| name(p).trim_end_matches(".weight"));
            grid.weights = labels.map(str::to_string).collect();
            grid.weights.dedup();
            grid.bound_by = pick.cost.wall().0;
            grid.main_loop = Some(MainLoop {
                weights: matmul::weights_per_pass(
                    pick.variant,
                    pick.class,
                    &shape.layout,
                    shape.epilogue,
                ),
                kernels: 1,
                weight_bytes: tile::unit_bytes(&shape.layout) as f64 / per_unit,
            });
        }
        let seconds = launch.seconds + pick.cost.seconds;
        let wall = bytes as f64 / self.gpu.machine.rates.bandwidth / seconds;
        let reason = format!(
            "{}; {:.0} % of the memory wall; {}, cheapest of {}{}",
            pick.cost,
            wall * 100.0,
            pick.class,
            pick.legal,
            match shape.routed {
                Some(routed) => format!(
                    "; about {:.1} of {} experts",
                    streamed * matrices as f64,
                    routed.experts
                ),
                None => String::new(),
            }
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

/// A pass of two loops, one after the other.
fn beside(a: Option<MainLoop>, b: Option<MainLoop>) -> Option<MainLoop> {
    let (a, b) = (a?, b?);
    let bytes = |l: MainLoop| f64::from(l.weights) * l.weight_bytes;
    Some(MainLoop {
        weights: a.weights + b.weights,
        kernels: a.kernels + b.kernels,
        weight_bytes: (bytes(a) + bytes(b)) / f64::from(a.weights + b.weights),
    })
}
