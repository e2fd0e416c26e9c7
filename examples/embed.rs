//! Decode inside a Rust program: three requests with different sampling run as one batch and are printed as they come.
//! Uses the runtime crate alone: `cargo run --release -p coldpress-runtime --no-default-features --example embed -- model.press`

use std::error::Error;

use coldpress_runtime::engine::{Engine, Event, Request};
use coldpress_runtime::sampler::{Penalties, Sampling};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: embed BUNDLE")?;
    let mut engine = Engine::open(path)?;

    let greedy = Sampling::greedy();
    let warm = Sampling {
        seed: Some(1),
        ..Sampling::default()
    };
    let varied = Sampling {
        temperature: 1.2,
        penalties: Penalties {
            repeat: 1.1,
            ..Penalties::default()
        },
        seed: Some(2),
        ..Sampling::default()
    };
    let mut labels = Vec::new();
    for (label, sampling) in [("greedy", greedy), ("warm", warm), ("varied", varied)] {
        let request = Request {
            max_tokens: Some(32),
            sampling,
            stop: vec!["\n\n".into()],
            ..Request::text("Once upon a time")
        };
        labels.push((engine.submit(request)?, label));
    }
    let label_of = |id| {
        labels
            .iter()
            .find(|&&(known, _)| known == id)
            .map_or("", |&(_, label)| label)
    };

    // One step decodes one token of every request. Further requests may be submitted, or cancelled, between any two.
    while !engine.is_idle() {
        for event in engine.step()? {
            match event {
                Event::Prefill { .. } => {}
                Event::Token { id, text, .. } => println!("{:>8} {text:?}", label_of(id)),
                Event::Finished {
                    id,
                    reason,
                    text,
                    stats,
                } => println!(
                    "{:>8} {text:?} finished ({}): {} prompt tokens, {} generated, {:.1} tok/s",
                    label_of(id),
                    reason.name(),
                    stats.prompt_tokens,
                    stats.generated_tokens,
                    stats.decode_rate()
                ),
            }
        }
    }
    Ok(())
}
