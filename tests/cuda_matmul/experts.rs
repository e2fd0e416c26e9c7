use super::*;
use coldpress_kernels::gpu::experts::{Routed, Routes};

/// Experts that each row of a step uses, by rank.
type Choices = Vec<Vec<usize>>;

/// A kernel of routed rows.
#[derive(Clone, Copy)]
struct ByExpert {
    stamped: Stamped,
    routed: Routed,
}

impl ByExpert {
    fn source(&self) -> Source {
        let Stamped {
            variant,
            fmt,
            epilogue,
            ..
        } = self.stamped;
        let class = self.stamped.class(1);
        let kernel = kernel(variant, class, &fmt.layout, epilogue, true);
        Source::in_dialect(self.stamped.dialect(), &kernel)
    }
}

/// The matrices of some experts, of one launch.
struct Experts {
    of: Vec<Case>,
    /// Whether gate and up of an expert are one matrix.
    joined: bool,
}

impl Experts {
    fn new(fmt: &'static QuantFormat, experts: usize, outputs: &[usize], k: usize) -> Experts {
        let of = (0..experts).map(|e| Case::new(fmt, outputs, k, 11 + e as u64));
        Experts {
            of: of.collect(),
            joined: false,
        }
    }

    fn joined(self) -> Experts {
        Experts {
            joined: true,
            ..self
        }
    }

    fn biased(mut self) -> Experts {
        self.of.iter_mut().for_each(|case| case.biased_gates = true);
        self
    }
}

/// What a router leaves for `choices` in a bucket of `rows` rows: items of one stamp, and the order.
fn routes(choices: &Choices, routed: Routed, rows: usize, stamp: usize) -> Vec<u8> {
    let layout = Routes {
        rows,
        used: routed.used,
    };
    let mut bytes = vec![0xff; rows * Routes::stride(routed.used)];
    let mut put = |at: usize, word: u32| bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
    let (mut place, mut item) = (0, 0);
    for expert in 0..routed.experts {
        let all = choices.concat().into_iter().enumerate();
        let own: Vec<usize> = all.filter(|&(_, e)| e == expert).map(|(r, _)| r).collect();
        for rows in own.chunks(stamp) {
            put(layout.items(1) + 8 * item, place as u32);
            put(
                layout.items(1) + 8 * item + 4,
                (expert << 16 | rows.len()) as u32,
            );
            for &row in rows {
                put(layout.order() + 4 * place, row as u32);
                place += 1;
            }
            item += 1;
        }
    }
    for item in item..routed.most_items(rows, stamp) {
        put(layout.items(1) + 8 * item, 0);
        put(layout.items(1) + 8 * item + 4, 0);
    }
    bytes
}

/// The activation row that a routed row reads: its row of the step, or its own.
fn act_row(routed_row: usize, used: usize, own: bool) -> usize {
    if own { routed_row } else { routed_row / used }
}

impl Device {
    fn of_experts(kernels: &[ByExpert]) -> Option<Device> {
        let sources: Vec<Source> = kernels.iter().map(ByExpert::source).collect();
        let simt = Simt::build(&sources, ARCH)?;
        let seed = Cell::new(1);
        Some(Device { simt, seed })
    }

