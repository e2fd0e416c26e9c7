//! Every norm kernel this CPU can run, against the reference, row by row against all rows, and the fused int8 rows
//! against norm followed by quantise.

use super::*;
use crate::cpu;
use crate::cpu::abi::q8_row_bytes;
use crate::cpu::symbols::QuantiseFn;

const ROWS: usize = 5;
const EPS: f32 = 1e-5;

fn each_isa(check: impl Fn(Isa)) {
    for isa in Isa::classes() {
        if isa.available() {
            check(isa);
        } else {
            println!("skipped: {}", isa.name());
        }
    }
}

fn norm(isa: Isa) -> NormFn {
    let id = VariantId {
        output: Output::F32,
        isa,
    };
    let symbol = cpu::lookup(&id.to_string()).expect("listed");
    // SAFETY: the symbol has this type by its name.
    unsafe { std::mem::transmute(symbol.0) }
}

fn norm_q8(isa: Isa) -> NormQ8Fn {
    let id = VariantId {
        output: Output::Q8,
        isa,
    };
    let symbol = cpu::lookup(&id.to_string()).expect("listed");
    // SAFETY: the symbol has this type by its name.
    unsafe { std::mem::transmute(symbol.0) }
}

fn inputs(width: usize) -> (Vec<f32>, Vec<f32>) {
    let value = |i: usize| ((i * 67 % 257) as f32 - 128.0) * 0.037;
    let x = (0..ROWS * width)
        .map(|i| value(i) * (1.0 + (i / width) as f32 * 10.0))
        .collect();
    (
        x,
        (0..width).map(|i| 0.5 + value(i * 7 + 3) * 0.1).collect(),
    )
}

/// Rows of `width` floats, `gap` floats apart, that kernels write.
fn run(isa: Isa, x: &[f32], w: Option<&[f32]>, width: usize, gap: usize, rows: usize) -> Vec<f32> {
    let mut y = vec![f32::MAX; rows * (width + gap)];
    let w = w.map_or(std::ptr::null(), <[f32]>::as_ptr);
    // SAFETY: all buffers hold the rows at these strides.
    unsafe {
        norm(isa)(
            x.as_ptr(),
            w,
            y.as_mut_ptr(),
            width,
            rows,
            width * 4,
            (width + gap) * 4,
            EPS.to_bits() as usize,
        );
    }
    y
}

#[test]
fn rows_equal_the_reference_whatever_is_around_them() {
    each_isa(|isa| {
        for width in [1, 5, 8, 31, 64, 80, 100, 257, 1024, 4097] {
            let (x, weights) = inputs(width);
            for w in [None, Some(&weights[..])] {
                let expected = reference(&x, w, width, EPS);
                let y = run(isa, &x, w, width, 3, ROWS);
                for (r, y) in y.chunks_exact(width + 3).enumerate() {
                    let row = r * width..(r + 1) * width;
                    for (y, e) in y.iter().zip(&expected[row.clone()]) {
                        assert!(
                            (y - e).abs() <= 1e-6 * e.abs(),
                            "{} width {width}: {y} for {e}",
                            isa.name()
                        );
                    }
                    assert_eq!(
                        y[width..],
                        [f32::MAX; 3],
                        "{} wrote past width {width}",
                        isa.name()
                    );
                    assert_eq!(
                        run(isa, &x[row], w, width, 0, 1),
                        y[..width],
                        "row {r} depends on the others"
                    );
                }
            }
        }
    });
}

#[test]
fn in_place_and_garbage_rows() {
    each_isa(|isa| {
        let width = 100;
        let (mut x, w) = inputs(width);
        let expected = run(isa, &x, Some(&w), width, 0, ROWS);
        x[width..2 * width].fill(f32::NAN);
        x[2 * width] = f32::INFINITY;
        let p = x.as_mut_ptr();
        // SAFETY: x holds the rows.
        unsafe {
            norm(isa)(
                p,
                w.as_ptr(),
                p,
                width,
                ROWS,
                width * 4,
                width * 4,
                EPS.to_bits() as usize,
            )
        };
        assert_eq!(x[..width], expected[..width]);
        assert_eq!(x[3 * width..], expected[3 * width..]);
    });
}

#[test]
fn int8_rows_equal_norm_then_quantise() {
    each_isa(|isa| {
        for width in [32, 64, 96, 256, 288, 1024, 1056] {
            let (mut x, w) = inputs(width);
            x[width..width + 32].fill(0.0);
            x[2 * width] = f32::NAN;
            let row = q8_row_bytes(width);
            let mut fused = vec![0u64; ROWS * row / 8];
            let mut apart = fused.clone();
            let y = run(isa, &x, Some(&w), width, 0, ROWS);
            let symbol = cpu::lookup(&format!("quantise_{}", isa.name())).expect("listed");
            // SAFETY: the symbol has this type by its name; all buffers hold the rows at these strides.
            unsafe {
                let quantise: QuantiseFn = std::mem::transmute(symbol.0);
                quantise(
                    y.as_ptr(),
                    apart.as_mut_ptr().cast(),
                    width,
                    ROWS,
                    width * 4,
                    row,
                );
                let (eps, out) = (EPS.to_bits() as usize, fused.as_mut_ptr().cast());
                norm_q8(isa)(
                    x.as_ptr(),
                    w.as_ptr(),
                    out,
                    width,
                    ROWS,
                    width * 4,
                    row,
                    eps,
                );
            }
            assert!(apart.iter().any(|&word| word != 0));
            assert_eq!(fused, apart, "{} width {width}", isa.name());
        }
    });
}

#[test]
fn int8_rows_have_whole_groups() {
    assert_eq!(legal(Output::F32, 80), Ok(()));
    let error = legal(Output::Q8, 80).expect_err("80 is no multiple of 32");
    assert_eq!(
        error.to_string(),
        "int8 rows need width 80 to be a multiple of 32"
    );
    assert_eq!(legal(Output::F32, 0), Err(Reason::Empty));
}
