use super::{Device, FORMS, SEEDS, assert_row, values};
use crate::simt::{Dialect, SimtArg};
use coldpress_kernels::experts::{MAX_EXPERTS, MAX_USED, reference};
use coldpress_kernels::gpu::abi::ActForm;
use coldpress_kernels::gpu::experts::{
    self, GateArgs, RouteArgs, Routed, Routes, ScaleArgs, SumArgs, gate_rows, route, scale, sum,
};
use coldpress_kernels::gpu::metal::SHARED_BYTES;
use coldpress_kernels::gpu::{Geometry, Kernel};
use coldpress_kernels::norm;

/// Kernels without one of their barriers.
mod barriers;

/// A router, and how it weighs.
#[derive(Clone, Copy)]
struct Router {
    routed: Routed,
    of_used: bool,
    normalise: bool,
}

/// A kernel by its name, and its thread blocks.
type Named = (String, Geometry);

impl Router {
    /// What it launches in a bucket of `rows` rows.
    fn launches(&self, dialect: Dialect, rows: usize) -> Vec<(Kernel, Geometry)> {
        let experts = self.routed.experts;
        match dialect {
            Dialect::Cuda => {
                let kernel = route(experts, self.of_used, self.normalise);
                vec![(kernel, experts::route_geometry(experts, rows))]
            }
            Dialect::Metal => {
                let router = (experts, self.of_used, self.normalise);
                experts::route_apart(router, rows, SHARED_BYTES as usize)
            }
        }
    }

    /// The kernels of steps of one thread block and of several.
    fn kernels(&self, dialect: Dialect) -> Vec<Kernel> {
        let launches = [1, 70].map(|rows| self.launches(dialect, rows));
        let kernels = launches.concat().into_iter();
        kernels.map(|(kernel, _)| kernel).collect()
    }

    fn named(&self, dialect: Dialect, rows: usize) -> Vec<Named> {
        let launches = self.launches(dialect, rows).into_iter();
        launches.map(|(kernel, g)| (kernel.name, g)).collect()
    }
}

const fn router(experts: usize, used: usize, of_used: bool, normalise: bool) -> Router {
    Router {
        routed: Routed { experts, used },
        of_used,
        normalise,
    }
}

/// What a router left for the live rows of a step.
struct Left {
    /// Expert and weight of each routed row.
    choices: Vec<(u32, f32)>,
    /// Of each list the items, empty ones included: first place in the order, expert, routed rows.
    items: Vec<Vec<(u32, u32, u32)>>,
    order: Vec<u32>,
}

/// The most items of each list.
fn bounds(router: Router, rows: usize, stamps: [usize; 3]) -> [usize; 3] {
    stamps.map(|stamp| match stamp {
        0 => 0,
        _ => router.routed.most_items(rows, stamp),
    })
}

/// What the launches of a router leave for `logits`, in a bucket of `rows` rows, as words.
///
/// # Errors
/// What the shim found wrong.
fn routed_words(
    device: &Device,
    (launches, router): (&[Named], Router),
    logits: &[Vec<f32>],
    rows: usize,
    stamps: [usize; 3],
    seed: u64,
) -> Result<Vec<u32>, String> {
    let Routed { experts, used } = router.routed;
    let live = logits.len();
    let bytes = rows * Routes::stride(used);
    let out = device.simt.alloc(bytes);
    let counters = device.u32s(&[0]);
    let stride = experts * 4 + 64;
    // Rows that are not live hold nothing at all.
    let flat = match live {
        0 => device.simt.alloc(4),
        _ => device.rows(&logits.concat(), experts, stride),
    };
    let bounds = bounds(router, rows, stamps);
    let args = RouteArgs {
        logits: flat.into(),
        routes: out.into(),
        counters: counters.into(),
        live: device.u32s(&[live as u32, 0]).into(),
        rows: (rows as u32).into(),
        used: (used as u32).into(),
        logits_stride: (stride as u32).into(),
        stamp0: (stamps[0] as u32).into(),
        bound0: (bounds[0] as u32).into(),
        stamp1: (stamps[1] as u32).into(),
        bound1: (bounds[1] as u32).into(),
        stamp2: (stamps[2] as u32).into(),
        bound2: (bounds[2] as u32).into(),
    };
    for (name, geometry) in launches {
        device.simt.launch(name, *geometry, &args.list(), seed)?;
    }
    match device.read_u32(&counters)[..] {
        [0] => Ok(device.read_u32(&out)),
        _ => Err("a counter is left".into()),
    }
}

