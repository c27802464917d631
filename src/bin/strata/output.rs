//! Tables, sizes and JSON as docker's users know them.

use std::io::{self, Write};

use serde_json::Value;

/// Prints lines; a closed pipe is an error like any other.
pub fn print_line(line: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
}

/// Prints a line on standard error. Where that fails there is nobody left to be told.
pub fn tell(line: &str) {
    writeln!(io::stderr(), "{line}").unwrap_or(());
}

/// Prints indented JSON.
pub fn print_json(value: &Value) -> io::Result<()> {
    print_line(&serde_json::to_string_pretty(value)?)
}

/// Prints columns three spaces apart, as wide as their widest cell.
pub fn print_table(head: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        print_line(padded.join("   ").trim_end())
    };
    line(&mut head.iter().copied())?;
    rows.iter().try_for_each(|row| line(&mut row.iter().map(String::as_str)))
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

/// Reads `512m`, `2g` or plain bytes; the units are binary, as docker's are for limits.
pub fn parse_size(text: &str) -> Result<i64, String> {
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix('b').unwrap_or(&lower);
    let (digits, shift) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 10),
        Some(b'm') => (&lower[..lower.len() - 1], 20),
        Some(b'g') => (&lower[..lower.len() - 1], 30),
        _ => (lower, 0),
    };
    let number: i64 = digits.parse().map_err(|_| "a size reads NUMBER[k|m|g]".to_owned())?;
    number.checked_mul(1 << shift).filter(|&bytes| bytes > 0).ok_or_else(|| "not a possible size".to_owned())
}

/// At most `width` characters, the last an ellipsis if there were more.
pub fn shorten(text: &str, width: usize) -> String {
    match text.chars().count() > width {
        true => text.chars().take(width - 1).chain(['…']).collect(),
        false => text.to_owned(),
    }
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
        assert!(parse_size("x").is_err() && parse_size("-1").is_err());
    }
}
