//! The members of a tar that holds an image, and where each one's bytes are.
//!
//! Only the kinds that image archives use are kept (regular files, also sparse ones, and links).

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::image::archive::{MemberFile, MemberReader, Spooling};
use crate::image::error::{ImageError, IoContext, Result};
use crate::tar::compression::{self, Packing};
use crate::tar::limits::{Bounded, Growth};
use crate::tar::read::{Entry, Kind, TarReader};
use crate::tar::sparse::Segment;
use crate::tar::{TarError, holes};
use crate::text::printable;

/// No image has as many members.
const MEMBER_LIMIT: usize = 1 << 20;
const LINK_DEPTH: u32 = 16;
/// The spool's members begin at multiples of this, so that holes remain holes.
const ALIGNMENT: u64 = 4096;

/// The members of an archive by name, and the file with their bytes.
#[derive(Debug)]
pub(crate) struct Members {
    file: File,
    members: HashMap<String, Member>,
}

#[derive(Debug)]
enum Member {
    Contents(Contents),
    Link(String),
    Skipped,
}

/// The place of a member's contents: its stored bytes, one segment after the other, from `offset` on.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) offset: u64,
    pub(super) size: u64,
    pub(super) segments: Vec<Segment>,
}

impl Members {
    /// The members of a regular file; a plain tar is read in place.
    pub(crate) fn of_file(name: &str, mut file: File, spooling: &Spooling<'_>) -> Result<Self> {
        let (packing, _) = compression::sniff(&file).at(name)?;
        file.rewind().at(name)?;
        if packing != Packing::None {
            return Self::of_stream(name, &mut &file, spooling);
        }
        let end = file.metadata().at(name)?.len();
        let mut reader = TarReader::new(BufReader::new(&file), spooling.limits, ());
        let mut list = List::new(name);
        while let Some(entry) = list.next(&mut reader)? {
            let offset = reader.offset();
            reader.seek_past_content(end).map_err(|error| list.in_entry(&entry, error))?;
            list.add(entry, Some(offset))?;
        }
        Ok(Self { members: list.members, file })
    }

    /// The members of a stream, compressed or not, which is spooled.
    pub(crate) fn of_stream(name: &str, stream: &mut dyn Read, spooling: &Spooling<'_>) -> Result<Self> {
        let taken = AtomicU64::new(0);
        let (packing, input) = compression::sniff(Counted { inner: stream, count: &taken }).at(name)?;
        let decoder = compression::decoder(BufReader::with_capacity(1 << 18, input), packing).at(name)?;
        let input = BufReader::with_capacity(1 << 18, Bounded::new(decoder, spooling.limits));
        let mut reader = TarReader::new(input, spooling.limits, ());
        let mut list = List::new(name);
        let mut spool = Spool::new(spooling, &taken)?;
        while let Some(entry) = list.next(&mut reader)? {
            let wanted = match &entry.kind {
                Kind::File { .. } => member_name(&entry.name).is_some_and(|name| !(spooling.skip)(&name)),
                _ => false,
            };
            let spooled = match wanted {
                true => spool.add(&mut reader).map(Some),
                false => reader.skip_content().map(|()| None).map_err(Failed::from),
            };
            let offset = spooled.map_err(|error| match error {
                Failed::Read(error) => list.in_entry(&entry, error),
                Failed::Write(source) => ImageError::Io { path: spooling.scratch.to_path_buf(), source },
            })?;
            list.add(entry, offset)?;
        }
        // The padding after the archive's end is read too: otherwise SIGPIPE would kill the pipe's writer.
        reader.finish().map_err(|error| list.error(error))?;
        Ok(Self { file: spool.finish().at(spooling.scratch)?, members: list.members })
    }

    /// Opens a member; links refer to other members.
    pub(crate) fn open(&self, name: &str) -> Result<Option<MemberReader<'_>>, String> {
        let Some(mut name) = normalise("", name) else { return Err(format!("{name} leads out of the archive")) };
        for _ in 0..LINK_DEPTH {
            match self.members.get(&name) {
                None => return Ok(None),
                Some(Member::Skipped) => return Err(format!("{name} was thought to be known, but is needed")),
                Some(Member::Link(target)) => name.clone_from(target),
                Some(Member::Contents(contents)) => {
                    return Ok(Some(MemberReader::new(MemberFile::Part(&self.file, contents))));
                }
            }
        }
        Err(format!("{name} is one link of a chain that is too long"))
    }
}

