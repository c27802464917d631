//! A directory of a tree that is written to.

use std::ffi::CStr;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::dir::{Dir, proc_path};
use super::{Stat, Timestamp, tree};
use crate::sys;

/// A directory that may be written. Its content is changed by name only, and symbolic links are never followed.
#[derive(Clone, Debug)]
pub struct WritableDir(Dir);

impl Deref for WritableDir {
    type Target = Dir;
    fn deref(&self) -> &Dir {
        &self.0
    }
}

impl AsFd for WritableDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Access and modification time to set; `None` leaves one unchanged.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// Access time.
    pub atime: Option<TimeTo>,
    /// Modification time.
    pub mtime: Option<TimeTo>,
}

/// What to set a time to.
#[derive(Clone, Copy, Debug)]
pub enum TimeTo {
    /// Now, by the file system's clock.
    Now,
    /// This time.
    At(Timestamp),
}

impl Times {
    /// Both times of a file.
    pub fn of(stat: &Stat) -> Self {
        Self { atime: Some(TimeTo::At(stat.atime)), mtime: Some(TimeTo::At(stat.mtime)) }
    }

    fn timestamps(&self) -> Timestamps {
        let spec = |to: Option<TimeTo>| match to {
            None => Timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
            Some(TimeTo::Now) => Timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW },
            Some(TimeTo::At(time)) => Timespec { tv_sec: time.sec, tv_nsec: i64::from(time.nsec) },
        };
        Timestamps { last_access: spec(self.atime), last_modification: spec(self.mtime) }
    }
}

/// Sets the times of an open file.
///
/// # Errors
/// Those of `futimens(2)`.
pub(crate) fn set_times_of(file: BorrowedFd<'_>, times: &Times) -> Result<(), Errno> {
    rustix::fs::futimens(file, &times.timestamps())
}

