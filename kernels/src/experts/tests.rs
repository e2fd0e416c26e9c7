//! Routing, sums and gates against the reference and the formulas; hostile logits; the division among workers.

use super::*;
use crate::cpu::groups::Routes;
use crate::cpu::lookup;

const UNUSED: *const u32 = std::ptr::null();

fn step(rows: usize) -> Step {
    Step {
        rows,
        logits: 0,
        tokens: UNUSED,
        positions: UNUSED,
        slots: UNUSED,
        logit_rows: UNUSED,
        page_table: UNUSED,
        pages_per_slot: 0,
    }
}

/// Experts and weights of every row, of which the last is not live.
fn route(logits: &[Vec<f32>], used: usize, of_used: bool, normalise: bool) -> Vec<Vec<(u32, f32)>> {
    let (experts, stride) = (logits[0].len(), route_bytes(used));
    let rows = logits.len();
    let flat = logits.concat();
    let mut routes = vec![u32::MAX; (rows + 1) * stride / 4];
    let symbol = lookup("route_scalar").expect("listed");
    // SAFETY: the symbol has this type by its name; the buffers hold all rows, which are live.
    unsafe {
        let route: RouteFn = std::mem::transmute(symbol.0);
        route(
            flat.as_ptr(),
            routes.as_mut_ptr().cast(),
            &step(rows),
            experts,
            used,
            usize::from(of_used),
            usize::from(normalise),
            0,
            rows + 1,
            experts * 4,
            stride,
        );
    }
    let mut found = routes.chunks_exact(stride / 4).map(|row| {
        let weights = row[used..2 * used].iter().map(|&w| f32::from_bits(w));
        row[..used].iter().copied().zip(weights).collect()
    });
    let live = found.by_ref().take(rows).collect();
    let rest: Vec<(u32, f32)> = found.next().expect("one more row");
    assert!(rest.iter().all(|&(e, _)| e == u32::MAX), "not a live row");
    live
}

fn logits(rows: usize, experts: usize) -> Vec<Vec<f32>> {
    let value = |i: usize| ((i * 7919) % 211) as f32 * 0.05 - 4.0;
    (0..rows)
        .map(|r| (0..experts).map(|e| value(r * experts + e)).collect())
        .collect()
}

#[test]
fn routing_matches_the_reference() {
    for (experts, used) in [(1, 1), (8, 2), (8, 8), (128, 8), (MAX_EXPERTS, MAX_USED)] {
        let logits = logits(5, experts);
        for (of_used, normalise) in [(false, false), (false, true), (true, false)] {
            let found = route(&logits, used, of_used, normalise);
            for (logits, found) in logits.iter().zip(found) {
                let expected = reference(logits, used, of_used, normalise);
                for (&(e, w), &(expert, weight)) in found.iter().zip(&expected) {
                    assert_eq!(e as usize, expert, "{used} of {experts}");
                    let error = (f64::from(w) - weight).abs();
                    assert!(error < 1e-6, "{used} of {experts}: {w} for {weight}");
                }
            }
        }
    }
}

#[test]
fn no_logits_lead_out_of_bounds() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let rows = vec![
        vec![nan, nan, nan, nan],
        vec![nan, 1.0, nan, 2.0],
        vec![-inf, -inf, -inf, -inf],
        vec![inf, nan, inf, -inf],
        vec![1.0, 1.0, 1.0, 1.0],
    ];
    for used in 1..=4 {
        for (row, found) in route(&rows, used, false, true).into_iter().enumerate() {
            let mut experts: Vec<u32> = found.into_iter().map(|(e, _)| e).collect();
            let first = experts[0];
            experts.sort_unstable();
            experts.dedup();
            assert!(
                experts.len() == used && experts.iter().all(|&e| e < 4),
                "row {row}"
            );
            assert_eq!(first, [0, 3, 0, 0, 0][row], "numbers first, then order");
        }
    }
}

