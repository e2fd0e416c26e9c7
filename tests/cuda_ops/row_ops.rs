use super::{Device, FORMS, SEEDS, assert_row, values};
use crate::simt::Dialect;
use coldpress_kernels::gpu::abi::{ActForm, Q8_GROUP, TILE_K};
use coldpress_kernels::gpu::rows::{
    self, ElementwiseArgs, GatherArgs, NormArgs, Op, elementwise, gather_rows, norm,
};
use coldpress_kernels::norm::reference;

const WIDTHS: [usize; 8] = [4, 32, 64, 96, 260, 1024, 4096, 4096 + 32];

/// Bytes between rows of `width` floats that are not the least there can be.
fn stride(width: usize) -> usize {
    (width * 4).next_multiple_of(64) + 64
}

#[test]
fn norms_are_the_reference_in_every_form() {
    Dialect::ALL
        .into_iter()
        .for_each(norms_are_the_reference_in_every_form_in);
}

fn norms_are_the_reference_in_every_form_in(dialect: Dialect) {
    let kernels = FORMS.map(|form| WIDTHS.map(|width| norm(form, width)));
    let Some(device) = Device::in_dialect(dialect, kernels.as_flattened()) else {
        return;
    };
    for width in WIDTHS {
        for count in [1, 3] {
            let x = values(width, count * width, 3.0);
            let w = values(7, width, 1.5);
            let expected = reference(&x, Some(&w), width, 1e-5);
            let from = device.rows(&x, width, stride(width));
            let weight = device.f32s(&w);
            for (form, seed) in FORMS.into_iter().zip(SEEDS) {
                let kernel = norm(form, width);
                // A row more than there are.
                let out = device.simt.alloc((count + 1) * form.stride(width));
                let plain = device.simt.alloc((count + 1) * stride(width));
                let args = NormArgs {
                    x: from.into(),
                    weight: weight.into(),
                    out: out.into(),
                    plain: plain.into(),
                    width: (width as u32).into(),
                    rows: (count as u32).into(),
                    x_stride: (stride(width) as u32).into(),
                    out_stride: (form.stride(width) as u32).into(),
                    plain_stride: (stride(width) as u32).into(),
                    eps: 1e-5.into(),
                };
                let geometry = rows::norm_geometry(count);
                device.launch(&kernel, geometry, args.list(), seed);
                let out = device.read(&out);
                let (out, rest) = out.split_at(count * form.stride(width));
                let found = out.chunks_exact(form.stride(width));
                for (row, expected) in found.zip(expected.chunks_exact(width)) {
                    assert_row(&kernel.name, form, row, expected, (2e-6, 1e-9));
                }
                assert!(rest.iter().all(|&b| b == 0xff), "a row too many");
                let plain = device.read(&plain);
                let (plain, rest) = plain.split_at(count * stride(width));
                let found = plain.chunks_exact(stride(width));
                for (row, expected) in found.zip(expected.chunks_exact(width)) {
                    assert_row(&kernel.name, ActForm::F32, row, expected, (2e-6, 1e-9));
                }
                assert!(rest.iter().all(|&b| b == 0xff), "a plain row too many");
            }
        }
    }
}

#[test]
fn a_norm_in_place_is_the_norm() {
    Dialect::ALL
        .into_iter()
        .for_each(a_norm_in_place_is_the_norm_in);
}

fn a_norm_in_place_is_the_norm_in(dialect: Dialect) {
    let (width, kernel) = (4128, norm(ActForm::F32, 4128));
    let Some(device) = Device::in_dialect(dialect, std::slice::from_ref(&kernel)) else {
        return;
    };
    let x = values(3, 2 * width, 3.0);
    let ones = vec![1.0; width];
    let expected = reference(&x, None, width, 1e-6);
    for seed in SEEDS {
        let rows = device.rows(&x, width, stride(width));
        let args = NormArgs {
            x: rows.into(),
            weight: device.f32s(&ones).into(),
            out: rows.into(),
            plain: 0.into(),
            width: (width as u32).into(),
            rows: 2.into(),
            x_stride: (stride(width) as u32).into(),
            out_stride: (stride(width) as u32).into(),
            plain_stride: 0.into(),
            eps: 1e-6.into(),
        };
        device.launch(&kernel, rows::norm_geometry(1), args.list(), seed);
        let found = device.read(&rows);
        let found = found.chunks_exact(stride(width));
        for (row, expected) in found.zip(expected.chunks_exact(width)) {
            assert_row("in place", ActForm::F32, row, expected, (2e-6, 1e-9));
        }
    }
}

#[test]
fn element_wise_functions_are_the_reference_in_every_form() {
    Dialect::ALL
        .into_iter()
        .for_each(element_wise_functions_are_the_reference_in_every_form_in);
}