impl WritableDir {
    /// Wraps an open directory, as [`Dir::new`] does.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self(Dir::new(fd))
    }

    /// Wraps an open file of the same tree, with or without a name.
    pub(crate) fn hold(&self, fd: OwnedFd) -> Self {
        Self(self.0.hold(fd))
    }

    /// Opens the directories `dirs` of one mount through one private copy of it ([`super::tree`]).
    ///
    /// # Errors
    /// The reason; the caller then uses `dirs` themselves.
    pub(crate) fn share_copy<const N: usize>(dirs: [&Self; N]) -> Result<[Self; N], Errno> {
        let opened = tree::share_copy(dirs.map(AsFd::as_fd))?;
        Ok(opened.map(|(fd, tree)| Self(Dir::in_tree(fd, tree))))
    }

    /// The same directory, for reading.
    pub fn as_dir(&self) -> &Dir {
        &self.0
    }

    /// Opens the subdirectory `name`.
    ///
    /// # Errors
    /// `NOTDIR`, also for a symlink; others of `openat(2)`.
    pub fn open_writable_dir(&self, name: &CStr) -> Result<Self, Errno> {
        Ok(Self(self.0.open_dir(name)?))
    }

    /// Opens the existing regular file `name` with `flags` (access mode, `O_TRUNC`, `O_NOATIME` if it is allowed).
    ///
    /// # Errors
    /// Those of `openat(2)`.
    pub fn open_writable(&self, name: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
        if name.is_empty() {
            return rustix::fs::open(
                self.proc_path(),
                flags.difference(OFlags::NOATIME) | OFlags::CLOEXEC,
                Mode::empty(),
            );
        }
        match self.0.open_entry(name, flags, 0) {
            // Only the owner and CAP_FOWNER may use it.
            Err(Errno::PERM) if flags.contains(OFlags::NOATIME) => self.open_writable(name, flags - OFlags::NOATIME),
            opened => opened,
        }
    }

    /// Creates the regular file `name`, which must not exist, and opens it with `flags` (access mode).
    ///
    /// # Errors
    /// `EXIST`; others of `openat(2)`.
    pub fn create_file(&self, name: &CStr, mode: u32, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.0.open_entry(name, flags | OFlags::CREATE | OFlags::EXCL, mode)
    }

    /// Creates a nameless file for reading and writing.
    ///
    /// # Errors
    /// `OPNOTSUPP` or `ISDIR` if the file system does not support this; others of `open(2)`.
    pub fn create_tmpfile(&self, mode: u32) -> Result<OwnedFd, Errno> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        rustix::fs::openat(self, c".", flags, Mode::from_raw_mode(mode))
    }

    /// Gives an open file the name `name`.
    ///
    /// # Errors
    /// `EXIST`; others of `linkat(2)`.
    pub fn link_open_file(&self, file: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        rustix::fs::linkat(CWD, proc_path(file), self, name, AtFlags::SYMLINK_FOLLOW)
    }

    /// Gives `from_name` in `from` the further name `name` here.
    ///
    /// # Errors
    /// `EXIST`, `MLINK`; others of `linkat(2)`.
    pub fn link(&self, from: &Self, from_name: &CStr, name: &CStr) -> Result<(), Errno> {
        rustix::fs::linkat(from, from_name, self, name, AtFlags::empty())
    }

    /// Creates the directory `name`.
    ///
    /// # Errors
    /// Those of `mkdirat(2)`.
    pub fn make_dir(&self, name: &CStr, mode: u32) -> Result<(), Errno> {
        rustix::fs::mkdirat(self, name, Mode::from_raw_mode(mode))
    }

    /// Creates a device, fifo, socket or empty regular file.
    ///
    /// # Errors
    /// Those of `mknodat(2)`.
    pub fn make_node(&self, name: &CStr, mode: u32, rdev: (u32, u32)) -> Result<(), Errno> {
        let kind = rustix::fs::FileType::from_raw_mode(mode);
        let device = rustix::fs::makedev(rdev.0, rdev.1);
        rustix::fs::mknodat(self, name, kind, Mode::from_raw_mode(mode & 0o7777), device)
    }

    /// Creates a symlink.
    ///
    /// # Errors
    /// Those of `symlinkat(2)`.
    pub fn make_symlink(&self, name: &CStr, target: &std::ffi::OsStr) -> Result<(), Errno> {
        rustix::fs::symlinkat(target, self, name)
    }

    /// Removes a name that is not a directory.
    ///
    /// # Errors
    /// Those of `unlinkat(2)`.
    pub fn remove_file(&self, name: &CStr) -> Result<(), Errno> {
        rustix::fs::unlinkat(self, name, AtFlags::empty())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// Those of `unlinkat(2)`.
    pub fn remove_dir(&self, name: &CStr) -> Result<(), Errno> {
        rustix::fs::unlinkat(self, name, AtFlags::REMOVEDIR)
    }

    /// Removes `name`; if it is a directory, with everything in it (`super::remove_tree`).
    ///
    /// # Errors
    /// Those of `super::remove_tree`.
    pub fn remove_tree(&self, name: &CStr) -> Result<(), Errno> {
        super::remove_tree(self.as_fd(), name)
    }

    /// Moves `name` to `new_name` in `to`.
    ///
    /// # Errors
    /// Those of `renameat2(2)`.
    pub fn rename(&self, name: &CStr, to: &Self, new_name: &CStr, flags: RenameFlags) -> Result<(), Errno> {
        if flags.is_empty() {
            rustix::fs::renameat(self, name, to, new_name)
        } else {
            rustix::fs::renameat_with(self, name, to, new_name, flags)
        }
    }

    /// Sets an extended attribute of `name`, or of the directory itself if it is empty.
    ///
    /// # Errors
    /// Those of `setxattr(2)`.
    pub fn set_xattr(&self, name: &CStr, key: &CStr, value: &[u8], flags: u32) -> Result<(), Errno> {
        sys::xattr::set(self.0.inside(name)?, key, value, flags)
    }

    /// Removes an extended attribute of `name`.
    ///
    /// # Errors
    /// Those of `removexattr(2)`.
    pub fn remove_xattr(&self, name: &CStr, key: &CStr) -> Result<(), Errno> {
        sys::xattr::remove(self.0.inside(name)?, key)
    }

    /// Sets owner and group of `name`; `None` leaves one as it is.
    ///
    /// # Errors
    /// Those of `fchownat(2)`.
    pub fn set_owner(&self, name: &CStr, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
        self.0.inside(name)?;
        let flags = if name.is_empty() { AtFlags::EMPTY_PATH } else { AtFlags::SYMLINK_NOFOLLOW };
        rustix::fs::chownat(self, name, uid.map(Uid::from_raw), gid.map(Gid::from_raw), flags)
    }

    /// Sets the permission bits (07777) of `name`, which must not be a symlink.
    ///
    /// # Errors
    /// Those of `chmod(2)`.
    pub fn set_mode(&self, name: &CStr, mode: u32) -> Result<(), Errno> {
        if name.is_empty() {
            return rustix::fs::chmod(self.proc_path(), Mode::from_raw_mode(mode));
        }
        self.0.inside(name)?;
        sys::chmod::chmod_nofollow(self.as_fd(), name, mode)
    }

    /// Sets the times of `name`.
    ///
    /// # Errors
    /// Those of `utimensat(2)`.
    pub fn set_times(&self, name: &CStr, times: &Times) -> Result<(), Errno> {
        if name.is_empty() {
            return rustix::fs::utimensat(CWD, self.proc_path(), &times.timestamps(), AtFlags::empty());
        }
        self.0.inside(name)?;
        rustix::fs::utimensat(self, name, &times.timestamps(), AtFlags::SYMLINK_NOFOLLOW)
    }
}
