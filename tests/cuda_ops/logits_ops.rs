use super::{Device, SEEDS, values};
use crate::simt::Dialect;
use coldpress_kernels::gpu::logits::{
    self, CANDIDATES, PiecesArgs, RowsArgs, pieces, scratch_bytes,
};

/// Ids by falling value, lower ids first among equals, and the logarithm of the sum of exponentials.
fn expected(row: &[f32]) -> (Vec<u32>, f64) {
    let mut ids: Vec<u32> = (0..row.len() as u32).collect();
    ids.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b)));
    ids.truncate(CANDIDATES);
    let largest = f64::from(row[ids[0] as usize]);
    let sum: f64 = row.iter().map(|&v| (f64::from(v) - largest).exp()).sum();
    (ids, largest + sum.ln())
}

fn check(device: &Device, all: &[f32], vocab: usize, seed: u64) {
    let rows = all.len() / vocab;
    let live = rows as u32 - 1;
    let stride = (vocab * 4).next_multiple_of(64) + 64;
    let scratch = device.simt.alloc(scratch_bytes(vocab, rows));
    let live_words = device.u32s(&[7, live]);
    let args = PiecesArgs {
        logits: device.rows(all, vocab, stride).into(),
        live: live_words.into(),
        scratch: scratch.into(),
        vocab: (vocab as u32).into(),
        stride: (stride as u32).into(),
    };
    let geometry = logits::pieces_geometry(vocab, rows);
    device.launch(&pieces(), geometry, args.list(), seed);
    let ids = device.simt.alloc(rows * CANDIDATES * 4);
    let found_values = device.simt.alloc(rows * CANDIDATES * 4);
    let log_sums = device.simt.alloc(rows * 4);
    let args = RowsArgs {
        scratch: scratch.into(),
        live: live_words.into(),
        ids: ids.into(),
        values: found_values.into(),
        log_sums: log_sums.into(),
        vocab: (vocab as u32).into(),
    };
    let geometry = logits::rows_geometry(rows);
    device.launch(&logits::rows(), geometry, args.list(), seed);
    let ids = device.read_u32(&ids);
    let found_values = device.read_f32(&found_values);
    let log_sums = device.read_f32(&log_sums);
    for (r, row) in all.chunks_exact(vocab).enumerate() {
        let ids = &ids[r * CANDIDATES..][..CANDIDATES];
        let found_values = &found_values[r * CANDIDATES..][..CANDIDATES];
        if r >= live as usize {
            assert!(ids.iter().all(|&id| id == u32::MAX) && log_sums[r].is_nan());
            continue;
        }
        let (best, log_sum) = expected(row);
        assert_eq!(ids[..best.len()], best, "vocabulary {vocab}, row {r}");
        let of_ids: Vec<f32> = best.iter().map(|&id| row[id as usize]).collect();
        assert_eq!(found_values[..best.len()], of_ids);
        assert!(ids[best.len()..].iter().all(|&id| id == u32::MAX));
        let rest = &found_values[best.len()..];
        assert!(rest.iter().all(|&v| v == f32::NEG_INFINITY));
        let error = (f64::from(log_sums[r]) - log_sum).abs();
        assert!(error <= 1e-6 * log_sum.abs().max(1.0), "{}", log_sums[r]);
    }
}

#[test]
fn candidates_are_the_largest_logits_in_order() {
    Dialect::ALL
        .into_iter()
        .for_each(candidates_are_the_largest_logits_in_order_in);
}

fn candidates_are_the_largest_logits_in_order_in(dialect: Dialect) {
    let Some(device) = Device::in_dialect(dialect, &[pieces(), logits::rows()]) else {
        return;
    };
    // Fewer than the candidates, a piece, parts of pieces. Values repeat after 2003, so the last ones have ties.
    for (vocab, seed) in [1, 40, 64, 4096, 4097, 13_000]
        .into_iter()
        .zip(SEEDS.into_iter().cycle())
    {
        check(&device, &values(vocab, 3 * vocab, 20.0), vocab, seed);
    }
}

#[test]
fn candidates_of_extreme_rows_are_in_order() {
    Dialect::ALL
        .into_iter()
        .for_each(candidates_of_extreme_rows_are_in_order_in);
}

fn candidates_of_extreme_rows_are_in_order_in(dialect: Dialect) {
    let Some(device) = Device::in_dialect(dialect, &[pieces(), logits::rows()]) else {
        return;
    };
    let vocab = 5000;
    let equal = vec![-3.25; vocab];
    let mut masked = vec![f32::NEG_INFINITY; vocab];
    (masked[4500], masked[17], masked[18]) = (-1e30, 0.0, 1e-40);
    let mut wide = values(9, vocab, 1e38);
    (wide[4999], wide[0]) = (f32::MAX, -f32::MAX);
    // The last row is not live.
    let rows = [equal, masked, wide, vec![0.0; vocab]].concat();
    for seed in SEEDS {
        check(&device, &rows, vocab, seed);
    }
}
