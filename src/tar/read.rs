//! Reads the members of a tar stream, both of layers and of archives of images.
//!
//! This parser replaces the `tar` crate for three reasons. A recipe needs every byte that is not file contents, in
//! order (headers, extension headers, sparse maps, padding, everything after the end). Hostile input needs limits
//! that are checked before memory is allocated. And where tar dialects are ambiguous, the result must equal that of
//! Go's `archive/tar`, which built the image and reads it elsewhere.

use std::io::{self, BufRead, Seek};

use crate::tar::header::{self, BLOCK, Block, Header, RawMap, Variant};
use crate::tar::pax::{self, Extended, Time};
use crate::tar::sparse::{self, Segment};
use crate::tar::{Limits, TarError};
use crate::text::printable;

/// Receives the bytes of a stream that are not file contents, in order.
pub(crate) trait RawSink {
    /// The error type of the reader.
    type Error: From<TarError>;

    fn raw(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
}

/// Ignores them.
impl RawSink for () {
    type Error = TarError;

    fn raw(&mut self, _: &[u8]) -> Result<(), TarError> {
        Ok(())
    }
}

/// The file that an entry makes. Device numbers are those in the archive; Linux may not support them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File {
        size: u64,
        segments: Vec<Segment>,
    },
    HardLink(Vec<u8>),
    Symlink(Vec<u8>),
    CharDevice(i128, i128),
    BlockDevice(i128, i128),
    Directory,
    Fifo,
    /// An entry type that cannot be created.
    Unknown(u8),
}

/// One entry, with its extension headers applied.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// As in the archive.
    pub(crate) name: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permission, setuid, setgid and sticky bits only.
    pub(crate) mode: u32,
    /// As in the archive; Linux may have no such owner.
    pub(crate) uid: i128,
    /// Likewise.
    pub(crate) gid: i128,
    pub(crate) mtime: Time,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// There is an ACL in an unsupported form.
    pub(crate) text_acl: bool,
}

/// Reader of a tar stream.
pub(crate) struct TarReader<'a, R, S> {
    input: R,
    sink: S,
    offset: u64,
    limits: &'a Limits,
    /// Content bytes of the current entry that have not been read.
    stored: u64,
    /// Bytes between the current entry's content and the next header.
    padding: u64,
    entries: u64,
}

impl<'a, R: BufRead, S: RawSink> TarReader<'a, R, S> {
    pub(crate) fn new(input: R, limits: &'a Limits, sink: S) -> Self {
        Self { input, sink, offset: 0, limits, stored: 0, padding: 0, entries: 0 }
    }

    /// The stream below.
    pub(crate) fn input(&mut self) -> &mut R {
        &mut self.input
    }