#[test]
fn factors_are_of_experts_sums_by_rank_and_gates_logistic() {
    let (rows, width, used, experts) = (3, 20, 2, 4);
    let chosen = [[3u32, 0], [0, 2], [2, 3]];
    let weight = |row: usize, rank: usize| 0.25 + row as f32 * 0.5 - rank as f32 * 0.125;
    let stride = route_bytes(used);
    let mut routes = vec![0u32; rows * stride / 4];
    for (row, at) in routes.chunks_exact_mut(stride / 4).enumerate() {
        at[..used].copy_from_slice(&chosen[row]);
        for rank in 0..used {
            at[used + rank] = weight(row, rank).to_bits();
        }
    }
    // In memory: expert 0 has rows 0 and 1, expert 2 rows 1 and 2, expert 3 rows 0 and 2.
    let places = [[4usize, 0], [1, 2], [3, 5]];
    let x: Vec<f32> = (0..rows * used * width).map(|i| (i % 97) as f32).collect();
    let mut out = vec![f32::NAN; rows * width];
    // SAFETY: the symbols have these types by their names; all buffers hold their rows.
    unsafe {
        let sum: SumFn = std::mem::transmute(lookup("expert_sum_scalar").expect("listed").0);
        let at = routes.as_ptr().cast();
        for (begin, end) in [(0, 1), (1, 4)] {
            let (x, out) = (x.as_ptr(), out.as_mut_ptr());
            sum(
                x,
                at,
                &step(rows),
                out,
                width,
                experts,
                used,
                begin,
                end,
                width * 4,
                stride,
                width * 4,
            );
        }
    }
    for row in 0..rows {
        for i in 0..width {
            let of = |rank: usize| x[places[row][rank] * width + i] * weight(row, rank);
            assert_eq!(out[row * width + i], of(0) + of(1), "row {row}");
        }
    }
    let factors = [2.0f32, -1.0, 0.5, 3.0];
    let mut scaled = x.clone();
    // SAFETY: as above.
    unsafe {
        let scale: ScaleFn = std::mem::transmute(lookup("expert_scale_scalar").expect("listed").0);
        let at = routes.as_ptr().cast();
        for (begin, end) in [(0, 2), (2, 9)] {
            let (x, factors) = (scaled.as_mut_ptr(), factors.as_ptr());
            scale(
                x,
                at,
                &step(rows),
                factors,
                width,
                experts,
                used,
                begin,
                end,
                width * 4,
                stride,
            );
        }
    }
    for row in 0..rows {
        for rank in 0..used {
            let factor = factors[chosen[row][rank] as usize];
            let span = places[row][rank] * width..(places[row][rank] + 1) * width;
            let expected: Vec<f32> = x[span.clone()].iter().map(|x| x * factor).collect();
            assert_eq!(scaled[span], expected, "row {row} rank {rank}");
        }
    }
    let gates = [0.0f32, 2.0, -90.0];
    let before = out.clone();
    // SAFETY: as above; out is gated in place.
    unsafe {
        let gate: GateRowsFn = std::mem::transmute(lookup("gate_rows_scalar").expect("listed").0);
        let y = out.as_mut_ptr();
        gate(y, gates.as_ptr(), width, rows, width * 4, 4);
    }
    for (i, (after, before)) in out.iter().zip(before).enumerate() {
        let expected = f64::from(before) / (1.0 + (-f64::from(gates[i / width])).exp());
        assert!((f64::from(*after) - expected).abs() <= expected.abs() * 1e-6 + 1e-30);
    }
}

#[test]
fn every_tile_of_a_used_expert_has_one_worker() {
    let (experts, used, tiles) = (6, 3, 7);
    let chosen: Vec<[u32; 3]> = (0..11).map(|r| [0, 1 + r % 3, 5]).collect();
    let stride = route_bytes(used);
    let mut routes = vec![0u32; chosen.len() * stride / 4];
    for (at, chosen) in routes.chunks_exact_mut(stride / 4).zip(&chosen) {
        at[..used].copy_from_slice(chosen);
    }
    for live in [0, 1, 2, 11] {
        for workers in [1, 2, 3, 16, 200] {
            // SAFETY: there are routes for all rows.
            let routes =
                unsafe { Routes::new(routes.as_ptr().cast(), stride, &step(live), used, experts) };
            let mut met = vec![[0; 7]; experts];
            let mut most = 0;
            for worker in 0..workers {
                let mut cost = 0;
                routes.shares(tiles, 4, (worker, workers), |expert, rows, tiles| {
                    let users = chosen[..live]
                        .iter()
                        .filter(|c| c.contains(&(expert as u32)));
                    assert_eq!(rows.len(), users.count(), "expert {expert} of {live} rows");
                    cost += tiles.len() * (4 + rows.len());
                    tiles.for_each(|tile| met[expert][tile] += 1);
                });
                most = most.max(cost);
            }
            let mut total = 0;
            for (expert, met) in met.iter().enumerate() {
                let rows = chosen[..live]
                    .iter()
                    .filter(|c| c.contains(&(expert as u32)))
                    .count();
                assert!(met.iter().all(|&times| times == usize::from(rows > 0)));
                total += if rows > 0 { tiles * (4 + rows) } else { 0 };
            }
            assert!(
                most <= total / workers + 4 + live,
                "{most} of {total} by {workers}"
            );
        }
    }
}

#[test]
fn expected_rows_of_an_expert_add_up() {
    for (rows, experts, used) in [(1, 8, 2), (32, 128, 8), (100, 4, 4)] {
        let chances = rows_of_expert(rows, experts, used);
        let total: f64 = chances.iter().sum();
        let mean: f64 = chances.iter().enumerate().map(|(n, p)| n as f64 * p).sum();
        assert!((total - 1.0).abs() < 1e-9, "{total}");
        let expected = (rows * used) as f64 / experts as f64;
        assert!(
            (mean - expected).abs() < 1e-9,
            "{mean} instead of {expected}"
        );
    }
}

#[test]
fn what_has_no_kernels_is_named() {
    assert!(legal(128, 8).is_ok());
    assert_eq!(legal(0, 1), Err(Reason::Experts(0)));
    assert_eq!(
        legal(8, 9).unwrap_err().to_string(),
        "9 of 8 experts for a row (supported: 1 to 8)"
    );
    assert_eq!(
        legal(4096, 9).unwrap_err().to_string(),
        "4096 experts (supported: 1 to 1024)"
    );
}