    /// Outputs of all parts of every routed row, in a bucket of one row more than there are. `own`: routed rows read rows of
    /// their own.
    fn by_expert(
        &self,
        kernel: ByExpert,
        experts: &Experts,
        rows: &Rows,
        (choices, own): (&Choices, bool),
        k_split: u32,
    ) -> Vec<Vec<u8>> {
        let ByExpert { stamped, routed } = kernel;
        let Stamped {
            variant, epilogue, ..
        } = stamped;
        let (class, stamp) = (stamped.class(k_split), variant.stamp as usize);
        let first = &experts.of[0];
        let (outputs, bucket) = (first.outputs(), choices.len() + 1);
        let query = Query {
            routed: Some(routed),
            rows: bucket,
            ..stamped.query(first, &outputs, rows)
        };
        if let Err(reason) = legal(variant, class, &query) {
            panic!("{}: {reason}", kernel.source().name);
        }
        let simt = &self.simt;
        let form = variant.family.act();
        let act = simt.upload(&rows.bytes(form));
        let scratch = simt.alloc(scratch_bytes(variant, class, &query).max(4) as usize);
        let counters = counters(variant, class, &query).max(1) as usize;
        let counters = simt.upload(&vec![0; 4 * counters]);
        let left = simt.upload(&routes(choices, routed, bucket, stamp));
        let mut arguments: Vec<SimtArg> = vec![
            act.into(),
            SimtArg::Const(rows.stride(form) as u64),
            (rows.count as u32).into(),
            (tile::units(&first.fmt.layout, first.k) as u32).into(),
            scratch.into(),
            counters.into(),
        ];
        arguments.resize(args::PARTS, SimtArg::Const(0));
        arguments.push((outputs.len() as u32).into());
        let routed_rows = choices.len() * routed.used;
        let mut outs = vec![];
        let mut buffers = vec![act, scratch, counters, left];
        for (i, &n) in outputs.iter().enumerate() {
            let (row_bytes, stride) = case::out_row(epilogue, n);
            // A row more than there are.
            let out = simt.alloc((routed_rows + 1) * stride);
            let parts = experts.of.iter().map(|case| &case.parts[i]);
            let packed: Vec<u8> = match experts.joined {
                true => {
                    let parts = experts.of.iter().flat_map(|case| &case.parts);
                    parts.flat_map(|p| p.packed.clone()).collect()
                }
                false => parts.clone().flat_map(|p| p.packed.clone()).collect(),
            };
            let padded = n.next_multiple_of(16);
            let bias = parts.flat_map(|part| {
                let mut bias = part.bias.clone();
                bias.resize(padded, f32::NAN);
                bias
            });
            let bias: Vec<f32> = bias.collect();
            let (weights, bias) = (simt.upload(&packed), simt.upload(&case::bytes(&bias)));
            let has_bias = matches!(epilogue, Epilogue::Store) || first.biased_gates;
            arguments.extend([
                weights.into(),
                (n as u32).into(),
                out.into(),
                SimtArg::Const(stride as u64),
                if has_bias { bias.into() } else { 0.into() },
                SimtArg::Const(padded as u64 * 4),
            ]);
            outs.push((out, row_bytes, stride));
            buffers.extend([weights, bias, out]);
        }
        arguments.resize(args::COUNT, SimtArg::Const(0));
        let layout = Routes {
            rows: bucket,
            used: routed.used,
        };
        arguments.extend::<[SimtArg; 5]>([
            left.into(),
            (layout.items(1) as u32).into(),
            (layout.order() as u32).into(),
            (if own { 1 } else { routed.used as u32 }).into(),
            (if experts.joined { 2 } else { 1 }).into(),
        ]);
        assert_eq!(arguments.len(), args::ROUTED_COUNT);
        if matches!(epilogue, Epilogue::Gated(..)) {
            outs.truncate(1);
        }
        self.seed.set(self.seed.get() + 1);
        let name = kernel.source().name;
        let grid = geometry(variant, class, &query);
        if let Err(error) = simt.launch(&name, grid, &arguments, self.seed.get()) {
            panic!("{name}, k {}, {} rows: {error}", first.k, rows.count);
        }
        let zeros = simt.read(&counters, 0, counters.bytes);
        assert!(zeros.iter().all(|&b| b == 0), "{name} leaves its counters");
        let mut results = vec![vec![]; routed_rows];
        for (out, row_bytes, stride) in outs {
            let all = simt.read(&out, 0, out.bytes);
            for (r, row) in all.chunks_exact(stride).enumerate() {
                let written = if r < routed_rows { row_bytes } else { 0 };
                let rest = row[written..].iter().all(|&b| b == 0xff);
                assert!(rest, "{name} writes beyond the {written} bytes of a row");
                if let Some(result) = results.get_mut(r) {
                    result.extend(&row[..row_bytes]);
                }
            }
        }
        buffers.into_iter().for_each(|buffer| simt.free(buffer));
        results
    }

