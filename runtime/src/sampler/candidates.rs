//! Candidate lists: partial selection from a row of logits, the filters, and the draw. Order is always by logit
//! descending, then id ascending, so that equal logits never depend on the algorithm. No state, no parameters.

use std::cmp::Ordering;

/// A token still in the running. Its logit is never NaN nor minus infinity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) id: u32,
    pub(super) logit: f32,
}

fn best_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// The id of the largest logit, the lowest such id; 0 if all are NaN or minus infinity.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = Candidate {
        id: 0,
        logit: f32::NEG_INFINITY,
    };
    scan_above(logits, &mut best, |best| best.logit, |best, c| *best = c);
    best.id
}

/// Every candidate, in id order.
pub(super) fn all(logits: &[f32], kept: &mut Vec<Candidate>) {
    kept.clear();
    scan_above(logits, kept, |_| f32::NEG_INFINITY, |kept, c| kept.push(c));
}

/// The `k` best, best first. One pass: a buffer of a few times k is cut back to k whenever it fills, and from then on
/// only logits above the worst one kept are looked at.
pub(super) fn top_k(logits: &[f32], k: usize, kept: &mut Vec<Candidate>) {
    struct Buffer<'a> {
        kept: &'a mut Vec<Candidate>,
        floor: f32,
    }
    kept.clear();
    if k == 0 {
        return;
    }
    let capacity = 2 * k + 64;
    let mut buffer = Buffer {
        kept,
        floor: f32::NEG_INFINITY,
    };
    scan_above(
        logits,
        &mut buffer,
        |buffer| buffer.floor,
        |buffer, c| {
            buffer.kept.push(c);
            if buffer.kept.len() == capacity {
                let (_, worst, _) = buffer.kept.select_nth_unstable_by(k - 1, best_first);
                buffer.floor = worst.logit;
                buffer.kept.truncate(k);
            }
        },
    );
    kept.sort_unstable_by(best_first);
    kept.truncate(k);
}

/// Calls `take` for each logit above `floor(state)`, in id order. Spans that hold none are skipped 32 at a time, in a
/// form the compiler vectorises; the comparison is false for NaN.
fn scan_above<S>(
    logits: &[f32],
    state: &mut S,
    floor: impl Fn(&S) -> f32,
    mut take: impl FnMut(&mut S, Candidate),
) {
    const SPAN: usize = 32;
    for (span, values) in logits.chunks(SPAN).enumerate() {
        let limit = floor(state);
        if !values
            .iter()
            .fold(false, |any, &logit| any | (logit > limit))
        {
            continue;
        }
        for (i, &logit) in values.iter().enumerate() {
            if logit > floor(state) {
                take(
                    state,
                    Candidate {
                        id: (span * SPAN + i) as u32,
                        logit,
                    },
                );
            }
        }
    }
}

fn largest(kept: &[Candidate]) -> f32 {
    kept.iter()
        .fold(f32::NEG_INFINITY, |max, c| max.max(c.logit))
}

/// Unnormalised probability relative to the most probable; 1 for the maximum itself, even an infinite one.
fn weight(logit: f32, max: f32, temperature: f32) -> f64 {
    if logit == max {
        1.0
    } else {
        f64::from(((logit - max) / temperature).exp())
    }
}

/// Sum of the weights at `temperature`.
pub(super) fn mass(kept: &[Candidate], temperature: f32) -> f64 {
    let max = largest(kept);
    kept.iter().map(|c| weight(c.logit, max, temperature)).sum()
}

/// Keeps the shortest prefix of a sorted list whose mass reaches `target`, at least one candidate.
pub(super) fn truncate_at_mass(kept: &mut Vec<Candidate>, target: f64) -> bool {
    let max = largest(kept);
    let mut sum = 0.0;
    for i in 0..kept.len() {
        sum += weight(kept[i].logit, max, 1.0);
        if sum >= target {
            kept.truncate(i + 1);
            return true;
        }
    }
    false
}

/// Sorts only as much of an unsorted list as it takes to reach `target`, and drops the rest.
pub(super) fn sort_until_mass(kept: &mut Vec<Candidate>, target: f64) {
    let mut head = 128;
    while head < kept.len() {
        kept.select_nth_unstable_by(head - 1, best_first);
        let mut prefix = kept[..head].to_vec();
        prefix.sort_unstable_by(best_first);
        if truncate_at_mass(&mut prefix, target) {
            *kept = prefix;
            return;
        }
        head *= 4;
    }
    kept.sort_unstable_by(best_first);
    truncate_at_mass(kept, target);
}

/// Drops candidates less probable than `p` times the most probable (Nguyen et al. 2024, arXiv:2407.01082).
pub(super) fn min_p(kept: &mut Vec<Candidate>, p: f32) {
    let max = largest(kept);
    let floor = max + p.ln();
    kept.retain(|c| c.logit == max || c.logit >= floor);
}

/// The candidate at `unit` in [0, 1) of the cumulated weights at `temperature`. `kept` is not empty.
pub(super) fn draw(kept: &[Candidate], temperature: f32, unit: f64) -> u32 {
    let max = largest(kept);
    let target = unit * mass(kept, temperature);
    let mut sum = 0.0;
    for c in kept {
        sum += weight(c.logit, max, temperature);
        if target < sum {
            return c.id;
        }
    }
    kept[kept.len() - 1].id
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(kept: &[Candidate]) -> Vec<u32> {
        kept.iter().map(|c| c.id).collect()
    }

    #[test]
    fn top_k_equals_the_head_of_a_full_sort() {
        for n in [1usize, 31, 32, 33, 100, 1000] {
            let logits: Vec<f32> = (0..n).map(|i| ((i * 7919) % 31) as f32).collect();
            let mut sorted = Vec::new();
            all(&logits, &mut sorted);
            sorted.sort_by(best_first);
            for k in [1, 2, 5, 40, n] {
                let mut kept = Vec::new();
                top_k(&logits, k, &mut kept);
                assert_eq!(ids(&kept), ids(&sorted[..k.min(n)]), "n {n}, k {k}");
            }
            assert_eq!(argmax(&logits), sorted[0].id);
        }
    }

    #[test]
    fn sorting_until_a_mass_equals_sorting_everything() {
        let logits: Vec<f32> = (0..5000)
            .map(|i| ((i * 7919) % 613) as f32 * 0.01)
            .collect();
        for share in [0.0, 0.1, 0.5, 0.99, 1.0] {
            let mut partial = Vec::new();
            all(&logits, &mut partial);
            let mut full = partial.clone();
            full.sort_by(best_first);
            let target = share * mass(&full, 1.0);
            truncate_at_mass(&mut full, target);
            sort_until_mass(&mut partial, target);
            assert_eq!(ids(&partial), ids(&full), "share {share}");
        }
    }

    #[test]
    fn draw_covers_the_ends_of_the_unit_interval() {
        let kept = [
            Candidate { id: 4, logit: 0.0 },
            Candidate { id: 2, logit: 0.0 },
        ];
        assert_eq!(draw(&kept, 1.0, 0.0), 4);
        assert_eq!(draw(&kept, 1.0, 0.49), 4);
        assert_eq!(draw(&kept, 1.0, 0.51), 2);
        assert_eq!(draw(&kept, 1.0, 1.0), 2);
    }
}
