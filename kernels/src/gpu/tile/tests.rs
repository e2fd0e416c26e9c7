//! Bytes of units, and every weight packed and unpacked.

use super::*;
use crate::quant::{
    BF16, F32, FORMATS, IQ4_XS, Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_K, Q6_K, Q8_0,
    dequantise_row,
};

#[test]
fn bits_per_weight_are_the_published_ones() {
    for (fmt, bits) in [
        (Q4_K, 4.625),
        (Q5_K, 5.625),
        (Q6_K, 6.625),
        (Q8_0, 8.5),
        (Q4_0, 4.5),
        (Q4_1, 5.0),
        (Q5_0, 5.5),
        (Q2_K, 2.625),
        (Q3_K, 3.625),
        (IQ4_XS, 4.375),
        (BF16, 16.0),
        (F32, 32.0),
    ] {
        let bytes = matrix_bytes(&fmt.layout, TILE_N, 1024).expect("legal k");
        assert_eq!(
            bytes as f64 * 8.0 / (1024 * TILE_N) as f64,
            bits,
            "{}",
            fmt.ty
        );
        assert!(unit_bytes(&fmt.layout).is_multiple_of(64));
    }
}

#[test]
fn an_illegal_or_absurd_matrix_has_no_bytes() {
    assert_eq!(matrix_bytes(&Q8_0.layout, 16, 48), None);
    assert_eq!(matrix_bytes(&Q4_K.layout, 16, 288), None);
    assert_eq!(matrix_bytes(&F32.layout, 16, 0), None);
    assert_eq!(matrix_bytes(&F32.layout, 0, 64), None);
    assert_eq!(matrix_bytes(&F32.layout, usize::MAX, usize::MAX), None);
    assert_eq!(matrix_bytes(&Q8_0.layout, 17, 96), Some(2 * 2 * 1088));
}

#[test]
fn packing_keeps_every_bit_of_every_weight() {
    for fmt in FORMATS {
        for n in [1, 15, 16, 17, 33] {
            for k in [1, 32, 64, 65, 96, 256, 512, 768, 1024] {
                if matrix_bytes(&fmt.layout, n, k).is_some() {
                    check(fmt, n, k);
                }
            }
        }
    }
}

fn check(fmt: &QuantFormat, n: usize, k: usize) {
    let row_bytes = fmt.ty.row_bytes(k as u64).expect("legal k") as usize;
    let raw: Vec<u8> = (0..n * row_bytes)
        .map(|i| (i * 89 % 251) as u8 ^ (i / 251) as u8)
        .collect();
    let rows: Vec<&[u8]> = raw.chunks_exact(row_bytes).collect();
    let mut packed = vec![0xff; matrix_bytes(&fmt.layout, n, k).expect("legal")];
    let tile_row = matrix_bytes(&fmt.layout, TILE_N, k).expect("legal");
    for (rows, out) in rows.chunks(TILE_N).zip(packed.chunks_exact_mut(tile_row)) {
        pack_tile_row(fmt, k, rows, out);
    }
    let mut direct = vec![0.0; k];
    for row in 0..n.next_multiple_of(TILE_N) {
        direct.fill(0.0);
        if let Some(row) = rows.get(row) {
            dequantise_row(fmt, row, &mut direct);
        }
        for (at, &direct) in direct.iter().enumerate() {
            let value = value(&fmt.layout, &packed, k, row, at);
            assert_eq!(
                (value + 0.0).to_bits(),
                (direct + 0.0).to_bits(),
                "{} output {row} of {n}, k {at} of {k}",
                fmt.ty
            );
        }
    }
}

#[test]
fn k_beyond_the_matrix_is_zero_weights() {
    let fmt = &Q4_0;
    let raw = [0xa5; 18];
    let mut packed = [0xff; 576];
    pack_tile_row(fmt, 32, &[&raw], &mut packed);
    for at in 32..64 {
        assert_eq!(value(&fmt.layout, &packed, 64, 0, at), 0.0);
    }
}