/// Runs a router over `logits`, in a bucket of `rows` rows.
fn left(
    device: &Device,
    (dialect, router): (Dialect, Router),
    logits: &[Vec<f32>],
    rows: usize,
    stamps: [usize; 3],
    seed: u64,
) -> Left {
    let used = router.routed.used;
    let routes = Routes { rows, used };
    let live = logits.len();
    let bytes = rows * Routes::stride(used);
    let bounds = bounds(router, rows, stamps);
    let launches = router.named(dialect, rows);
    let words = routed_words(device, (&launches, router), logits, rows, stamps, seed);
    let words = words.unwrap_or_else(|e| panic!("{launches:?} under schedule {seed}: {e}"));
    let pairs = |from: usize, count: usize| -> Vec<(u32, u32)> {
        let words = words[from / 4..].chunks_exact(2);
        words.take(count).map(|w| (w[0], w[1])).collect()
    };
    let choices = pairs(0, live * used).into_iter();
    let items = bounds.iter().enumerate().map(|(list, &bound)| {
        let items = pairs(routes.items(list), bound).into_iter();
        items
            .map(|(first, of)| (first, of >> 16, of & 0xffff))
            .collect()
    });
    let left = Left {
        choices: choices.map(|(e, w)| (e, f32::from_bits(w))).collect(),
        items: items.collect(),
        order: words[routes.order() / 4..][..live * used].to_vec(),
    };
    // Nothing is written for rows that are not live, nor behind what there is.
    for (from, to) in [
        (live * used * 2, rows * used * 2),
        (routes.order() / 4 + live * used, bytes / 4),
    ] {
        assert!(words[from..to].iter().all(|&w| w == u32::MAX), "{from}");
    }
    left
}

impl Left {
    /// Asserts that the order has the routed rows by expert, and items cover it.
    fn check(&self, router: Router, stamps: [usize; 3]) {
        let chosen = |&routed: &u32| self.choices[routed as usize].0;
        let expected = {
            let mut all: Vec<u32> = (0..self.choices.len() as u32).collect();
            all.sort_by_key(|routed| (chosen(routed), *routed));
            all
        };
        assert_eq!(self.order, expected, "routed rows by expert");
        for (items, stamp) in self.items.iter().zip(stamps).filter(|(_, s)| *s > 0) {
            let mut next = 0;
            let mut whole = true;
            let mut last = None;
            for &(first, expert, count) in items.iter().filter(|item| item.2 > 0) {
                assert_eq!(first, next, "items follow each other");
                assert!(count as usize <= stamp && (expert as usize) < router.routed.experts);
                let mut own = self.order[next as usize..][..count as usize].iter();
                assert!(own.all(|routed| chosen(routed) == expert), "one expert");
                // A new item of the same expert only where the one before is full.
                assert!(last != Some(expert) || whole, "an item that is not full");
                (whole, last) = (count as usize == stamp, Some(expert));
                next += count;
            }
            assert_eq!(next as usize, self.order.len(), "all routed rows");
            let empty = items.iter().skip_while(|item| item.2 > 0);
            assert!(empty.into_iter().all(|item| *item == (0, 0, 0)), "empty");
        }
    }
}

fn logits(rows: usize, experts: usize, seed: usize) -> Vec<Vec<f32>> {
    let all = values(seed, rows * experts, 6.0);
    all.chunks_exact(experts).map(<[f32]>::to_vec).collect()
}

#[test]
fn routers_choose_as_the_reference_and_list_every_routed_row() {
    Dialect::ALL
        .into_iter()
        .for_each(routers_choose_as_the_reference_and_list_every_routed_row_in);
}

