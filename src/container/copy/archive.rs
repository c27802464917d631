//! Tar streams as a source or target of copies.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::io::{BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{FileType as Kind, Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::super::refuse_if_interrupted;
use super::given::Given;
use super::source::{Node, Sink, Source};
use super::target::Target;
use super::write::{DIRECTORY_THERE, FILE_THERE, create, reopened, replace};
use super::{Copied, CopyOptions};
use crate::confined::{FileId, FileType, WritableDir};
use crate::image::layer::path::{components, join, normalise, split};
use crate::image::unpack::entry::{attributes_of, device_of};
use crate::image::{ImageError, IoContext, Result};
use crate::sys::namespace::has_everywhere;
use crate::tar::read::{Entry, Kind as Member, TarReader};
use crate::tar::write::{EntryType, end, header, pad};
use crate::tar::{Limits, TarError, compression, holes};

/// Bytes read at once.
const BUFFER: usize = 256 << 10;

impl Source {
    /// Writes it as a tar stream, under its own name. The content of a directory gets the name `.`.
    ///
    /// # Errors
    /// Those of reading and writing.
    pub fn write_tar(&self, out: &mut dyn Write) -> Result<Copied> {
        let top = self.own_name();
        let mut sink = TarSink { out, is_content: top.is_empty(), links: HashMap::new(), copied: Copied::default() };
        self.walk(top, &mut sink)?;
        end(sink.out).at(STREAM)?;
        Ok(sink.copied)
    }
}

/// The name of the stream in messages.
const STREAM: &str = "tar stream";

struct TarSink<'o> {
    out: &'o mut dyn Write,
    /// Names begin with `./`.
    is_content: bool,
    /// The first name of each file with several.
    links: HashMap<FileId, Vec<u8>>,
    copied: Copied,
}

impl TarSink<'_> {
    /// The path of a walk as it is written in the stream.
    fn name_of(&self, path: &[u8]) -> Vec<u8> {
        if self.is_content { [b"./", path].concat() } else { path.to_vec() }
    }

    fn header(&mut self, name: &[u8], kind: EntryType<'_>, node: &Node) -> Result<()> {
        let shown = Path::new(OsStr::from_bytes(name));
        // The stream contains everything; the reader chooses.
        let given = Given::of(node, CopyOptions { archive: true }).at(shown)?;
        header(self.out, name, kind, &given.to_member()).at(STREAM)
    }

    /// Writes as many bytes as the header says, even if the file changes meanwhile.
    fn content(&mut self, name: &[u8], node: &Node) -> Result<()> {
        let shown = Path::new(OsStr::from_bytes(name));
        let (mut file, size) = (node.open_file(OFlags::RDONLY).at(shown)?, node.stat.size);
        let mut buffer = vec![0; BUFFER];
        let mut left = size;
        while left > 0 {
            refuse_if_interrupted()?;
            let wanted = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
            let chunk = &mut buffer[..wanted];
            let read = match file.read(chunk).at(shown)? {
                0 => {
                    self.copied.warn(format!("{}: became shorter; filled up with zeros", shown.display()));
                    chunk.fill(0);
                    wanted
                }
                read => read,
            };
            self.out.write_all(&chunk[..read]).at(STREAM)?;
            left -= read as u64;
        }
        self.copied.bytes += size;
        pad(self.out, size).at(STREAM)
    }
}

impl Sink for TarSink<'_> {
    fn enter(&mut self, path: &[u8], node: &Node) -> Result<()> {
        let mut name = self.name_of(path);
        if !name.ends_with(b"/") {
            name.push(b'/');
        }
        self.header(&name, EntryType::Directory, node)
    }

    fn leave(&mut self) -> Result<()> {
        Ok(())
    }

    fn file(&mut self, path: &[u8], node: &Node) -> Result<()> {
        let (path, stat) = (&self.name_of(path)[..], &node.stat);
        if let Some(first) = self.links.get(&stat.id()).cloned() {
            return self.header(path, EntryType::HardLink(&first), node);
        }
        let (major, minor) = stat.rdev;
        match (stat.file_type(), Kind::from_raw_mode(stat.mode)) {
            (FileType::Regular, _) => {
                self.header(path, EntryType::File(stat.size), node)?;
                self.content(path, node)?;
            }
            (FileType::Symlink, _) => {
                let link = node.link().at(OsStr::from_bytes(path))?;
                self.header(path, EntryType::Symlink(&link), node)?;
            }
            (_, Kind::CharacterDevice) => self.header(path, EntryType::CharDevice(major, minor), node)?,
            (_, Kind::BlockDevice) => self.header(path, EntryType::BlockDevice(major, minor), node)?,
            (_, Kind::Fifo) => self.header(path, EntryType::Fifo, node)?,
            _ => {
                self.copied.warn(format!("{}: a socket, left out", OsStr::from_bytes(path).display()));
                return Ok(());
            }
        }
        if stat.nlink > 1 {
            self.links.insert(stat.id(), path.to_vec());
        }
        Ok(())
    }
}

