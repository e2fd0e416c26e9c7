//! Each filter of the chain by itself, the distribution of draws, and hostile logits.

mod among;

use super::*;

/// Everything off: plain temperature sampling.
fn plain(seed: u64) -> Sampling {
    Sampling {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: Some(seed),
        ..Sampling::default()
    }
}

fn histogram(params: Sampling, logits: &[f32], draws: usize) -> Vec<usize> {
    let mut sampler = Sampler::new(params, 64);
    let mut counts = vec![0; logits.len()];
    for _ in 0..draws {
        counts[sampler.sample(logits) as usize] += 1;
    }
    counts
}

fn chi_square(counts: &[usize], logits: &[f32], temperature: f64) -> f64 {
    let weights: Vec<f64> = logits
        .iter()
        .map(|&l| (f64::from(l) / temperature).exp())
        .collect();
    let (total, draws) = (
        weights.iter().sum::<f64>(),
        counts.iter().sum::<usize>() as f64,
    );
    let expected = weights.iter().map(|w| w / total * draws);
    counts
        .iter()
        .zip(expected)
        .map(|(&c, e)| (c as f64 - e).powi(2) / e)
        .sum()
}

#[test]
fn draws_follow_the_softmax() {
    let logits = [0.0, 1.0, -1.0, 2.0, 0.5, -0.5, 1.5, 0.25];
    for (seed, temperature) in [(1, 1.0), (2, 0.5), (3, 2.0)] {
        let params = Sampling {
            temperature,
            ..plain(seed)
        };
        let counts = histogram(params, &logits, 40_000);
        let statistic = chi_square(&counts, &logits, f64::from(temperature));
        // 7 degrees of freedom: 24.3 is the 0.1 % tail.
        assert!(
            statistic < 24.3,
            "chi-square {statistic} at temperature {temperature}: {counts:?}"
        );
        assert!(
            chi_square(&counts, &logits, f64::from(temperature) * 1.2) > 24.3,
            "the test can tell temperatures apart"
        );
    }
}

