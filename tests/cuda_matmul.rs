//! Every variant of the GPU matmul catalogue, run by the SIMT shim: against sums in f64 of the same weights and the same
//! quantised activations, and bit by bit against the other stamps of its numeric class. Kernels know no shapes, so each is
//! compiled once and meets the boundary shapes: part of a tile, of a unit, of a step; rows around the stamp.

mod case;
/// Matmuls by expert.
mod experts;
/// Norms that are left pending, and two matmuls in one launch.
mod fused;

use super::metal::fits;
use super::simt::{ARCH, Buffer, Dialect, Simt, SimtArg, Source};
use case::{Case, Rows};
use coldpress_kernels::gpu::abi::ActForm;
use coldpress_kernels::gpu::matmul::{
    Class, Epilogue, Family, Gate, Query, VARIANTS, Variant, args, counters, geometry, kernel,
    legal, scratch_bytes, variants,
};
use coldpress_kernels::gpu::metal::{FIRST_ARCH, TENSOR_ARCH};
use coldpress_kernels::gpu::tile;
use coldpress_kernels::quant::{
    BF16, F16, F32, FORMATS, Q4_0, Q4_K, Q5_0, Q6_K, Q8_0, QuantFormat,
};
use std::cell::Cell;

/// An architecture that has the family.
fn arch_of(family: Family) -> u32 {
    match family {
        Family::Tensor | Family::Tensor32 => TENSOR_ARCH,
        _ if family.is_metal() => FIRST_ARCH,
        _ => ARCH / 10,
    }
}

/// Warps that divide k, where shared memory has room for them whatever the stamp.
fn k_warps(family: Family) -> u32 {
    match family {
        Family::Tensor | Family::Tensor32 => 2,
        _ => 4,
    }
}

/// Numbers of thread blocks that can share k.
fn splits(family: Family) -> &'static [u32] {
    match family.is_metal() {
        true => &[1],
        false => &[1, 2],
    }
}

/// One compiled kernel.
#[derive(Clone, Copy)]
struct Stamped {
    variant: &'static Variant,
    fmt: &'static QuantFormat,
    epilogue: Epilogue,
    warps: u32,
}

impl Stamped {
    fn class(&self, k_split: u32) -> Class {
        Class {
            family: self.variant.family,
            warps: self.warps,
            k_split,
        }
    }

    fn query<'a>(&self, case: &Case, outputs: &'a [usize], rows: &Rows) -> Query<'a> {
        Query {
            layout: case.fmt.layout,
            outputs,
            k: case.k,
            rows: rows.count,
            epilogue: self.epilogue,
            pending: rows.pending,
            routed: None,
            arch: arch_of(self.variant.family),
        }
    }

    fn dialect(&self) -> Dialect {
        match self.variant.family.is_metal() {
            true => Dialect::Metal,
            false => Dialect::Cuda,
        }
    }

    fn source(&self) -> Source {
        let class = self.class(1);
        let kernel = kernel(self.variant, class, &self.fmt.layout, self.epilogue, false);
        Source::in_dialect(self.dialect(), &kernel)
    }
}

/// A launch to be.
struct Prepared {
    arguments: Vec<SimtArg>,
    buffers: Vec<Buffer>,
    counters: Buffer,
    /// Rows that are written: bytes of a row, and between rows.
    outs: Vec<(Buffer, usize, usize)>,
}

/// A device process, and schedules that differ from launch to launch.
struct Device {
    simt: Simt,
    seed: Cell<u64>,
}

impl Device {
    fn new(kernels: &[Stamped], arch: u32) -> Option<Device> {
        let sources: Vec<Source> = kernels.iter().map(Stamped::source).collect();
        let simt = Simt::build(&sources, arch)?;
        let seed = Cell::new(1);
        Some(Device { simt, seed })
    }

    /// Launches on `rows` activation rows. The outputs of all parts, row by row, whose padding nobody has written.
    fn run(&self, stamped: Stamped, case: &Case, rows: &Rows, k_split: u32) -> Vec<Vec<u8>> {
        let outputs = case.outputs();
        let query = stamped.query(case, &outputs, rows);
        let prepared = self.prepare(stamped, case, rows, k_split);
        self.seed.set(self.seed.get() + 1);
        let name = stamped.source().name;
        let grid = geometry(stamped.variant, stamped.class(k_split), &query);
        let seed = self.seed.get();
        if let Err(error) = self.simt.launch(&name, grid, &prepared.arguments, seed) {
            panic!(
                "{name}, n {outputs:?}, k {}, {} rows: {error}",
                case.k, rows.count
            );
        }
        self.results(&name, prepared, rows)
    }

