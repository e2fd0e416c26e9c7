//! Every gating kernel this CPU can run, for every activation: each int8 row against the formula, and row by row against
//! all rows.

use super::*;
use crate::cpu;
use crate::cpu::abi::{ACT_GROUP, LIFT, Q8Block, q8_row_bytes};

const ROWS: usize = 5;

fn kernel(activation: Activation, isa: Isa) -> GatedQ8Fn {
    let symbol = cpu::lookup(&VariantId { activation, isa }.to_string()).expect("listed");
    // SAFETY: the symbol has this type by its name.
    unsafe { std::mem::transmute(symbol.0) }
}

/// Every ISA of this machine with every activation.
fn each(check: impl Fn(Activation, Isa)) {
    for isa in Isa::classes() {
        if !isa.available() {
            println!("skipped: {}", isa.name());
            continue;
        }
        for activation in Activation::ALL {
            check(activation, isa);
        }
    }
}

/// Gates and values from far below to far above what activations bend.
fn inputs(width: usize) -> (Vec<f32>, Vec<f32>) {
    let value = |i: usize, step: usize| ((i * step % 509) as f32 - 254.0) / 254.0;
    let size = |i: usize| [0.01f32, 1.0, 12.0, 120.0][i / width % 4];
    (0..ROWS * width)
        .map(|i| (value(i, 67) * size(i), value(i, 101) * 9.0))
        .unzip()
}

/// What the kernel makes of `rows` rows that are `gap` floats apart; 8 bytes at the end are nobody's.
fn run(
    (activation, isa): (Activation, Isa),
    gate: &[f32],
    up: &[f32],
    (width, gap, rows): (usize, usize, usize),
) -> Vec<u8> {
    let (row, stride) = (q8_row_bytes(width), (width + gap) * 4);
    let mut out = vec![0u64; rows * row / 8 + 1];
    *out.last_mut().expect("not empty") = u64::MAX;
    // SAFETY: all buffers hold the rows at these strides.
    unsafe {
        let to = out.as_mut_ptr().cast();
        kernel(activation, isa)(
            gate.as_ptr(),
            up.as_ptr(),
            to,
            width,
            rows,
            stride,
            stride,
            row,
        );
    }
    let bytes: Vec<u8> = out.iter().flat_map(|word| word.to_le_bytes()).collect();
    assert_eq!(bytes[rows * row..], [0xff; 8], "{} wrote past", isa.name());
    bytes[..rows * row].to_vec()
}

#[test]
fn rows_are_the_formula_rounded_to_int8_whatever_is_around_them() {
    each(|activation, isa| {
        let what = VariantId { activation, isa };
        for width in [32, 64, 96, 256, 288, 1024, 1056] {
            let (gate, up) = inputs(width);
            let rows = run((activation, isa), &gate, &up, (width, 0, ROWS));
            for (r, row) in rows.chunks_exact(q8_row_bytes(width)).enumerate() {
                let own = r * width..(r + 1) * width;
                let blocks = Q8Block::of_row(row, width);
                let groups = blocks.flat_map(|block| {
                    let q = block.q.as_chunks::<ACT_GROUP>().0.to_vec();
                    q.into_iter().zip(block.d).zip(block.start)
                });
                for (g, ((q, d), start)) in groups.enumerate() {
                    let at = g * ACT_GROUP..(g + 1) * ACT_GROUP;
                    let exact = at.clone().map(|i| {
                        let i = own.start + i;
                        reference(activation, f64::from(gate[i]), f64::from(up[i]))
                    });
                    let amax = exact.clone().fold(0.0, |m: f64, v| m.max(v.abs()));
                    assert!(
                        (f64::from(d) * 127.0 - amax).abs() <= 4e-5 * amax + 1e-28,
                        "{what} width {width} row {r} group {g}: scale {d} for {amax}"
                    );
                    for (&q, exact) in q.iter().zip(exact) {
                        let off = (f64::from(q) * f64::from(d) - exact).abs();
                        assert!(
                            off <= 0.505 * f64::from(d) + 1e-28,
                            "{what} width {width}: {q} x {d} for {exact}"
                        );
                    }
                    let sum: i32 = q.iter().map(|&q| i32::from(q)).sum();
                    assert_eq!(start, LIFT - (128 * sum) as f32, "{what}");
                }
                let alone = run(
                    (activation, isa),
                    &gate[own.clone()],
                    &up[own],
                    (width, 0, 1),
                );
                assert_eq!(alone, row, "{what}: row {r} depends on the others");
            }
        }
    });
}

#[test]
fn rows_may_be_apart_and_not_numbers_stay_in_their_group() {
    each(|activation, isa| {
        let (width, gap) = (64, 3);
        let (gate, up) = inputs(width);
        let apart = |x: &[f32]| -> Vec<f32> {
            let rows = x.chunks_exact(width);
            rows.flat_map(|row| [row, &[f32::NAN; 3]].concat())
                .collect()
        };
        let close = run((activation, isa), &gate, &up, (width, 0, ROWS));
        let wide = run(
            (activation, isa),
            &apart(&gate),
            &apart(&up),
            (width, gap, ROWS),
        );
        assert_eq!(close, wide, "{}", isa.name());
        let mut spoilt = up.clone();
        spoilt[width] = f32::NAN;
        let got = run((activation, isa), &gate, &spoilt, (width, 0, ROWS));
        for (r, (got, row)) in got
            .chunks_exact(q8_row_bytes(width))
            .zip(close.chunks_exact(q8_row_bytes(width)))
            .enumerate()
        {
            let q = |row: &[u8]| -> Vec<i8> {
                Q8Block::of_row(row, width)
                    .flat_map(|block| block.q)
                    .collect()
            };
            let same = if r == 1 { ACT_GROUP } else { 0 };
            assert_eq!(q(got)[same..], q(row)[same..], "{} row {r}", isa.name());
        }
    });
}
