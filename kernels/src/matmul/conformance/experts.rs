//! Matmuls by expert of every layout and ISA: each routed row has the bits that the dense kernels give it with its
//! expert's matrix, whatever the company, the rows of the bucket and the workers; and nothing else is written.

use super::*;
use crate::cpu::abi::Step;
use crate::experts::{self, ExpertMatmulFn, GatherFn, route_bytes};

/// Experts chosen by each row, two of five.
const USED: usize = 2;
const EXPERTS: usize = 5;

/// Of `rows` rows the experts, so that one expert gets most rows, one none, and the others few.
fn chosen(rows: usize) -> Vec<[u32; USED]> {
    let second = |row: usize| [0, 4, 1][row % 3];
    (0..rows)
        .map(|row| match row % 4 {
            3 => [second(row), 3],
            _ => [3, second(row)],
        })
        .collect()
}

fn step(rows: usize) -> Step {
    let none = std::ptr::null();
    Step {
        rows,
        logits: 0,
        tokens: none,
        positions: none,
        slots: none,
        logit_rows: none,
        page_table: none,
        pages_per_slot: 0,
    }
}

/// Rows of routes; weights are not looked at.
fn routes(chosen: &[[u32; USED]]) -> Aligned {
    let mut out = Aligned::new(chosen.len() * route_bytes(USED));
    for (row, chosen) in out.bytes().chunks_exact_mut(route_bytes(USED)).zip(chosen) {
        for (at, expert) in row.chunks_exact_mut(4).zip(chosen) {
            at.copy_from_slice(&expert.to_le_bytes());
        }
    }
    out
}

/// Row and rank of each routed row in memory.
fn order(chosen: &[[u32; USED]]) -> Vec<(usize, usize)> {
    let of = |expert: u32| {
        chosen.iter().enumerate().filter_map(move |(row, all)| {
            let rank = all.iter().position(|&e| e == expert)?;
            Some((row, rank))
        })
    };
    (0..EXPERTS as u32).flat_map(of).collect()
}

pub(super) fn check_shape(isa: Isa, fmt: &'static QuantFormat, n: usize, k: usize, most: usize) {
    let tiles = n.div_ceil(TILE_N);
    let width = tiles * TILE_N;
    let mut cases: Vec<Case> = (0..EXPERTS)
        .map(|e| {
            let byte: fn(usize) -> u8 = [varied, |i| varied(i + 1), |i| varied(i + 2)][e % 3];
            case(fmt, n, k, byte)
        })
        .collect();
    let mut all = Aligned::new(EXPERTS * cases[0].tiles.1);
    for (to, case) in all
        .bytes()
        .chunks_exact_mut(cases[0].tiles.1)
        .zip(&mut cases)
    {
        to.copy_from_slice(case.tiles.bytes());
    }
    let bias: Vec<f32> = (0..EXPERTS * width).map(|i| (i % 89) as f32).collect();
    let x = activations(most, k);
    let mut rows_of_x = match fmt.layout.int_bits() {
        Some(_) => quantised(isa, &x, k).0,
        None => {
            let mut same = Aligned::new(x.len() * 4);
            for (to, v) in same.bytes().chunks_exact_mut(4).zip(&x) {
                to.copy_from_slice(&v.to_le_bytes());
            }
            same
        }
    };
    let ones = batches(fmt, isa.numeric_class(), 1, most).expect("stamp 1 exists");
    let dense: Vec<Vec<f32>> = cases
        .iter_mut()
        .zip(bias.chunks_exact(width))
        .map(|(case, bias)| run(case, &ones, rows_of_x.bytes(), Init::From(bias, 0)))
        .collect();

    let x_stride = activation_row_bytes(&fmt.layout, k);
    let symbol = cpu::lookup(&experts::symbol(&fmt.layout, isa)).expect("listed");
    let gather = cpu::lookup("gather_experts_scalar").expect("listed");
    let chosen = chosen(most);
    for rows in [1, 2, 7, most] {
        let step = step(rows);
        let order = order(&chosen[..rows]);
        let mut routes = routes(&chosen);
        for workers in [1, 2, 5] {
            let mut gathered = Aligned::new(most * USED * x_stride);
            let mut y = vec![f32::NAN; most * USED * width];
            for worker in 0..workers {
                let share = rows.max(2) * worker / workers..rows.max(2) * (worker + 1) / workers;
                // SAFETY: the symbol has this type by its name; x has `most` rows, as many as the routes, and the
                // gathered rows are `USED` times as many.
                unsafe {
                    let gather: GatherFn = std::mem::transmute(gather.0);
                    gather(
                        rows_of_x.bytes().as_ptr(),
                        routes.bytes().as_ptr(),
                        &step,
                        gathered.bytes().as_mut_ptr(),
                        EXPERTS,
                        USED,
                        x_stride,
                        share.start,
                        share.end,
                        x_stride,
                        route_bytes(USED),
                        x_stride,
                    );
                }
            }
            for worker in 0..workers {
                // SAFETY: as above; y has `USED` rows for each row, `all` and `bias` have every expert.
                unsafe {
                    let matmul: ExpertMatmulFn = std::mem::transmute(symbol.0);
                    matmul(
                        all.bytes().as_ptr(),
                        gathered.bytes().as_ptr(),
                        bias.as_ptr(),
                        y.as_mut_ptr(),
                        routes.bytes().as_ptr(),
                        &step,
                        k,
                        EXPERTS,
                        USED,
                        tiles,
                        1,
                        3,
                        worker,
                        workers,
                        x_stride,
                        route_bytes(USED),
                        width * 4,
                    );
                }
            }
            let what = format!(
                "{} {isa:?} n={n} k={k} rows {rows} workers {workers}",
                fmt.ty
            );
            let (live, rest) = y.split_at(order.len() * width);
            for (y, &(row, rank)) in live.chunks_exact(width).zip(&order) {
                let expert = chosen[row][rank] as usize;
                let expected = &dense[expert][row * width..][..width];
                assert!(
                    same_bits(y, expected),
                    "{what}: row {row} of expert {expert}"
                );
            }
            assert!(
                rest.iter().all(|v| v.is_nan()),
                "{what}: wrote past the live rows"
            );
        }
    }
}

#[test]
fn experts_give_the_bits_of_dense_kernels() {
    for &isa in Isa::ALL.iter().filter(|isa| isa.available()) {
        for fmt in FORMATS {
            if cpu::lookup(&experts::symbol(&fmt.layout, isa)).is_none() {
                // Only the float layouts of an ISA whose class has another ISA's kernels for them.
                assert!(fmt.layout.int_bits().is_none() && isa != isa.numeric_class());
                continue;
            }
            for n in [16, 40] {
                check_shape(isa, fmt, n, 256, 41);
            }
        }
    }
}
