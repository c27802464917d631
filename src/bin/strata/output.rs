//! Prints tables, sizes and JSON in docker's forms. All output goes through this module, and untrusted text is
//! escaped here (see [`stratafs::text`]).

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde_json::Value;
use stratafs::image::time::Timestamp;
use stratafs::text::{self, shown};
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::debug_fn;

/// Prints one line, escaped. A closed pipe is an error like any other.
pub fn print_line(line: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{}", shown(line))
}

/// True if standard output is a pipe without a reader.
pub fn is_abandoned() -> bool {
    let stdout = io::stdout();
    let mut polled = [rustix::event::PollFd::new(&stdout, rustix::event::PollFlags::empty())];
    let at_once = rustix::event::Timespec::default();
    rustix::event::poll(&mut polled, Some(&at_once)).is_ok()
        && polled[0].revents().contains(rustix::event::PollFlags::ERR)
}

/// Prints a line on standard error, escaped. Best effort: there is no other place for a message.
pub fn tell(line: &str) {
    writeln!(io::stderr(), "{}", shown(line)).unwrap_or(());
}

/// Escapes the fields of warnings. The logger itself escapes only some of the characters that could harm a terminal.
pub fn log_fields() -> impl for<'writer> FormatFields<'writer> + Send + Sync + 'static {
    debug_fn(|writer, field, value| {
        let value = format!("{value:?}");
        match field.name() {
            "message" => write!(writer, "{}", shown(&value)),
            name => write!(writer, "{name}={}", shown(&value)),
        }
    })
    .delimited(" ")
}

/// Prints a path that the user chose: escaped on a terminal, otherwise byte for byte, for scripts.
pub fn print_path(path: &Path) -> io::Result<()> {
    let mut out = io::stdout();
    if out.is_terminal() {
        return print_line(&text::shown_path(path));
    }
    out.write_all(&[path.as_os_str().as_bytes(), b"\n"].concat())
}

/// Calls `act` for each argument, even after failures, and reports all errors.
///
/// # Errors
/// The last error, which the caller reports.
pub fn each<T>(things: &[T], mut work: impl FnMut(&T) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut failed: Option<anyhow::Error> = None;
    for thing in things {
        if let Err(error) = work(thing) {
            if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
                return Err(error);
            }
            if let Some(earlier) = failed.replace(error) {
                tell(&format!("strata: {}", super::one_line(&earlier)));
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Prints indented JSON; characters that could harm a terminal are escaped in JSON's syntax.
pub fn print_json(value: &Value) -> io::Result<()> {
    writeln!(io::stdout(), "{}", text::json(&serde_json::to_string_pretty(value)?))
}

/// Prints a JSON document byte for byte; on a terminal, escaped in JSON's syntax.
pub fn print_document(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout();
    match str::from_utf8(bytes) {
        Ok(document) if out.is_terminal() => out.write_all(text::json(document).as_bytes()),
        _ => out.write_all(bytes),
    }
}

/// Prints columns three spaces apart, each as wide as its widest cell on a terminal.
pub fn print_table(head: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let widths = widths(head, rows);
    print_line(&table_line(&head.iter().map(|&cell| Cow::from(cell)).collect::<Vec<_>>(), &widths))?;
    rows.iter().try_for_each(|row| print_line(&table_line(&escaped(row), &widths)))
}

fn escaped(row: &[String]) -> Vec<Cow<'_, str>> {
    row.iter().map(|cell| shown(cell)).collect()
}

fn widths(head: &[&str], rows: &[Vec<String>]) -> Vec<usize> {
    let mut widths: Vec<usize> = head.iter().map(|cell| text::width(cell)).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(escaped(row)) {
            *width = (*width).max(text::width(&cell));
        }
    }
    widths
}

fn table_line(cells: &[Cow<'_, str>], widths: &[usize]) -> String {
    let pad = |(cell, &width): (&Cow<'_, str>, &usize)| {
        format!("{cell}{}", " ".repeat(width.saturating_sub(text::width(cell))))
    };
    cells.iter().zip(widths).map(pad).collect::<Vec<_>>().join("   ").trim_end().to_owned()
}

/// Three significant digits and a decimal unit: `117MB`, `1.24GB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = match value {
        _ if unit == 0 || value >= 99.95 => 0,
        value if value >= 9.995 => 1,
        _ => 2,
    };
    let digits = format!("{value:.decimals$}");
    let digits = if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { &digits };
    format!("{digits}{}", UNITS[unit])
}

/// A time in the form of docker's lists: `2024-01-31 12:00:00 +0000 UTC`.
pub fn created_at(time: Timestamp) -> String {
    let text = Timestamp::at(time.seconds).to_string();
    format!("{} +0000 UTC", text.trim_end_matches('Z').replace('T', " "))
}

/// Parses `512m`, `2g` or plain bytes; the units are binary, as docker's are for limits.
pub fn parse_size(text: &str) -> Result<i64, String> {
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix('b').unwrap_or(&lower);
    let (digits, shift) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 10),
        Some(b'm') => (&lower[..lower.len() - 1], 20),
        Some(b'g') => (&lower[..lower.len() - 1], 30),
        Some(b't') => (&lower[..lower.len() - 1], 40),
        _ => (lower, 0),
    };
    let number: i64 = digits.parse().map_err(|_| "a size reads NUMBER[k|m|g|t]".to_owned())?;
    number.checked_mul(1 << shift).filter(|&bytes| bytes > 0).ok_or_else(|| "not a possible size".to_owned())
}

/// The beginning of a text, escaped, at most this many columns wide; a longer text ends with an ellipsis.
pub fn shorten(text: &str, columns: usize) -> String {
    text::shorten(&shown(text), columns).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let table = [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (13_256, "13.3kB"),
            (117_000_000, "117MB"),
            (999_900, "1MB"),
            (1_240_000_000, "1.24GB"),
            (99_960_000, "100MB"),
        ];
        for (bytes, text) in table {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(parse_size("512m"), Ok(512 << 20));
        assert_eq!(parse_size("2GB"), Ok(2 << 30));
        assert_eq!(parse_size("1T"), Ok(1 << 40));
        assert!(parse_size("x").is_err() && parse_size("-1").is_err());
    }
}
