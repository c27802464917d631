//! Makes files in a directory.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType as Kind, Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::super::naming::new_id;
use super::given::Given;
use super::source::{Node, Sink};
use super::target::Target;
use super::{Copied, CopyOptions};
use crate::confined::{self, Copier, FileId, FileType, Stat, WritableDir};
use crate::image::layer::path::split;
use crate::image::{ImageError, IoContext, Result};
use crate::sys::forward;
use crate::sys::namespace::has_everywhere;

/// What may replace what, worded as docker does.
pub(super) const DIRECTORY_THERE: &str = "cannot overwrite a directory with a file";
pub(super) const FILE_THERE: &str = "cannot overwrite a file with a directory";

/// A directory in which files are made.
struct Level {
    dir: OwnedFd,
    path: Vec<u8>,
    /// The attributes that it gets when it is complete.
    given: Option<Given>,
}

/// Makes what a walk finds at the target.
pub(super) struct Writer<'t> {
    target: &'t Target<'t>,
    options: CopyOptions,
    /// The held directory of the target, and the directories below it that were entered.
    levels: Vec<Level>,
    /// The directory that holds everything that is made, once it exists.
    top: Option<FileId>,
    /// The first name of each file that has several.
    links: HashMap<FileId, Vec<u8>>,
    copier: Copier,
    pub(super) copied: Copied,
}

fn c_name(name: &[u8]) -> Result<CString, Errno> {
    CString::new(name).map_err(|_| Errno::INVAL)
}

fn go_on() -> Result<(), Errno> {
    forward::interrupted().map_or(Ok(()), |_| Err(Errno::CANCELED))
}

impl<'t> Writer<'t> {
    pub(super) fn new(target: &'t Target<'t>, options: CopyOptions) -> Result<Self> {
        let place = || target.shown_below(b"");
        target.root().check_writable(target.dir()).at(place())?;
        let base = Level { dir: target.dir().try_clone_to_owned().at(place())?, path: Vec::new(), given: None };
        let copier = Copier::new(go_on);
        let levels = vec![base];
        Ok(Self { target, options, levels, top: None, links: HashMap::new(), copier, copied: Copied::default() })
    }

    fn dir(&self) -> BorrowedFd<'_> {
        self.levels.last().map_or(self.target.dir(), |level| level.dir.as_fd())
    }

    /// Writes a regular file's content.
    fn write(&mut self, node: &Node, to: &mut File) -> Result<(), Errno> {
        let mut from = node.open_file(OFlags::RDONLY)?;
        let size = node.stat.size;
        let copied = self.copier.copy(from.as_fd(), to.as_fd(), &node.stat, size);
        match copied {
            Ok(()) if size > 0 => {}
            // The file has become shorter, or it is one of the kernel's files, whose size has no meaning.
            Ok(()) | Err(Errno::IO) => {
                to.set_len(0).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
                let again = from.rewind().and_then(|()| to.rewind()).and_then(|()| std::io::copy(&mut from, to));
                self.copied.bytes += again.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
                return Ok(());
            }
            Err(errno) => return Err(errno),
        }
        self.copied.bytes += size;
        Ok(())
    }

    /// Makes one more name of a file that was copied before. Returns false if that does not work.
    fn link(&self, node: &Node, name: &CStr) -> bool {
        let Some(earlier) = self.links.get(&node.stat.id()) else { return false };
        let (parent, first) = split(earlier).unwrap_or((b"", earlier));
        let dir = confined::beneath(self.target.dir(), parent, OFlags::PATH | OFlags::DIRECTORY);
        dir.is_ok_and(|dir| rustix::fs::linkat(&dir, first, self.dir(), name, AtFlags::empty()).is_ok())
    }

    /// Makes a file and gives it its attributes.
    fn make(&mut self, path: &[u8], name: &CStr, node: &Node) -> Result<(), Errno> {
        if self.link(node, name) {
            return Ok(());
        }
        let special = |kind: Kind| {
            let device = rustix::fs::makedev(node.stat.rdev.0, node.stat.rdev.1);
            rustix::fs::mknodat(self.dir(), name, kind, Mode::RUSR | Mode::WUSR, device)
        };
        let made = match node.stat.file_type() {
            FileType::Regular => {
                let mut file = create(self.dir(), name)?;
                self.write(node, &mut file)?;
                WritableDir::new(file.into())
            }
            FileType::Symlink => {
                rustix::fs::symlinkat(node.link()?, self.dir(), name)?;
                reopened(self.dir(), name, libc::S_IFLNK)?
            }
            _ => {
                special(Kind::from_raw_mode(node.stat.mode))?;
                reopened(self.dir(), name, node.stat.mode)?
            }
        };
        let (target, given) = (self.target, Given::of(node, self.options)?);
        let shown = || target.shown_below(path).display().to_string();
        given.put(&made, self.options, &shown, &mut self.copied)?;
        if node.stat.nlink > 1 {
            self.links.insert(node.stat.id(), path.to_vec());
        }
        Ok(())
    }

    /// Returns true if the file is not copied, and notes that.
    fn is_left_out(&mut self, path: &[u8], node: &Node) -> bool {
        let kind = Kind::from_raw_mode(node.stat.mode);
        let what = match kind {
            Kind::Socket => "a socket",
            // On the host, a container's device node would give access to the host's device.
            Kind::CharacterDevice | Kind::BlockDevice if self.target.root().is_host() => "a device",
            Kind::CharacterDevice | Kind::BlockDevice if !has_everywhere(CapabilitySet::MKNOD) => "a device",
            _ => return false,
        };
        self.copied.warn(format!("{}: {what}, left out", self.target.shown_below(path).display()));
        true
    }
}

