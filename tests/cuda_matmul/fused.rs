use super::*;
use coldpress_kernels::gpu::matmul::{pair_geometry, pair_kernel};

/// Rows of norms, read and left, have the same bits whatever the stamp, and however many there are.
fn norms(family: Family, fmt: &'static QuantFormat) {
    let form = family.act();
    let wide = of_family(family).filter(|v| form != ActForm::Q8 || v.tiles % 2 == 0);
    let wide = wide.filter(|v| fits(v, Epilogue::ResidualNorm(form)));
    let epilogue = match form {
        ActForm::Q8 => Epilogue::ResidualNorm(ActForm::Q8),
        ActForm::F16 | ActForm::F32 => Epilogue::ResidualNorm(ActForm::F16),
    };
    let stamped = |variant| Stamped {
        variant,
        fmt,
        epilogue,
        warps: k_warps(family),
    };
    let kernels: Vec<Stamped> = wide
        .step_by(if arch_of(family) == TENSOR_ARCH { 1 } else { 3 })
        .map(stamped)
        .collect();
    assert!(kernels.len() > 1);
    let Some(device) = Device::new(&kernels, ARCH) else {
        return;
    };
    let widest = kernels.iter().map(|s| s.variant.stamp as usize).max();
    let k = 256 * 9;
    let case = Case::new(fmt, &[80], k, 5);
    let all = Rows::new(widest.expect("a stamp") + 1, k).pending();
    for &k_split in splits(family) {
        let reference = device.check(kernels[0], &case, &all, k_split);
        for &stamped in &kernels {
            for count in [1, stamped.variant.stamp as usize + 1] {
                let results = device.check(stamped, &case, &all.first(count), k_split);
                let name = stamped.source().name;
                assert_eq!(results, reference[..count], "{name}: {count} rows");
            }
        }
    }
}

#[test]
fn norms_of_rows_do_not_depend_on_the_stamp() {
    norms(Family::MmaI8, &Q4_K);
    norms(Family::MmaF16, &Q4_K);
    norms(Family::Wgmma, &F16);
    norms(Family::Fma, &F16);
    norms(Family::Dp4a, &Q8_0);
    norms(Family::Simd, &Q4_K);
    norms(Family::Matrix, &Q4_K);
    norms(Family::Tensor, &Q4_K);
    norms(Family::Tensor32, &Q4_K);
}

#[test]
fn pairs_give_what_each_gives_alone() {
    let half = |fmt, family, at: usize| Stamped {
        variant: of_family(family).nth(at).expect("a variant"),
        fmt,
        epilogue: Epilogue::Store,
        warps: 4,
    };
    // Stamps and tiles of the halves differ; one pair shares k among thread blocks.
    let pairs = [
        (
            [
                half(&Q4_K, Family::MmaF16, 0),
                half(&Q6_K, Family::MmaF16, 3),
            ],
            2,
        ),
        (
            [half(&Q4_K, Family::MmaI8, 3), half(&Q8_0, Family::Dp4a, 0)],
            1,
        ),
        (
            [half(&F16, Family::Wgmma, 0), half(&Q6_K, Family::MmaF16, 1)],
            2,
        ),
    ];
    for (halves, k_split) in pairs {
        let k = 256 * 13;
        let outputs = [vec![40, 64], vec![33]];
        let rows = Rows::new(21, k).pending();
        let cases: [Case; 2] =
            [0, 1].map(|i| Case::new(halves[i].fmt, &outputs[i], k, 8 + i as u64));
        let queries = [0, 1].map(|i| {
            let query = halves[i].query(&cases[i], &outputs[i], &rows);
            (halves[i].variant, halves[i].class(k_split), query)
        });
        let kernel = pair_kernel([&queries[0], &queries[1]]);
        let mut sources: Vec<Source> = halves.iter().map(Stamped::source).collect();
        sources.push(Source::of(&kernel));
        let Some(simt) = Simt::build(&sources, ARCH) else {
            return;
        };
        let device = Device {
            simt,
            seed: Cell::new(1),
        };
        let prepared = [0, 1].map(|i| device.prepare(halves[i], &cases[i], &rows, k_split));
        let arguments = prepared.each_ref().map(|p| p.arguments.clone()).concat();
        let geometry = pair_geometry([&queries[0], &queries[1]]);
        let ran = device.simt.launch(&kernel.name, geometry, &arguments, 7);
        ran.unwrap_or_else(|e| panic!("{}: {e}", kernel.name));
        for (i, prepared) in prepared.into_iter().enumerate() {
            let together = device.results(&kernel.name, prepared, &rows);
            let alone = device.check(halves[i], &cases[i], &rows, k_split);
            assert_eq!(together, alone, "half {i} of {}", kernel.name);
        }
    }
}
