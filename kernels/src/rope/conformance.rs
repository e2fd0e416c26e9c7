//! Every RoPE kernel this CPU can run, against the references, row by row against all rows, and padding untouched.

use super::*;
use crate::cpu;

const EPS: f32 = 1e-6;

fn each_isa(check: impl Fn(Isa)) {
    for isa in Isa::classes() {
        if isa.available() {
            check(isa);
        } else {
            println!("skipped: {}", isa.name());
        }
    }
}

fn step(positions: &[u32], rows: usize) -> Step {
    Step {
        rows,
        logits: 0,
        tokens: std::ptr::null(),
        positions: positions.as_ptr(),
        slots: std::ptr::null(),
        logit_rows: std::ptr::null(),
        page_table: std::ptr::null(),
        pages_per_slot: 0,
    }
}

fn frequencies(half: usize) -> Vec<f32> {
    (0..half)
        .map(|i| 1e6f32.powf(-(i as f32) / half as f32))
        .collect()
}

fn table(isa: Isa, positions: &[u32], live: usize, inv_freq: &[f32], mscale: f32) -> Vec<f32> {
    let half = inv_freq.len();
    let mut out = vec![f32::MAX; positions.len() * (2 * half + 1)];
    let symbol = cpu::lookup(&table_symbol(isa)).expect("listed");
    // SAFETY: the symbol has this type by its name; `out` holds the rows at this stride.
    unsafe {
        let rope_table: RopeTableFn = std::mem::transmute(symbol.0);
        let (bits, stride) = (mscale.to_bits() as usize, (2 * half + 1) * 4);
        let step = step(positions, live);
        rope_table(
            &step,
            inv_freq.as_ptr(),
            out.as_mut_ptr(),
            half,
            bits,
            0,
            positions.len(),
            stride,
        );
    }
    out
}

#[test]
fn tables_are_exact_at_long_positions_and_leave_padding_alone() {
    each_isa(|isa| {
        let (positions, half) = ([0, 1, 4095, 131_071, 1_000_003, 7], 40);
        let inv_freq = frequencies(half);
        let out = table(isa, &positions, 5, &inv_freq, 1.25);
        let expected = reference_table(&positions, &inv_freq, 1.25);
        for (r, row) in out.chunks_exact(2 * half + 1).enumerate() {
            if r < 5 {
                assert_eq!(
                    row[..2 * half],
                    expected[r * 2 * half..][..2 * half],
                    "row {r}"
                );
                assert_eq!(row[2 * half], f32::MAX);
            } else {
                assert!(row.iter().all(|&v| v == f32::MAX), "padding row written");
            }
        }
        assert_eq!(expected[..2], [1.25, 0.0]);
    });
}

struct Rows<'a> {
    isa: Isa,
    shape: Shape,
    w: Option<&'a [f32]>,
    table: &'a [f32],
    positions: &'a [u32],
}

impl Rows<'_> {
    fn rotate(&self, x: &mut [f32], live: usize, begin: usize, end: usize) {
        let Shape {
            heads,
            head_dim,
            rot_dim,
            neox,
        } = self.shape;
        let symbol = cpu::lookup(&heads_symbol(self.isa)).expect("listed");
        let step = step(self.positions, live);
        // SAFETY: the symbol has this type by its name; x and the table hold the rows at these strides.
        unsafe {
            let rope_heads: RopeHeadsFn = std::mem::transmute(symbol.0);
            rope_heads(
                x.as_mut_ptr(),
                self.w.map_or(std::ptr::null(), <[f32]>::as_ptr),
                self.table.as_ptr(),
                heads,
                head_dim,
                rot_dim,
                usize::from(neox),
                begin,
                end,
                heads * head_dim * 4,
                (rot_dim + 1) * 4,
                EPS.to_bits() as usize,
                &step,
            );
        }
    }
}

#[test]
fn heads_equal_the_reference_whatever_is_around_them() {
    each_isa(|isa| {
        let positions = [0, 1, 31, 100_000, 5];
        for (head_dim, rot_dim) in [
            (64, 64),
            (80, 80),
            (80, 32),
            (96, 20),
            (128, 128),
            (256, 64),
            (6, 2),
        ] {
            for (heads, neox, normalised) in [
                (1, true, false),
                (3, false, true),
                (2, true, true),
                (4, false, false),
            ] {
                let shape = Shape {
                    heads,
                    head_dim,
                    rot_dim,
                    neox,
                };
                legal(&shape).expect("legal");
                let table = table(isa, &positions, 4, &frequencies(rot_dim / 2), 1.0);
                let w: Vec<f32> = (0..head_dim)
                    .map(|i| 0.6 + (i * 31 % 97) as f32 * 0.01)
                    .collect();
                let width = heads * head_dim;
                let x: Vec<f32> = (0..5 * width)
                    .map(|i| ((i * 67 % 257) as f32 - 120.0) * 0.013)
                    .collect();
                let rows = Rows {
                    isa,
                    shape,
                    w: normalised.then_some(&w[..]),
                    table: &table,
                    positions: &positions,
                };
                let (mut together, mut apart) = (x.clone(), x.clone());
                together[4 * width..].fill(f32::NAN);
                rows.rotate(&mut together, 4, 0, 5);
                for r in 0..4 {
                    rows.rotate(&mut apart, 4, r, r + 1);
                }
                assert_eq!(
                    together[..4 * width],
                    apart[..4 * width],
                    "{} {shape:?}",
                    isa.name()
                );
                assert_eq!(apart[4 * width..], x[4 * width..], "padding row written");
                for (r, y) in together[..4 * width].chunks_exact(width).enumerate() {
                    let table = &table[r * (rot_dim + 1)..][..rot_dim];
                    let expected = reference(&x[r * width..][..width], rows.w, table, &shape, EPS);
                    for (i, (y, e)) in y.iter().zip(&expected).enumerate() {
                        assert!(
                            (y - e).abs() <= 2e-6,
                            "{} {shape:?} row {r} at {i}: {y} for {e}",
                            isa.name()
                        );
                    }
                }
            }
        }
    });
}

#[test]
fn shapes_without_pairs_are_refused() {
    let shape = |head_dim, rot_dim| Shape {
        heads: 1,
        head_dim,
        rot_dim,
        neox: true,
    };
    assert_eq!(legal(&shape(64, 64)), Ok(()));
    assert_eq!(
        legal(&shape(64, 63)).expect_err("odd").to_string(),
        "rot_dim 63 is odd, pairs need it even"
    );
    let error = legal(&shape(64, 66)).expect_err("too long").to_string();
    assert_eq!(error, "rot_dim 66 is longer than head_dim 64");
}
