use super::{Device, SEEDS};
use coldpress_kernels::gpu::attention::{PlanArgs, plan, plan_bytes, plan_geometry};
use std::collections::BTreeSet;

/// What a plan is made for.
#[derive(Clone, Copy)]
struct Step {
    cells: usize,
    warps: u32,
    split: usize,
    window: usize,
    tile_rows: usize,
}

const PARTS: u32 = 2;

impl Step {
    /// Splits that a row sees.
    fn splits(&self, position: usize) -> std::ops::RangeInclusive<usize> {
        let first = match self.window {
            0 => 0,
            window => (position + 1).saturating_sub(window),
        };
        first / self.split..=position / self.split
    }

    /// Makes the plan, checks that every row's splits are computed once into cells of its own, in order, by warps that read
    /// pages of its slot, and returns how many items are single splits of several.
    fn check(&self, device: &Device, rows: &[(u32, u32)], seed: u64) -> usize {
        let max_rows = rows.len() + 3;
        let (slots, positions): (Vec<u32>, Vec<u32>) = rows.iter().copied().unzip();
        let out = device.simt.alloc(plan_bytes(max_rows, self.cells));
        let args = PlanArgs {
            positions: device.u32s(&positions).into(),
            slots: device.u32s(&slots).into(),
            live: device.u32s(&[rows.len() as u32, 0]).into(),
            plan: out.into(),
            max_rows: (max_rows as u32).into(),
            cells: (self.cells as u32).into(),
            tile_rows: (self.tile_rows as u32).into(),
            parts: PARTS.into(),
            warps: self.warps.into(),
            split: (self.split as u32).into(),
            window: (self.window as u32).into(),
        };
        device.launch(&plan(), plan_geometry(), args.list(), seed);
        let words = device.read_u32(&out);
        let items = words[0] as usize;
        let slots: BTreeSet<u32> = rows.iter().map(|r| r.0).collect();
        assert!(rows.len() > 256 || (words[1] > 0) == (slots.len() < rows.len()));
        let first_item = 4 + (max_rows * 2).next_multiple_of(4);

        // Splits that are computed for each row, with their cells; an item of several splits has them merged in one.
        let mut computed: Vec<Vec<(usize, usize, u32)>> = vec![vec![]; rows.len()];
        let mut singles = 0;
        for item in words[first_item..].chunks_exact(4).take(items) {
            let (row, count) = (item[0] as usize, (item[1] & 0xffff) as usize);
            let (splits, first_split) = ((item[1] >> 16) as usize, item[2] as usize);
            assert!((1..=self.tile_rows).contains(&count) && splits > 0);
            for i in 0..count {
                assert_eq!(rows[row].0, rows[row + i].0, "rows of two slots");
                let cell = item[3] + i as u32;
                computed[row + i].push((first_split, splits, cell));
            }
        }
        let mut taken = BTreeSet::new();
        for (r, computed) in computed.iter().enumerate() {
            let info = &words[4 + 2 * r..][..2];
            let (first, count, step) = (info[0], (info[1] & 0xffff) as usize, info[1] >> 16);
            assert_eq!(computed.len(), count, "row {r}");
            singles += usize::from(count > 1);
            let mut next = computed[0].0;
            let seen = self.splits(rows[r].1 as usize);
            assert!(next <= *seen.start(), "row {r}");
            for (i, &(first_split, splits, cell)) in computed.iter().enumerate() {
                assert_eq!(
                    (first_split, splits == 1 || count == 1),
                    (next, true),
                    "row {r}"
                );
                assert_eq!(cell, first + i as u32 * step, "row {r}");
                assert!((cell as usize) < self.cells, "row {r}: cell {cell}");
                assert!(taken.insert(cell), "row {r}: cell {cell} is another's");
                next += splits;
            }
            assert!(next > *seen.end(), "row {r}");
        }
        singles
    }
}

#[test]
fn every_split_of_every_row_is_computed_once() {
    let Some(device) = Device::of(&[plan()]) else {
        return;
    };
    // A prompt chunk, decode rows, another chunk, in more rows than the kernel has threads.
    let mut rows: Vec<(u32, u32)> = (1000..1301).map(|p| (7, p)).collect();
    rows.extend((0..150).map(|i| (20 + i, i * 37 % 2100)));
    rows.extend((0..120).map(|p| (3, p)));
    let step = Step {
        cells: 100_000,
        warps: 1 << 20,
        split: 64,
        window: 0,
        tile_rows: 4,
    };
    let long = |rows: &[(u32, u32)]| rows.iter().filter(|r| r.1 >= 64).count();
    // All are cut; some, while there are cells; none; only those with more than a share of the work.
    let all = step.check(&device, &rows, SEEDS[0]);
    assert!(all >= long(&rows), "{all}");
    let few = Step {
        cells: rows.len() + 500,
        ..step
    };
    let few = few.check(&device, &rows, SEEDS[1]);
    assert!((1..all).contains(&few), "{few} of {all}");
    let none = Step {
        cells: rows.len(),
        ..step
    };
    assert_eq!(none.check(&device, &rows, SEEDS[2]), 0);
    let shared = Step { warps: 800, ..step };
    let shared = shared.check(&device, &rows, SEEDS[0]);
    assert!((1..all).contains(&shared), "{shared} of {all}");
    for (window, tile_rows) in [(100, 1), (30, 16), (1, 3)] {
        let step = Step {
            window,
            tile_rows,
            split: 32,
            ..step
        };
        step.check(&device, &rows, SEEDS[1]);
    }
    assert_eq!(step.check(&device, &[], SEEDS[0]), 0);
    assert_eq!(step.check(&device, &[(0, 63)], SEEDS[0]), 0);
}
