//! `logs`: the output of a container.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Result, bail};
use stratafs::container::{Container, LogLine, Phase};
use stratafs::image::time::Timestamp;
use stratafs::store::Store;

use super::args::Logs;

/// Longest prefix of a line in the log.
const HEAD: usize = 48;

/// Number of last lines to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    All,
    Last(usize),
}

/// Parses `all` or a number; a negative number means all, as in docker.
pub fn parse_tail(text: &str) -> Result<Tail, String> {
    match (text, text.parse::<i64>()) {
        ("all", _) => Ok(Tail::All),
        (_, Ok(number)) => Ok(usize::try_from(number).map_or(Tail::All, Tail::Last)),
        _ => Err("a number of lines, or all".to_owned()),
    }
}

/// Parses a time: RFC 3339, a date, seconds since 1970, or a duration before now.
pub fn parse_time(text: &str) -> Result<Timestamp, String> {
    let forms = [text.to_owned(), format!("{text}Z"), format!("{text}T00:00:00Z"), format!("{text}:00Z")];
    if let Some(time) = forms.iter().find_map(|form| Timestamp::parse(form)) {
        return Ok(time);
    }
    if let Ok(seconds) = text.parse::<f64>() {
        return Ok(Timestamp { seconds: seconds.floor() as i64, nanoseconds: (seconds.fract().abs() * 1e9) as u32 });
    }
    let ago =
        duration(text).ok_or("a time (2026-01-31T12:00:00Z), a date, seconds since 1970, or how long ago (10m)")?;
    let now = Timestamp::now();
    Ok(Timestamp { seconds: now.seconds.saturating_sub(ago), ..now })
}

/// Seconds in `1h30m`, `10s`, `2d`.
fn duration(text: &str) -> Option<i64> {
    let (mut total, mut number) = (0_i64, String::new());
    for c in text.chars() {
        let unit = match c {
            '0'..='9' => {
                number.push(c);
                continue;
            }
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            'd' => 86_400,
            _ => return None,
        };
        total = total.checked_add(number.parse::<i64>().ok()?.checked_mul(unit)?)?;
        number.clear();
    }
    (number.is_empty() && !text.is_empty()).then_some(total)
}

pub fn logs(store: &Store, args: &Logs) -> Result<()> {
    let container = Container::open(store, &args.container)?;
    if container.record.options.no_log {
        bail!("{}: has no log; it was made with --log-driver none", args.container);
    }
    let path = container.dir().join("log");
    let Ok(mut log) = File::open(&path) else {
        match container.state()?.phase {
            Phase::Created => return Ok(()),
            _ => bail!("{}: has no log; `run --rm` that is not detached keeps none", args.container),
        }
    };
    if let Tail::Last(lines) = args.tail {
        seek_lines_from_end(&mut log, lines)?;
    }
    let mut printer = Printer { args, goes_on: [false; 2] };
    let mut log = BufReader::new(log);
    let mut line = Vec::new();
    loop {
        // Checked before the log is read: output before the end must not be missed.
        let over = !args.follow || has_ended(&container);
        loop {
            log.read_until(b'\n', &mut line)?;
            // The rest of the line is not written yet.
            let Some(content) = line.strip_suffix(b"\n") else { break };
            if !printer.print(&LogLine::parse(content))? {
                return Ok(());
            }
            line.clear();
        }
        if over {
            // A log of version 0.1 is the plain output; its last line may be incomplete.
            return Ok(io::stdout().write_all(&line)?);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// True if nothing more will be written to the log.
fn has_ended(container: &Container) -> bool {
    !container.dir().exists()
        || match container.state() {
            Ok(state) => state.phase == Phase::Exited || !state.monitor.is_some_and(|monitor| monitor.is_alive()),
            Err(_) => false,
        }
}

struct Printer<'a> {
    args: &'a Logs,
    /// True if the last line of the output, or of the error output, was incomplete.
    goes_on: [bool; 2],
}

impl Printer<'_> {
    /// Prints a line if it is wanted; returns false for a line after the wanted time.
    fn print(&mut self, line: &LogLine<'_>) -> io::Result<bool> {
        let time = line.time.and_then(Timestamp::parse);
        if let (Some(time), Some(until)) = (time, self.args.until)
            && time >= until
        {
            return Ok(false);
        }
        let is_early = matches!((time, self.args.since), (Some(time), Some(since)) if time < since);
        let goes_on = std::mem::replace(&mut self.goes_on[usize::from(line.is_error)], !line.is_whole);
        if is_early {
            return Ok(true);
        }
        let mut text = Vec::new();
        if let Some(time) = line.time.filter(|_| self.args.timestamps && !goes_on) {
            text.extend_from_slice(time.as_bytes());
            text.push(b' ');
        }
        text.extend_from_slice(line.content);
        if line.is_whole {
            text.push(b'\n');
        }
        match line.is_error {
            true => io::stderr().write_all(&text)?,
            false => {
                let mut out = io::stdout();
                out.write_all(&text)?;
                out.flush()?;
            }
        }
        Ok(true)
    }
}

/// Seeks to the start of the last `lines` lines, reading backwards. A line that was written in several pieces counts once.
fn seek_lines_from_end(log: &mut File, lines: usize) -> io::Result<()> {
    const BLOCK: u64 = 64 << 10;
    let end = log.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(());
    }
    // The start of the piece found last, and the number of whole lines at or after it.
    let (mut position, mut piece, mut found) = (end, end, 0);
    while position > 0 {
        let start = position.saturating_sub(BLOCK);
        let mut block = vec![0; usize::try_from(position - start).unwrap_or(0)];
        log.read_exact_at(&mut block, start)?;
        for (at, _) in block.iter().enumerate().rev().filter(|&(_, &byte)| byte == b'\n') {
            let after = start + at as u64 + 1;
            // The bytes between this newline and the piece found before are a piece too. That piece starts a line if the
            // piece before it ends one.
            if after != end && piece != end && ends_a_line(log, after)? {
                found += 1;
                if found == lines {
                    return log.seek(SeekFrom::Start(piece)).map(drop);
                }
            }
            piece = after;
        }
        position = start;
    }
    if piece != end && ends_a_line(log, 0)? {
        found += 1;
        if found == lines {
            return log.seek(SeekFrom::Start(piece)).map(drop);
        }
    }
    log.seek(SeekFrom::Start(0)).map(drop)
}

