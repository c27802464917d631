//! Compression of layers and archives, recognized by magic numbers, because media types may be wrong.
//!
//! Gzip (RFC 1952) may have several members, zstd (RFC 8878) several frames, skippable ones among them, xz and bzip2
//! several streams. Bytes after the last one are not content. Like most readers, this one ignores them; they still
//! count in the digest of the compressed bytes, because the caller hashes below the decoder.

use std::fmt;
use std::io::{self, BufRead, Read};

/// The compression of a stream that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packing {
    /// None.
    None,
    /// Gzip.
    Gzip,
    /// Zstandard.
    Zstd,
    /// The `.xz` format.
    Xz,
    /// Bzip2.
    Bzip2,
}

/// The compression of layers that are written. Images have no media types for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// None.
    None,
    /// Gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// Number of bytes needed by [`Packing::sniff`].
pub(crate) const SNIFF_LEN: usize = 10;

/// Memory limit for one xz stream. `xz -9` needs 65 MiB; zstd's window has the same limit.
const XZ_MEMORY: u64 = 128 << 20;

const XZ_MAGIC: &[u8] = b"\xfd7zXZ\0";
/// Follows the header of a bzip2 stream: the magic number of a block, or of the stream's end.
const BZIP2_BLOCK: &[u8] = b"\x31\x41\x59\x26\x53\x59";
const BZIP2_END: &[u8] = b"\x17\x72\x45\x38\x50\x90";

impl Packing {
    /// Recognizes the compression by the first [`SNIFF_LEN`] bytes of a stream (fewer if it is shorter). The name of
    /// a tar's first member may begin with `BZh`, so more bytes are checked for bzip2.
    pub(crate) fn sniff(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [b'B', b'Z', b'h', b'1'..=b'9', block @ ..] if block.starts_with(BZIP2_BLOCK) => Self::Bzip2,
            [b'B', b'Z', b'h', b'1'..=b'9', block @ ..] if block.starts_with(BZIP2_END) => Self::Bzip2,
            _ if start.starts_with(XZ_MAGIC) => Self::Xz,
            _ => Self::None,
        }
    }
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "uncompressed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
        })
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Packing::from(*self).fmt(f)
    }
}

impl From<Compression> for Packing {
    fn from(compression: Compression) -> Self {
        match compression {
            Compression::None => Self::None,
            Compression::Gzip => Self::Gzip,
            Compression::Zstd => Self::Zstd,
        }
    }
}

/// A reader with its first bytes put back.
pub(crate) type Sniffed<R> = io::Chain<io::Cursor<Vec<u8>>, R>;

/// Reads the first bytes of `input` and recognizes its compression; the returned reader starts at the beginning.
///
/// # Errors
/// Those of `input`.
pub(crate) fn sniff<R: Read>(mut input: R) -> io::Result<(Packing, Sniffed<R>)> {
    let mut start = Vec::with_capacity(SNIFF_LEN);
    input.by_ref().take(SNIFF_LEN as u64).read_to_end(&mut start)?;
    let packing = Packing::sniff(&start);
    Ok((packing, io::Cursor::new(start).chain(input)))
}

/// A reader of the uncompressed bytes of `input`, which reads `input` to its end.
///
/// # Errors
/// When the decoder cannot be made. For damaged streams, the reader returns `InvalidData` or `UnexpectedEof`.
pub(crate) fn decoder<'a, R: BufRead + 'a>(input: R, packing: Packing) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match packing {
        Packing::None => Box::new(input),
        Packing::Gzip => Box::new(Members { state: MemberState::Between(Peek::new(input)), open: open_gzip, packing }),
        Packing::Zstd => Box::new(Members { state: MemberState::Between(Peek::new(input)), open: open_zstd, packing }),
        Packing::Xz => Box::new(Members { state: MemberState::Between(Peek::new(input)), open: open_xz, packing }),
        Packing::Bzip2 => {
            Box::new(Members { state: MemberState::Between(Peek::new(input)), open: open_bzip2, packing })
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

impl<R: BufRead> Member<R> for liblzma::bufread::XzDecoder<R> {
    fn into_input(self) -> R {
        self.into_inner()
    }
}

impl<R: BufRead> Member<R> for bzip2::bufread::BzDecoder<R> {
    fn into_input(self) -> R {
        self.into_inner()
    }
}

fn open_gzip<R: BufRead>(input: Peek<R>) -> io::Result<flate2::bufread::GzDecoder<Peek<R>>> {
    Ok(flate2::bufread::GzDecoder::new(input))
}

fn open_zstd<R: BufRead>(input: Peek<R>) -> io::Result<zstd::stream::read::Decoder<'static, Peek<R>>> {
    Ok(zstd::stream::read::Decoder::with_buffer(input)?.single_frame())
}

fn open_xz<R: BufRead>(input: Peek<R>) -> io::Result<liblzma::bufread::XzDecoder<Peek<R>>> {
    let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, 0)?;
    Ok(liblzma::bufread::XzDecoder::new_stream(input, stream))
}

fn open_bzip2<R: BufRead>(input: Peek<R>) -> io::Result<bzip2::bufread::BzDecoder<Peek<R>>> {
    Ok(bzip2::bufread::BzDecoder::new(input))
}

enum MemberState<R, M> {
    Between(Peek<R>),
    Inside(M),
    /// After the last member, or after an error.
    Over,
}