/// A stream being extracted.
struct Extraction<'t> {
    target: &'t Target<'t>,
    options: CopyOptions,
    /// Directories, with the attributes that they get after everything in them was made.
    directories: Vec<(Vec<u8>, Given)>,
    copied: Copied,
}

impl Target<'_> {
    /// Extracts a tar stream, which may be compressed, into this directory.
    ///
    /// # Errors
    /// If this is not a directory, the stream is damaged, or an entry cannot be made. What was made before stays.
    pub fn extract(&self, input: &mut dyn Read, options: CopyOptions) -> Result<Copied> {
        self.check_directory()?;
        self.root().check_writable(self.dir()).at(self.shown_below(b""))?;
        let (packing, input) = compression::sniff(input).at(STREAM)?;
        let input = compression::decoder(BufReader::with_capacity(BUFFER, input), packing).at(STREAM)?;
        let limits = Limits::default();
        let mut reader = TarReader::new(BufReader::with_capacity(BUFFER, input), &limits, ());
        let mut extraction = Extraction { target: self, options, directories: Vec::new(), copied: Copied::default() };
        while let Some(entry) = reader.next().map_err(failed)? {
            refuse_if_interrupted()?;
            extraction.entry(&mut reader, &entry, &limits)?;
        }
        reader.finish().map_err(failed)?;
        extraction.finish()
    }
}

fn failed(error: TarError) -> ImageError {
    refuse_if_interrupted().err().unwrap_or_else(|| ImageError::archive(STREAM, error))
}

type Reader<'a, R> = TarReader<'a, R, ()>;