#[test]
fn the_same_seed_draws_the_same_tokens() {
    let logits: Vec<f32> = (0..50).map(|i| ((i * 37) % 50) as f32 * 0.05).collect();
    let run = |seed| {
        let mut sampler = Sampler::new(plain(seed), 64);
        (0..64).map(|_| sampler.sample(&logits)).collect::<Vec<_>>()
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn greedy_takes_the_largest_and_the_lowest_id_of_equals() {
    let mut sampler = Sampler::new(Sampling::greedy(), 64);
    assert_eq!(sampler.sample(&[1.0, 3.0, 3.0, 2.0]), 1);
    assert_eq!(sampler.sample(&[f32::NAN, -1.0, f32::NAN, -0.5]), 3);
    assert_eq!(sampler.sample(&[f32::NEG_INFINITY; 3]), 0);
}

#[test]
fn top_k_keeps_exactly_k() {
    let logits = [0.0, 5.0, 5.0, 5.0, 4.9, 5.0];
    let counts = histogram(
        Sampling {
            top_k: 2,
            ..plain(1)
        },
        &logits,
        500,
    );
    assert_eq!(counts.iter().filter(|&&c| c > 0).count(), 2);
    assert!(
        counts[1] > 0 && counts[2] > 0,
        "ties go to the lower ids: {counts:?}"
    );
    let one = histogram(
        Sampling {
            top_k: 1,
            ..plain(1)
        },
        &logits,
        50,
    );
    assert_eq!(one[1], 50);
    let more_than_all = histogram(
        Sampling {
            top_k: 99,
            ..plain(4)
        },
        &logits,
        5000,
    );
    assert!(more_than_all.iter().all(|&c| c > 0), "{more_than_all:?}");
}

#[test]
fn top_p_keeps_the_smallest_set_that_reaches_p() {
    // Probabilities 0.5, 0.25, 0.125, 0.125.
    let logits = [0.25f32.ln(), 0.5f32.ln(), 0.125f32.ln(), 0.125f32.ln()];
    for top_k in [0, 3] {
        let kept = |top_p| {
            let counts = histogram(
                Sampling {
                    top_p,
                    top_k,
                    ..plain(5)
                },
                &logits,
                2000,
            );
            counts.iter().map(|&c| c > 0).collect::<Vec<_>>()
        };
        assert_eq!(kept(0.0), [false, true, false, false]);
        assert_eq!(kept(0.4), [false, true, false, false]);
        assert_eq!(kept(0.7), [true, true, false, false]);
        assert_eq!(kept(0.87), [true, true, true, false]);
    }
}

#[test]
fn min_p_is_relative_to_the_most_probable() {
    let logits = [0.0, 0.5f32.ln(), 0.1f32.ln(), 0.01f32.ln()];
    let kept = |min_p| {
        let counts = histogram(Sampling { min_p, ..plain(6) }, &logits, 4000);
        counts.iter().filter(|&&c| c > 0).count()
    };
    assert_eq!(kept(0.0), 4);
    assert_eq!(kept(0.05), 3);
    assert_eq!(kept(0.3), 2);
    assert_eq!(kept(1.0), 1);
}

#[test]
fn the_temperature_comes_after_the_filters() {
    // At temperature 100 all are nearly equal, but min-p sees the untempered probabilities.
    let logits = [0.0, 0.5f32.ln(), 0.01f32.ln()];
    let counts = histogram(
        Sampling {
            min_p: 0.1,
            temperature: 100.0,
            ..plain(6)
        },
        &logits,
        2000,
    );
    assert_eq!(counts[2], 0);
    assert!(counts[1] > 900, "{counts:?}");
}

#[test]
fn infinite_and_nan_logits_are_survived() {
    let mut sampler = Sampler::new(plain(3), 64);
    for _ in 0..50 {
        let token = sampler.sample(&[0.0, f32::INFINITY, f32::NAN, f32::INFINITY]);
        assert!(token == 1 || token == 3);
        assert_eq!(sampler.sample(&[f32::NAN, f32::NEG_INFINITY, -3.0]), 2);
    }
    assert_eq!(sampler.sample(&[f32::NAN, f32::NAN]), 0);
    assert_eq!(sampler.sample(&[]), 0);
}

#[test]
fn bias_and_penalties_change_the_choice() {
    let bias = Sampling {
        logit_bias: vec![(0, f32::NEG_INFINITY), (2, 1.0), (99, 1.0)],
        ..Sampling::greedy()
    };
    assert_eq!(Sampler::new(bias, 64).sample(&[9.0, 1.0, 0.5]), 2);

    let repeat = Penalties {
        repeat: 2.0,
        last_n: 2,
        ..Penalties::default()
    };
    let mut sampler = Sampler::new(
        Sampling {
            penalties: repeat,
            ..Sampling::greedy()
        },
        64,
    );
    let logits = [3.0, 2.0, 1.0];
    assert_eq!(sampler.sample(&logits), 0);
    sampler.accept(0);
    assert_eq!(sampler.sample(&logits), 1, "3.0 / 2 loses to 2.0");
    sampler.accept(2);
    sampler.accept(2);
    assert_eq!(sampler.sample(&logits), 0, "token 0 left the window of 2");
}

#[test]
fn large_vocabularies_agree_with_a_full_sort() {
    let logits: Vec<f32> = (0u64..20_000)
        .map(|i| ((i * 2_654_435_761) % 4093) as f32 * 0.002)
        .collect();
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|&a, &b| {
        logits[b as usize]
            .total_cmp(&logits[a as usize])
            .then(a.cmp(&b))
    });
    for top_p in [1.0, 0.9] {
        let counts = histogram(
            Sampling {
                top_k: 7,
                top_p,
                ..plain(9)
            },
            &logits,
            3000,
        );
        let drawn: Vec<u32> = (0..logits.len() as u32)
            .filter(|&i| counts[i as usize] > 0)
            .collect();
        let mut expected = order[..if top_p < 1.0 { drawn.len() } else { 7 }].to_vec();
        expected.sort_unstable();
        assert_eq!(drawn, expected);
    }
}

#[test]
fn parameters_out_of_range_are_named() {
    assert_eq!(Sampling::default().invalid_parameter(), None);
    let bad = Sampling {
        top_p: 1.5,
        ..Sampling::default()
    }
    .invalid_parameter()
    .map(|p| p.to_string());
    assert_eq!(
        bad.as_deref(),
        Some("top_p is 1.5, expected between 0 and 1")
    );
    let nan = Sampling {
        temperature: f32::NAN,
        ..Sampling::default()
    };
    assert_eq!(nan.invalid_parameter().map(|p| p.name), Some("temperature"));
}
