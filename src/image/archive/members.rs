//! The members of a tar that holds an image: where each one's bytes are.
//!
//! Only what image archives use is read (regular files, links, long names in either dialect); other members are
//! passed over. Formats: POSIX.1-2017 `pax`, "ustar Interchange Format" and "pax Extended Header"; GNU tar's
//! manual, "Basic Tar Format".

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek};

use ::tar::{EntryType, Header, PaxExtensions};

use crate::image::archive::{MemberFile, MemberReader, Spooling};
use crate::image::layer::Limits;
use crate::image::{ImageError, IoContext, Result};

const BLOCK: u64 = 512;
/// Long names and pax headers larger than this are refused.
const EXTENSION_LIMIT: u64 = 1 << 20;
/// More members than any image has.
const MEMBER_LIMIT: usize = 1 << 20;
const LINK_DEPTH: u32 = 16;

/// Where members are in a file.
#[derive(Debug)]
pub(crate) struct Members {
    file: File,
    places: HashMap<String, Place>,
}

#[derive(Clone, Debug)]
enum Place {
    Bytes { offset: u64, size: u64 },
    Link(String),
    Skipped,
}

impl Members {
    /// Of a regular file: read in place if it is a plain tar.
    pub(crate) fn of_file(name: &str, mut file: File, spooling: &Spooling<'_>) -> Result<Self> {
        let mut magic = [0; 4];
        let count = read_up_to(&mut file, &mut magic).at(name)?;
        file.rewind().at(name)?;
        if Packing::of(&magic[..count]) != Packing::None {
            return Self::of_stream(name, &mut &file, spooling);
        }
        let length = file.metadata().at(name)?.len();
        let mut walk =
            Walk { name, input: InPlace { file: BufReader::new(&file), position: 0, length }, places: HashMap::new() };
        walk.run()?;
        let places = walk.places;
        Ok(Self { file, places })
    }

    /// Of a stream, compressed or not: spooled.
    pub(crate) fn of_stream(name: &str, stream: &mut dyn Read, spooling: &Spooling<'_>) -> Result<Self> {
        let mut magic = [0; 4];
        let count = read_up_to(stream, &mut magic).at(name)?;
        let packing = Packing::of(&magic[..count]);
        let taken = Cell::new(0);
        let counted = Counted { inner: (&magic[..count]).chain(stream), count: &taken };
        let whole = BufReader::with_capacity(1 << 18, counted);
        let input: Box<dyn Read + '_> = match packing {
            Packing::None => Box::new(whole),
            Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
            Packing::Zstd => Box::new(zstd::Decoder::with_buffer(whole).at(name)?),
            Packing::Unsupported(kind) => {
                return Err(ImageError::archive(name, format!("is compressed with {kind}; gzip and zstd can be read")));
            }
        };
        let input = Bounded { inner: input, taken: &taken, given: 0, limits: spooling.limits };
        let spool = tempfile::tempfile_in(spooling.scratch).at(spooling.scratch)?;
        let spool = BufWriter::with_capacity(1 << 18, spool);
        let spooled = Spooled { input: Box::new(input), spool, written: 0, skip: spooling.skip };
        let mut walk = Walk { name, input: spooled, places: HashMap::new() };
        walk.run()?;
        let places = std::mem::take(&mut walk.places);
        let mut input = walk.input;
        // A pipe's writer must not be killed by SIGPIPE over the padding that follows the archive's end.
        io::copy(&mut input.input, &mut io::sink()).at(name)?;
        let file = input.spool.into_inner().map_err(io::IntoInnerError::into_error).at(spooling.scratch)?;
        Ok(Self { file, places })
    }

    /// Opens a member; links lead to other members.
    pub(crate) fn open(&self, name: &str) -> Result<Option<MemberReader<'_>>, String> {
        let Some(mut name) = normalise("", name) else { return Err(format!("{name} leads out of the archive")) };
        for _ in 0..LINK_DEPTH {
            match self.places.get(&name) {
                None => return Ok(None),
                Some(Place::Skipped) => return Err(format!("{name} was thought to be known, but is needed")),
                Some(Place::Link(target)) => name.clone_from(target),
                Some(&Place::Bytes { offset, size }) => {
                    let file = MemberFile::Range(&self.file);
                    return Ok(Some(MemberReader { file, position: offset, end: offset + size }));
                }
            }
        }
        Err(format!("{name} is one link of a chain that is too long"))
    }
}

