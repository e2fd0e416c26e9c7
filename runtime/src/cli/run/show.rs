//! What `run` prints: the text of a single prompt as it comes, several as one part each in the order they were given,
//! JSON lines on request; progress and statistics on stderr.

use std::time::Duration;

use indicatif::ProgressBar;

use crate::cli::output::{print, progress};
use crate::engine::{FinishReason, RequestId, Stats, rate};
use crate::error::Error;

/// One prompt's output so far.
struct Part {
    id: RequestId,
    prompt: String,
    prefilled: usize,
    text: String,
    tokens: Vec<u32>,
    finished: Option<(FinishReason, Stats)>,
}

/// Collects events and prints what is ready.
pub(super) struct Show {
    parts: Vec<Part>,
    /// Parts before this one are printed.
    printed: usize,
    json: bool,
    quiet: bool,
    bar: ProgressBar,
}

impl Show {
    pub(super) fn new(ids: Vec<RequestId>, prompts: Vec<String>, json: bool, quiet: bool) -> Self {
        let parts = ids.into_iter().zip(prompts).map(|(id, prompt)| Part {
            id,
            prompt,
            prefilled: 0,
            text: String::new(),
            tokens: Vec::new(),
            finished: None,
        });
        let bar = if quiet {
            ProgressBar::hidden()
        } else {
            progress(0, "prompt")
        };
        Self {
            parts: parts.collect(),
            printed: 0,
            json,
            quiet,
            bar,
        }
    }

    fn streams(&self) -> bool {
        self.parts.len() == 1 && !self.json
    }

    fn part(&mut self, id: RequestId) -> Option<&mut Part> {
        self.parts.iter_mut().find(|part| part.id == id)
    }

    pub(super) fn prefill(&mut self, id: RequestId, done: usize, total: usize) {
        if let Some(part) = self.part(id) {
            let before = std::mem::replace(&mut part.prefilled, done);
            if before == 0 {
                self.bar.inc_length(total as u64);
            }
            self.bar.inc((done - before) as u64);
        }
        if self.streams() && done == total {
            self.bar.finish_and_clear();
        }
    }

    pub(super) fn token(&mut self, id: RequestId, token: u32, text: &str) -> Result<(), Error> {
        if let Some(part) = self.part(id) {
            part.tokens.push(token);
            part.text.push_str(text);
        }
        if self.streams() { print(text) } else { Ok(()) }
    }

    pub(super) fn finished(
        &mut self,
        id: RequestId,
        reason: FinishReason,
        text: &str,
        stats: Stats,
    ) -> Result<(), Error> {
        if let Some(part) = self.part(id) {
            part.text.push_str(text);
            part.finished = Some((reason, stats));
        }
        if self.streams() {
            return print(&format!("{text}\n"));
        }
        while let Some(part) = self.parts.get(self.printed)
            && let Some((reason, stats)) = part.finished
        {
            let shown = if self.json {
                json_line(self.printed, part, reason, stats)
            } else {
                headed(self.printed, part)
            };
            self.bar.suspend(|| print(&shown))?;
            self.printed += 1;
        }
        Ok(())
    }

    /// The statistics, once everything is finished.
    pub(super) fn total(&self, wall: Duration) {
        self.bar.finish_and_clear();
        if self.quiet {
            return;
        }
        for (i, part) in self.parts.iter().enumerate() {
            if let Some((reason, stats)) = part.finished {
                eprintln!("{}", stats_line(i, reason, stats));
            }
        }
        if self.parts.len() > 1 {
            let count = |of: fn(&Stats) -> usize| -> usize {
                self.parts
                    .iter()
                    .filter_map(|part| part.finished.as_ref())
                    .map(|(_, stats)| of(stats))
                    .sum()
            };
            let (prompt, generated) = (count(|s| s.prompt_tokens), count(|s| s.generated_tokens));
            eprintln!(
                "total: {} prompts, {prompt} prompt tokens and {generated} generated in {:.2} s: {:.1} generated tok/s",
                self.parts.len(),
                wall.as_secs_f64(),
                rate(generated, wall)
            );
        }
    }
}

fn headed(index: usize, part: &Part) -> String {
    let gap = if index == 0 { "" } else { "\n" };
    format!(
        "{gap}[{}] {}\n{}\n",
        index + 1,
        first_line(&part.prompt),
        part.text
    )
}

/// The prompt's first line, cut at 100 characters.
fn first_line(prompt: &str) -> String {
    const MOST: usize = 100;
    let line = prompt.lines().next().unwrap_or_default();
    let cut: String = line.chars().take(MOST).collect();
    if cut.len() < prompt.trim_end().len() {
        cut + "..."
    } else {
        cut
    }
}

fn json_line(index: usize, part: &Part, reason: FinishReason, stats: Stats) -> String {
    let object = serde_json::json!({
        "index": index,
        "prompt": part.prompt,
        "text": part.text,
        "tokens": part.tokens,
        "finish_reason": reason.name(),
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": stats.generated_tokens,
        "seed": stats.seed,
        "queued_seconds": stats.queued.as_secs_f64(),
        "prefill_seconds": stats.prefill.as_secs_f64(),
        "decode_seconds": stats.decode.as_secs_f64(),
    });
    format!("{object}\n")
}

fn stats_line(index: usize, reason: FinishReason, stats: Stats) -> String {
    format!(
        "[{}] prefill {} tokens, {:.1} tok/s; decode {} tokens, {:.1} tok/s ({}, seed {})",
        index + 1,
        stats.prompt_tokens,
        stats.prefill_rate(),
        stats.generated_tokens,
        stats.decode_rate(),
        reason.name(),
        stats.seed
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_one_short_line() {
        assert_eq!(first_line("short"), "short");
        assert_eq!(first_line("two\nlines"), "two...");
        assert_eq!(first_line(&"é".repeat(200)).chars().count(), 103);
        assert_eq!(first_line(""), "");
    }
}