    /// Number of bytes of the stream read so far.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Number of entries so far.
    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }

    /// The receiver of bytes that are not contents.
    pub(crate) fn sink(&mut self) -> &mut S {
        &mut self.sink
    }

    /// The same, at the end.
    pub(crate) fn into_sink(self) -> S {
        self.sink
    }

    /// The next entry; `None` at the archive's end.
    ///
    /// As in Go, a stream may end between two entries without the two zero blocks, or in the padding of the last entry, because
    /// several writers omitted these. The DiffID distinguishes a truncated layer from such a stream.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, S::Error> {
        self.skip_content()?;
        self.pass_padding()?;
        let mut extended = Extended::default();
        let (mut long_name, mut long_link) = (None, None);
        let mut pending = false;
        loop {
            let Some(block) = self.header_block()? else {
                if pending {
                    return Err(self.format("the archive ends after an extension header").into());
                }
                return Ok(None);
            };
            let begins = self.offset - BLOCK as u64;
            let header = Header::new(&block).map_err(|reason| TarError::NotAHeader { offset: begins, reason })?;
            pending = true;
            match header.kind() {
                b'x' => extended = pax::parse(&self.extension(&header)?).map_err(|problem| self.format(problem))?,
                // Go returns a global header as a separate entry, and forgets the headers before it.
                b'g' => {
                    self.extension(&header)?;
                    extended = Extended::default();
                    (long_name, long_link, pending) = (None, None, false);
                }
                b'L' => long_name = self.long_text(&header)?,
                b'K' => long_link = self.long_text(&header)?,
                // The volume's label.
                b'V' => {
                    self.stored = self.size(&header, &extended)?;
                    self.padding = padding(self.stored);
                    self.skip_content()?;
                    self.pass_padding()?;
                    pending = false;
                }
                _ => {
                    extended.path = long_name.or(extended.path);
                    extended.link = long_link.or(extended.link);
                    return self.entry(&header, extended).map(Some);
                }
            }
        }
    }

    /// Passes the next stored bytes of the current entry to `sink`, `len` at most.
    pub(crate) fn content<E: From<TarError>>(
        &mut self,
        len: u64,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut left = len.min(self.stored);
        while left > 0 {
            let available = match self.input.fill_buf() {
                Ok([]) => return Err(self.cut().into()),
                Ok(available) => available,
                Err(error) => return Err(read_error(self.offset, error).into()),
            };
            let taken = available.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            sink(available.get(..taken).unwrap_or_default())?;
            self.input.consume(taken);
            self.offset += taken as u64;
            self.stored -= taken as u64;
            left -= taken as u64;
        }
        Ok(())
    }

    /// Skips the rest of the current entry's contents; the sink gets them.
    pub(crate) fn skip_content(&mut self) -> Result<(), S::Error> {
        while self.stored > 0 {
            match self.pass_some(self.stored)? {
                0 => return Err(self.cut().into()),
                count => self.stored -= count,
            }
        }
        Ok(())
    }

    /// Skips the padding, as far as it exists.
    fn pass_padding(&mut self) -> Result<(), S::Error> {
        while self.padding > 0 {
            match self.pass_some(self.padding)? {
                0 => self.padding = 0,
                count => self.padding -= count,
            }
        }
        Ok(())
    }

    /// Skips at most `limit` buffered bytes.
    fn pass_some(&mut self, limit: u64) -> Result<u64, S::Error> {
        let available = match self.input.fill_buf() {
            Ok(available) => available,
            Err(error) => return Err(read_error(self.offset, error).into()),
        };
        let taken = available.len().min(usize::try_from(limit).unwrap_or(usize::MAX));
        self.sink.raw(available.get(..taken).unwrap_or_default())?;
        self.input.consume(taken);
        self.offset += taken as u64;
        Ok(taken as u64)
    }

    /// Reads everything after the end of the archive.
    pub(crate) fn finish(&mut self) -> Result<(), S::Error> {
        while self.pass_some(u64::MAX)? > 0 {}
        Ok(())
    }

    /// The next header; `None` at two zero blocks, or at the stream's end.
    fn header_block(&mut self) -> Result<Option<Block>, S::Error> {
        let Some(block) = self.block()? else { return Ok(None) };
        if block != [0; BLOCK] {
            return Ok(Some(block));
        }
        match self.block()? {
            Some(block) if block != [0; BLOCK] => Err(self.format("a zero block with a header after it").into()),
            _ => Ok(None),
        }
    }

    /// The next block, which the sink gets too; `None` at the stream's end.
    fn block(&mut self) -> Result<Option<Block>, S::Error> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match io::Read::read(&mut self.input, rest) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(self.cut().into()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(read_error(self.offset, error).into()),
            }
        }
        self.offset += BLOCK as u64;
        self.sink.raw(&block)?;
        Ok(Some(block))
    }

    /// The next block inside an entry.
    fn needed_block(&mut self) -> Result<Block, S::Error> {
        match self.block()? {
            Some(block) => Ok(block),
            None => Err(self.cut().into()),
        }
    }

    /// The contents of an extension header, which the sink gets too.
    fn extension(&mut self, header: &Header<'_>) -> Result<Vec<u8>, S::Error> {
        let size = header.size().map_err(|problem| self.format(problem))?;
        let size = usize::try_from(size).map_err(|_| self.format("an extension header of impossible size"))?;
        if size > self.limits.extension {
            let what = format!("byte {}: extension header of {size} bytes", self.offset);
            let limit = self.limits.extension as u64;
            return Err(TarError::Limit { what, limit, option: "extension" }.into());
        }
        let mut bytes = Vec::with_capacity(size.next_multiple_of(BLOCK));
        while bytes.len() < size {
            bytes.extend_from_slice(&self.needed_block()?);
        }
        bytes.truncate(size);
        Ok(bytes)
    }

    /// Text of a GNU long name or link, up to the first NUL; `None` if it is empty.
    fn long_text(&mut self, header: &Header<'_>) -> Result<Option<Vec<u8>>, S::Error> {
        let mut text = self.extension(header)?;
        if let Some(end) = text.iter().position(|&byte| byte == 0) {
            text.truncate(end);
        }
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    /// Number of bytes stored for the entry.
    fn size(&self, header: &Header<'_>, extended: &Extended) -> Result<u64, TarError> {
        let size = match extended.size {
            Some(size) => size,
            None => {
                let size = header.size().map_err(|problem| self.format(problem))?;
                u64::try_from(size).map_err(|_| self.format("an entry of negative size"))?
            }
        };
        if size > i64::MAX as u64 - BLOCK as u64 { Err(self.format("an entry of impossible size")) } else { Ok(size) }
    }

    fn entry(&mut self, header: &Header<'_>, mut extended: Extended) -> Result<Entry, S::Error> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            let limit = self.limits.entries;
            return Err(TarError::Limit { what: "entries".into(), limit, option: "entries" }.into());
        }
        let sparse_name = extended.sparse.name.take().filter(|_| extended.sparse.is_present());
        let name = sparse_name.or(extended.path.take()).unwrap_or_else(|| header.name());
        let name_of = |problem: String| TarError::entry(&name, problem);
        let kind = self.kind(header, &mut extended, &name)?;
        self.padding = padding(self.stored);
        let id = |pax: Option<u64>, header: Result<i128, String>| match pax {
            Some(value) => Ok(i128::from(value)),
            None => header.map_err(name_of),
        };
        let mtime = match extended.mtime {
            Some(time) => time,
            None => {
                let seconds = header.mtime().map_err(name_of)?;
                let seconds = i64::try_from(seconds).map_err(|_| name_of("its time is out of range".into()))?;
                Time { seconds, nanoseconds: 0 }
            }
        };
        Ok(Entry {
            kind,
            mode: u32::try_from(header.mode().map_err(name_of)? & 0o7777).unwrap_or(0),
            uid: id(extended.uid, header.uid())?,
            gid: id(extended.gid, header.gid())?,
            mtime,
            xattrs: extended.xattrs,
            text_acl: extended.text_acl,
            name,
        })
    }

    /// The kind of file that the entry makes. Links, devices, directories and FIFOs have no contents, whatever their size says.
    /// GNU tar and POSIX use a directory's size to reserve space, but in Go none of these have contents.
    fn kind(&mut self, header: &Header<'_>, extended: &mut Extended, name: &[u8]) -> Result<Kind, S::Error> {
        let name_of = |problem: String| TarError::entry(name, problem);
        let link = extended.link.take().unwrap_or_else(|| header.link());
        Ok(match header.kind() {
            b'1' => Kind::HardLink(link),
            b'2' => Kind::Symlink(link),
            flag @ (b'3' | b'4') => {
                let (major, minor) = header.device().map_err(name_of)?;
                if flag == b'3' { Kind::CharDevice(major, minor) } else { Kind::BlockDevice(major, minor) }
            }
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            0 if name.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => {
                let kind = self.file(header, extended, name)?;
                if let Kind::File { size, .. } = kind
                    && size > self.limits.file
                {
                    let what = format!("entry {}: file of {size} bytes", printable(name));
                    return Err(TarError::Limit { what, limit: self.limits.file, option: "file" }.into());
                }
                kind
            }
            // GNU's incremental dumps: a directory with a list of its files as contents.
            b'D' => {
                self.stored = self.size(header, extended)?;
                Kind::Directory
            }
            other => {
                self.stored = self.size(header, extended)?;
                Kind::Unknown(other)
            }
        })
    }

    /// A regular file, including its sparse map.
    fn file(&mut self, header: &Header<'_>, extended: &Extended, name: &[u8]) -> Result<Kind, S::Error> {
        let stored = self.size(header, extended)?;
        let name_of = |problem: String| TarError::entry(name, problem);
        if header.kind() == b'S' {
            if header.variant() != Variant::Gnu {
                return Err(name_of("a sparse file of GNU's old form in a header that is not GNU's".into()).into());
            }
            let (mut map, mut more, size) = header.gnu_sparse().map_err(name_of)?;
            while more {
                let block = self.needed_block()?;
                let (part, another) = header::gnu_sparse_extension(&block).map_err(name_of)?;
                map.extend(part);
                self.check_map(map.len(), name)?;
                more = another;
            }
            let size = u64::try_from(size).map_err(|_| name_of("its real size is negative".into()))?;
            self.stored = stored;
            return Ok(Kind::File { size, segments: sparse::checked(&map, size, stored).map_err(name_of)? });
        }
        if !extended.sparse.is_present() {
            self.stored = stored;
            return Ok(Kind::File { size: stored, segments: sparse::whole(stored) });
        }
        let size = extended.sparse.real_size.ok_or_else(|| name_of("a sparse file without its real size".into()))?;
        let (map, stored) = match (extended.sparse.version, &extended.sparse.map) {
            (Some((1, 0)), _) => self.map_in_content(stored, name)?,
            (None | Some((0, _)), Some(map)) => (pairs(map), stored),
            (None | Some((0, _)), None) => (Vec::new(), stored),
            (Some((major, minor)), _) => return Err(name_of(format!("unknown sparse format {major}.{minor}")).into()),
        };
        if extended.sparse.map.as_ref().is_some_and(|map| map.len() % 2 != 0) {
            return Err(name_of("its sparse map ends in the middle of a pair".into()).into());
        }
        if extended.sparse.map.is_some() && extended.sparse.blocks.is_some_and(|blocks| blocks != map.len() as u64) {
            return Err(name_of("its sparse map has not as many pairs as it says".into()).into());
        }
        self.stored = stored;
        Ok(Kind::File { size, segments: sparse::checked(&map, size, stored).map_err(name_of)? })
    }

    /// The map of format 1.0: decimal lines at the start of the contents, padded to a block. Returns the map and
    /// the number of remaining stored bytes.
    fn map_in_content(&mut self, stored: u64, name: &[u8]) -> Result<(RawMap, u64), S::Error> {
        let mut left = stored;
        let mut text = Vec::new();
        let mut at = 0;
        let mut line = |reader: &mut Self| -> Result<u64, S::Error> {
            loop {
                let start = at;
                if let Some(end) = text.get(start..).and_then(|rest: &[u8]| rest.iter().position(|&byte| byte == b'\n'))
                {
                    at = start + end + 1;
                    return pax::decimal(text.get(start..start + end).unwrap_or_default()).ok_or_else(|| {
                        TarError::entry(name, "its sparse map holds something that is not a number").into()
                    });
                }
                if text.len() - start > 32 || left < BLOCK as u64 {
                    return Err(TarError::entry(name, "its sparse map does not end").into());
                }
                text.drain(..start);
                at = 0;
                text.extend_from_slice(&reader.needed_block()?);
                left -= BLOCK as u64;
            }
        };
        let count = line(self)?;
        self.check_map(usize::try_from(count).unwrap_or(usize::MAX), name)?;
        let mut map = Vec::new();
        for _ in 0..count {
            map.push((i128::from(line(self)?), i128::from(line(self)?)));
        }
        Ok((map, left))
    }

    fn check_map(&self, len: usize, name: &[u8]) -> Result<(), TarError> {
        if len > self.limits.sparse_segments {
            let what = format!("entry {}: sparse map of {len} pairs", printable(name));
            let limit = self.limits.sparse_segments as u64;
            return Err(TarError::Limit { what, limit, option: "sparse_segments" });
        }
        Ok(())
    }

    fn format(&self, reason: impl Into<String>) -> TarError {
        TarError::Format { offset: self.offset, reason: reason.into() }
    }

    fn cut(&self) -> TarError {
        // The stream is shorter than a header.
        self.format(if self.offset == 0 { "not a tar archive" } else { "the archive is cut off" })
    }
}

impl<R: BufRead + Seek> TarReader<'_, R, ()> {
    /// Skips the current entry's contents without reading them. `end` is the stream's length.
    pub(crate) fn seek_past_content(&mut self, end: u64) -> Result<(), TarError> {
        let whole = self.offset.checked_add(self.stored).filter(|whole| *whole <= end).ok_or_else(|| self.cut())?;
        let next = whole.saturating_add(self.padding).min(end);
        let distance = i64::try_from(next - self.offset).map_err(|_| self.cut())?;
        self.input.seek_relative(distance).map_err(|error| read_error(self.offset, error))?;
        (self.offset, self.stored, self.padding) = (next, 0, 0);
        Ok(())
    }
}

/// An error of the reader below. If it contains one of our errors, that is extracted.
fn read_error(offset: u64, source: io::Error) -> TarError {
    match source.downcast::<TarError>() {
        Ok(ours) => ours,
        Err(source) => TarError::Read { offset, source },
    }
}

fn padding(stored: u64) -> u64 {
    stored.next_multiple_of(BLOCK as u64) - stored
}

fn pairs(numbers: &[u64]) -> RawMap {
    numbers.chunks_exact(2).map(|pair| (i128::from(pair[0]), i128::from(pair[1]))).collect()
}
