//! Which row counts get a program of their own.
//!
//! Every decode batch from 1 to `max_batch` is a bucket (up to `DENSE`), so no batch size pays for padding; above that,
//! steps of 4 rows or a thirty-second. Prefill chunks add coarser sizes up to `max_rows`.

/// Batch sizes up to this each have their own bucket.
const DENSE: usize = 64;
/// Rows of a prefill chunk.
const CHUNK: usize = 64;
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

/// Head buckets, ascending: how many rows want logits at once.
pub fn head(max_batch: usize) -> Vec<usize> {
    decode(max_batch)
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

    #[test]
    fn max_batch_and_max_rows_are_buckets() {
        for max_batch in [1, 2, 7, 8, 16, 17, 32, 33, 64, 100] {
            let (trunk, head) = (trunk(max_batch), head(max_batch));
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
            let head = head(max_batch);
            assert!(head.len() <= DENSE + 96, "{} buckets", head.len());
            for pair in head.windows(2) {
                let step = pair[1] - pair[0];
                assert!(step >= 1 && step <= pair[0] / 32 + 4, "{pair:?}");
            }
        }
    }
}
