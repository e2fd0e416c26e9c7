//! Progress bars of a compile, on stderr when it is a terminal.

use crate::compile::Progress;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;

/// One bar per phase.
pub struct Bars {
    bar: ProgressBar,
}

impl Bars {
    /// Bars that stay silent when stderr is not a terminal.
    pub fn new() -> Bars {
        Bars {
            bar: ProgressBar::hidden(),
        }
    }
}

impl Progress for Bars {
    fn phase(&mut self, name: &'static str, total: u64) {
        self.bar.finish_and_clear();
        if !std::io::stderr().is_terminal() {
            return;
        }
        let counted = if total > 1 << 20 {
            "{bytes}/{total_bytes} {bytes_per_sec}"
        } else {
            "{pos}/{len}"
        };
        self.bar = ProgressBar::new(total);
        if let Ok(style) =
            ProgressStyle::with_template(&format!("{{msg:<18}} {{wide_bar}} {counted}"))
        {
            self.bar.set_style(style);
        }
        self.bar.set_message(name);
    }

    fn advance(&mut self, units: u64) {
        self.bar.inc(units);
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
