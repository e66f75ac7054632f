//! Writing: stdout that may be closed, files that are there whole or not at all, progress bars.

use super::failure::Failure;
use bitnet_rust::session::files::NewFile;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

/// Writes to stdout at once.
pub fn stdout(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(stdout_failed)
}

/// A line of JSON on stdout.
pub fn json(value: &serde_json::Value) -> Result<(), Failure> {
    stdout(format!("{value}\n").as_bytes())
}

fn stdout_failed(e: io::Error) -> Failure {
    match e.kind() {
        ErrorKind::BrokenPipe => Failure::BrokenPipe,
        _ => Failure::because("cannot write to stdout", &e),
    }
}

/// A line on stderr; nobody may be reading it.
pub fn note(message: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "{message}");
}

/// Whether stdout may be decorated: a terminal, and nobody asked for plain text.
///
/// # Source
/// no-color.org.
pub fn decorate() -> bool {
    let unset = |name| std::env::var_os(name).is_none_or(|v| v.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
    io::stdout().is_terminal() && unset("NO_COLOR") && !dumb
}

/// Text of a model or a file as it may be shown on a terminal: without control characters other
/// than line ends and tabs, which could move the cursor or set the clipboard.
pub fn harmless(text: &str) -> std::borrow::Cow<'_, str> {
    let bad = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if text.contains(bad) {
        text.chars().map(|c| if bad(c) { '\u{fffd}' } else { c }).collect::<String>().into()
    } else {
        text.into()
    }
}

/// Starts a file that appears under its name only when it is complete.
pub fn new_file(target: &Path) -> Result<NewFile, Failure> {
    NewFile::create(target).map_err(|e| match e.kind() {
        ErrorKind::IsADirectory => Failure::Usage(format!("{} is a folder", target.display())),
        _ => cannot_write(target, &e),
    })
}

/// A file that cannot be written.
pub fn cannot_write(path: &Path, e: &io::Error) -> Failure {
    Failure::because(format!("cannot write {}", path.display()), e)
}

/// A progress bar in bytes on stderr, if that is a terminal and the user wants to see it.
pub fn progress(quiet: bool, total_bytes: Option<u64>, message: &str) -> ProgressBar {
    let bar = match total_bytes {
        Some(total) => ProgressBar::new(total),
        None => ProgressBar::no_length(),
    };
    // Indicatif hides it by itself where stderr is no terminal.
    let target =
        if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(10) };
    bar.set_draw_target(target);
    let template = match total_bytes {
        Some(_) => "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        None => "{msg} {spinner} {bytes} {bytes_per_sec}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(message.to_string());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// A progress bar that counts up to its length.
pub fn counter(quiet: bool, message: &str) -> ProgressBar {
    let bar = progress(quiet, None, message);
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}") {
        bar.set_style(style);
    }
    bar
}

/// A count of bytes for people.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KB", "MB", "GB", "TB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A large number for people: `27.3 M`.
pub fn count(n: u64) -> String {
    match n {
        0..1_000_000 => n.to_string(),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.2} B", n as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(10_722_272), "10.7 MB");
        assert_eq!(count(999_999), "999999");
        assert_eq!(count(27_300_000), "27.3 M");
        assert_eq!(count(2_412_820_480), "2.41 B");
    }

    #[test]
    fn terminals_get_no_escape_sequences() {
        assert_eq!(harmless("a\n\tb"), "a\n\tb");
        assert_eq!(harmless("a\x1b[2Jb\u{9b}"), "a\u{fffd}[2Jb\u{fffd}");
    }
}