fn routers_choose_as_the_reference_and_list_every_routed_row_in(dialect: Dialect) {
    let routers = [
        router(1, 1, false, true),
        router(5, 2, false, false),
        router(8, 8, true, false),
        router(40, 4, true, true),
        router(128, 8, false, true),
        router(MAX_EXPERTS, MAX_USED, false, true),
    ];
    let kernels = routers.map(|r| r.kernels(dialect)).concat();
    let Some(device) = Device::in_dialect(dialect, &kernels) else {
        return;
    };
    for router in routers {
        let Routed { experts, used } = router.routed;
        // Buckets of one thread block and of several; all rows live, some, one, none.
        for (i, (rows, live)) in [(1, 1), (7, 5), (70, 67), (33, 0)].into_iter().enumerate() {
            let logits = logits(live, experts, i);
            let stamps = [[8, 0, 0], [1, 8, 64], [16, 24, 0], [8, 0, 0]][i];
            let of = (dialect, router);
            let left = left(&device, of, &logits, rows, stamps, SEEDS[i % 3]);
            left.check(router, stamps);
            for (logits, found) in logits.iter().zip(left.choices.chunks_exact(used)) {
                let expected = reference(logits, used, router.of_used, router.normalise);
                for (&(expert, weight), &(e, w)) in found.iter().zip(&expected) {
                    assert_eq!(expert as usize, e, "{used} of {experts}");
                    let error = (f64::from(weight) - w).abs();
                    assert!(error < 2e-6, "{used} of {experts}: {weight} for {w}");
                }
            }
        }
    }
}

#[test]
fn all_rows_may_choose_one_expert_and_no_logits_lead_out_of_bounds() {
    Dialect::ALL
        .into_iter()
        .for_each(all_rows_may_choose_one_expert_and_no_logits_lead_out_of_bounds_in);
}

fn all_rows_may_choose_one_expert_and_no_logits_lead_out_of_bounds_in(dialect: Dialect) {
    let router = router(6, 2, false, true);
    let Some(device) = Device::in_dialect(dialect, &router.kernels(dialect)) else {
        return;
    };
    let of = (dialect, router);
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let alike = vec![vec![1.0, 1.0, 1.0, 1.0, 1.0, 1.0]; 40];
    let hostile = vec![
        vec![nan; 6],
        vec![nan, 1.0, nan, 2.0, nan, nan],
        vec![-inf; 6],
        vec![inf, nan, inf, -inf, 0.0, -0.0],
        vec![nan, -inf, nan, nan, nan, nan],
        vec![-2.0, -0.0, 0.0, -1.0, nan, -inf],
    ];
    let first = [(0, 1), (3, 1), (0, 1), (0, 2), (1, 0), (1, 2)];
    for seed in SEEDS {
        let stamps = [8, 1, 0];
        let found = left(&device, of, &alike, 40, stamps, seed);
        found.check(router, stamps);
        let of_equals = found.choices.chunks_exact(2);
        assert!(of_equals.into_iter().all(|c| (c[0].0, c[1].0) == (0, 1)));
        let found = left(&device, of, &hostile, 6, stamps, seed);
        found.check(router, stamps);
        let chosen = found.choices.chunks_exact(2).map(|c| (c[0].0, c[1].0));
        assert_eq!(chosen.collect::<Vec<_>>(), first, "numbers, then order");
    }
}

/// Routes as a router leaves them, of which the kernels after it read choices alone.
fn routes(device: &Device, choices: &[Vec<(u32, f32)>]) -> SimtArg {
    let words = choices.iter().flatten();
    let words: Vec<u32> = words.flat_map(|&(e, w)| [e, w.to_bits()]).collect();
    device.u32s(&words).into()
}

#[test]
fn sums_over_experts_are_the_formula_in_every_form() {
    Dialect::ALL
        .into_iter()
        .for_each(sums_over_experts_are_the_formula_in_every_form_in);
}

