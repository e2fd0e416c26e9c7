use super::*;
use crate::simt::{ARCH, Simt, Source, syncs, without_sync};

/// Without any one of its barriers some schedule gives an error or other words.
#[test]
fn every_barrier_of_a_router_is_needed() {
    let few = router(40, 4, true, true);
    every_barrier_is_needed_in(Dialect::Cuda, few, 70, 67);
    every_barrier_is_needed_in(Dialect::Metal, few, 70, 67);
    // So many experts that one thread block does not count each row apart.
    every_barrier_is_needed_in(Dialect::Metal, router(300, 24, true, true), 32, 30);
}

/// Those of the launch that lists.
fn every_barrier_is_needed_in(dialect: Dialect, router: Router, rows: usize, live: usize) {
    let launches = router.launches(dialect, rows);
    let (last, before) = launches.split_last().expect("a launch");
    let (kernel, geometry) = last;
    let before = before.iter().map(|(kernel, g)| (kernel.name.clone(), *g));
    let before: Vec<Named> = before.collect();
    let whole = Source::in_dialect(dialect, kernel);
    let all = syncs(&whole.body);
    let name = |i: usize| format!("{}_{i}", kernel.name);
    let mutants = (0..all.len()).map(|i| Source {
        name: name(i),
        body: without_sync(&whole.body, i).replace(&kernel.name, &name(i)),
        ..whole.clone()
    });
    let kernels = launches.iter().map(|(k, _)| Source::in_dialect(dialect, k));
    let sources: Vec<_> = kernels.chain(mutants).collect();
    let Some(simt) = Simt::build(&sources, ARCH) else {
        return;
    };
    let device = Device { simt };
    let logits = logits(live, router.routed.experts, 5);
    let words = |device: &Device, name: String, seed| {
        let launches = [&before[..], &[(name, *geometry)]].concat();
        routed_words(device, (&launches, router), &logits, rows, [8, 1, 64], seed)
    };
    let expected = words(&device, kernel.name.clone(), 1).expect("runs");
    let idle = all.iter().enumerate().filter(|(i, _)| {
        (1..40).all(|seed| {
            let simt = device.simt.fresh();
            words(&Device { simt }, name(*i), seed).as_ref() == Ok(&expected)
        })
    });
    let idle: Vec<&String> = idle.map(|(_, sync)| sync).collect();
    assert!(idle.is_empty(), "{}: nothing needs {idle:?}", kernel.name);
}

/// Without any one of its barriers some schedule gives an error or other bits.
#[test]
fn every_barrier_of_a_sum_over_experts_is_needed() {
    let (width, used) = (260usize, 3);
    let stride = width * 4;
    let choices = vec![vec![(2, 0.5), (0, 0.25), (1, 0.125)]];
    let x = values(3, used * width, 2.0);
    let weight = values(9, width, 1.5);
    let kernel = sum(width, Some(ActForm::F16));
    for dialect in Dialect::ALL {
        let whole = Source::in_dialect(dialect, &kernel);
        let all = syncs(&whole.body);
        assert_eq!(all.len(), 2, "{all:?}");
        let name = |i: usize| format!("{}_{i}", kernel.name);
        let mutants = (0..all.len()).map(|i| Source {
            name: name(i),
            body: without_sync(&whole.body, i).replace(&kernel.name, &name(i)),
            ..whole.clone()
        });
        let sources: Vec<_> = [whole.clone()].into_iter().chain(mutants).collect();
        let Some(simt) = Simt::build(&sources, ARCH) else {
            return;
        };
        let left = |device: &Device, name: &str, seed| -> Result<Vec<u8>, String> {
            let normed = device.simt.alloc(ActForm::F16.stride(width));
            let args = SumArgs {
                x: device.rows(&x, width, stride).into(),
                routes: routes(device, &choices),
                factors: 0.into(),
                live: device.u32s(&[1, 0]).into(),
                first: 0.into(),
                gate: 0.into(),
                second: 0.into(),
                out: 0.into(),
                norm_weight: device.f32s(&weight).into(),
                normed: normed.into(),
                width: (width as u32).into(),
                used: (used as u32).into(),
                x_stride: (stride as u32).into(),
                first_stride: 0.into(),
                gate_stride: 0.into(),
                second_stride: 0.into(),
                out_stride: 0.into(),
                normed_stride: (normed.bytes as u32).into(),
                eps: 1e-5.into(),
            };
            let geometry = experts::sum_geometry(1);
            device.simt.launch(name, geometry, &args.list(), seed)?;
            Ok(device.read(&normed))
        };
        let device = Device { simt };
        let expected = left(&device, &kernel.name, 1).expect("runs");
        for (i, sync) in all.iter().enumerate() {
            let fails = (1..40).any(|seed| {
                let simt = device.simt.fresh();
                left(&Device { simt }, &name(i), seed).as_ref() != Ok(&expected)
            });
            assert!(fails, "{dialect:?}: nothing happens without {sync}");
        }
    }
}