/// True if this piece is the last one of its line.
fn ends_a_line(log: &File, start: u64) -> io::Result<bool> {
    let mut head = Vec::new();
    let mut at = log.try_clone()?;
    let before = at.stream_position()?;
    at.seek(SeekFrom::Start(start))?;
    (&at).take(HEAD as u64).read_to_end(&mut head)?;
    at.seek(SeekFrom::Start(before))?;
    let head = head.split(|&byte| byte == b'\n').next().unwrap_or_default();
    Ok(LogLine::parse(head).is_whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(text: &str, lines: usize) -> String {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        seek_lines_from_end(&mut file, lines).expect("found");
        let mut rest = String::new();
        file.read_to_string(&mut rest).expect("read");
        rest
    }

    #[test]
    fn the_last_lines_are_found() {
        let line = |kind: char, text: &str| format!("2023-11-14T22:13:20.000000005Z stdout {kind} {text}\n");
        let lines = [line('F', "1"), line('P', "2"), line('F', "2"), line('P', ""), line('P', "3"), line('F', "")];
        let text = lines.concat();
        let last = |count: usize| lines[count..].concat();
        for (count, expected) in [(0, last(6)), (1, last(3)), (2, last(1)), (3, last(0)), (9, last(0))] {
            assert_eq!(tail(&text, count), expected, "{count}");
        }
        assert_eq!(tail("", 3), "");
        // In the form of version 0.1.
        assert_eq!(tail("a\nb\nc", 2), "b\nc");
        let long = format!("{}{}", line('F', &"x".repeat(200_000)), line('F', "end"));
        assert_eq!(tail(&long, 1), line('F', "end"));
        assert_eq!(tail(&long, 2), long);
    }

    #[test]
    fn times_are_read_in_every_form() {
        for (text, seconds) in [
            ("2026-01-31T12:00:00Z", 1_769_860_800),
            ("2026-01-31T12:00:00", 1_769_860_800),
            ("2026-01-31T12:00", 1_769_860_800),
            ("2026-01-31", 1_769_817_600),
            ("1769817600", 1_769_817_600),
            ("1769817600.5", 1_769_817_600),
        ] {
            assert_eq!(parse_time(text).map(|time| time.seconds), Ok(seconds), "{text}");
        }
        let ago = Timestamp::now().seconds - parse_time("1h30m").expect("a time").seconds;
        assert!((5_400..5_410).contains(&ago), "{ago}");
        for bad in ["", "yesterday", "10", "10x", "m", "2026-13-01"].into_iter().filter(|text| *text != "10") {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_tail("all"), Ok(Tail::All));
        assert_eq!(parse_tail("-1"), Ok(Tail::All));
        assert_eq!(parse_tail("12"), Ok(Tail::Last(12)));
        assert!(parse_tail("x").is_err());
    }
}