fn sums_over_experts_are_the_formula_in_every_form_in(dialect: Dialect) {
    let widths = [32, 96, 260, 1024, 4096 + 32];
    let forms = [None, Some(FORMS[0]), Some(FORMS[1]), Some(FORMS[2])];
    let kernels = forms.map(|form| widths.map(|width| sum(width, form)));
    let Some(device) = Device::in_dialect(dialect, kernels.as_flattened()) else {
        return;
    };
    let (rows, experts, eps) = (2, 4, 1e-5);
    for (i, width) in widths.into_iter().enumerate() {
        for (j, form) in forms.into_iter().enumerate() {
            let used = [1, 3, 4][(i + j) % 3];
            let choice = |row: usize, rank: usize| {
                let weight = 0.5 + row as f32 * 0.25 - rank as f32 * 0.125;
                (((row + 3 * rank) % experts) as u32, weight)
            };
            let choices: Vec<Vec<(u32, f32)>> = (0..rows)
                .map(|row| (0..used).map(|rank| choice(row, rank)).collect())
                .collect();
            let stride = width * 4 + 64;
            let x = values(i, rows * used * width, 2.0);
            let factors = [0.5f32, 2.0, -1.0, 3.0];
            let (scaled, count) = ((i + j) % 2 == 0, (i + 2 * j) % 3);
            let added = [values(7, rows * width, 1.0), values(8, rows * width, 4.0)];
            let (gates, gated) = ([-0.75f32, 1.5], count > 0 && j % 2 == 1);
            let mut expected = vec![0.0f32; rows * width];
            for (row, out) in expected.chunks_exact_mut(width).enumerate() {
                for (column, out) in out.iter_mut().enumerate() {
                    let mut all = 0.0f64;
                    for (rank, &(expert, weight)) in choices[row].iter().enumerate() {
                        let factor = if scaled {
                            factors[expert as usize]
                        } else {
                            1.0
                        };
                        let at = x[(row * used + rank) * width + column];
                        all += f64::from(weight) * f64::from(factor) * f64::from(at);
                    }
                    for (at, added) in added[..count].iter().enumerate() {
                        let gate = match gated && at == 0 {
                            true => 1.0 / (1.0 + (-f64::from(gates[row])).exp()),
                            false => 1.0,
                        };
                        all += f64::from(added[row * width + column]) * gate;
                    }
                    *out = all as f32;
                }
            }
            let weight = values(9, width, 1.5);
            let normed = norm::reference(&expected, Some(&weight), width, eps);
            let from = device.rows(&x, width, stride);
            let rows_of = |at: usize| -> (SimtArg, SimtArg) {
                match at < count {
                    true => (
                        device.rows(&added[at], width, stride).into(),
                        (stride as u32).into(),
                    ),
                    false => (0.into(), 0.into()),
                }
            };
            let (first, first_stride) = rows_of(0);
            let (second, second_stride) = rows_of(1);
            // In place, by itself, or as rows of the norm alone.
            let fresh = device.simt.alloc((rows + 1) * stride);
            let out = match (count, form, j) {
                (0, Some(_), _) | (_, Some(_), 3) => None,
                (2, ..) => match second {
                    SimtArg::Address(rows, _) => Some(rows),
                    SimtArg::Const(_) => None,
                },
                _ => Some(fresh),
            };
            let of_norm = form.unwrap_or(ActForm::F32).stride(width);
            let left = device.simt.alloc((rows + 1) * of_norm);
            let kernel = sum(width, form);
            let args = SumArgs {
                x: from.into(),
                routes: routes(&device, &choices),
                factors: match scaled {
                    true => device.f32s(&factors).into(),
                    false => 0.into(),
                },
                live: device.u32s(&[rows as u32, 0]).into(),
                first,
                gate: match gated {
                    true => device.rows(&gates, 1, 64).into(),
                    false => 0.into(),
                },
                second,
                out: out.map_or(0.into(), SimtArg::from),
                norm_weight: device.f32s(&weight).into(),
                normed: left.into(),
                width: (width as u32).into(),
                used: (used as u32).into(),
                x_stride: (stride as u32).into(),
                first_stride,
                gate_stride: 64.into(),
                second_stride,
                out_stride: (stride as u32).into(),
                normed_stride: (of_norm as u32).into(),
                eps: eps.into(),
            };
            // A row more than is live.
            let geometry = experts::sum_geometry(rows + 1);
            device.launch(&kernel, geometry, args.list(), SEEDS[(i + j) % 3]);
            if let Some(out) = out {
                let found = device.read(&out);
                for (row, expected) in expected.chunks_exact(width).enumerate() {
                    let found = &found[row * stride..][..width * 4];
                    assert_row(&kernel.name, ActForm::F32, found, expected, (1e-5, 1e-5));
                }
                let rest = found.get(rows * stride..).unwrap_or_default();
                assert!(rest.iter().all(|&b| b == 0xff), "a row too many");
            }
            let found = device.read(&left);
            let (found, rest) = found.split_at(rows * of_norm);
            assert!(rest.iter().all(|&b| b == 0xff), "a normed row too many");
            for (row, expected) in found.chunks_exact(of_norm).zip(normed.chunks_exact(width)) {
                match form {
                    Some(form) => assert_row(&kernel.name, form, row, expected, (1e-5, 1e-5)),
                    None => assert!(row.iter().all(|&b| b == 0xff), "a norm of nothing"),
                }
            }
        }
    }
}

