//! Which row counts get a program of their own.
//!
//! Every decode batch from 1 to `max_batch` is a bucket (up to `DENSE`), so no batch size pays for padding; above that,
//! steps of 4 rows or a thirty-second. Prefill chunks add coarser sizes up to `max_rows`. A batch that a larger bucket
//! computes in less time runs there: such a bucket is left out, and the head has one beyond `max_batch` where that pays.

use super::ProgramPlan;

/// Batch sizes up to this each have their own bucket.
const DENSE: usize = 64;
/// Rows of a prefill chunk.
const CHUNK: usize = 64;
/// Padded rows end at a multiple of this, a whole number of the widest stamps.
const PAD: usize = 16;
/// Prefill row counts above the dense range.
const PREFILL: [usize; 8] = [12, 16, 20, 24, 32, 40, 48, 64];

/// Trunk buckets, ascending: decode batches, then prefill and mixed steps.
pub fn trunk(max_batch: usize) -> Vec<usize> {
    let mut rows = decode(max_batch);
    let top = max_rows(max_batch);
    rows.extend(
        PREFILL
            .iter()
            .copied()
            .filter(|&r| r > max_batch && r < top),
    );
    rows.push(top);
    rows.sort_unstable();
    rows.dedup();
    rows
}

/// Head buckets, ascending: how many rows want logits at once; and one of `padded` rows if that is more.
pub fn head(max_batch: usize, padded: usize) -> Vec<usize> {
    let mut rows = decode(max_batch);
    rows.extend((padded > max_batch).then_some(padded));
    rows
}

/// The rows, at or above `max_batch`, that take the least `seconds`: where wide stamps are much faster, computing rows
/// that nobody asked for costs less than cutting the rows that somebody did.
pub fn padded<E>(
    max_batch: usize,
    mut seconds: impl FnMut(usize) -> Result<f64, E>,
) -> Result<usize, E> {
    let (mut best, mut least) = (max_batch, seconds(max_batch)?);
    for rows in max_batch + 1..=max_batch.next_multiple_of(PAD) {
        let time = seconds(rows)?;
        if time < least {
            (best, least) = (rows, time);
        }
    }
    Ok(best)
}

/// Drops the programs that no step would run: a larger one of the stage takes less time. `keep` stays whatever it costs.
pub fn prune(programs: &mut Vec<ProgramPlan>, keep: &[usize]) {
    let costs: Vec<(usize, f64)> = programs
        .iter()
        .map(|p| (p.rows, p.predicted_seconds()))
        .collect();
    programs.retain(|p| {
        let seconds = p.predicted_seconds();
        keep.contains(&p.rows) || !costs.iter().any(|&(rows, s)| rows > p.rows && s < seconds)
    });
}

/// Rows one step can take: a whole decode batch and still a prefill chunk beside it.
pub fn max_rows(max_batch: usize) -> usize {
    if max_batch <= CHUNK / 4 {
        CHUNK
    } else {
        (max_batch + CHUNK).next_multiple_of(16)
    }
}

fn decode(max_batch: usize) -> Vec<usize> {
    let mut rows: Vec<usize> = (1..=max_batch.min(DENSE)).collect();
    let mut next = DENSE + 4;
    while next < max_batch {
        rows.push(next);
        next += (next / 32).next_multiple_of(4);
    }
    rows.push(max_batch);
    rows.dedup();
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Launch, Work};
    use coldpress_runtime::manifest::Stage;

    #[test]
    fn max_batch_and_max_rows_are_buckets() {
        for max_batch in [1, 2, 7, 8, 16, 17, 32, 33, 64, 100] {
            let (trunk, head) = (trunk(max_batch), head(max_batch, max_batch));
            assert!(trunk.contains(&max_batch) && head.last() == Some(&max_batch));
            assert_eq!(trunk.last(), Some(&max_rows(max_batch)));
            assert!(trunk.is_sorted() && trunk[0] == 1 && head[0] == 1);
            assert!(
                max_rows(max_batch) >= max_batch + 32,
                "a full batch leaves room for prefill"
            );
        }
    }

    #[test]
    fn padding_is_bounded_and_so_are_the_buckets() {
        for max_batch in [65, 100, 500, 1024] {
            let head = head(max_batch, max_batch);
            assert!(head.len() <= DENSE + 96, "{} buckets", head.len());
            for pair in head.windows(2) {
                let step = pair[1] - pair[0];
                assert!(step >= 1 && step <= pair[0] / 32 + 4, "{pair:?}");
            }
        }
    }

    #[test]
    fn padding_goes_to_the_cheapest_size() {
        let pad = |max_batch, seconds: fn(usize) -> f64| {
            padded(max_batch, |rows| Ok::<f64, ()>(seconds(rows)))
        };
        assert_eq!(pad(9, |rows| rows as f64), Ok(9));
        assert_eq!(
            pad(9, |rows| if rows == 16 { 5.0 } else { rows as f64 }),
            Ok(16)
        );
        assert_eq!(pad(16, |rows| 1.0 / rows as f64), Ok(16), "already whole");
        assert_eq!(head(9, 16).last(), Some(&16));
    }

    #[test]
    fn a_bucket_dearer_than_a_larger_one_is_dropped() {
        let program = |rows, seconds| {
            let launch = Launch {
                label: String::new(),
                work: Work::Call {
                    symbol: String::new(),
                    args: vec![],
                    units: rows,
                },
                barrier: false,
                accesses: vec![],
                reason: String::new(),
                bytes: 0,
                macs: 0,
                seconds,
            };
            ProgramPlan {
                stage: Stage::Trunk,
                rows,
                launches: vec![launch],
            }
        };
        let costs = [(1, 1.0), (2, 4.0), (3, 3.0), (4, 3.0), (5, 9.0), (8, 5.0)];
        let mut programs: Vec<ProgramPlan> =
            costs.iter().map(|&(rows, s)| program(rows, s)).collect();
        prune(&mut programs, &[5, 8]);
        let left: Vec<usize> = programs.iter().map(|p| p.rows).collect();
        assert_eq!(left, [1, 3, 4, 5, 8]);
    }
}
