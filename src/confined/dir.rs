//! One directory of a tree, held by descriptor, for reading.

use std::ffi::{CStr, OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Access, AtFlags, Mode, OFlags, RawDir, ResolveFlags};
use rustix::io::Errno;

use super::Stat;
use super::tree::{self, Tree};
use super::xattr;
use crate::sys;
use crate::sys::xattr::Target;

/// A directory, for reading. Cheap to clone.
///
/// Every method that takes a name also accepts an empty one, which means the held file itself. So it can also
/// hold files that have no name any more.
#[derive(Clone, Debug)]
pub struct Dir(Arc<Held>);

/// An open file of a tree.
#[derive(Debug)]
struct Held {
    fd: OwnedFd,
    tree: Arc<Tree>,
}

/// One entry of a real directory.
#[derive(Clone, Copy, Debug)]
pub struct RawEntry<'a> {
    /// Its name; never `.` or `..`.
    pub name: &'a CStr,
    /// `DT_*`.
    pub kind: u8,
    /// `d_ino`.
    pub ino: u64,
}

/// A path to an open file.
pub(super) fn proc_path(file: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl Dir {
    /// Wraps an open directory, which may be `O_PATH`, as the root of a tree. No step from it leaves its mount.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        let tree = Arc::new(Tree::mounted(fd.as_fd()));
        Self(Arc::new(Held { fd, tree }))
    }

    /// Opens the directory `path`, which may contain symbolic links, as the root of a tree that is only read.
    /// Anything mounted in it is not part of the tree ([`super::tree`]).
    ///
    /// # Errors
    /// Those of `open(2)`.
    pub(crate) fn open_root(path: &Path) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self::root(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// Makes the open directory `fd` such a root.
    pub(crate) fn root(fd: OwnedFd) -> Self {
        let (fd, tree) = tree::to_read(fd);
        Self(Arc::new(Held { fd, tree: Arc::new(tree) }))
    }

    /// Wraps the open file `fd` as a part of `tree`.
    pub(super) fn in_tree(fd: OwnedFd, tree: Tree) -> Self {
        Self(Arc::new(Held { fd, tree: Arc::new(tree) }))
    }

    /// Wraps an open file of the same tree.
    pub(crate) fn hold(&self, fd: OwnedFd) -> Self {
        Self(Arc::new(Held { fd, tree: self.0.tree.clone() }))
    }

    /// The path of the tree's root, without symbolic links.
    pub(crate) fn root_path(&self) -> &Path {
        &self.0.tree.path
    }

    /// Opens the single name `name` without following a symbolic link or leaving the mount.
    pub(super) fn open_entry(&self, name: &CStr, flags: OFlags, mode: u32) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if self.0.tree.is_private() || name.is_empty() || name == c"." {
            return rustix::fs::openat(self, name, flags, Mode::from_raw_mode(mode));
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        rustix::fs::openat2(self, name, flags, Mode::from_raw_mode(mode), resolve)
    }

    /// `name` as a target for system calls, unless it is a mountpoint.
    pub(crate) fn inside<'a>(&'a self, name: &'a CStr) -> Result<Target<'a>, Errno> {
        self.0.tree.guard(self.as_fd(), name)?;
        Ok(self.target(name))
    }

    /// A path to the held file itself. The file may be `O_PATH`, for which many calls only work by path.
    pub(super) fn proc_path(&self) -> String {
        proc_path(self.as_fd())
    }

    pub(super) fn target<'a>(&'a self, name: &'a CStr) -> Target<'a> {
        Target { dir: self.as_fd(), name }
    }

    /// The path of `name`, for a message.
    pub fn shown_path(&self, name: &CStr) -> PathBuf {
        let dir = self.0.tree.shown_path(self.as_fd());
        if name.is_empty() { dir } else { dir.join(OsStr::from_bytes(name.to_bytes())) }
    }

    /// Attributes of `name`; `None` if there is no such name.
    ///
    /// # Errors
    /// Those of `statx(2)`.
    pub fn stat(&self, name: &CStr) -> Result<Option<Stat>, Errno> {
        match self.inside(name).and_then(|_| Stat::of(self.as_fd(), name)) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Attributes of the directory itself.
    ///
    /// # Errors
    /// Those of `statx(2)`.
    pub fn stat_self(&self) -> Result<Stat, Errno> {
        Stat::of(self.as_fd(), c"")
    }

    /// Opens the subdirectory `name` for lookups (`O_PATH`).
    ///
    /// # Errors
    /// `NOTDIR`, also for a symlink; others of `openat(2)`.
    pub fn open_dir(&self, name: &CStr) -> Result<Self, Errno> {
        Ok(self.hold(self.open_entry(name, OFlags::PATH | OFlags::DIRECTORY, 0)?))
    }

    /// Opens the directory `path` below this one for lookups (`O_PATH`); the path may have any length.
    ///
    /// # Errors
    /// Those of `super::beneath`.
    pub fn open_beneath(&self, path: &CStr) -> Result<Self, Errno> {
        Ok(self.hold(super::beneath(self.as_fd(), path.to_bytes(), OFlags::PATH | OFlags::DIRECTORY)?))
    }

    /// Opens the regular file `name` for reading, without updating its access time if that is permitted.
    ///
    /// # Errors
    /// Those of `openat(2)`; `LOOP` for a symlink.
    pub fn open_file(&self, name: &CStr) -> Result<OwnedFd, Errno> {
        if name.is_empty() {
            return rustix::fs::open(self.proc_path(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        match self.open_entry(name, flags | OFlags::NOATIME, 0) {
            // Only the owner and CAP_FOWNER may use O_NOATIME.
            Err(Errno::PERM) => self.open_entry(name, flags, 0),
            opened => opened,
        }
    }

    /// True if `O_NOATIME`, which only the owner and `CAP_FOWNER` may use, is refused for the file or directory `name`.
    pub fn refuses_noatime(&self, name: &CStr) -> bool {
        let name = if name.is_empty() { c"." } else { name };
        let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        rustix::fs::openat(self, name, flags, Mode::empty()).is_err_and(|errno| errno == Errno::PERM)
    }

    /// True if permissions and capabilities do not let this process write to the file or directory `name`.
    pub fn refuses_writing(&self, name: &CStr) -> bool {
        let name = if name.is_empty() { c"." } else { name };
        let access = rustix::fs::accessat(self, name, Access::WRITE_OK, AtFlags::EACCESS);
        access.is_err_and(|errno| errno == Errno::ACCESS)
    }

    /// Opens `name` as a reference (`O_PATH`), which survives its removal.
    ///
    /// # Errors
    /// Those of `openat(2)`.
    pub fn open_reference(&self, name: &CStr) -> Result<OwnedFd, Errno> {
        self.open_entry(name, OFlags::PATH, 0)
    }

    /// Opens the directory itself for listing and `fsync`.
    ///
    /// # Errors
    /// Those of `openat(2)`.
    pub fn open_self(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::openat(self, c".", flags | OFlags::NOATIME, Mode::empty()) {
            Err(Errno::PERM) => rustix::fs::openat(self, c".", flags, Mode::empty()),
            opened => opened,
        }
    }

    /// Calls `visit` for every entry except `.` and `..`, in the order of the file system.
    ///
    /// # Errors
    /// Those of `getdents64(2)`, and the error of `visit`.
    pub fn list(&self, mut visit: impl FnMut(RawEntry<'_>) -> Result<(), Errno>) -> Result<(), Errno> {
        let fd = self.open_self()?;
        let mut buffer = Vec::with_capacity(32 * 1024);
        let mut entries = RawDir::new(&fd, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            visit(RawEntry { name, kind: dirent_type(entry.file_type()), ino: entry.ino() })?;
        }
        Ok(())
    }

    /// Target of the symlink `name`.
    ///
    /// # Errors
    /// `INVAL` if it is not a symlink; others of `readlinkat(2)`.
    pub fn read_link(&self, name: &CStr) -> Result<OsString, Errno> {
        self.inside(name)?;
        // For readlinkat(2), an empty name means the descriptor itself.
        Ok(OsString::from_vec(rustix::fs::readlinkat(self, name, Vec::with_capacity(256))?.into_bytes()))
    }

    /// Names of the extended attributes of `name`, each ended by a NUL.
    ///
    /// # Errors
    /// Those of `listxattr(2)`.
    pub fn list_xattrs(&self, name: &CStr) -> Result<Vec<u8>, Errno> {
        xattr::list(self.inside(name)?)
    }

    /// Value of an extended attribute of `name`.
    ///
    /// # Errors
    /// Those of `getxattr(2)`; a missing attribute is `None`.
    pub fn xattr(&self, name: &CStr, key: &CStr) -> Result<Option<Vec<u8>>, Errno> {
        xattr::value(self.inside(name)?, key)
    }

    /// File handle of `name`, or of the directory itself if it is empty.
    ///
    /// # Errors
    /// Those of `name_to_handle_at(2)`.
    pub fn handle(&self, name: &CStr) -> Result<sys::handle::FileHandle, Errno> {
        self.inside(name)?;
        sys::handle::name_to_handle(self.as_fd(), name)
    }
}

/// `DT_*` of a file type.
fn dirent_type(kind: rustix::fs::FileType) -> u8 {
    use rustix::fs::FileType as T;
    match kind {
        T::RegularFile => libc::DT_REG,
        T::Directory => libc::DT_DIR,
        T::Symlink => libc::DT_LNK,
        T::Fifo => libc::DT_FIFO,
        T::Socket => libc::DT_SOCK,
        T::CharacterDevice => libc::DT_CHR,
        T::BlockDevice => libc::DT_BLK,
        T::Unknown => libc::DT_UNKNOWN,
    }
}
