//! The model in examples/tiny does what it was trained to do, through the commands a newcomer types first.

use crate::harness::*;
use std::path::Path;
use tempfile::tempdir;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/tiny/tiny.gguf");

/// Completions of several prompts decoded greedily as one batch, in prompt order.
fn complete(bundle: &Path, prompts: &[&str], n: &str) -> Vec<String> {
    let mut args = vec!["run", arg(bundle), "--temp", "0", "-n", n, "--json"];
    for p in prompts {
        args.extend(["-p", p]);
    }
    succeed(&args)
        .lines()
        .map(|line| {
            let v: serde_json::Value =
                serde_json::from_str(line).expect("one JSON object per request");
            v["text"].as_str().expect("text").to_string()
        })
        .collect()
}

#[test]
fn sums_are_right_and_stories_end() {
    let dir = tempdir().expect("temporary folder");
    let bundle = dir.path().join("tiny.press");
    succeed(&["compile", MODEL, "-o", arg(&bundle), "--max-batch", "8"]);
    let sums = [
        (17, 25),
        (3, 4),
        (40, 41),
        (58, 27),
        (99, 1),
        (12, 76),
        (30, 9),
        (64, 64),
    ];
    let prompts: Vec<String> = sums.iter().map(|(a, b)| format!("{a}+{b}=")).collect();
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let answers = complete(&bundle, &prompts, "6");
    assert_eq!(answers.len(), sums.len());
    let right = sums.iter().zip(&answers).filter(|((a, b), text)| {
        text.split('.')
            .next()
            .is_some_and(|s| s.trim() == (a + b).to_string())
    });
    let right = right.count();
    assert!(
        right >= 7,
        "only {right} of {} sums are right: {answers:?}",
        sums.len()
    );

    let story = complete(&bundle, &["Once upon a time"], "200").remove(0);
    assert!(
        story.split_whitespace().count() > 15 && story.contains('.'),
        "{story:?}"
    );
}
