//! What is copied, and the walk through it.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::super::refuse_if_interrupted;
use super::root::{Root, Wanted};
use super::target::{Spot, Target};
use super::write::Writer;
use super::{Copied, CopyOptions};
use crate::confined::{self, FileType, Stat};
use crate::image::layer::path::join;
use crate::image::{ImageError, IoContext, Result};

/// File systems whose content the kernel makes up (`statfs(2)`). Their content does not belong to the container: they are
/// copied as empty directories, unless the user names one or a path in it.
const MADE_UP: [u32; 10] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x27_e0eb,   // cgroup
    0x6367_7270, // cgroup2
    0x1cd1,      // devpts
    0x1980_0202, // mqueue
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0xcafe_4a11, // bpf
];

/// One file, held so that it stays the same even if its name gets another file (`O_PATH`).
#[derive(Debug)]
pub(super) struct Node {
    pub(super) fd: OwnedFd,
    pub(super) stat: Stat,
}

impl Node {
    fn new(fd: OwnedFd) -> Result<Self, Errno> {
        let stat = Stat::of(fd.as_fd(), c"")?;
        Ok(Self { fd, stat })
    }

    /// The entry `name` of `dir`; a link is not followed.
    pub(super) fn open(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Self::new(rustix::fs::openat(dir, name, flags, Mode::empty())?)
    }

    /// Opens a regular file with the access mode `flags`. No other type is ever opened: opening a device has effects.
    pub(super) fn open_file(&self, flags: OFlags) -> Result<File, Errno> {
        if self.stat.file_type() != FileType::Regular {
            return Err(Errno::INVAL);
        }
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        Ok(rustix::fs::open(path, flags | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())?.into())
    }

    /// Opens a directory for listing.
    fn open_dir(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.fd, c".", flags, Mode::empty())
    }

    /// Target of a symbolic link.
    pub(super) fn link(&self) -> Result<Vec<u8>, Errno> {
        Ok(rustix::fs::readlinkat(&self.fd, c"", Vec::new())?.into_bytes())
    }
}

/// Receives what a walk finds. Paths begin with the name of the copy; the empty path is an existing directory.
pub(super) trait Sink {
    /// A directory begins.
    fn enter(&mut self, path: &[u8], node: &Node) -> Result<()>;

    /// The last directory that began and has not ended yet, ends.
    fn leave(&mut self) -> Result<()>;

    /// Something other than a directory.
    fn file(&mut self, path: &[u8], node: &Node) -> Result<()>;
}

/// A file or directory that is to be copied.
#[derive(Debug)]
pub struct Source {
    node: Node,
    /// Its name in the user's words; empty for a root.
    name: Vec<u8>,
    /// True if the directory itself is not copied.
    is_content: bool,
    shown: PathBuf,
}

/// A directory of a walk.
struct Level {
    path: Vec<u8>,
    dir: OwnedFd,
    mount: u64,
    /// The names still to do, the first one last.
    names: Vec<Vec<u8>>,
}

impl Source {
    /// Finds the file that `path` names. With `follows`, a link stands for its target, otherwise for itself; the copy has
    /// the link's name in both cases.
    ///
    /// # Errors
    /// If there is no such file, or if it is not a directory although the path ends in `/`.
    pub fn find(root: &Root, path: &Path, follows: bool) -> Result<Self> {
        let wanted = Wanted::new(root, path)?;
        let shown = root.shown(wanted.bytes());
        let stays = if follows || wanted.is_dir { OFlags::empty() } else { OFlags::NOFOLLOW };
        let kind = if wanted.is_dir { OFlags::DIRECTORY } else { OFlags::empty() };
        let fd = root.open(wanted.bytes(), OFlags::PATH | stays | kind).at(&shown)?;
        let name = wanted.name().map(<[u8]>::to_vec).unwrap_or_default();
        Ok(Self { node: Node::new(fd).at(&shown)?, name, is_content: wanted.is_content, shown })
    }

