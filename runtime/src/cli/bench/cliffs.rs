//! Batch sizes that decode slower than a smaller one: the batch a server should not run. Judged by the fastest step of
//! each: what others do on this machine meanwhile says nothing about batch sizes.

use std::fmt;

use super::Measurement;

/// How far below the best smaller batch counts; less is noise.
const TOLERANCE: f64 = 0.03;

/// A batch with fewer tokens per second than a smaller one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cliff {
    pub(super) batch: u32,
    /// Tokens per second in the fastest step.
    pub(super) speed: f64,
    /// The best smaller batch measured.
    pub(super) smaller: u32,
    pub(super) smaller_speed: f64,
}

impl Cliff {
    /// How much of the smaller batch's speed is missing.
    pub(super) fn share(&self) -> f64 {
        1.0 - self.speed / self.smaller_speed
    }

    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "below_pl": self.smaller,
            "below_speed_tg": self.smaller_speed,
            "share": self.share(),
        })
    }
}

impl fmt::Display for Cliff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cliff at B={}: {:.1} tok/s, {:.1} % below B={} ({:.1} tok/s)",
            self.batch,
            self.speed,
            self.share() * 100.0,
            self.smaller,
            self.smaller_speed
        )
    }
}

/// For each result its cliff, if it is one; among results that agree in prompt, generated tokens and depth.
pub(super) fn find(results: &[Measurement]) -> Vec<Option<Cliff>> {
    let alike = |a: &Measurement, b: &Measurement| {
        (a.prompt, a.generated, a.depth) == (b.prompt, b.generated, b.depth)
    };
    let cliff = |m: &Measurement| {
        let smaller = results.iter().filter(|o| alike(m, o) && o.batch < m.batch);
        let best = smaller.max_by(|a, b| a.best().total_cmp(&b.best()))?;
        let cliff = Cliff {
            batch: m.batch,
            speed: m.best(),
            smaller: best.batch,
            smaller_speed: best.best(),
        };
        (cliff.share() > TOLERANCE).then_some(cliff)
    };
    results.iter().map(cliff).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::measurement;
    use super::*;

    #[test]
    fn below_the_best_smaller_batch_by_more_than_noise() {
        // Tokens per second 10, 20, 19.5, 30, 15; another depth does not count.
        let mut results: Vec<Measurement> = [(1, 10.0), (2, 20.0), (3, 19.5), (4, 30.0), (5, 15.0)]
            .map(|(batch, speed)| measurement(batch, speed))
            .into();
        results.push(Measurement {
            depth: 1,
            ..measurement(6, 1.0)
        });
        results.swap(0, 4);
        let found = find(&results);
        let batches: Vec<u32> = found.iter().flatten().map(|c| c.batch).collect();
        assert_eq!((found.len(), batches), (6, vec![5]));
        let cliff = found[0].expect("B=5");
        assert_eq!((cliff.smaller, cliff.share()), (4, 0.5));
        assert_eq!(
            cliff.to_string(),
            "cliff at B=5: 15.0 tok/s, 50.0 % below B=4 (30.0 tok/s)"
        );
        assert_eq!(cliff.json()["share"], 0.5);
    }
}
