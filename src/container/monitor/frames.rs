//! The messages between the process that watches a container and the clients attached to it: one byte for the kind, four
//! for the length (little endian), then the content.

use crate::image::{ImageError, Result};

/// A frame with more content is invalid.
const LARGEST: usize = 1 << 20;

/// Largest content of a frame that this program sends.
pub(super) const CHUNK: usize = 64 << 10;

/// An output of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Output,
    Error,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// From the monitor: it is ready to receive signals.
    Ready,
    /// From the monitor: the container's program was started.
    Started,
    /// From the monitor: the program could not be started. The exit code for `run`, and the reason.
    Failed(u8, String),
    /// From the monitor: output of the container.
    Wrote(Stream, Vec<u8>),
    /// From the monitor: the container has ended with this code.
    Exited(u8),
    /// From a client: input for the container.
    Input(Vec<u8>),
    /// From a client: the input has ended.
    InputEnd,
    /// From a client: rows and columns of its terminal.
    Size(u16, u16),
    /// From a client: it only waits for the end.
    Watch,
    /// From the client that started the container: this output has no reader any more.
    Hangup(Stream),
}

impl Frame {
    /// Appends the frame as bytes.
    pub(crate) fn write(&self, to: &mut Vec<u8>) {
        match self {
            Self::Ready => put(to, 0, &[]),
            Self::Started => put(to, 1, &[]),
            Self::Failed(code, why) => put(to, 2, &[&[*code], why.as_bytes()]),
            Self::Wrote(Stream::Output, bytes) => put(to, 3, &[bytes]),
            Self::Wrote(Stream::Error, bytes) => put(to, 4, &[bytes]),
            Self::Exited(code) => put(to, 5, &[&[*code]]),
            Self::Input(bytes) => put(to, 6, &[bytes]),
            Self::InputEnd => put(to, 7, &[]),
            Self::Size(rows, columns) => put(to, 8, &[&rows.to_le_bytes(), &columns.to_le_bytes()]),
            Self::Watch => put(to, 9, &[]),
            Self::Hangup(Stream::Output) => put(to, 10, &[]),
            Self::Hangup(Stream::Error) => put(to, 11, &[]),
        }
    }

    fn parse(kind: u8, content: &[u8]) -> Option<Self> {
        Some(match (kind, content) {
            (0, []) => Self::Ready,
            (1, []) => Self::Started,
            (2, [code, why @ ..]) => Self::Failed(*code, String::from_utf8_lossy(why).into_owned()),
            (3, bytes) => Self::Wrote(Stream::Output, bytes.to_vec()),
            (4, bytes) => Self::Wrote(Stream::Error, bytes.to_vec()),
            (5, [code]) => Self::Exited(*code),
            (6, bytes) => Self::Input(bytes.to_vec()),
            (7, []) => Self::InputEnd,
            (8, [a, b, c, d]) => Self::Size(u16::from_le_bytes([*a, *b]), u16::from_le_bytes([*c, *d])),
            (9, []) => Self::Watch,
            (10, []) => Self::Hangup(Stream::Output),
            (11, []) => Self::Hangup(Stream::Error),
            _ => return None,
        })
    }
}

fn put(to: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    to.push(kind);
    to.extend(u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    parts.iter().for_each(|part| to.extend_from_slice(part));
}

/// Received bytes, to be split into frames.
#[derive(Debug, Default)]
pub(crate) struct Decoder(Vec<u8>);

impl Decoder {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// When the bytes are not a valid frame.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>> {
        let [kind, a, b, c, d, rest @ ..] = self.0.as_slice() else { return Ok(None) };
        let length = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
        let foreign = || ImageError::refused("attach", "the other side speaks another protocol");
        if length > LARGEST {
            return Err(foreign());
        }
        let Some(content) = rest.get(..length) else { return Ok(None) };
        let frame = Frame::parse(*kind, content).ok_or_else(foreign)?;
        self.0.drain(..length + 5);
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in() {
        let frames = [
            Frame::Ready,
            Frame::Started,
            Frame::Failed(127, "no such program".to_owned()),
            Frame::Wrote(Stream::Output, b"out".to_vec()),
            Frame::Wrote(Stream::Error, Vec::new()),
            Frame::Exited(137),
            Frame::Input(b"\0\xff".to_vec()),
            Frame::InputEnd,
            Frame::Size(24, 400),
            Frame::Watch,
            Frame::Hangup(Stream::Output),
            Frame::Hangup(Stream::Error),
        ];
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.write(&mut bytes));
        let (mut decoder, mut found) = (Decoder::default(), Vec::new());
        for byte in bytes {
            decoder.push(&[byte]);
            found.extend(decoder.next().expect("a frame of ours"));
        }
        assert_eq!(found, frames);
        for foreign in [&[77, 0, 0, 0, 0][..], &[3, 255, 255, 255, 255], &[5, 0, 0, 0, 0]] {
            let mut decoder = Decoder::default();
            decoder.push(foreign);
            assert!(decoder.next().is_err(), "{foreign:?}");
        }
    }
}
