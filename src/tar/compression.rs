//! The compressions that layers come in, told by their magic numbers: media types lie.
//!
//! Gzip (RFC 1952) may have several members and zstd (RFC 8878) several frames, skippable ones among them. What
//! follows the last one is not content: readers of both formats ignore it, and so does this one; it still counts
//! in the digest of the compressed bytes, because the caller hashes those below the decoder.

use std::fmt;
use std::io::{self, BufRead, Read};

/// How a byte stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// Gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// Bytes that [`Compression::sniff`] needs.
pub const SNIFF_LEN: usize = 4;

impl Compression {
    /// Tells the compression by the first [`SNIFF_LEN`] bytes of a stream (fewer if it is shorter).
    pub fn sniff(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "uncompressed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

/// A reader with its first bytes put back.
pub(crate) type Sniffed<R> = io::Chain<io::Cursor<Vec<u8>>, R>;

/// Reads the first bytes of `input` and tells its compression; the reader given back starts at the beginning.
///
/// # Errors
/// Those of `input`.
pub(crate) fn sniff<R: Read>(mut input: R) -> io::Result<(Compression, Sniffed<R>)> {
    let mut start = Vec::with_capacity(SNIFF_LEN);
    input.by_ref().take(SNIFF_LEN as u64).read_to_end(&mut start)?;
    let compression = Compression::sniff(&start);
    Ok((compression, io::Cursor::new(start).chain(input)))
}

/// A reader of the uncompressed bytes of `input`, which reads `input` to its end.
///
/// # Errors
/// When no decoder can be made. The reader gives `InvalidData` or `UnexpectedEof` for damaged streams.
pub fn decoder<'a, R: BufRead + 'a>(input: R, compression: Compression) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match compression {
        Compression::None => Box::new(input),
        Compression::Gzip => {
            Box::new(Members { state: State::Between(Peek::new(input)), open: open_gzip, begins: gzip_begins })
        }
        Compression::Zstd => {
            Box::new(Members { state: State::Between(Peek::new(input)), open: open_zstd, begins: zstd_begins })
        }
    })
}

/// A decoder of one gzip member or one zstd frame.
trait Member<R>: Read {
    /// The input, after the member.
    fn into_input(self) -> R;
}

impl<R: BufRead> Member<R> for flate2::bufread::GzDecoder<R> {
    fn into_input(self) -> R {
        self.into_inner()
    }
}

impl<R: BufRead> Member<R> for zstd::stream::read::Decoder<'static, R> {
    fn into_input(self) -> R {
        self.finish()
    }
}

fn open_gzip<R: BufRead>(input: Peek<R>) -> io::Result<flate2::bufread::GzDecoder<Peek<R>>> {
    Ok(flate2::bufread::GzDecoder::new(input))
}

fn open_zstd<R: BufRead>(input: Peek<R>) -> io::Result<zstd::stream::read::Decoder<'static, Peek<R>>> {
    Ok(zstd::stream::read::Decoder::with_buffer(input)?.single_frame())
}

fn gzip_begins(start: &[u8]) -> bool {
    Compression::sniff(start) == Compression::Gzip
}

fn zstd_begins(start: &[u8]) -> bool {
    Compression::sniff(start) == Compression::Zstd
}

enum State<R, M> {
    Between(Peek<R>),
    Inside(M),
    /// After the last member, or after an error.
    Over,
}

/// Members one after the other, then anything at all.
struct Members<R, M> {
    state: State<R, M>,
    open: fn(Peek<R>) -> io::Result<M>,
    begins: fn(&[u8]) -> bool,
}

impl<R: BufRead, M: Member<Peek<R>>> Read for Members<R, M> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(&mut self.state, State::Over) {
                State::Between(mut input) => {
                    if (self.begins)(input.peek()?) {
                        self.state = State::Inside((self.open)(input)?);
                    } else {
                        io::copy(&mut input, &mut io::sink())?;
                        return Ok(0);
                    }
                }
                State::Inside(mut member) => match member.read(buf)? {
                    0 => self.state = State::Between(member.into_input()),
                    count => {
                        self.state = State::Inside(member);
                        return Ok(count);
                    }
                },
                State::Over => return Ok(0),
            }
        }
    }
}

/// Lets one look at the next bytes even where the buffer below ends in the middle of them.
struct Peek<R> {
    ahead: Vec<u8>,
    taken: usize,
    inner: R,
}

impl<R: BufRead> Peek<R> {
    fn new(inner: R) -> Self {
        Self { ahead: Vec::new(), taken: 0, inner }
    }

    /// The next [`SNIFF_LEN`] bytes, fewer at the end.
    fn peek(&mut self) -> io::Result<&[u8]> {
        self.ahead.drain(..self.taken);
        self.taken = 0;
        if self.ahead.len() < SNIFF_LEN {
            let missing = (SNIFF_LEN - self.ahead.len()) as u64;
            self.inner.by_ref().take(missing).read_to_end(&mut self.ahead)?;
        }
        Ok(&self.ahead)
    }
}

impl<R: BufRead> BufRead for Peek<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match self.ahead.get(self.taken..) {
            Some(rest) if !rest.is_empty() => Ok(rest),
            _ => self.inner.fill_buf(),
        }
    }

    fn consume(&mut self, amount: usize) {
        if self.taken < self.ahead.len() {
            self.taken += amount;
        } else {
            self.inner.consume(amount);
        }
    }
}

impl<R: BufRead> Read for Peek<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut available = self.fill_buf()?;
        let count = available.read(buf)?;
        self.consume(count);
        Ok(count)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 1).unwrap()
    }

    fn decode(stream: &[u8], step: usize) -> io::Result<Vec<u8>> {
        let (compression, input) = sniff(stream)?;
        let input = io::BufReader::with_capacity(step, input);
        let mut bytes = Vec::new();
        decoder(input, compression)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    #[test]
    fn members_frames_and_what_follows() {
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        let table: [(&str, Vec<u8>, &[u8]); 8] = [
            ("plain", b"hello".to_vec(), b"hello"),
            ("empty", vec![], b""),
            ("gzip", gzip(b"hello"), b"hello"),
            ("gzip members", [gzip(b"hel"), gzip(b""), gzip(b"lo")].concat(), b"hello"),
            ("gzip and garbage", [gzip(b"hello"), vec![0x1f, 0, 1]].concat(), b"hello"),
            ("gzip and zeros", [gzip(b"hello"), vec![0; 1000]].concat(), b"hello"),
            ("zstd frames", [zstd(b"hel"), skippable.clone(), zstd(b"lo"), b"junk".to_vec()].concat(), b"hello"),
            ("skippable first", [skippable, zstd(b"hello")].concat(), b"hello"),
        ];
        for (name, stream, expected) in table {
            for step in [1, 2, 3, 7, 4096] {
                assert_eq!(decode(&stream, step).unwrap(), expected, "{name}, {step}");
            }
        }
    }

    #[test]
    fn cut_streams_are_errors() {
        for stream in [gzip(b"hello hello hello"), zstd(b"hello hello hello")] {
            for len in SNIFF_LEN..stream.len() {
                assert!(decode(&stream[..len], 4096).is_err(), "cut at {len} of {}", stream.len());
            }
        }
    }
}