    /// Memory and arguments of a launch.
    fn prepare(&self, stamped: Stamped, case: &Case, rows: &Rows, k_split: u32) -> Prepared {
        let Stamped {
            variant, epilogue, ..
        } = stamped;
        let class = stamped.class(k_split);
        let outputs = case.outputs();
        let query = stamped.query(case, &outputs, rows);
        if let Err(reason) = legal(variant, class, &query) {
            panic!("{}: {reason}", stamped.source().name);
        }
        let simt = &self.simt;
        let form = variant.family.act();
        let act = simt.upload(&rows.bytes(form));
        let units = tile::units(&case.fmt.layout, case.k) as u32;
        let scratch = simt.alloc(scratch_bytes(variant, class, &query).max(4) as usize);
        let counters = simt.upload(&vec![
            0;
            4 * counters(variant, class, &query).max(1) as usize
        ]);
        let mut arguments: Vec<SimtArg> = vec![
            act.into(),
            SimtArg::Const(rows.stride(form) as u64),
            (rows.count as u32).into(),
            units.into(),
            scratch.into(),
            counters.into(),
        ];
        let mut buffers = vec![act, scratch, counters];
        let pending = match rows.pending {
            true => form.pending_offset(case.k) as u32,
            false => 0,
        };
        arguments.extend([
            SimtArg::from(pending),
            (case.k as u32).into(),
            case::EPS.into(),
        ]);
        let normed = case.normed_row(epilogue).map(|(row_bytes, stride)| {
            let weight = simt.upload(&case::bytes(&case.parts[0].norm_weight()));
            let rows = simt.alloc(rows.count * stride);
            arguments.extend([weight.into(), rows.into(), SimtArg::Const(stride as u64)]);
            buffers.extend([weight, rows]);
            (rows, row_bytes, stride)
        });
        arguments.resize(args::PARTS, SimtArg::Const(0));
        arguments.push((outputs.len() as u32).into());
        let mut outs: Vec<(Buffer, usize, usize)> = vec![];
        for part in &case.parts {
            let (row_bytes, stride) = case::out_row(epilogue, part.n);
            let out = simt.alloc(rows.count * stride);
            let weights = simt.upload(&part.packed);
            let (extra, extra_stride) = match epilogue {
                Epilogue::Store => (simt.upload(&case::bytes(&part.bias)), 0),
                Epilogue::Residual | Epilogue::ResidualNorm(_) => {
                    // In place: what is added is where the sums go.
                    simt.write(&out, 0, &part.residual(rows.count, stride));
                    (out, stride)
                }
                Epilogue::Gated(..) => (weights, 0),
            };
            arguments.extend([
                weights.into(),
                (part.n as u32).into(),
                out.into(),
                SimtArg::Const(stride as u64),
                extra.into(),
                SimtArg::Const(extra_stride as u64),
            ]);
            buffers.extend([weights, out]);
            if extra.bytes == part.bias.len() * 4 && matches!(epilogue, Epilogue::Store) {
                buffers.push(extra);
            }
            outs.push((out, row_bytes, stride));
        }
        arguments.resize(args::COUNT, SimtArg::Const(0));
        if matches!(epilogue, Epilogue::Gated(..)) {
            outs.truncate(1);
        }
        outs.extend(normed);
        Prepared {
            arguments,
            buffers,
            counters,
            outs,
        }
    }

    /// What a launch left, row by row.
    fn results(&self, name: &str, prepared: Prepared, rows: &Rows) -> Vec<Vec<u8>> {
        let simt = &self.simt;
        let Prepared {
            buffers,
            counters,
            outs,
            ..
        } = prepared;
        let left = simt.read(&counters, 0, counters.bytes);
        assert!(left.iter().all(|&b| b == 0), "{name} leaves its counters");
        let mut results = vec![vec![]; rows.count];
        for (out, row_bytes, stride) in &outs {
            let all = simt.read(out, 0, out.bytes);
            for (row, result) in all.chunks_exact(*stride).zip(&mut results) {
                result.extend(&row[..*row_bytes]);
                assert!(
                    row[*row_bytes..].iter().all(|&b| b == 0xff),
                    "{name} writes beyond the {row_bytes} bytes of a row"
                );
            }
        }
        for buffer in buffers {
            simt.free(buffer);
        }
        results
    }

    fn check(&self, stamped: Stamped, case: &Case, rows: &Rows, k_split: u32) -> Vec<Vec<u8>> {
        let results = self.run(stamped, case, rows, k_split);
        let form = stamped.variant.family.act();
        if let Err(error) = case.compare(stamped.epilogue, form, rows, &results) {
            panic!(
                "{}, k {}, {} rows, split {k_split}: {error}",
                stamped.source().name,
                case.k,
                rows.count
            );
        }
        results
    }
}

/// Boundary k of a layout: one step and less, an odd number of units, more steps than the ring of each warp holds.
fn reductions(fmt: &QuantFormat) -> Vec<usize> {
    match tile::unit_k(&fmt.layout) {
        256 => vec![256, 1280, 256 * 21],
        _ if fmt.layout.int_bits().is_some() => vec![32, 320, 64 * 57 + 32],
        _ => vec![16, 208, 64 * 21 + 48],
    }
}