fn element_wise_functions_are_the_reference_in_every_form_in(dialect: Dialect) {
    let kernels = FORMS.map(|form| Op::ALL.map(|op| elementwise(op, form)));
    let Some(device) = Device::in_dialect(dialect, kernels.as_flattened()) else {
        return;
    };
    let factor = 7.5f32;
    for width in [32, 96, 516, 1024] {
        for count in [1, 3] {
            let (mut x, y) = (
                values(width, count * width, 12.0),
                values(width + 1, count * width, 2.0),
            );
            // Where an exponential overflows.
            x[1] = -120.0;
            let a = device.rows(&x, width, stride(width));
            let b = device.rows(&y, width, stride(width) + 64);
            for (i, op) in Op::ALL.into_iter().enumerate() {
                for (j, form) in FORMS.into_iter().enumerate() {
                    let kernel = elementwise(op, form);
                    let out = device.simt.alloc((count + 1) * form.stride(width));
                    let args = ElementwiseArgs {
                        x: a.into(),
                        y: if op.arity() == 2 { b.into() } else { 0.into() },
                        out: out.into(),
                        width: (width as u32).into(),
                        rows: (count as u32).into(),
                        x_stride: (stride(width) as u32).into(),
                        y_stride: (stride(width) as u32 + 64).into(),
                        out_stride: (form.stride(width) as u32).into(),
                        factor: factor.into(),
                    };
                    let geometry = rows::elementwise_geometry(width, count);
                    device.launch(&kernel, geometry, args.list(), SEEDS[(i + j) % 3]);
                    let out = device.read(&out);
                    let (out, rest) = out.split_at(count * form.stride(width));
                    for (r, row) in out.chunks_exact(form.stride(width)).enumerate() {
                        let of = |k: usize| {
                            let (x, y) = (x[r * width + k], y[r * width + k]);
                            op.reference(x.into(), y.into(), factor.into()) as f32
                        };
                        let expected: Vec<f32> = (0..width).map(of).collect();
                        assert_row(&kernel.name, form, row, &expected, (2e-6, 1e-9));
                    }
                    assert!(rest.iter().all(|&b| b == 0xff), "a row too many");
                }
            }
        }
    }
}

#[test]
fn quantised_rows_are_exact_to_the_last_bit() {
    Dialect::ALL
        .into_iter()
        .for_each(quantised_rows_are_exact_to_the_last_bit_in);
}

fn quantised_rows_are_exact_to_the_last_bit_in(dialect: Dialect) {
    let kernel = elementwise(Op::Copy, ActForm::Q8);
    let Some(device) = Device::in_dialect(dialect, std::slice::from_ref(&kernel)) else {
        return;
    };
    let width = 96;
    let mut x = values(1, width, 5.0);
    // Halves between integers, zeros, magnitudes whose inverses overflow, and what is not finite.
    x[..32].fill(0.0);
    (x[0], x[1], x[2], x[3]) = (127.0, 0.5, 1.5, -2.5);
    x[32..64].fill(1e-38);
    x[64] = f32::NAN;
    let mut expected = vec![0u8; ActForm::Q8.stride(width)];
    let padded = width.next_multiple_of(TILE_K);
    for (g, group) in x.chunks_exact(Q8_GROUP).enumerate() {
        let largest = group.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let (d, inverse) = match largest < 1e-30 {
            true => (0.0, 0.0),
            false => (largest / 127.0, 127.0 / largest),
        };
        let mut sum = 0;
        for (i, v) in group.iter().enumerate() {
            let q = (v * inverse).round_ties_even() as i8;
            sum += i32::from(q);
            expected[ActForm::Q8.position(g * Q8_GROUP + i)] = q as u8;
        }
        expected[padded + 8 * g..][..4].copy_from_slice(&d.to_le_bytes());
        expected[padded + 8 * g + 4..][..4].copy_from_slice(&(d * sum as f32).to_le_bytes());
    }
    let from = device.f32s(&x);
    for seed in SEEDS {
        let out = device.simt.upload(&vec![0; expected.len()]);
        let args = ElementwiseArgs {
            x: from.into(),
            y: 0.into(),
            out: out.into(),
            width: (width as u32).into(),
            rows: 1.into(),
            x_stride: 0.into(),
            y_stride: 0.into(),
            out_stride: 0.into(),
            factor: 0.0.into(),
        };
        let geometry = rows::elementwise_geometry(width, 1);
        device.launch(&kernel, geometry, args.list(), seed);
        assert_eq!(device.read(&out), expected);
    }
}

#[test]
fn gathered_rows_follow_logit_rows_up_to_the_live_ones() {
    Dialect::ALL
        .into_iter()
        .for_each(gathered_rows_follow_logit_rows_up_to_the_live_ones_in);
}

fn gathered_rows_follow_logit_rows_up_to_the_live_ones_in(dialect: Dialect) {
    let kernel = gather_rows();
    let Some(device) = Device::in_dialect(dialect, std::slice::from_ref(&kernel)) else {
        return;
    };
    for width in [32, 516, 4096] {
        let x = values(5, 4 * width, 9.0);
        let from = device.rows(&x, width, stride(width));
        let rows = [3u32, 1, u32::MAX];
        for seed in SEEDS {
            let out = device.simt.alloc(3 * width * 4);
            let args = GatherArgs {
                from: from.into(),
                logit_rows: device.u32s(&rows).into(),
                live: device.u32s(&[9, 2]).into(),
                out: out.into(),
                width: (width as u32).into(),
                from_stride: (stride(width) as u32).into(),
                out_stride: (width as u32 * 4).into(),
            };
            device.launch(&kernel, rows::gather_geometry(width, 3), args.list(), seed);
            let found = device.read_f32(&out);
            assert_eq!(found[..width], x[3 * width..]);
            assert_eq!(found[width..2 * width], x[width..2 * width]);
            assert!(found[2 * width..].iter().all(|v| v.is_nan()), "not live");
        }
    }
}