#[test]
fn factors_are_of_experts_and_gates_logistic() {
    Dialect::ALL
        .into_iter()
        .for_each(factors_are_of_experts_and_gates_logistic_in);
}

fn factors_are_of_experts_and_gates_logistic_in(dialect: Dialect) {
    let Some(device) = Device::in_dialect(dialect, &[scale(), gate_rows()]) else {
        return;
    };
    let run = |kernel: &Kernel, geometry: Geometry, args: Vec<SimtArg>, seed| {
        device.launch(kernel, geometry, args, seed);
    };
    for (width, seed) in [4, 516, 1024].into_iter().zip(SEEDS) {
        let stride = width * 4 + 64;
        let (rows, used) = (2usize, 3usize);
        let choices = vec![
            vec![(3, 1.0), (0, 1.0), (1, 1.0)],
            vec![(1, 1.0), (2, 1.0), (0, 1.0)],
        ];
        let factors = [2.0f32, -0.5, 8.0, 0.25];
        let x = values(width, rows * used * width, 3.0);
        let out = device.simt.alloc((rows + 1) * used * stride);
        let args = ScaleArgs {
            x: device.rows(&x, width, stride).into(),
            routes: routes(&device, &choices),
            factors: device.f32s(&factors).into(),
            live: device.u32s(&[rows as u32, 0]).into(),
            out: out.into(),
            width: (width as u32).into(),
            used: (used as u32).into(),
            x_stride: (stride as u32).into(),
            out_stride: (stride as u32).into(),
        };
        let geometry = experts::scale_geometry(width, (rows + 1) * used);
        run(&scale(), geometry, args.list(), seed);
        let found = device.read_f32(&out);
        for (routed, row) in found.chunks_exact(stride / 4).enumerate() {
            let Some((expert, _)) = choices.concat().get(routed).copied() else {
                assert!(row.iter().all(|v| v.is_nan()), "a row that is not live");
                continue;
            };
            let expected = x[routed * width..][..width].iter();
            let expected: Vec<f32> = expected.map(|v| v * factors[expert as usize]).collect();
            assert_eq!(row[..width], expected);
        }
        let gates = [-1.5f32, 0.25];
        let (from, gate) = (
            device.rows(&x[..rows * width], width, stride),
            device.rows(&gates, 1, 64),
        );
        let args = GateArgs {
            x: from.into(),
            gate: gate.into(),
            out: from.into(),
            width: (width as u32).into(),
            rows: (rows as u32).into(),
            x_stride: (stride as u32).into(),
            gate_stride: 64.into(),
            out_stride: (stride as u32).into(),
        };
        let geometry = experts::gate_geometry(width, rows);
        run(&gate_rows(), geometry, args.list(), seed);
        let found = device.read_f32(&from);
        for (row, found) in found.chunks_exact(stride / 4).enumerate() {
            for (v, x) in found.iter().zip(&x[row * width..][..width]) {
                let expected = f64::from(*x) / (1.0 + (-f64::from(gates[row])).exp());
                assert!((f64::from(*v) - expected).abs() < 1e-6, "{v} {expected}");
            }
        }
    }
}