/// Opens a file that was just made, to set its owner and mode. Fails if a file of another type has taken its place.
pub(super) fn reopened(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<WritableDir, Errno> {
    let node = Node::open(dir, name.to_bytes())?;
    let same = node.stat.mode & libc::S_IFMT == mode & libc::S_IFMT;
    if same { Ok(WritableDir::new(node.fd)) } else { Err(Errno::STALE) }
}

/// Creates a regular file, which must not exist.
pub(super) fn create(dir: BorrowedFd<'_>, name: &CStr) -> Result<File, Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?.into())
}

/// What exists under the name of a new file.
enum InTheWay {
    Nothing,
    /// A file, which stays until the new one is complete.
    File,
    /// A file on which another one is mounted. It gets the new content.
    Mounted(Node),
    Directory,
}

fn in_the_way(dir: BorrowedFd<'_>, name: &[u8]) -> Result<InTheWay, Errno> {
    let node = match Node::open(dir, name) {
        Err(Errno::NOENT) => return Ok(InTheWay::Nothing),
        node => node?,
    };
    // A rename would take the mount away in the container's namespace.
    let is_mount = node.stat.mount != Stat::of(dir, c"")?.mount;
    Ok(match node.stat.file_type() {
        FileType::Directory => InTheWay::Directory,
        _ if is_mount => InTheWay::Mounted(node),
        _ => InTheWay::File,
    })
}

/// Makes the entry `name` of `dir` by `make`, which gets the name to use. A file of that name is replaced in one step when the
/// new one is complete; a directory is refused.
///
/// # Errors
/// `ISDIR`: a directory is there. What `make` returns; then nothing new is left.
pub(super) fn replace<T>(
    dir: BorrowedFd<'_>,
    name: &[u8],
    make: impl FnOnce(&CStr) -> Result<T, Errno>,
) -> Result<T, Errno> {
    let stage = || c_name(format!(".strata-{}", new_id().map_err(|_| Errno::IO)?).as_bytes());
    match in_the_way(dir, name)? {
        InTheWay::Directory => Err(Errno::ISDIR),
        InTheWay::Nothing => {
            let at = c_name(name)?;
            let made = make(&at);
            if made.is_err() {
                remove_if_there(dir, &at);
            }
            made
        }
        InTheWay::File => {
            let at = stage()?;
            let done = make(&at).and_then(|made| rustix::fs::renameat(dir, at.as_c_str(), dir, name).map(|()| made));
            // After a rename between two names of one file the first is still there.
            remove_if_there(dir, &at);
            done
        }
        InTheWay::Mounted(node) => {
            let at = stage()?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let open = rustix::fs::openat(dir, c".", flags, Mode::empty())?;
            // The directory below the mounted file does not change.
            confined::keeping_times(open.as_fd(), || {
                let done = make(&at).and_then(|made| overwrite(dir, &at, &node).map(|()| made));
                remove_if_there(dir, &at);
                done
            })
        }
    }
}

fn remove_if_there(dir: BorrowedFd<'_>, name: &CStr) {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        // If nothing may be written, nothing was made.
        Ok(()) | Err(Errno::NOENT | Errno::ROFS | Errno::ACCESS | Errno::PERM) => {}
        Err(errno) => tracing::warn!("{}: {errno}", name.to_string_lossy()),
    }
}

