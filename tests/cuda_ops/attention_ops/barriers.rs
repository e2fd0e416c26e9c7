use super::{ActForm, Case, Device, Division, KvType, plan};
use crate::simt::{ARCH, Simt, Source, syncs, without_sync};

/// Without any one of its barriers some schedule gives an error or other bits.
#[test]
fn every_barrier_is_needed() {
    // Rows that share a slot, and rows that do not; tiles that are cut, and tiles that are not.
    let chunk: Vec<(u32, u32)> = (60..66).map(|p| (0, p)).chain([(1, 40)]).collect();
    let decode = vec![(0, 70), (1, 33), (2, 5)];
    for kv in [KvType::F32, KvType::F16] {
        let mut case = Case::of(kv, 8, 2, 64).rotating(64, true, true);
        case.split = 32;
        let kernel = case.kernel(ActForm::Q8);
        let whole = Source::of(&kernel);
        let all = syncs(&whole.body);
        let mut sources = vec![Source::of(&plan()), whole.clone()];
        sources.extend((0..all.len()).map(|i| {
            let name = format!("{}_{i}", kernel.name);
            let body = without_sync(&whole.body, i).replace(&kernel.name, &name);
            Source::new(&name, &body)
        }));
        let Some(simt) = Simt::build(&sources, ARCH) else {
            return;
        };
        let device = Device { simt };
        let steps = [
            (&chunk, 1 << 20),
            (&decode, 1 << 20),
            (&decode, 1),
            (&chunk, 1),
        ];
        let by = |warps, seed| Division {
            warps,
            cells: 200,
            // Some warps have several items either way.
            blocks: if warps == 1 { 1 } else { 3 },
            seed,
        };
        let caches = steps.map(|(rows, _)| case.cache(rows));
        let expected: Vec<_> = steps
            .iter()
            .zip(&caches)
            .map(|(&(rows, warps), cache)| {
                case.attend(&device, cache, rows, ActForm::Q8, by(warps, 1))
            })
            .collect();
        let mut idle = vec![];
        for (i, sync) in all.iter().enumerate() {
            let name = format!("{}_{i}", kernel.name);
            let line: usize = sync
                .rsplit(' ')
                .next()
                .and_then(|l| l.parse().ok())
                .expect("a line");
            let text = whole.body.lines().nth(line - 1).expect("a line");
            // Of longer heads alone.
            if text.contains("if constexpr (PADDED > 128)") {
                continue;
            }
            let fails = (1..40).any(|seed| {
                let mutant = Device {
                    simt: device.simt.fresh(),
                };
                steps.iter().zip(&caches).zip(&expected).any(
                    |((&(rows, warps), cache), expected)| {
                        let by = by(warps, seed);
                        let form = ActForm::Q8;
                        let left = case.attend_with(&mutant, &name, cache, rows, form, by);
                        left.as_ref() != Ok(expected)
                    },
                )
            });
            if !fails {
                let before = whole.body.lines().skip(line.saturating_sub(4)).take(5);
                idle.push(format!(
                    "{sync}:\n{}",
                    before.collect::<Vec<_>>().join("\n")
                ));
            }
        }
        let name = &kernel.name;
        assert!(
            idle.is_empty(),
            "{name}: nothing happens without {}",
            idle.join("\n")
        );
    }
}
