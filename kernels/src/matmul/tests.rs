//! Which candidates are legal, why others are not, and that every symbol they name exists. Numbers: `conformance`.

use super::*;
use crate::cpu;
use crate::quant::{F16, Q4_K, Q8_0};

const RATES: CpuRates = CpuRates {
    cores: 2,
    hz: 3e9,
    bytes_per_s_per_core: 15e9,
    bytes_per_s: 30e9,
};

fn query(layout: PackedLayout, k: usize, rows: usize) -> Query<'static> {
    Query {
        layout,
        n: 40,
        k,
        rows,
        isas: Isa::ALL,
        rates: &RATES,
    }
}

fn stamps(query: &Query, isa: Isa, stamp: usize) -> Result<Vec<usize>, String> {
    let all = candidates(query);
    let one = all
        .into_iter()
        .find(|c| c.variant.isa == isa && c.variant.stamp == stamp);
    let one = one.expect("a row of the table");
    let rows = one.batches.iter().map(|b| b.rows).collect();
    one.verdict
        .map(|_| rows)
        .map_err(|reason| reason.to_string())
}

#[test]
fn rows_are_covered_without_padding() {
    let q = |rows| query(Q4_K.layout, 256, rows);
    assert_eq!(stamps(&q(12), Isa::Avx512Vnni, 8), Ok(vec![8, 4]));
    assert_eq!(stamps(&q(5), Isa::Avx2, 4), Ok(vec![4, 1]));
    assert_eq!(stamps(&q(7), Isa::Scalar, 4), Ok(vec![4, 1, 1, 1]));
    assert_eq!(stamps(&q(31), Isa::Avx512Vnni, 16), Ok(vec![16, 12, 3]));
}

#[test]
fn reasons_say_what_is_wrong() {
    let wide = query(Q4_K.layout, 256, 3);
    let error = |q: &Query, stamp| stamps(q, Isa::Avx512Vnni, stamp).expect_err("illegal");
    assert_eq!(error(&wide, 4), "computes 4 rows at once, the bucket has 3");
    assert_eq!(
        error(&query(Q8_0.layout, 100, 3), 1),
        "k=100 is not a multiple of 32"
    );
    assert_eq!(
        error(&query(F16.layout, 100, 16), 16),
        "there is no matmul_f16_avx512_n16"
    );
    let old = Query {
        isas: &[Isa::Scalar, Isa::Avx2],
        ..wide
    };
    assert!(error(&old, 1).ends_with("+avx512vnni"));
}

#[test]
fn every_legal_candidate_names_existing_symbols() {
    for fmt in FORMATS {
        for candidate in candidates(&query(fmt.layout, 256, 31)) {
            for batch in candidate.batches {
                let symbol = batch.kernel.to_string();
                assert!(cpu::lookup(&symbol).is_some(), "{symbol}");
            }
        }
    }
}

#[test]
fn the_reference_multiplies_rows_by_rows() {
    let y = reference(&[1.0, 2.0, 3.0, 4.0], &[1.0, 0.0, 0.5, -1.0, 2.0, 2.0], 2);
    assert_eq!(y, [1.0, -1.5, 6.0, 3.0, -2.5, 14.0]);
}