/// A tar being gone through.
trait Input {
    /// Fills `block`; false at a clean end.
    fn block(&mut self, block: &mut [u8; 512]) -> io::Result<bool>;
    /// Reads the contents of a small member, and its padding.
    fn small(&mut self, size: u64) -> io::Result<Vec<u8>>;
    /// Passes over the contents of a member, and its padding; says where they can be read later.
    fn keep(&mut self, name: Option<&str>, size: u64) -> io::Result<Place>;
}

struct InPlace<'f> {
    file: BufReader<&'f File>,
    position: u64,
    length: u64,
}

impl Input for InPlace<'_> {
    fn block(&mut self, block: &mut [u8; 512]) -> io::Result<bool> {
        self.position += BLOCK;
        fill_block(&mut self.file, block)
    }

    fn small(&mut self, size: u64) -> io::Result<Vec<u8>> {
        self.position += padded(size)?;
        read_small(&mut self.file, size)
    }

    fn keep(&mut self, _name: Option<&str>, size: u64) -> io::Result<Place> {
        let offset = self.position;
        let end = offset.checked_add(size).filter(|&end| end <= self.length).ok_or_else(cut_short)?;
        self.position = offset + padded(size)?;
        let forward = i64::try_from(self.position - offset).map_err(|_| cut_short())?;
        self.file.seek_relative(forward)?;
        Ok(Place::Bytes { offset, size: end - offset })
    }
}

struct Spooled<'a> {
    input: Box<dyn Read + 'a>,
    spool: BufWriter<File>,
    written: u64,
    skip: &'a dyn Fn(&str) -> bool,
}

impl Input for Spooled<'_> {
    fn block(&mut self, block: &mut [u8; 512]) -> io::Result<bool> {
        fill_block(&mut self.input, block)
    }

    fn small(&mut self, size: u64) -> io::Result<Vec<u8>> {
        read_small(&mut self.input, size)
    }

    fn keep(&mut self, name: Option<&str>, size: u64) -> io::Result<Place> {
        let wanted = name.is_some_and(|name| !(self.skip)(name));
        let mut contents = (&mut self.input).take(size);
        let copied = match wanted {
            true => io::copy(&mut contents, &mut self.spool)?,
            false => io::copy(&mut contents, &mut io::sink())?,
        };
        if copied < size {
            return Err(cut_short());
        }
        let padding = padded(size)? - size;
        io::copy(&mut (&mut self.input).take(padding), &mut io::sink())?;
        if !wanted {
            return Ok(Place::Skipped);
        }
        let offset = self.written;
        self.written += size;
        Ok(Place::Bytes { offset, size })
    }
}

/// Counts what is read.
struct Counted<'c, R> {
    inner: R,
    count: &'c Cell<u64>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count.set(self.count.get() + count as u64);
        Ok(count)
    }
}

/// Stops a compressed archive that was made to fill the disk.
struct Bounded<'a> {
    inner: Box<dyn Read + 'a>,
    taken: &'a Cell<u64>,
    given: u64,
    limits: &'a Limits,
}

impl Read for Bounded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.given += count as u64;
        let ratio = self.limits.ratio;
        if self.given > self.limits.ratio_from && self.given / ratio > self.taken.get() {
            let reason = format!("grows to more than {ratio} times its compressed size (--unlimited accepts it)");
            return Err(io::Error::other(reason));
        }
        Ok(count)
    }
}

struct Walk<'a, I> {
    name: &'a str,
    input: I,
    places: HashMap<String, Place>,
}

