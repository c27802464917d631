//! A file tree and paths in it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::super::paths::clean;
use crate::confined::{self, Stat};
use crate::image::{IoContext, Result};

/// The file tree of the host, or of a container.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    /// The container's name; `None` for the host.
    container: Option<String>,
    /// Mounts in it that must not be written, even if the kernel would allow it.
    read_only: Vec<u64>,
}

impl Root {
    /// The file tree of this process.
    ///
    /// # Errors
    /// If `/` cannot be opened.
    pub fn host() -> Result<Self> {
        let fd = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).at("/")?;
        Ok(Self { fd, container: None, read_only: Vec::new() })
    }

    /// The tree of the container `name`, whose root directory is open.
    pub(super) fn of_container(name: &str, fd: OwnedFd, read_only: Vec<u64>) -> Self {
        Self { fd, container: Some(name.to_owned()), read_only }
    }

    /// The same tree under another name.
    pub(super) fn named(self, name: &str) -> Self {
        Self { container: Some(name.to_owned()), ..self }
    }

    pub(super) fn is_host(&self) -> bool {
        self.container.is_none()
    }

    /// Opens an absolute path. Links are followed, in a container within its root. With `NOFOLLOW`, a link at the end is
    /// not followed.
    pub(super) fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        match self.container {
            Some(_) => confined::in_root(self.fd.as_fd(), path, flags),
            None => rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()),
        }
    }

    /// How messages name a path of the tree.
    pub(super) fn shown(&self, path: &[u8]) -> PathBuf {
        let prefix = self.container.iter().flat_map(|name| [name.as_bytes(), b":"]).collect::<Vec<_>>().concat();
        PathBuf::from(std::ffi::OsString::from_vec([prefix.as_slice(), path].concat()))
    }

    /// Refuses a directory that is in a read-only volume of the container.
    pub(super) fn check_writable(&self, dir: BorrowedFd<'_>) -> Result<(), Errno> {
        let read_only = !self.read_only.is_empty() && self.read_only.contains(&Stat::of(dir, c"")?.mount);
        if read_only { Err(Errno::ROFS) } else { Ok(()) }
    }
}

/// A path as the user wrote it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Absolute; `.`, `..` and repeated slashes resolved without looking at any file, as docker does.
    pub(super) path: PathBuf,
    /// True if it ends in `/` or `/.`, so it must be a directory.
    pub(super) is_dir: bool,
    /// True if it ends in `/.`: the content of the directory is meant, not the directory.
    pub(super) is_content: bool,
}

impl Wanted {
    /// Relative paths begin in the working directory on the host, and at the root in a container.
    pub(super) fn new(root: &Root, path: &Path) -> Result<Self> {
        let absolute = if root.is_host() { std::path::absolute(path).at(path)? } else { path.to_owned() };
        let mut parts = path.as_os_str().as_bytes().rsplit(|&byte| byte == b'/');
        let last = parts.next().unwrap_or_default();
        let is_content = last == b".";
        let is_dir = is_content || (last.is_empty() && parts.next().is_some());
        Ok(Self { path: clean(&absolute), is_dir, is_content })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.path.as_os_str().as_bytes()
    }

    /// The last component; the root has none.
    pub(super) fn name(&self) -> Option<&[u8]> {
        self.path.file_name().map(OsStrExt::as_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings() {
        let fd = rustix::fs::open("/", OFlags::PATH, Mode::empty()).expect("opened");
        let root = Root::of_container("c", fd, Vec::new());
        for (text, path, is_dir, is_content) in [
            ("/a/b", "/a/b", false, false),
            ("a", "/a", false, false),
            ("/a/", "/a", true, false),
            ("/a/.", "/a", true, true),
            (".", "/", true, true),
            ("/", "/", true, false),
            ("", "/", false, false),
            ("/a/../../b//", "/b", true, false),
            ("/a/..", "/", false, false),
        ] {
            let wanted = Wanted::new(&root, Path::new(text)).expect("a path");
            assert_eq!(wanted, Wanted { path: path.into(), is_dir, is_content }, "{text}");
        }
        assert_eq!(root.shown(b"/a"), Path::new("c:/a"));
        assert_eq!(Root::host().expect("the host").shown(b"/a"), Path::new("/a"));
        let here = Wanted::new(&Root::host().expect("the host"), Path::new("x/.")).expect("a path");
        assert_eq!((here.path, here.is_content), (std::env::current_dir().expect("a directory").join("x"), true));
    }
}