    /// The same, compared with the sums of each row's expert.
    fn check_experts(
        &self,
        kernel: ByExpert,
        experts: &Experts,
        rows: &Rows,
        (choices, own): (&Choices, bool),
        k_split: u32,
    ) -> Vec<Vec<u8>> {
        let results = self.by_expert(kernel, experts, rows, (choices, own), k_split);
        let form = kernel.stamped.variant.family.act();
        for (r, (expert, result)) in choices.concat().into_iter().zip(&results).enumerate() {
            let row = rows.select(&[act_row(r, kernel.routed.used, own)]);
            let epilogue = kernel.stamped.epilogue;
            let result = std::slice::from_ref(result);
            if let Err(error) = experts.of[expert].compare(epilogue, form, &row, result) {
                let name = kernel.source().name;
                panic!("{name}, routed row {r} of expert {expert}: {error}");
            }
        }
        results
    }
}

/// Rows that all use the same experts.
fn alike(rows: usize, used: usize) -> Choices {
    vec![(0..used).rev().collect(); rows]
}

/// Rows that use different ones: of five experts two each.
fn spread(rows: usize) -> Choices {
    (0..rows)
        .map(|r| vec![r * 3 % 5, (r * 3 + 2) % 5])
        .collect()
}

const ROUTED: Routed = Routed {
    experts: 5,
    used: 2,
};

fn layouts(family: Family) {
    let of_experts = |stamped| ByExpert {
        stamped,
        routed: ROUTED,
    };
    let kernels: Vec<ByExpert> = every_layout(family).into_iter().map(of_experts).collect();
    let Some(device) = Device::of_experts(&kernels) else {
        return;
    };
    for &kernel in &kernels {
        let fmt = kernel.stamped.fmt;
        for (i, k) in reductions(fmt).into_iter().take(2).enumerate() {
            // Not whole tiles: each expert's matrix begins with a tile of its own.
            let n = [&[17][..], &[1, 40]][i];
            let experts = Experts::new(fmt, ROUTED.experts, n, k);
            let (choices, own) = [(spread(3), false), (alike(10, 2), true)][i].clone();
            let count = if own { 20 } else { 3 };
            device.check_experts(kernel, &experts, &Rows::new(count, k), (&choices, own), 1);
        }
    }
}

/// Bits of a routed row are those that the same row has without experts, whatever the stamp and the company.
fn stamps(family: Family, fmt: &'static QuantFormat) {
    let stamped = of_family(family).map(|variant| Stamped {
        variant,
        fmt,
        epilogue: Epilogue::Store,
        warps: 4,
    });
    let layout = |s: &Stamped| {
        let query = Query {
            layout: fmt.layout,
            outputs: &[48],
            k: 256 * 9,
            rows: 1,
            epilogue: Epilogue::Store,
            pending: false,
            routed: Some(ROUTED),
            arch: arch_of(family),
        };
        legal(s.variant, s.class(1), &query).is_ok()
    };
    let stamped: Vec<Stamped> = stamped.filter(layout).step_by(2).collect();
    let of_experts = |&stamped: &Stamped| ByExpert {
        stamped,
        routed: ROUTED,
    };
    let kernels: Vec<ByExpert> = stamped.iter().map(of_experts).collect();
    let mut sources: Vec<Source> = kernels.iter().map(ByExpert::source).collect();
    sources.push(stamped[0].source());
    let Some(simt) = Simt::build(&sources, ARCH) else {
        return;
    };
    let seed = Cell::new(1);
    let device = Device { simt, seed };
    let k = 256 * 9;
    let experts = Experts::new(fmt, ROUTED.experts, &[48], k);
    let widest = stamped.iter().map(|s| s.variant.stamp as usize).max();
    let rows = Rows::new(widest.expect("a stamp") + 3, k);
    let last = *splits(family).last().expect("a split");
    for (choices, k_split) in [(alike(rows.count, 2), 1), (spread(7), last)] {
        let rows = rows.first(choices.len());
        let mut expected: Option<Vec<Vec<u8>>> = None;
        for &kernel in &kernels {
            let found = device.check_experts(kernel, &experts, &rows, (&choices, false), k_split);
            let expected = expected.get_or_insert_with(|| {
                let alone = |(r, expert): (usize, usize)| {
                    let row = rows.select(&[r / ROUTED.used]);
                    device
                        .run(stamped[0], &experts.of[expert], &row, k_split)
                        .remove(0)
                };
                choices
                    .concat()
                    .into_iter()
                    .enumerate()
                    .map(alone)
                    .collect()
            });
            assert_eq!(found, *expected, "{}", kernel.source().name);
        }
        // One row by itself.
        let one = (&choices[..1].to_vec(), false);
        let found = device.by_expert(kernels[0], &experts, &rows.first(1), one, k_split);
        let expected = expected.expect("some kernel");
        assert_eq!(found, expected[..ROUTED.used], "alone");
    }
}

