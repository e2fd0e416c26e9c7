//! What a picture shows, and hostile names and numbers in it.

use super::super::cliffs;
use super::super::tests::measurement;
use super::*;
use crate::bundle::sample;

fn picture(name: &str, file: &str, speeds: &[f64]) -> String {
    let results: Vec<Measurement> = (1..)
        .zip(speeds)
        .map(|(batch, &speed)| measurement(batch, speed))
        .collect();
    let model = ModelCard {
        name: name.into(),
        parameters: 600_000_000,
        source_bytes: 400_000_000,
        ..ModelCard::default()
    };
    draw(&Picture {
        file,
        model: &model,
        plan: &sample::manifest().plans[0],
        max_batch: 3,
        results: &results,
        cliffs: &cliffs::find(&results),
        bandwidth: 20e9,
    })
}

#[test]
fn has_every_curve_and_label() {
    let svg = picture("Tiny", "tiny-q4", &[10.0, 20.0, 12.0, 30.0]);
    xml::check(&svg);
    for wanted in [
        "Tiny (tiny-q4)",
        "5.3 bits per weight",
        "measured",
        "30.0 tok/s at B=4",
        "predicted",
        "memory bandwidth ceiling, 20.0 GB/s",
        "B=3: 40 % below B=2",
        "prefers-color-scheme:dark",
    ] {
        assert!(svg.contains(wanted), "{wanted}: {svg}");
    }
    assert_eq!(svg.matches("<circle").count(), 4 + 1);
    assert!(
        !svg.contains("http") || svg.matches("http").count() == 1,
        "the namespace only"
    );
}

#[test]
fn hostile_names_and_numbers_stay_well_formed() {
    let names = [
        "</text><script>alert(1)</script>",
        "a & b \" ' ]]> <!--",
        "\0\u{1b}[31m\u{fffe}\u{feff}",
        &"\u{1f525}".repeat(5000),
        "",
    ];
    for name in names {
        for speeds in [&[][..], &[0.0], &[1e-9, 1e300], &[f64::INFINITY, f64::NAN]] {
            let svg = picture(name, name, speeds);
            xml::check(&svg);
            assert!(!svg.contains("<script"), "{svg}");
            assert!(svg.len() < 100_000);
        }
    }
}

#[test]
fn predictions_come_from_the_cheapest_programs_that_fit() {
    let mut plan = sample::manifest().plans.remove(0);
    // Trunks of 1, 2, 4 rows and heads of 1, 2, a microsecond per row.
    let speed = |plan: &TargetPlan, b| predicted(plan, b).map(f64::round);
    assert_eq!(speed(&plan, 1), Some(500_000.0));
    assert_eq!(speed(&plan, 3), None);
    plan.programs[0].predicted_seconds = 1.0;
    assert_eq!(speed(&plan, 1), Some(333_333.0));
    plan.programs[3].predicted_seconds = f64::NAN;
    plan.programs[4].predicted_seconds = f64::NAN;
    assert_eq!(speed(&plan, 1), None);
}

#[test]
fn steps_are_round_numbers() {
    for (step, expected) in [
        (0.7, 1.0),
        (1.0, 1.0),
        (1.2, 2.0),
        (3.0, 5.0),
        (6.0, 10.0),
        (34.0, 50.0),
    ] {
        assert!((nice(step) / expected - 1.0).abs() < 1e-9, "{step}");
    }
}
