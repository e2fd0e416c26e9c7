//! Sampling from the largest logits alone: the same tokens as from all, or no answer.

use super::*;
use crate::device::Candidates;

/// The largest `count` logits in the order of a full sort.
fn largest(logits: &[f32], count: usize) -> (Vec<u32>, Vec<f32>, bool) {
    let real = |&id: &u32| logits[id as usize] > f32::NEG_INFINITY;
    let mut ids: Vec<u32> = (0..logits.len() as u32).filter(real).collect();
    let logit = |id: u32| logits[id as usize];
    ids.sort_by(|&a, &b| logit(b).total_cmp(&logit(a)).then(a.cmp(&b)));
    let all = ids.len() <= count;
    ids.truncate(count);
    let values = ids.iter().map(|&id| logit(id)).collect();
    (ids, values, all)
}

fn both(params: &Sampling, logits: &[f32], count: usize) -> Option<(u32, u32)> {
    let (ids, values, all) = largest(logits, count);
    let candidates = Candidates {
        ids: &ids,
        logits: &values,
        all,
    };
    let mut sampler = Sampler::new(params.clone(), 64);
    let among = sampler.sample_among(&candidates)?;
    Some((among, Sampler::new(params.clone(), 64).sample(logits)))
}

#[test]
fn what_is_answered_is_what_all_logits_say() {
    let (mut answered, mut asked) = (0, 0);
    for seed in 0..400u64 {
        // Few different values, so that equal logits are at every edge.
        let logits: Vec<f32> = (0..200u64)
            .map(|i| {
                let hash = (i + 1).wrapping_mul(seed * 2 + 0x9e37_79b9) >> 7;
                [f32::NEG_INFINITY, f32::NAN, -1.5, 0.0, -0.0, 2.0, 2.5][(hash % 7) as usize]
            })
            .collect();
        let logits = &logits[..1 + (seed as usize * 13) % 200];
        let forbidden = vec![(3, f32::NEG_INFINITY), (90, f32::NEG_INFINITY)];
        for (top_k, temperature) in [
            (0, 0.0),
            (1, 0.8),
            (40, 0.8),
            (64, 1.5),
            (65, 1.0),
            (0, 1.0),
        ] {
            for logit_bias in [vec![], forbidden.clone()] {
                let params = Sampling {
                    temperature,
                    top_k,
                    logit_bias,
                    seed: Some(seed),
                    ..Sampling::default()
                };
                asked += 1;
                if let Some((among, whole)) = both(&params, logits, 64) {
                    assert_eq!(among, whole, "{params:?} {logits:?}");
                    answered += 1;
                }
            }
        }
    }
    assert!(answered * 3 > asked, "{answered} of {asked}");
}

#[test]
fn changed_logits_are_never_guessed() {
    let logits: Vec<f32> = (0..100).map(|i| (i % 17) as f32).collect();
    assert!(both(&Sampling::greedy(), &logits, 64).is_some());
    let biased = Sampling {
        logit_bias: vec![(5, 0.5)],
        ..Sampling::greedy()
    };
    assert_eq!(both(&biased, &logits, 64), None);
    let (ids, values, all) = largest(&logits, 64);
    let candidates = Candidates {
        ids: &ids,
        logits: &values,
        all,
    };
    let penalised = Sampling {
        penalties: Penalties {
            presence: 1.0,
            ..Penalties::default()
        },
        ..Sampling::greedy()
    };
    let mut sampler = Sampler::new(penalised, 64);
    assert_eq!(sampler.sample_among(&candidates), Some(16));
    sampler.accept(16);
    assert!(!sampler.takes_candidates());
    assert_eq!(sampler.sample_among(&candidates), None);
}
