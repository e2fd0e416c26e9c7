//! Which candidates are legal, why others are not, and that every symbol they name exists. Numbers: `conformance`.

use super::cut::{Step, cheapest_cut, steps};
use super::*;
use crate::cpu;
use crate::quant::{F16, FORMATS, Q4_K, Q8_0};

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
        measured: &[],
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
fn cuts_cover_the_rows_and_use_their_variant() {
    for fmt in FORMATS {
        for rows in 1..=70 {
            for candidate in candidates(&query(fmt.layout, 256, rows)) {
                if candidate.verdict.is_err() {
                    continue;
                }
                let stamps: Vec<usize> = candidate.batches.iter().map(|b| b.rows).collect();
                assert_eq!(stamps.iter().sum::<usize>(), rows, "{stamps:?}");
                let widest = stamps.iter().max().expect("not empty");
                assert_eq!(*widest, candidate.variant.stamp, "{stamps:?} of {rows}");
                for batch in candidate.batches {
                    assert_eq!(batch.rows, batch.kernel.stamp);
                    let class = |isa: Isa| isa.numeric_class();
                    assert_eq!(class(batch.kernel.isa), class(candidate.variant.isa));
                }
            }
        }
    }
    let q = query(Q4_K.layout, 256, 7);
    assert_eq!(stamps(&q, Isa::Scalar, 4), Ok(vec![4, 1, 1, 1]));
    assert_eq!(stamps(&q, Isa::Scalar, 1), Ok(vec![1; 7]));
}

/// The least time of any cut of `rows` in any order that uses `must`, by trying all.
fn brute_force(steps: &[Step], must: usize, rows: usize) -> f64 {
    fn rest(steps: &[Step], must: usize, rows: usize, used: bool) -> f64 {
        if rows == 0 {
            return if used { 0.0 } else { f64::INFINITY };
        }
        let fits = steps.iter().filter(|s| s.variant.stamp <= rows);
        fits.map(|s| {
            let (stamp, used) = (s.variant.stamp, used || s.variant.stamp == must);
            s.warm + rest(steps, must, rows - stamp, used)
        })
        .fold(f64::INFINITY, f64::min)
    }
    let fits = steps.iter().filter(|s| s.variant.stamp <= rows);
    fits.map(|s| {
        let stamp = s.variant.stamp;
        s.cold + rest(steps, must, rows - stamp, stamp == must)
    })
    .fold(f64::INFINITY, f64::min)
}

#[test]
fn no_cut_is_cheaper_than_the_one_found() {
    let all = steps(&query(Q4_K.layout, 256, 1));
    let avx2: Vec<Step> = all
        .into_iter()
        .filter(|s| s.variant.isa == Isa::Avx2)
        .collect();
    let stamps: Vec<usize> = avx2.iter().map(|s| s.variant.stamp).collect();
    assert_eq!(stamps, [1, 2, 3, 4]);
    // Times in arbitrary order: rates that rise, fall, and a stamp that is worth it only when it comes first.
    for (cold, warm) in [
        ([9.0, 11.0, 13.0, 15.0], [2.0, 3.5, 5.0, 6.5]),
        ([3.0, 4.0, 9.0, 9.5], [3.0, 4.0, 4.5, 9.5]),
        ([10.0, 10.0, 10.0, 10.0], [1.0, 3.0, 2.0, 9.0]),
        ([5.0, 9.0, 9.0, 6.0], [5.0, 1.5, 9.0, 8.0]),
    ] {
        let steps: Vec<Step> = avx2
            .iter()
            .enumerate()
            .map(|(i, s)| Step {
                cold: cold[i],
                warm: warm[i],
                ..*s
            })
            .collect();
        for rows in 1..=11 {
            for must in steps.iter().filter(|s| s.variant.stamp <= rows) {
                let usable: Vec<&Step> = steps.iter().collect();
                let least = brute_force(&steps, must.variant.stamp, rows);
                let cut = cheapest_cut(&usable, must.variant, rows);
                let Some(cut) = cut else {
                    assert_eq!(least, f64::INFINITY, "{rows} rows");
                    continue;
                };
                let found = cut[0].cold + cut[1..].iter().map(|s| s.warm).sum::<f64>();
                assert!(
                    (found - least).abs() < 1e-9,
                    "{rows} rows: {found}, {least}"
                );
            }
        }
    }
}

#[test]
fn the_widest_stamps_first_are_never_cheaper() {
    let mut better = 0;
    for (fmt, rows) in FORMATS.iter().flat_map(|f| (1..=40).map(move |r| (f, r))) {
        let q = query(fmt.layout, 4096, rows);
        for isa in Isa::ALL {
            let own: Vec<Step> = steps(&q)
                .into_iter()
                .filter(|s| s.variant.isa == *isa)
                .collect();
            if own.is_empty() {
                continue;
            }
            let (mut greedy, mut left) = (0.0, rows);
            while left > 0 {
                let fits = own.iter().filter(|s| s.variant.stamp <= left);
                let widest = fits.max_by_key(|s| s.variant.stamp).expect("a stamp of 1");
                greedy += if left == rows {
                    widest.cold
                } else {
                    widest.warm
                };
                left -= widest.variant.stamp;
            }
            let all = candidates(&q);
            let best = cheapest(all.iter().filter(|c| c.variant.isa == *isa));
            let seconds = best.expect("legal").verdict.clone().expect("legal").seconds;
            assert!(
                seconds <= greedy * (1.0 + 1e-9),
                "{} {isa:?} {rows}",
                fmt.ty
            );
            better += usize::from(seconds < greedy * 0.999);
        }
    }
    assert!(better > 0, "no row count is cut better than greedily");
}

#[test]
fn measurements_decide_where_there_are_any() {
    let timing = |stamp, seconds| Timing {
        isa: Isa::Avx2,
        stamp,
        cold_seconds: seconds,
        warm_seconds: seconds,
    };
    let measured = [timing(1, 1.0), timing(2, 5.0), timing(4, 9.0)];
    let q = Query {
        measured: &measured,
        ..query(Q8_0.layout, 256, 4)
    };
    let all = candidates(&q);
    let of = |stamp| {
        let mut found = all.iter();
        found.find(|c| c.variant.isa == Isa::Avx2 && c.variant.stamp == stamp)
    };
    let cost = |stamp| of(stamp).expect("a row").verdict.clone().expect("legal");
    assert_eq!((cost(1).seconds, cost(1).measured), (4.0, true));
    assert_eq!((cost(4).seconds, cost(4).measured), (9.0, true));
    assert!(cost(1).to_string().starts_with("measured: "));
    // The stamp of 3 was not measured: it is scaled as the others turned out, far above the microseconds of the table.
    assert!(!cost(3).measured && cost(3).seconds > 1.0);
    let plain = candidates(&query(Q8_0.layout, 256, 4));
    let scalar = |all: &[Candidate]| all[0].verdict.clone().expect("legal").seconds;
    assert_eq!(
        scalar(&all),
        scalar(&plain),
        "another class keeps its numbers"
    );
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