/// What extension headers say of the member that follows them.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl<I: Input> Walk<'_, I> {
    fn run(&mut self) -> Result<()> {
        let mut extensions = Extensions::default();
        let mut first = true;
        while let Some(header) = self.next_header(first)? {
            first = false;
            let kind = header.entry_type();
            match kind {
                EntryType::GNULongName => extensions.path = Some(until_nul(self.extension(&header)?)),
                EntryType::GNULongLink => extensions.link = Some(until_nul(self.extension(&header)?)),
                EntryType::XHeader => self.read_pax(&header, &mut extensions)?,
                EntryType::XGlobalHeader => drop(self.extension(&header)?),
                _ => self.member(&header, std::mem::take(&mut extensions))?,
            }
        }
        Ok(())
    }

    fn next_header(&mut self, first: bool) -> Result<Option<Header>> {
        let mut block = [0; 512];
        if !self.input.block(&mut block).map_err(|error| self.error(error))? || block.iter().all(|&b| b == 0) {
            return match first {
                true => Err(self.error("is empty")),
                false => Ok(None),
            };
        }
        let mut header = Header::new_old();
        header.as_mut_bytes().copy_from_slice(&block);
        let sum: u32 =
            block.iter().enumerate().map(|(at, &b)| u32::from(if (148..156).contains(&at) { b' ' } else { b })).sum();
        match header.cksum() {
            Ok(told) if told == sum => Ok(Some(header)),
            _ if first => Err(self.error("is not a tar archive")),
            _ => Err(self.error("a tar header is damaged (wrong checksum)")),
        }
    }

    fn member(&mut self, header: &Header, extensions: Extensions) -> Result<()> {
        let path = extensions.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let name = std::str::from_utf8(&path).ok().and_then(|path| normalise("", path));
        let size = match extensions.size {
            Some(size) => size,
            None => header.entry_size().map_err(|error| self.error(error))?,
        };
        let link = || {
            let target = extensions.link.or_else(|| header.link_name_bytes().map(|link| link.into_owned()))?;
            String::from_utf8(target).ok()
        };
        let place = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous => self.keep(name.as_deref(), size)?,
            EntryType::Symlink => match name.as_deref().zip(link()).and_then(|(name, to)| normalise(parent(name), &to))
            {
                Some(target) => Place::Link(target),
                None => return Ok(()),
            },
            EntryType::Link => match link().and_then(|to| normalise("", &to)) {
                Some(target) => Place::Link(target),
                None => return Ok(()),
            },
            _ => return self.keep(None, size).map(drop),
        };
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            if self.places.len() >= MEMBER_LIMIT {
                return Err(self.error("has too many members for an image archive"));
            }
            self.places.insert(name, place);
        }
        Ok(())
    }

    fn keep(&mut self, name: Option<&str>, size: u64) -> Result<Place> {
        let archive = self.name;
        self.input.keep(name, size).map_err(|error| {
            let member = name.unwrap_or("a member");
            ImageError::archive(archive, format!("{member}: {error}"))
        })
    }

    fn extension(&mut self, header: &Header) -> Result<Vec<u8>> {
        let size = header.entry_size().map_err(|error| self.error(error))?;
        if size > EXTENSION_LIMIT {
            return Err(self.error(format!("an extended header of {size} bytes is too large")));
        }
        self.input.small(size).map_err(|error| self.error(error))
    }

    fn read_pax(&mut self, header: &Header, extensions: &mut Extensions) -> Result<()> {
        let records = self.extension(header)?;
        for record in PaxExtensions::new(&records) {
            let record = record.map_err(|error| self.error(error))?;
            let value = record.value_bytes();
            match record.key_bytes() {
                b"path" => extensions.path = Some(value.to_vec()),
                b"linkpath" => extensions.link = Some(value.to_vec()),
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|size| size.parse().ok());
                    extensions.size = Some(size.ok_or_else(|| self.error("a pax header's size is not a number"))?);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn error(&self, reason: impl ToString) -> ImageError {
        ImageError::archive(self.name, reason)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    None,
    Gzip,
    Zstd,
    Unsupported(&'static str),
}

impl Packing {
    fn of(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd] => Self::Zstd,
            [0xfd, b'7', b'z', b'X'] => Self::Unsupported("xz"),
            [b'B', b'Z', b'h', _] => Self::Unsupported("bzip2"),
            _ => Self::None,
        }
    }
}

/// `path` as seen from the directory `base`, without `.`, `..`, empty parts or a leading slash. `None` if it
/// leads out of the archive.
fn normalise(base: &str, path: &str) -> Option<String> {
    let base = if path.starts_with('/') { "" } else { base };
    let mut parts: Vec<&str> = Vec::new();
    for part in base.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len()));
    bytes
}

fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends in the middle of it")
}

fn padded(size: u64) -> io::Result<u64> {
    size.checked_next_multiple_of(BLOCK).ok_or_else(cut_short)
}

/// False if there is nothing more.
fn fill_block(input: &mut dyn Read, block: &mut [u8; 512]) -> io::Result<bool> {
    match read_up_to(input, block)? {
        0 => Ok(false),
        512 => Ok(true),
        _ => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "ends in the middle of a tar header")),
    }
}

fn read_small(input: &mut dyn Read, size: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if input.take(padded(size)?).read_to_end(&mut bytes)? as u64 != padded(size)? {
        return Err(cut_short());
    }
    bytes.truncate(usize::try_from(size).unwrap_or(usize::MAX));
    Ok(bytes)
}

fn read_up_to(input: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let table = [
            ("", "./a//b/", Some("a/b")),
            ("", "/a", Some("a")),
            ("x/y", "../z/layer.tar", Some("x/z/layer.tar")),
            ("x", "/z", Some("z")),
            ("x", "../../z", None),
            ("", "..", None),
        ];
        for (base, path, expected) in table {
            assert_eq!(normalise(base, path).as_deref(), expected, "{base} {path}");
        }
    }
}