    pub(super) fn is_dir(&self) -> bool {
        self.node.stat.is_dir()
    }

    /// The name that it has in a tar stream; empty for the content of a directory.
    pub(super) fn own_name(&self) -> &[u8] {
        if self.is_content { b"" } else { &self.name }
    }

    /// Copies it to `target` by docker's rules.
    ///
    /// # Errors
    /// If a directory would replace a file or a file a directory; those of reading and writing. What was made before stays.
    pub fn copy_to(&self, target: &Target<'_>, options: CopyOptions) -> Result<Copied> {
        let name: &[u8] = match target.spot() {
            Spot::Directory if self.is_dir() => self.own_name(),
            Spot::Directory => &self.name,
            Spot::File(_) if self.is_dir() => {
                return Err(ImageError::refused(target.shown(), "cannot copy a directory to a file"));
            }
            Spot::Missing { is_dir: true, .. } if !self.is_dir() => {
                return Err(ImageError::refused(target.shown(), "no such directory"));
            }
            Spot::File(name) | Spot::Missing { name, .. } => name,
        };
        let mut writer = Writer::new(target, options)?;
        self.walk(name, &mut writer)?;
        Ok(writer.copied)
    }

    /// Passes the file, or the directory and everything in it, to `sink` under the name `top`.
    pub(super) fn walk(&self, top: &[u8], sink: &mut dyn Sink) -> Result<()> {
        if !self.is_dir() {
            return sink.file(top, &self.node);
        }
        let mut levels = vec![self.enter(top.to_vec(), top, &self.node, false, sink)?];
        while let Some(level) = levels.last_mut() {
            refuse_if_interrupted()?;
            let Some(name) = level.names.pop() else {
                levels.pop();
                sink.leave()?;
                continue;
            };
            let path = join(&level.path, &name);
            let node = match Node::open(level.dir.as_fd(), &name) {
                // It was removed since the directory was listed.
                Err(Errno::NOENT) => continue,
                node => node.at(self.shown_below(&path, top))?,
            };
            if node.stat.is_dir() {
                let is_mount = node.stat.mount != level.mount;
                let below = self.enter(path, top, &node, is_mount, sink)?;
                levels.push(below);
            } else {
                sink.file(&path, &node)?;
            }
        }
        Ok(())
    }

    fn enter(&self, path: Vec<u8>, top: &[u8], node: &Node, is_mount: bool, sink: &mut dyn Sink) -> Result<Level> {
        sink.enter(&path, node)?;
        let shown = || self.shown_below(&path, top);
        let dir = node.open_dir().at(shown())?;
        let mut names = match is_mount && self.is_made_up(&dir, below(&path, top)).at(shown())? {
            true => Vec::new(),
            false => confined::sorted_names(dir.as_fd()).at(shown())?,
        };
        names.reverse();
        Ok(Level { path, dir, mount: node.stat.mount, names })
    }

    /// True for the kernel's file systems, and for the `/dev` of a container that is copied as a whole.
    fn is_made_up(&self, dir: &OwnedFd, path: &[u8]) -> Result<bool, Errno> {
        let kind = rustix::fs::fstatfs(dir)?.f_type;
        let is_dev = self.name.is_empty() && path == b"dev";
        Ok(is_dev || MADE_UP.iter().any(|known| i128::from(*known) == i128::from(kind)))
    }

    /// How messages name a file of the walk. `path` is its path in the walk, which begins with `top`.
    fn shown_below(&self, path: &[u8], top: &[u8]) -> PathBuf {
        let rest = below(path, top);
        if rest.is_empty() { self.shown.clone() } else { self.shown.join(OsStr::from_bytes(rest)) }
    }
}

/// The rest of `path` after `top`, with which it begins.
fn below<'p>(path: &'p [u8], top: &[u8]) -> &'p [u8] {
    let rest = path.strip_prefix(top).unwrap_or(path);
    rest.strip_prefix(b"/").unwrap_or(rest)
}
