//! The root of a tree, and the checks that keep every step inside its mount.
//!
//! Anything mounted inside a layer is not part of it. As the kernel does for each layer of overlayfs, a tree is entered through a
//! private copy of its mount, if this process may make one. Mounts inside the tree do not exist in the copy, and nothing can be
//! mounted there later. Otherwise each step checks whether it would leave the mount, and fails with XDEV; nothing below a
//! mountpoint is visible then. In both cases, a request of a mount never waits for that mount itself, wherever it is mounted.

use std::ffi::{CStr, OsString};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use super::dir::proc_path;
use super::{Stat, beneath};
use crate::sys::mount::private_copy;

/// A tree of directories.
#[derive(Debug)]
pub(super) struct Tree {
    /// The path of its root, without symbolic links; empty for a tree that begins at an already opened directory.
    pub(super) path: PathBuf,
    /// The mount that no step may leave; `None` in a private copy, which cannot be left.
    mount: Option<u64>,
}

impl Tree {
    /// The tree of an open directory as it is mounted.
    pub(super) fn mounted(dir: BorrowedFd<'_>) -> Self {
        // Unknown: this number belongs to no mount, so every step fails.
        Self { path: PathBuf::new(), mount: Some(Stat::of(dir, c"").map_or(u64::MAX, |stat| stat.mount)) }
    }

    /// True if a step by one name cannot leave the mount.
    pub(super) fn is_private(&self) -> bool {
        self.mount.is_none()
    }

    /// Checks that the entry `name` of `dir` is not a mount point, without asking the file system that may be mounted there.
    pub(super) fn guard(&self, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        let Some(mount) = self.mount.filter(|_| !name.is_empty()) else { return Ok(()) };
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
        let found = rustix::fs::statx(dir, name, flags, StatxFlags::MNT_ID)?;
        if found.stx_mnt_id == mount { Ok(()) } else { Err(Errno::XDEV) }
    }

    /// The path of an open file of the tree, for a message.
    pub(super) fn shown_path(&self, file: BorrowedFd<'_>) -> PathBuf {
        let link = rustix::fs::readlink(proc_path(file), Vec::new());
        let found = PathBuf::from(link.map_or_else(|_| OsString::new(), |path| OsString::from_vec(path.into_bytes())));
        match found.strip_prefix("/") {
            Ok(inside) if self.is_private() => {
                if inside.as_os_str().is_empty() {
                    self.path.clone()
                } else {
                    self.path.join(inside)
                }
            }
            _ => found,
        }
    }
}

/// Makes the open directory `dir` the root of a tree for reading, through a private copy of its mount (then it is
/// `O_PATH`) if this process may make one.
pub(super) fn to_read(dir: OwnedFd) -> (OwnedFd, Tree) {
    let path = fs::read_link(proc_path(dir.as_fd())).unwrap_or_default();
    match private_copy(dir.as_fd(), true) {
        Ok(copy) => (copy, Tree { path, mount: None }),
        Err(errno) => {
            tracing::debug!("{}: no mount of its own: {errno}", path.display());
            let tree = Tree { path, ..Tree::mounted(dir.as_fd()) };
            (dir, tree)
        }
    }
}

/// Opens the directory `dir` again, to read it without anything mounted in it. If this process may not make a
/// private copy of its mount, opens it unchanged.
///
/// # Errors
/// Those of `openat(2)`.
pub(crate) fn without_mounts(dir: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match private_copy(dir, true) {
        // Closing the copy's own descriptor removes the copy; its open directories stay usable.
        Ok(copy) => rustix::fs::openat(&copy, c".", flags, Mode::empty()),
        Err(_) => rustix::fs::openat(dir, c".", flags, Mode::empty()),
    }
}

/// Opens the directories `dirs`, which are on one mount, again through one private copy of that mount: links and renames
/// between two copies would be refused.
///
/// # Errors
/// The reason; the caller then uses the directories themselves.
pub(super) fn share_copy<const N: usize>(dirs: [BorrowedFd<'_>; N]) -> Result<[(OwnedFd, Tree); N], Errno> {
    let mut paths = Vec::with_capacity(N);
    for dir in dirs {
        paths.push(fs::read_link(proc_path(dir)).map_err(|_| Errno::NOENT)?);
    }
    let common = common_ancestor(&paths).ok_or(Errno::NOENT)?;
    let top = rustix::fs::open(&common, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let copy = private_copy(top.as_fd(), false)?;
    let mut opened = Vec::with_capacity(N);
    for (dir, path) in dirs.into_iter().zip(&paths) {
        let below = path.strip_prefix(&common).map_err(|_| Errno::NOENT)?;
        let again = beneath(copy.as_fd(), below.as_os_str().as_bytes(), OFlags::PATH | OFlags::DIRECTORY)?;
        let (one, other) = (Stat::of(dir, c"")?, Stat::of(again.as_fd(), c"")?);
        // The path leads elsewhere: through another mount, or it was changed in the meantime.
        if one.id() != other.id() {
            return Err(Errno::XDEV);
        }
        opened.push((again, Tree { path: common.clone(), mount: None }));
    }
    opened.try_into().map_err(|_| Errno::IO)
}

/// The deepest directory that contains or equals all `paths`.
fn common_ancestor(paths: &[PathBuf]) -> Option<PathBuf> {
    let (first, rest) = paths.split_first()?;
    let is_above_all = |candidate: &&Path| rest.iter().all(|path| path.starts_with(candidate));
    first.ancestors().find(is_above_all).filter(|path| path.is_absolute()).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ancestors() {
        for (paths, expected) in [
            (&["/a/b", "/a/c/d"][..], Some("/a")),
            (&["/a/b", "/a/b"], Some("/a/b")),
            (&["/a/b", "/a/bc"], Some("/a")),
            (&["/a", "/b"], Some("/")),
            (&["/a/b"], Some("/a/b")),
            (&["", "/b"], None),
        ] {
            let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
            assert_eq!(common_ancestor(&paths), expected.map(PathBuf::from), "{paths:?}");
        }
    }

    /// A mount of another file system would lead out of the tree; this is noticed before that file system is asked.
    #[test]
    fn a_mount_point_is_guarded() {
        let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).expect("opened");
        let tree = Tree::mounted(root.as_fd());
        assert_eq!(tree.guard(root.as_fd(), c"proc"), Err(Errno::XDEV));
        assert_eq!(tree.guard(root.as_fd(), c"etc"), Ok(()));
        assert_eq!(tree.guard(root.as_fd(), c""), Ok(()));
        assert_eq!(tree.guard(root.as_fd(), c"there is none"), Err(Errno::NOENT));
    }

    /// If this process may mount, mounts in the tree do not exist in the private copy.
    #[test]
    fn a_private_copy_has_no_mounts_in_it() {
        let (root, tree) = to_read(rustix::fs::open("/", OFlags::PATH, Mode::empty()).expect("opened"));
        if !tree.is_private() {
            return;
        }
        let proc = beneath(root.as_fd(), b"proc", OFlags::RDONLY | OFlags::DIRECTORY).expect("the directory below");
        let one = Stat::of(root.as_fd(), c"").expect("stat");
        assert_eq!(Stat::of(proc.as_fd(), c"").expect("stat").mount, one.mount);
        assert_eq!(tree.shown_path(proc.as_fd()), Path::new("/proc"));
        let refused = rustix::fs::openat(&root, "tmp/x", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).map(drop);
        assert_eq!(refused, Err(Errno::ROFS));
    }
}