/// Gives a file the content of the complete file `name`.
fn overwrite(dir: BorrowedFd<'_>, name: &CStr, node: &Node) -> Result<(), Errno> {
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let mut from = Node::open(dir, name.to_bytes())?.open_file(OFlags::RDONLY)?;
    let mut to = node.open_file(OFlags::WRONLY | OFlags::TRUNC)?;
    std::io::copy(&mut from, &mut to).and_then(|_| to.flush()).map_err(errno)
}

impl Sink for Writer<'_> {
    fn enter(&mut self, path: &[u8], node: &Node) -> Result<()> {
        let shown = || self.target.shown_below(path);
        let Some((_, name)) = split(path) else {
            // The held directory itself.
            let id = Stat::of(self.target.dir(), c"").at(shown())?.id();
            self.top = Some(id);
            return self.push(path, node, id, self.target.dir().try_clone_to_owned().at(shown())?, None);
        };
        let is_new = match rustix::fs::mkdirat(self.dir(), name, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(errno).at(shown()),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = match rustix::fs::openat(self.dir(), name, flags, Mode::empty()) {
            Err(Errno::NOTDIR | Errno::LOOP) => {
                return Err(ImageError::refused(shown().display().to_string(), FILE_THERE));
            }
            dir => dir.at(shown())?,
        };
        self.target.root().check_writable(dir.as_fd()).at(shown())?;
        let id = Stat::of(dir.as_fd(), c"").at(shown())?.id();
        self.top.get_or_insert(id);
        let given = match is_new || self.options.archive {
            true => Some(Given::of(node, self.options).at(shown())?),
            false => None,
        };
        self.push(path, node, id, dir, given)
    }

    fn leave(&mut self) -> Result<()> {
        let Some(Level { dir, path, given: Some(given) }) = self.levels.pop() else { return Ok(()) };
        let target = self.target;
        let shown = || target.shown_below(&path);
        let dir = WritableDir::new(dir);
        given.put(&dir, self.options, &|| shown().display().to_string(), &mut self.copied).at(shown())
    }

    fn file(&mut self, path: &[u8], node: &Node) -> Result<()> {
        let name = split(path).map_or(path, |(_, name)| name);
        if self.is_left_out(path, node) {
            return Ok(());
        }
        let dir = self.dir().try_clone_to_owned().at(self.target.shown_below(path))?;
        match replace(dir.as_fd(), name, |at| self.make(path, at, node)) {
            Err(Errno::ISDIR) => {
                Err(ImageError::refused(self.target.shown_below(path).display().to_string(), DIRECTORY_THERE))
            }
            Err(Errno::CANCELED) => super::super::refuse_if_interrupted(),
            made => made.at(self.target.shown_below(path)),
        }
    }
}

impl Writer<'_> {
    fn push(&mut self, path: &[u8], node: &Node, id: FileId, dir: OwnedFd, given: Option<Given>) -> Result<()> {
        if Some(node.stat.id()) == self.top || node.stat.id() == id {
            let shown = self.target.shown_below(path).display().to_string();
            return Err(ImageError::refused(shown, "cannot copy a directory into itself"));
        }
        self.levels.push(Level { dir, path: path.to_vec(), given });
        Ok(())
    }
}