/// The members found so far.
struct List<'n> {
    archive: &'n str,
    members: HashMap<String, Member>,
}

impl<'n> List<'n> {
    fn new(archive: &'n str) -> Self {
        Self { archive, members: HashMap::new() }
    }

    /// Reads the next entry of the archive.
    fn next<R: std::io::BufRead>(&self, reader: &mut TarReader<'_, R, ()>) -> Result<Option<Entry>> {
        match reader.next() {
            Ok(None) if reader.entries() == 0 => Err(ImageError::archive(self.archive, "is empty")),
            Err(TarError::NotAHeader { offset: 0, .. }) => {
                Err(ImageError::archive(self.archive, "is not a tar archive"))
            }
            entry => entry.map_err(|error| self.error(error)),
        }
    }

    /// Adds an entry. `offset` is the place of its stored bytes, if they were kept.
    fn add(&mut self, entry: Entry, offset: Option<u64>) -> Result<()> {
        let Some(name) = member_name(&entry.name) else { return Ok(()) };
        let target = |base: &str, link: Vec<u8>| normalise(base, &String::from_utf8(link).ok()?);
        let member = match entry.kind {
            Kind::File { size, segments } => match offset {
                Some(offset) => Some(Member::Contents(Contents { offset, size, segments })),
                None => Some(Member::Skipped),
            },
            Kind::Symlink(link) => target(parent(&name), link).map(Member::Link),
            Kind::HardLink(link) => target("", link).map(Member::Link),
            _ => None,
        };
        let Some(member) = member else { return Ok(()) };
        if self.members.len() >= MEMBER_LIMIT {
            return Err(ImageError::archive(self.archive, "has too many members for an image archive"));
        }
        self.members.insert(name, member);
        Ok(())
    }

    fn error(&self, error: TarError) -> ImageError {
        ImageError::archive(self.archive, error)
    }

    /// An error in the contents of `entry`.
    fn in_entry(&self, entry: &Entry, error: TarError) -> ImageError {
        ImageError::archive(self.archive, format!("{}: {error}", printable(&entry.name)))
    }
}

/// The stored bytes of members, one after the other.
struct Spool<'a> {
    file: File,
    end: u64,
    growth: Growth<'a>,
}

/// Why a member was not spooled.
enum Failed {
    Read(TarError),
    Write(std::io::Error),
}

impl From<TarError> for Failed {
    fn from(error: TarError) -> Self {
        Self::Read(error)
    }
}

impl<'a> Spool<'a> {
    fn new(spooling: &Spooling<'a>, taken: &'a AtomicU64) -> Result<Self> {
        let file = tempfile::tempfile_in(spooling.scratch).at(spooling.scratch)?;
        Ok(Self { file, end: 0, growth: Growth::new(spooling.limits, taken) })
    }

    /// Copies the current entry's stored bytes; returns where they begin.
    fn add<R: std::io::BufRead>(&mut self, reader: &mut TarReader<'_, R, ()>) -> Result<u64, Failed> {
        let begin = self.end.next_multiple_of(ALIGNMENT);
        self.end = begin;
        reader.content(u64::MAX, &mut |bytes| {
            let (written, _) = holes::write(&self.file, self.end, bytes).map_err(Failed::Write)?;
            self.end += bytes.len() as u64;
            Ok::<_, Failed>(self.growth.wrote(written)?)
        })?;
        Ok(begin)
    }

    fn finish(self) -> std::io::Result<File> {
        self.file.set_len(self.end)?;
        Ok(self.file)
    }
}

/// Counts what is read.
struct Counted<'c, R> {
    inner: R,
    count: &'c AtomicU64,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// The name that a member is found by; `None` if it is never looked up.
fn member_name(name: &[u8]) -> Option<String> {
    normalise("", std::str::from_utf8(name).ok()?).filter(|name| !name.is_empty())
}

/// `path` as seen from the directory `base`, without `.`, `..`, empty parts or a leading slash. Returns
/// `None` if it leads out of the archive.
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
