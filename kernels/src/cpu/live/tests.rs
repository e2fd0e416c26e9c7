//! Every item belongs to exactly one worker, whatever the step, and no worker has much more than its part.

use super::*;
use std::collections::BTreeMap;

fn step<'a>(slots: &'a [u32], positions: &'a [u32]) -> Step {
    Step {
        rows: slots.len(),
        logits: 0,
        tokens: std::ptr::null(),
        positions: positions.as_ptr(),
        slots: slots.as_ptr(),
        logit_rows: std::ptr::null(),
        page_table: std::ptr::null(),
        pages_per_slot: 0,
    }
}

/// A decode batch of mixed depths, a chunk, both, a long sequence alone, rows of one slot at odd places.
fn steps() -> Vec<Vec<(u32, u32)>> {
    let decode = [0, 5, 255, 256, 257, 3000, 40_000, 31];
    let decode = decode.iter().zip(0..).map(|(&pos, slot)| (slot, pos));
    let chunk = (1000..1064).map(|pos| (9, pos));
    vec![
        decode.clone().collect(),
        chunk.clone().collect(),
        decode.chain(chunk).collect(),
        vec![(3, 100_000)],
        vec![(3, 0)],
        vec![(2, 7), (2, 9000), (1, 4), (2, 1), (2, 600)],
    ]
}

#[test]
fn every_item_belongs_to_one_worker_and_costs_are_even() {
    for rows in steps() {
        let (slots, positions): (Vec<u32>, Vec<u32>) = rows.iter().copied().unzip();
        let step = step(&slots, &positions);
        for (heads, kv_heads, window) in [
            (1, 1, 0),
            (16, 8, 0),
            (32, 1, 0),
            (14, 2, 0),
            (8, 8, 700),
            (71, 1, 33),
        ] {
            let shape = Shape {
                heads,
                kv_heads,
                head_dim: 64,
                scale: 1.0,
                window,
                softcap: 0.0,
            };
            for workers in [1, 2, 3, 8, 61] {
                check(&step, &shape, workers);
            }
        }
    }
}

fn check(step: &Step, shape: &Shape, workers: usize) {
    let mut owned: BTreeMap<usize, Unit> = BTreeMap::new();
    let mut seen: BTreeMap<(usize, usize, usize), usize> = BTreeMap::new();
    let (mut shares, mut largest) = (Vec::new(), 0);
    for w in 0..workers {
        // SAFETY: the step's arrays hold its rows.
        let portions: Vec<Portion> = unsafe { Units::of_worker(step, shape, w, workers) }.collect();
        let mut cost = 0;
        for p in &portions {
            for split in p.splits.clone() {
                let end = match split + 1 == p.unit.splits().end {
                    true => p.unit.end(),
                    false => p.unit.start_of(split + 1),
                };
                let item = end - p.unit.start_of(split);
                (cost, largest) = (cost + item, item.max(largest));
            }
            for (row, head) in p
                .unit
                .rows
                .clone()
                .flat_map(|r| p.unit.heads.clone().map(move |h| (r, h)))
            {
                assert_eq!(head / shape.group(), p.unit.kv_head);
                for split in p.splits.clone() {
                    *seen.entry((row, head, split)).or_default() += 1;
                }
            }
            assert_eq!(p.owner.is_none(), p.splits == p.unit.splits());
            if let Some(owner) = p.owner {
                assert!(owner + 1 < workers, "the last worker owns nothing");
                let first = owned.entry(owner).or_insert_with(|| p.unit.clone());
                assert_eq!(*first, p.unit, "{workers} workers: one unit in a slot");
            }
        }
        shares.push(cost);
    }
    // SAFETY: as above.
    let straddling = unsafe { Units::straddling(step, shape, workers) };
    let listed: BTreeMap<usize, Unit> = straddling
        .map(|p| (p.owner.expect("straddles"), p.unit))
        .collect();
    assert_eq!(listed, owned);
    for row in 0..step.rows {
        // SAFETY: row < rows.
        let pos = unsafe { *step.positions.add(row) } as usize;
        for head in 0..shape.heads {
            for split in split_of(shape.first(pos))..=split_of(pos) {
                assert_eq!(seen.get(&(row, head, split)), Some(&1));
            }
        }
    }
    let total: u64 = shares.iter().sum();
    for cost in shares {
        assert!(cost <= total / workers as u64 + largest + 1, "balanced");
    }
}