fn of_family(family: Family) -> impl Iterator<Item = &'static Variant> {
    VARIANTS.iter().filter(move |v| v.family == family)
}

/// Every layout by the first variant, and by one whose warps make weights together if the family has any.
fn every_layout(family: Family) -> Vec<Stamped> {
    let first = of_family(family).next().expect("a variant");
    let wide = of_family(family).find(|v| v.stamp > 16 && fits(v, Epilogue::Store));
    let wide = wide.filter(|_| matches!(family, Family::Simd | Family::Tensor | Family::Tensor32));
    let read = FORMATS.iter().filter(|fmt| family.reads(&fmt.layout));
    let kernels = read.flat_map(|fmt| {
        let variants = [Some(first), wide].into_iter().flatten();
        variants.map(move |variant| Stamped {
            variant,
            fmt,
            epilogue: Epilogue::Store,
            warps: 4,
        })
    });
    kernels.collect()
}

fn layouts(family: Family) {
    let kernels = every_layout(family);
    let Some(device) = Device::new(&kernels, ARCH) else {
        return;
    };
    for &stamped in &kernels {
        let stamp = stamped.variant.stamp as usize;
        for (i, k) in reductions(stamped.fmt).into_iter().enumerate() {
            let n = [&[1, 17][..], &[40], &[16]][i];
            let case = Case::new(stamped.fmt, n, k, i as u64);
            let rows = Rows::new([stamp + 1, stamp - stamp / 2, 1][i], k);
            device.check(stamped, &case, &rows, 1);
        }
    }
}