impl Extraction<'_> {
    fn entry<R: std::io::BufRead>(&mut self, reader: &mut Reader<'_, R>, entry: &Entry, limits: &Limits) -> Result<()> {
        let refused = |error: &dyn std::fmt::Display| ImageError::archive(STREAM, error);
        let path = normalise(&entry.name, limits.path).map_err(|error| refused(&error))?;
        // The directory itself keeps its attributes.
        let Some((parent, name)) = split(&path) else { return Ok(()) };
        let attributes = attributes_of(entry).map_err(|error| refused(&error))?;
        let given = Given::of_member(&attributes, self.options);
        let shown = self.target.shown_below(&path);
        let dir = self.parent(parent).at(&shown)?;
        self.target.root().check_writable(dir.as_fd()).at(&shown)?;
        if entry.kind == Member::Directory {
            return self.directory(dir.as_fd(), name, &path, given);
        }
        if self.is_left_out(entry, &shown) {
            return Ok(());
        }
        let mut problem = None;
        let made = match &entry.kind {
            Member::HardLink(link) => self.hard_link(dir.as_fd(), name, link, limits)?,
            _ => {
                replace(dir.as_fd(), name, |at| self.make(reader, entry, dir.as_fd(), at, &given, &shown, &mut problem))
            }
        };
        match (problem, made) {
            (Some(problem), _) => Err(failed(problem)),
            (None, Err(Errno::ISDIR)) => Err(ImageError::refused(shown.display().to_string(), DIRECTORY_THERE)),
            (None, made) => made.at(&shown),
        }
    }

    /// The directory of an entry; links are followed in the container's tree, missing directories are made.
    fn parent(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let (target, flags) = (self.target, OFlags::PATH | OFlags::DIRECTORY);
        let whole = |path: &[u8]| [target.path(), b"/", path].concat();
        match target.root().open(&whole(path), flags) {
            Err(Errno::NOENT) => {}
            opened => return opened,
        }
        let mut at = Vec::new();
        for step in components(path) {
            let dir = target.root().open(&whole(&at), flags)?;
            at = join(&at, step);
            match rustix::fs::mkdirat(&dir, step, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        target.root().open(&whole(path), flags)
    }

    fn directory(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: &[u8], given: Given) -> Result<()> {
        let shown = || self.target.shown_below(path);
        let is_new = match rustix::fs::mkdirat(dir, name, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(errno).at(shown()),
        };
        if !Node::open(dir, name).at(shown())?.stat.is_dir() {
            return Err(ImageError::refused(shown().display().to_string(), FILE_THERE));
        }
        if is_new || self.options.archive {
            self.directories.push((path.to_vec(), given));
        }
        Ok(())
    }

    fn hard_link(&self, dir: BorrowedFd<'_>, name: &[u8], link: &[u8], limits: &Limits) -> Result<Result<(), Errno>> {
        let first = normalise(link, limits.path).map_err(|error| ImageError::archive(STREAM, error))?;
        let (parent, first) = split(&first).unwrap_or((b"", b""));
        let shown = self.target.shown_below(parent);
        let from = self.target.root().open(&[self.target.path(), b"/", parent].concat(), OFlags::PATH).at(shown)?;
        let flags = rustix::fs::AtFlags::empty();
        Ok(replace(dir, name, |at| rustix::fs::linkat(&from, first, dir, at, flags)))
    }

    #[allow(clippy::too_many_arguments)]
    fn make<R: std::io::BufRead>(
        &mut self,
        reader: &mut Reader<'_, R>,
        entry: &Entry,
        dir: BorrowedFd<'_>,
        at: &CStr,
        given: &Given,
        shown: &Path,
        problem: &mut Option<TarError>,
    ) -> Result<(), Errno> {
        let made = match &entry.kind {
            Member::File { size, segments } => {
                let file = create(dir, at)?;
                for segment in segments {
                    let mut offset = segment.offset;
                    let written = reader.content(segment.len, &mut |bytes| {
                        holes::write(&file, offset, bytes).map_err(|source| TarError::Read { offset, source })?;
                        offset += bytes.len() as u64;
                        Ok(())
                    });
                    if let Err(error) = written {
                        *problem = Some(error);
                        return Err(Errno::IO);
                    }
                }
                rustix::fs::ftruncate(&file, *size)?;
                self.copied.bytes += size;
                WritableDir::new(file.into())
            }
            Member::Symlink(link) => {
                let link = CString::new(link.as_slice()).map_err(|_| Errno::INVAL)?;
                rustix::fs::symlinkat(&link, dir, at)?;
                reopened(dir, at, libc::S_IFLNK)?
            }
            other => {
                let (kind, (major, minor)) = match other {
                    Member::CharDevice(major, minor) => (Kind::CharacterDevice, (*major, *minor)),
                    Member::BlockDevice(major, minor) => (Kind::BlockDevice, (*major, *minor)),
                    _ => (Kind::Fifo, (0, 0)),
                };
                let (major, minor) = device_of(&entry.name, major, minor).map_err(|_| Errno::INVAL)?;
                let device = rustix::fs::makedev(major, minor);
                rustix::fs::mknodat(dir, at, kind, Mode::RUSR | Mode::WUSR, device)?;
                reopened(dir, at, kind.as_raw_mode())?
            }
        };
        given.put(&made, self.options, &|| shown.display().to_string(), &mut self.copied)
    }

    /// True for types that cannot be made; this is noted.
    fn is_left_out(&mut self, entry: &Entry, shown: &Path) -> bool {
        let what = match entry.kind {
            Member::Unknown(_) => "an entry of unknown type",
            Member::CharDevice(..) | Member::BlockDevice(..) if !has_everywhere(CapabilitySet::MKNOD) => "a device",
            _ => return false,
        };
        self.copied.warn(format!("{}: {what}, left out", shown.display()));
        true
    }

    /// Directories get their attributes, the innermost first.
    fn finish(mut self) -> Result<Copied> {
        for (path, given) in self.directories.iter().rev() {
            let shown = self.target.shown_below(path);
            let whole = [self.target.path(), b"/", path].concat();
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            let dir = match self.target.root().open(&whole, flags) {
                // A later entry or the container has replaced it.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                dir => WritableDir::new(dir.at(&shown)?),
            };
            given.put(&dir, self.options, &|| shown.display().to_string(), &mut self.copied).at(&shown)?;
        }
        Ok(self.copied)
    }
}
