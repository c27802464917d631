//! Reads the entries of a tar stream and keeps what a recipe needs.
//!
//! This is our own parser rather than the `tar` crate: the recipe wants every byte that is not file contents, in
//! order (headers, extension headers, sparse maps, padding, what follows the end); hostile input wants limits
//! before memory is taken; and where tar dialects are ambiguous, the answer has to be Go's, which built the image.

use std::io::{self, BufRead};

use crate::image::layer::error::printable;
use crate::image::layer::error::{LayerError, Result};
use crate::image::recipe::RecipeWriter;
use crate::image::unpack::options::Limits;
use crate::tar::header::{self, BLOCK, Block, Header, Variant};
use crate::tar::pax::{self, Extended, Time};
use crate::tar::sparse::{self, Segment};

/// What an entry makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File { size: u64, segments: Vec<Segment> },
    HardLink(Vec<u8>),
    Symlink(Vec<u8>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Directory,
    Fifo,
}

/// One entry, its extension headers applied.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// As the archive has it.
    pub(crate) name: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permission, setuid, setgid and sticky bits only.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// It has an ACL in a form that is not read.
    pub(crate) text_acl: bool,
}

/// Reader of a tar stream.
pub(crate) struct TarReader<'a, R> {
    input: R,
    offset: u64,
    limits: &'a Limits,
    recipe: Option<RecipeWriter>,
    /// Content bytes of the current entry that were not read yet.
    stored: u64,
    /// Bytes between the current entry's content and the next header.
    padding: u64,
    entries: u64,
}

impl<'a, R: BufRead> TarReader<'a, R> {
    pub(crate) fn new(input: R, limits: &'a Limits, recipe: Option<RecipeWriter>) -> Self {
        Self { input, offset: 0, limits, recipe, stored: 0, padding: 0, entries: 0 }
    }

    /// The stream below.
    pub(crate) fn input(&mut self) -> &mut R {
        &mut self.input
    }