/// Members one after the other, followed by anything.
struct Members<R, M> {
    state: MemberState<R, M>,
    open: fn(Peek<R>) -> io::Result<M>,
    packing: Packing,
}

impl<R: BufRead, M: Member<Peek<R>>> Read for Members<R, M> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(&mut self.state, MemberState::Over) {
                MemberState::Between(mut input) => {
                    if self.packing == Packing::Xz {
                        input.skip_zeros()?;
                    }
                    if Packing::sniff(input.peek()?) == self.packing {
                        self.state = MemberState::Inside((self.open)(input)?);
                    } else {
                        io::copy(&mut input, &mut io::sink())?;
                        return Ok(0);
                    }
                }
                MemberState::Inside(mut member) => match member.read(buf)? {
                    0 => self.state = MemberState::Between(member.into_input()),
                    count => {
                        self.state = MemberState::Inside(member);
                        return Ok(count);
                    }
                },
                MemberState::Over => return Ok(0),
            }
        }
    }
}

/// Looks at the next bytes, even if the buffer below ends in the middle of them.
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

    /// Skips zeros, which may be between xz streams.
    fn skip_zeros(&mut self) -> io::Result<()> {
        loop {
            let available = self.fill_buf()?;
            let zeros = available.iter().take_while(|byte| **byte == 0).count();
            let all = zeros == available.len();
            self.consume(zeros);
            if zeros == 0 || !all {
                return Ok(());
            }
        }
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

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut packed = Vec::new();
        liblzma::read::XzEncoder::new(bytes, 6).read_to_end(&mut packed).unwrap();
        packed
    }

    fn bzip2(bytes: &[u8]) -> Vec<u8> {
        let mut packed = Vec::new();
        bzip2::read::BzEncoder::new(bytes, bzip2::Compression::best()).read_to_end(&mut packed).unwrap();
        packed
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
        let table: [(&str, Vec<u8>, &[u8]); 17] = [
            ("plain", b"hello".to_vec(), b"hello"),
            ("empty", vec![], b""),
            ("gzip", gzip(b"hello"), b"hello"),
            ("gzip members", [gzip(b"hel"), gzip(b""), gzip(b"lo")].concat(), b"hello"),
            ("gzip and garbage", [gzip(b"hello"), vec![0x1f, 0, 1]].concat(), b"hello"),
            ("gzip and zeros", [gzip(b"hello"), vec![0; 1000]].concat(), b"hello"),
            ("zstd frames", [zstd(b"hel"), skippable.clone(), zstd(b"lo"), b"junk".to_vec()].concat(), b"hello"),
            ("skippable first", [skippable, zstd(b"hello")].concat(), b"hello"),
            ("xz", xz(b"hello"), b"hello"),
            ("xz of nothing", xz(b""), b""),
            ("xz streams", [xz(b"hel"), xz(b""), xz(b"lo")].concat(), b"hello"),
            ("xz streams and padding", [xz(b"hel"), vec![0; 8], xz(b"lo"), vec![0; 12]].concat(), b"hello"),
            ("xz and garbage", [xz(b"hello"), b"\0\0garbage".to_vec()].concat(), b"hello"),
            ("bzip2", bzip2(b"hello"), b"hello"),
            ("bzip2 of nothing", bzip2(b""), b""),
            ("bzip2 streams", [bzip2(b"hel"), bzip2(b""), bzip2(b"lo")].concat(), b"hello"),
            ("bzip2 and garbage", [bzip2(b"hello"), b"BZh9 and no more".to_vec()].concat(), b"hello"),
        ];
        for (name, stream, expected) in table {
            for step in [1, 2, 3, 7, 4096] {
                assert_eq!(decode(&stream, step).unwrap(), expected, "{name}, {step}");
            }
        }
    }

    #[test]
    fn cut_streams_are_errors() {
        let plain = b"hello hello hello";
        for stream in [gzip(plain), zstd(plain), xz(plain), bzip2(plain)] {
            for len in SNIFF_LEN..stream.len() {
                assert!(decode(&stream[..len], 4096).is_err(), "cut at {len} of {}", stream.len());
            }
        }
    }

    /// A stream that claims to need a dictionary of 1 GiB is refused before memory is allocated.
    #[test]
    fn xz_dictionaries_are_bounded() {
        let mut options = liblzma::stream::LzmaOptions::new_preset(6).unwrap();
        for (dictionary, accepted) in [(64 << 20, true), (1 << 30, false)] {
            let filters = &mut liblzma::stream::Filters::new();
            let filters = filters.lzma2(options.dict_size(dictionary).mode(liblzma::stream::Mode::Fast));
            let stream = liblzma::stream::Stream::new_stream_encoder(filters, liblzma::stream::Check::Crc32).unwrap();
            let mut packed = Vec::new();
            liblzma::read::XzEncoder::new_stream(&b"hello"[..], stream).read_to_end(&mut packed).unwrap();
            assert_eq!(decode(&packed, 4096).is_ok(), accepted, "{dictionary}");
        }
    }

    #[test]
    fn a_name_that_begins_like_bzip2_is_none() {
        assert_eq!(Packing::sniff(b"BZh9/file\0"), Packing::None);
        assert_eq!(Packing::sniff(b"BZh0\x31\x41\x59\x26\x53\x59"), Packing::None);
    }
}