fn epilogues(family: Family, fmt: &'static QuantFormat) {
    let variant = of_family(family)
        .find(|v| v.tiles % 2 == 0)
        .expect("a variant with an int8 scale's outputs");
    let kernels = [
        Epilogue::Gated(Gate::Silu, ActForm::F32),
        Epilogue::Gated(Gate::Clamped, ActForm::Q8),
        Epilogue::Gated(Gate::Clamped, ActForm::F16),
        Epilogue::Gated(Gate::Gelu, ActForm::Q8),
    ];
    let kernels = kernels.into_iter().filter(|e| formed(family, e));
    let kernels = kernels.map(|epilogue| ByExpert {
        stamped: Stamped {
            variant,
            fmt,
            epilogue,
            warps: 8,
        },
        routed: ROUTED,
    });
    let kernels: Vec<ByExpert> = kernels.collect();
    let Some(device) = Device::of_experts(&kernels) else {
        return;
    };
    for kernel in kernels {
        for (n, k_split) in [(17, 2), (64, 1)] {
            let k_split = k_split.min(splits(family).len() as u32);
            let k = 17 * 256;
            let experts = Experts::new(fmt, ROUTED.experts, &[n, n], k);
            let clamped = matches!(kernel.stamped.epilogue, Epilogue::Gated(Gate::Clamped, _));
            // Halves of one matrix begin with whole tiles, and have no bias.
            let experts = match (clamped, n % 16) {
                (true, _) => experts.biased(),
                (false, 0) => experts.joined(),
                (false, _) => experts,
            };
            let choices = (&spread(4), false);
            device.check_experts(kernel, &experts, &Rows::new(4, k), choices, k_split);
        }
    }
}

#[test]
fn half_tensor_kernels_read_every_layout_of_experts() {
    layouts(Family::MmaF16);
}

#[test]
fn float_kernels_read_every_layout_of_experts() {
    layouts(Family::Fma);
}

#[test]
fn kernels_of_apple_gpus_read_every_layout_of_experts() {
    layouts(Family::Simd);
    layouts(Family::SimdF32);
    layouts(Family::Matrix);
}

#[test]
fn routed_rows_of_apple_gpus_have_the_bits_of_rows_without_experts() {
    stamps(Family::Simd, &Q6_K);
    stamps(Family::SimdF32, &F32);
    stamps(Family::Matrix, &Q4_K);
}

#[test]
fn routed_rows_of_apple_gpus_are_gated_in_every_way() {
    epilogues(Family::Simd, &Q4_0);
    epilogues(Family::SimdF32, &BF16);
    epilogues(Family::Matrix, &F16);
}

#[test]
fn routed_rows_have_the_bits_of_rows_without_experts() {
    stamps(Family::MmaF16, &Q4_K);
    stamps(Family::MmaI8, &Q4_0);
    stamps(Family::Wgmma, &F16);
    stamps(Family::Fma, &F32);
    stamps(Family::Dp4a, &Q6_K);
}

#[test]
fn routed_rows_are_gated_in_every_way() {
    epilogues(Family::MmaF16, &BF16);
    epilogues(Family::MmaI8, &Q5_0);
    epilogues(Family::Wgmma, &Q8_0);
    epilogues(Family::Fma, &F16);
    epilogues(Family::Dp4a, &Q4_K);
}