    /// Entries so far.
    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }

    /// The recipe, where one is kept.
    pub(crate) fn recipe(&mut self) -> Option<&mut RecipeWriter> {
        self.recipe.as_mut()
    }

    /// The recipe, at the end.
    pub(crate) fn into_recipe(self) -> Option<RecipeWriter> {
        self.recipe
    }

    /// The next entry; `None` at the archive's end, after reading all that follows it.
    ///
    /// A stream that ends between two entries without the two zero blocks is taken as it is: several writers left
    /// them out, and the DiffID tells a cut archive from such a one.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        self.skip_content()?;
        let mut extended = Extended::default();
        let (mut long_name, mut long_link) = (None, None);
        let mut pending = false;
        loop {
            let Some(block) = self.header_block()? else {
                if pending {
                    return Err(self.format("the archive ends after an extension header"));
                }
                self.rest()?;
                return Ok(None);
            };
            let header = Header::new(&block).map_err(|problem| self.format(problem))?;
            pending = true;
            match header.kind() {
                b'x' => extended = pax::parse(&self.extension(&header)?).map_err(|problem| self.format(problem))?,
                b'g' => {
                    self.extension(&header)?;
                    pending = false;
                }
                b'L' if header.variant() == Variant::Gnu => long_name = Some(self.long_text(&header)?),
                b'K' if header.variant() == Variant::Gnu => long_link = Some(self.long_text(&header)?),
                // The volume's label.
                b'V' => {
                    self.stored = self.size(&header, &extended)?;
                    self.padding = padding(self.stored);
                    self.skip_content()?;
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

    /// Passes the next stored bytes of the current entry to `sink`, at most `len` of them in all.
    pub(crate) fn content(&mut self, len: u64, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut left = len.min(self.stored);
        while left > 0 {
            let available = match self.input.fill_buf() {
                Ok([]) => return Err(self.cut()),
                Ok(available) => available,
                Err(error) => return Err(self.input_error(error)),
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

    /// Passes over what is left of the current entry; the recipe keeps it.
    fn skip_content(&mut self) -> Result<()> {
        self.pass_over(self.stored)?;
        self.stored = 0;
        self.pass_over(self.padding)?;
        self.padding = 0;
        Ok(())
    }

    fn pass_over(&mut self, len: u64) -> Result<()> {
        let mut left = len;
        while left > 0 {
            match self.pass_some(left)? {
                0 => return Err(self.cut()),
                count => left -= count,
            }
        }
        Ok(())
    }

    /// Passes over at most `limit` bytes that are at hand.
    fn pass_some(&mut self, limit: u64) -> Result<u64> {
        let available = match self.input.fill_buf() {
            Ok(available) => available,
            Err(error) => return Err(self.input_error(error)),
        };
        let taken = available.len().min(usize::try_from(limit).unwrap_or(usize::MAX));
        if let Some(recipe) = &mut self.recipe {
            recipe.raw(available.get(..taken).unwrap_or_default())?;
        }
        self.input.consume(taken);
        self.offset += taken as u64;
        Ok(taken as u64)
    }

    /// Everything after the end of the archive.
    fn rest(&mut self) -> Result<()> {
        while self.pass_some(u64::MAX)? > 0 {}
        Ok(())
    }

    /// The next header; `None` at two zero blocks, or at the stream's end.
    fn header_block(&mut self) -> Result<Option<Block>> {
        let Some(block) = self.block()? else { return Ok(None) };
        if block != [0; BLOCK] {
            return Ok(Some(block));
        }
        match self.block()? {
            Some(block) if block != [0; BLOCK] => Err(self.format("a zero block with a header after it")),
            _ => Ok(None),
        }
    }

    /// The next block, kept in the recipe; `None` at the stream's end.
    fn block(&mut self) -> Result<Option<Block>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match io::Read::read(&mut self.input, rest) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(self.cut()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.input_error(error)),
            }
        }
        self.offset += BLOCK as u64;
        if let Some(recipe) = &mut self.recipe {
            recipe.raw(&block)?;
        }
        Ok(Some(block))
    }

    /// The contents of an extension header, kept in the recipe.
    fn extension(&mut self, header: &Header<'_>) -> Result<Vec<u8>> {
        let size = header.size().map_err(|problem| self.format(problem))?;
        let size = usize::try_from(size).map_err(|_| self.format("an extension header of impossible size"))?;
        if size > self.limits.extension {
            let what = format!("layer tar, byte {}: extension header of {size} bytes", self.offset);
            return Err(LayerError::Limit { what, limit: self.limits.extension as u64, option: "extension" });
        }
        let mut bytes = Vec::with_capacity(size.next_multiple_of(BLOCK));
        while bytes.len() < size {
            bytes.extend_from_slice(&self.block()?.ok_or_else(|| self.cut())?);
        }
        bytes.truncate(size);
        Ok(bytes)
    }

    /// Text of a GNU long name or link: up to the first NUL.
    fn long_text(&mut self, header: &Header<'_>) -> Result<Vec<u8>> {
        let mut text = self.extension(header)?;
        if let Some(end) = text.iter().position(|&byte| byte == 0) {
            text.truncate(end);
        }
        Ok(text)
    }

    /// Bytes stored for the entry.
    fn size(&self, header: &Header<'_>, extended: &Extended) -> Result<u64> {
        let size = match extended.size {
            Some(size) => size,
            None => {
                let size = header.size().map_err(|problem| self.format(problem))?;
                u64::try_from(size).map_err(|_| self.format("an entry of negative size"))?
            }
        };
        if size > i64::MAX as u64 - BLOCK as u64 { Err(self.format("an entry of impossible size")) } else { Ok(size) }
    }

    fn entry(&mut self, header: &Header<'_>, mut extended: Extended) -> Result<Entry> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(LayerError::Limit {
                what: "layer entries".into(),
                limit: self.limits.entries,
                option: "entries",
            });
        }
        let sparse_name = extended.sparse.name.take().filter(|_| extended.sparse.is_present());
        let name = sparse_name.or(extended.path.take()).unwrap_or_else(|| header.name());
        let name_of = |problem: String| LayerError::entry(&name, problem);
        let link = extended.link.take().unwrap_or_else(|| header.link());
        let kind = match header.kind() {
            b'1' => Kind::HardLink(link),
            b'2' => Kind::Symlink(link),
            flag @ (b'3' | b'4') => {
                let (major, minor) = header.device().map_err(name_of)?;
                // More bits than these Linux' `dev_t` has not; mknod(2) would cut them off.
                let number = |part: i128, bits: u32| {
                    let part = u32::try_from(part).ok().filter(|part| part >> bits == 0);
                    part.ok_or_else(|| name_of("its device number is out of range".into()))
                };
                let (major, minor) = (number(major, 12)?, number(minor, 20)?);
                if flag == b'3' { Kind::CharDevice(major, minor) } else { Kind::BlockDevice(major, minor) }
            }
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            0 if name.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' => self.file(header, &extended, &name)?,
            b'S' => self.file(header, &extended, &name)?,
            // GNU's incremental dumps: a directory whose contents list its files.
            b'D' => {
                self.stored = self.size(header, &extended)?;
                Kind::Directory
            }
            other => return Err(name_of(format!("unknown entry type {:?}", char::from(other)))),
        };
        self.padding = padding(self.stored);
        let id = |pax: Option<u64>, header: std::result::Result<i128, String>, what: &str| {
            let value = match pax {
                Some(value) => i128::from(value),
                None => header.map_err(name_of)?,
            };
            // 4294967295 is no owner: chown(2) takes it as "leave".
            u32::try_from(value)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| name_of(format!("its {what} {value} is out of range")))
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
            uid: id(extended.uid, header.uid(), "uid")?,
            gid: id(extended.gid, header.gid(), "gid")?,
            mtime,
            xattrs: extended.xattrs,
            text_acl: extended.text_acl,
            name,
        })
    }

    /// A regular file, its sparse map read.
    fn file(&mut self, header: &Header<'_>, extended: &Extended, name: &[u8]) -> Result<Kind> {
        let stored = self.size(header, extended)?;
        let name_of = |problem: String| LayerError::entry(name, problem);
        if header.kind() == b'S' && header.variant() == Variant::Gnu {
            let (mut map, mut more, size) = header.gnu_sparse().map_err(name_of)?;
            while more {
                let block = self.block()?.ok_or_else(|| self.cut())?;
                let (part, another) = header::gnu_sparse_extension(&block).map_err(name_of)?;
                map.extend(part);
                self.check_map(map.len(), name)?;
                more = another;
            }
            let size = u64::try_from(size).map_err(|_| name_of("its real size is negative".into()))?;
            self.stored = stored;
            return Ok(Kind::File { size, segments: sparse::checked(&map, size, stored).map_err(name_of)? });
        }
        if header.kind() == b'S' || !extended.sparse.is_present() {
            self.stored = stored;
            return Ok(Kind::File { size: stored, segments: sparse::whole(stored) });
        }
        let size = extended.sparse.real_size.ok_or_else(|| name_of("a sparse file without its real size".into()))?;
        let (map, stored) = match (extended.sparse.version, &extended.sparse.map) {
            (Some((1, 0)), _) => self.map_in_content(stored, name)?,
            (None | Some((0, _)), Some(map)) => (pairs(map), stored),
            (None | Some((0, _)), None) => (Vec::new(), stored),
            (Some((major, minor)), _) => return Err(name_of(format!("unknown sparse format {major}.{minor}"))),
        };
        if extended.sparse.map.as_ref().is_some_and(|map| map.len() % 2 != 0) {
            return Err(name_of("its sparse map ends in the middle of a pair".into()));
        }
        if extended.sparse.map.is_some() && extended.sparse.blocks.is_some_and(|blocks| blocks != map.len() as u64) {
            return Err(name_of("its sparse map has not as many pairs as it says".into()));
        }
        self.stored = stored;
        Ok(Kind::File { size, segments: sparse::checked(&map, size, stored).map_err(name_of)? })
    }

    /// The map of format 1.0: decimal lines at the start of the contents, padded to a block. Gives the map and how
    /// many stored bytes are left.
    fn map_in_content(&mut self, stored: u64, name: &[u8]) -> Result<(Vec<(i128, i128)>, u64)> {
        let mut left = stored;
        let mut text = Vec::new();
        let mut at = 0;
        let mut line = |reader: &mut Self| -> Result<u64> {
            loop {
                let start = at;
                if let Some(end) = text.get(start..).and_then(|rest: &[u8]| rest.iter().position(|&byte| byte == b'\n'))
                {
                    at = start + end + 1;
                    return pax::decimal(text.get(start..start + end).unwrap_or_default())
                        .ok_or_else(|| LayerError::entry(name, "its sparse map holds something that is not a number"));
                }
                if text.len() - start > 32 || left < BLOCK as u64 {
                    return Err(LayerError::entry(name, "its sparse map does not end"));
                }
                text.drain(..start);
                at = 0;
                text.extend_from_slice(&reader.block()?.ok_or_else(|| reader.cut())?);
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

    fn check_map(&self, len: usize, name: &[u8]) -> Result<()> {
        if len > self.limits.sparse_segments {
            let what = format!("layer entry {}: sparse map of {len} pairs", printable(name));
            return Err(LayerError::Limit {
                what,
                limit: self.limits.sparse_segments as u64,
                option: "sparse_segments",
            });
        }
        Ok(())
    }

    pub(crate) fn format(&self, reason: impl Into<String>) -> LayerError {
        LayerError::Format { offset: self.offset, reason: reason.into() }
    }

    fn cut(&self) -> LayerError {
        self.format("the archive is cut off")
    }

    fn input_error(&self, source: io::Error) -> LayerError {
        LayerError::Io { place: format!("layer tar, byte {}", self.offset), source }
    }
}

fn padding(stored: u64) -> u64 {
    stored.next_multiple_of(BLOCK as u64) - stored
}

fn pairs(numbers: &[u64]) -> Vec<(i128, i128)> {
    numbers.chunks_exact(2).map(|pair| (i128::from(pair[0]), i128::from(pair[1]))).collect()
}
