//! The log of a container. It has one line for each line of output, in the format of Kubernetes' runtimes:
//! `2024-01-31T12:00:00.000000000Z stdout F text`. With `P` in place of `F`, the line continues in the next one.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use super::frames::Stream;
use crate::image::time::Timestamp;

/// A log that is being written.
#[derive(Debug)]
pub(super) struct Log(File);

impl Log {
    /// Opens a container's log to append to it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        File::options().create(true).append(true).open(path).map(Self)
    }

    /// Appends bytes that arrived in one piece.
    pub(super) fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(&lines_of(Timestamp::now(), stream, bytes))
    }
}

fn lines_of(now: Timestamp, stream: Stream, bytes: &[u8]) -> Vec<u8> {
    let time = fixed(now);
    let name = match stream {
        Stream::Output => "stdout",
        Stream::Error => "stderr",
    };
    let mut text = Vec::with_capacity(bytes.len() + 64);
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        let (content, kind) = line.strip_suffix(b"\n").map_or((line, 'P'), |content| (content, 'F'));
        text.extend_from_slice(format!("{time} {name} {kind} ").as_bytes());
        text.extend_from_slice(content);
        text.push(b'\n');
    }
    text
}

/// With nine digits for the fraction of a second, so that times sort as text.
fn fixed(time: Timestamp) -> String {
    let whole = Timestamp { nanoseconds: 0, ..time }.to_string();
    format!("{}.{:09}Z", whole.trim_end_matches('Z'), time.nanoseconds)
}

/// One line of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine<'a> {
    /// The time of writing, as in the log; `None` in logs of version 0.1, which have the output only.
    pub time: Option<&'a str>,
    /// True for standard error.
    pub is_error: bool,
    /// The output.
    pub content: &'a [u8],
    /// True if the line ends here.
    pub is_whole: bool,
}

impl<'a> LogLine<'a> {
    /// Parses a line without its newline.
    pub fn parse(line: &'a [u8]) -> Self {
        Self::parts(line).unwrap_or(Self { time: None, is_error: false, content: line, is_whole: true })
    }

    fn parts(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.splitn(4, |&byte| byte == b' ');
        let time = str::from_utf8(fields.next()?).ok()?;
        Timestamp::parse(time)?;
        let is_error = match fields.next()? {
            b"stdout" => false,
            b"stderr" => true,
            _ => return None,
        };
        let is_whole = match fields.next()? {
            b"F" => true,
            b"P" => false,
            _ => return None,
        };
        Some(Self { time: Some(time), is_error, content: fields.next()?, is_whole })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_were_written() {
        let now = Timestamp { seconds: 1_700_000_000, nanoseconds: 5 };
        let text = lines_of(now, Stream::Error, b"one\n\n two \xff\npart");
        let time = "2023-11-14T22:13:20.000000005Z";
        assert_eq!(
            text,
            [
                format!("{time} stderr F one\n{time} stderr F \n{time} stderr F  two ").as_bytes(),
                b"\xff\n",
                format!("{time} stderr P part\n").as_bytes()
            ]
            .concat()
        );
        let lines: Vec<&[u8]> = text.split(|&byte| byte == b'\n').collect();
        let line = |content, is_whole| LogLine { time: Some(time), is_error: true, content, is_whole };
        assert_eq!(LogLine::parse(lines[0]), line(b"one", true));
        assert_eq!(LogLine::parse(lines[1]), line(b"", true));
        assert_eq!(LogLine::parse(lines[2]), line(b" two \xff", true));
        assert_eq!(LogLine::parse(lines[3]), line(b"part", false));
        for old in [&b"plain text"[..], b"", b"2023-11-14T22:13:20Z stdout X y"] {
            let expected = LogLine { time: None, is_error: false, content: old, is_whole: true };
            assert_eq!(LogLine::parse(old), expected);
        }
    }
}
