//! Stdout that survives a closed pipe, tables, and progress bars. No command's own content.

use std::io::{ErrorKind, IsTerminal, Write};
use std::path::Path;

use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::error::Error;

/// Writes to stdout and flushes. If nobody reads stdout any more the process ends, successfully: `... | head` is no
/// failure, and nothing that follows would be seen.
///
/// # Errors
/// Stdout cannot be written for another reason.
pub fn print(text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    if written
        .as_ref()
        .is_err_and(|e| e.kind() == ErrorKind::BrokenPipe)
    {
        std::process::exit(0);
    }
    written.map_err(io_error("writing", Path::new("stdout")))
}

/// Makes the error of `doing` something with a file.
pub(super) fn io_error(doing: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
    let doing = format!("{doing} {}", path.display());
    |source| Error::Io { doing, source }
}

/// An empty table in the one look all commands share; as wide as its content unless stdout is a terminal.
pub(super) fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_BORDERS_ONLY)
        .set_header(header);
    if std::io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    table
}

/// A bar on stderr; invisible if that is no terminal.
pub(super) fn progress(total: u64, message: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}") {
        bar.set_style(style);
    }
    bar.with_message(message)
}

/// Bytes for people: `1.50 GiB`.
pub(super) fn bytes(n: u64) -> String {
    HumanBytes(n).to_string()
}

/// Seconds for people: `1.25 ms`.
pub(super) fn seconds(s: f64) -> String {
    match s {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.2} ms", s * 1e3),
        s => format!("{:.1} us", s * 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(3 << 29), "1.50 GiB");
        assert_eq!(seconds(0.0123), "12.30 ms");
        assert_eq!(seconds(2e-5), "20.0 us");
    }
}
