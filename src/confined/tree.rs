//! The root of a tree, and what keeps every step inside its mount.
//!
//! What is mounted inside a layer is not part of it. As the kernel does for each layer of overlayfs, a tree is entered
//! through a private copy of its mount where this process may make one: then what is mounted in it does not exist there, and
//! nothing can be mounted there later. Elsewhere each step looks whether it would leave the mount, and fails with XDEV;
//! then what is below a mount point cannot be seen by anybody. Either way no request of a mount ever waits for that mount
//! itself, wherever it is mounted.

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
    /// Where its root is, without symbolic links; empty for a tree that begins somewhere as it is mounted.
    pub(super) path: PathBuf,
    /// The mount that no step may leave; `None` in a private copy of it, which nothing leads out of.
    mount: Option<u64>,
}

impl Tree {
    /// The tree of an open directory as it is mounted.
    pub(super) fn mounted(dir: BorrowedFd<'_>) -> Self {
        // Unknown: the number of no mount, so that every step fails.
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

    /// Where an open file of the tree is, for a message.
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

/// The open directory `dir` as the root of a tree to read: through a private copy of its mount (`O_PATH` then), if this
/// process may make one.
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

/// Opens the directory `dir` again, to read it and what is below it without what is mounted there; as it is if this
/// process may not make a private copy of its mount.
///
/// # Errors
/// Those of `openat(2)`.
pub(crate) fn without_mounts(dir: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match private_copy(dir, true) {
        // The copy goes when its own descriptor is closed; directories of it that are open then stay usable.
        Ok(copy) => rustix::fs::openat(&copy, c".", flags, Mode::empty()),
        Err(_) => rustix::fs::openat(dir, c".", flags, Mode::empty()),
    }
}

/// Opens the directories `dirs`, which are on one mount, again through one private copy of that mount: links and renames
/// between two copies would be refused.
///
/// # Errors
/// The reason. The caller then uses the directories themselves.
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
        // The path leads elsewhere: over another mount, or it was changed meanwhile.
        if one.id() != other.id() {
            return Err(Errno::XDEV);
        }
        opened.push((again, Tree { path: common.clone(), mount: None }));
    }
    opened.try_into().map_err(|_| Errno::IO)
}

/// The deepest directory that all `paths` are in, or are.
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

    /// The mount of another file system is a step out of the tree, and is told before that file system is asked.
    #[test]
    fn a_mount_point_is_guarded() {
        let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).expect("opened");
        let tree = Tree::mounted(root.as_fd());
        assert_eq!(tree.guard(root.as_fd(), c"proc"), Err(Errno::XDEV));
        assert_eq!(tree.guard(root.as_fd(), c"etc"), Ok(()));
        assert_eq!(tree.guard(root.as_fd(), c""), Ok(()));
        assert_eq!(tree.guard(root.as_fd(), c"there is none"), Err(Errno::NOENT));
    }

    /// Where this process may mount, what is mounted in the tree does not exist in it.
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