fn stamps(family: Family, formats: &[&'static QuantFormat]) {
    let mut kernels = vec![];
    // Every variant with the first format; compiling takes most of the time, so every third with the others.
    for (i, &fmt) in formats.iter().enumerate() {
        let query = Query {
            layout: fmt.layout,
            outputs: &[16],
            k: 256,
            rows: 1,
            epilogue: Epilogue::Store,
            pending: false,
            routed: None,
            arch: arch_of(family),
        };
        let class = Class {
            family,
            warps: k_warps(family),
            k_split: 1,
        };
        let variants = variants(class, &query).step_by(if i == 0 { 1 } else { 3 });
        kernels.extend(variants.map(|variant| Stamped {
            variant,
            fmt,
            epilogue: Epilogue::Store,
            warps: k_warps(family),
        }));
    }
    let Some(device) = Device::new(&kernels, ARCH) else {
        return;
    };
    for fmt in formats {
        let k = 2 * reductions(fmt)[1] + 256 * 6;
        let case = Case::new(fmt, &[40, 1, 16], k, 3);
        let same: Vec<Stamped> = kernels
            .iter()
            .copied()
            .filter(|s| s.fmt.ty == fmt.ty)
            .collect();
        let widest = same.iter().map(|s| s.variant.stamp as usize).max();
        let all = Rows::new(widest.expect("a stamp") + 1, k);
        for (&k_split, around) in splits(family).iter().zip([3, 1]) {
            let mut reference: Option<Vec<Vec<u8>>> = None;
            for &stamped in &same {
                let stamp = stamped.variant.stamp as usize;
                for count in [stamp + 1, 1, stamp.max(2) - 1].into_iter().take(around) {
                    let rows = all.first(count);
                    let results = device.check(stamped, &case, &rows, k_split);
                    let reference =
                        reference.get_or_insert_with(|| device.run(stamped, &case, &all, k_split));
                    assert_eq!(
                        results,
                        reference[..count],
                        "{}: {count} rows, split {k_split}: bits depend on the stamp",
                        stamped.source().name
                    );
                }
            }
        }
    }
}

/// Whether kernels of the family leave rows in the epilogue's form: Apple GPUs have no int8 activations.
fn formed(family: Family, epilogue: &Epilogue) -> bool {
    let q8 = matches!(
        epilogue,
        Epilogue::Gated(_, ActForm::Q8) | Epilogue::ResidualNorm(ActForm::Q8)
    );
    !family.is_metal() || !q8
}

fn epilogues(family: Family, fmt: &'static QuantFormat) {
    let variant = |epilogue| {
        // One with an int8 scale's outputs, or with as many as are multiplied at once.
        let even = |v: &&Variant| v.tiles.is_multiple_of(2) || arch_of(family) == TENSOR_ARCH;
        let mut even = of_family(family).filter(even);
        even.find(|v| fits(v, epilogue)).expect("a variant")
    };
    let all = [
        Epilogue::Residual,
        Epilogue::ResidualNorm(ActForm::F16),
        Epilogue::ResidualNorm(ActForm::Q8),
        Epilogue::Gated(Gate::Silu, ActForm::F32),
        Epilogue::Gated(Gate::Silu, ActForm::Q8),
        Epilogue::Gated(Gate::Gelu, ActForm::F16),
        Epilogue::Gated(Gate::Gelu, ActForm::Q8),
    ];
    let formed = all.into_iter().filter(|e| formed(family, e));
    let kernels = formed.map(|epilogue| Stamped {
        variant: variant(epilogue),
        fmt,
        epilogue,
        warps: 2 * k_warps(family),
    });
    let kernels: Vec<Stamped> = kernels.collect();
    let Some(device) = Device::new(&kernels, ARCH) else {
        return;
    };
    for stamped in kernels {
        for (n, k_split) in [(1, 1), (17, 2), (40, 1), (64, 2), (97, 1)] {
            let k_split = k_split.min(splits(family).len() as u32);
            let k = 17 * 256;
            let outputs = match stamped.epilogue {
                Epilogue::Gated(..) => vec![n, n],
                Epilogue::ResidualNorm(_) => vec![n],
                _ => vec![n, 16],
            };
            let case = Case::new(fmt, &outputs, k, n as u64);
            let rows = Rows::new(stamped.variant.stamp as usize + 1, k);
            // Each way meets rows of both kinds.
            let rows = if n % 2 == 0 { rows.pending() } else { rows };
            device.check(stamped, &case, &rows, k_split);
        }
    }
}

#[test]
fn int8_tensor_kernels_read_every_layout() {
    layouts(Family::MmaI8);
}

#[test]
fn int8_tensor_kernels_of_all_stamps_agree() {
    stamps(Family::MmaI8, &[&Q4_K, &Q6_K]);
}

#[test]
fn int8_tensor_kernels_finish_in_every_way() {
    epilogues(Family::MmaI8, &Q4_0);
}

#[test]
fn half_tensor_kernels_read_every_layout() {
    layouts(Family::MmaF16);
}

#[test]
fn half_tensor_kernels_of_all_stamps_agree() {
    stamps(Family::MmaF16, &[&Q4_K, &F16]);
}

#[test]
fn half_tensor_kernels_finish_in_every_way() {
    epilogues(Family::MmaF16, &BF16);
}

#[test]
fn warpgroup_kernels_read_every_layout() {
    layouts(Family::Wgmma);
}

#[test]
fn warpgroup_kernels_of_all_stamps_agree() {
    stamps(Family::Wgmma, &[&Q4_K, &F16]);
}

#[test]
fn warpgroup_kernels_finish_in_every_way() {
    epilogues(Family::Wgmma, &Q5_0);
}

#[test]
fn float_kernels_read_every_layout() {
    layouts(Family::Fma);
}

#[test]
fn float_kernels_of_all_stamps_agree() {
    stamps(Family::Fma, &[&F16, &F32]);
}

#[test]
fn float_kernels_finish_in_every_way() {
    epilogues(Family::Fma, &BF16);
}

#[test]
fn dot_product_kernels_read_every_layout() {
    layouts(Family::Dp4a);
}

#[test]
fn dot_product_kernels_of_all_stamps_agree() {
    stamps(Family::Dp4a, &[&Q4_K, &Q6_K]);
}

#[test]
fn dot_product_kernels_finish_in_every_way() {
    epilogues(Family::Dp4a, &Q8_0);
}

#[test]
fn simd_kernels_read_every_layout() {
    layouts(Family::Simd);
    layouts(Family::SimdF32);
}

#[test]
fn simd_kernels_of_all_stamps_agree() {
    stamps(Family::Simd, &[&Q4_K, &Q6_K, &F16]);
    stamps(Family::SimdF32, &[&F32, &BF16]);
}

#[test]
fn simd_kernels_finish_in_every_way() {
    epilogues(Family::Simd, &Q5_0);
    epilogues(Family::SimdF32, &F32);
}

#[test]
fn matrix_kernels_read_every_layout() {
    layouts(Family::Matrix);
}

#[test]
fn matrix_kernels_of_all_stamps_agree() {
    stamps(Family::Matrix, &[&Q4_K, &Q6_K, &BF16]);
}

#[test]
fn matrix_kernels_finish_in_every_way() {
    epilogues(Family::Matrix, &Q4_0);
}

#[test]
fn tensor_kernels_read_every_layout() {
    layouts(Family::Tensor);
    layouts(Family::Tensor32);
}

#[test]
fn tensor_kernels_of_all_stamps_agree() {
    stamps(Family::Tensor, &[&Q4_K, &F16]);
    stamps(Family::Tensor32, &[&Q4_K, &F16]);
}

#[test]
fn tensor_kernels_finish_in_every_way() {
    epilogues(Family::Tensor, &Q6_K);
    epilogues(Family::Tensor32, &BF16);
}
