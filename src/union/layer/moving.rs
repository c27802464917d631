//! Files that are in both the upper and the layer below it while a checkpoint is made.
//!
//! A file that is open for writing keeps its inode and gets a further name in the new upper. The layer gets a copy of its
//! state at the checkpoint. Until the copy has the name in the layer, both names are one file, and the upper's root has a
//! mark. If a mount finds the mark in its upper, there was a crash in between, and the mount makes the copies.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use crate::confined::{self, Copier, Dir, FileType, Stat, Times, set_times_of};
use crate::sys::xattr::{self, Target};
use crate::union::layer::chain::chain_namespace;
use crate::union::layer::pivot::moving_key;
use crate::union::layer::{OpenError, UpperDir, UpperLayer, describe};

/// Makes `name` in `dir` a copy of the open file `from`, with its owner, mode, times and all attributes.
///
/// # Errors
/// Those of reading and writing. Nothing is left on an error.
pub(crate) fn duplicate(
    copier: &Copier,
    from: BorrowedFd<'_>,
    dir: BorrowedFd<'_>,
    name: &CStr,
) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let copy = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?;
    match fill(copier, from, copy.as_fd()) {
        Ok(()) => Ok(copy),
        Err(errno) => {
            rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
            Err(errno)
        }
    }
}

/// Makes `name` in `dir` a copy of `from_name` in `from`, which is a symbolic link, a device, a pipe or a socket.
///
/// # Errors
/// The errors of making it. Nothing is left on an error.
pub(crate) fn duplicate_special(from: &Dir, from_name: &CStr, dir: &UpperDir, name: &CStr) -> Result<(), Errno> {
    let stat = from.stat(from_name)?.ok_or(Errno::STALE)?;
    match stat.file_type() {
        FileType::Symlink => dir.make_symlink(name, &from.read_link(from_name)?)?,
        _ => dir.make_node(name, stat.mode, stat.rdev)?,
    }
    let fill = || {
        let made = dir.stat(name)?.ok_or(Errno::STALE)?;
        if (made.uid, made.gid) != (stat.uid, stat.gid) {
            dir.set_owner(name, Some(stat.uid), Some(stat.gid))?;
        }
        for key in confined::xattr::names(&from.list_xattrs(from_name)?) {
            if let Some(value) = from.xattr(from_name, key)? {
                dir.set_xattr(name, key, &value, 0)?;
            }
        }
        if stat.file_type() != FileType::Symlink {
            dir.set_mode(name, stat.mode & 0o7777)?;
        }
        dir.set_times(name, &Times::of(&stat))
    };
    fill().or_else(|errno| dir.remove_file(name).and(Err(errno)))
}

fn fill(copier: &Copier, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let stat = Stat::of(from, c"")?;
    copier.copy(from, to, &stat, stat.size)?;
    // The owner comes before the attributes, because changing it drops capabilities.
    let made = Stat::of(to, c"")?;
    if (made.uid, made.gid) != (stat.uid, stat.gid) {
        rustix::fs::fchown(to, Some(Uid::from_raw(stat.uid)), Some(Gid::from_raw(stat.gid)))?;
    }
    let source = Target { dir: from, name: c"" };
    for key in confined::xattr::names(&confined::xattr::list(source)?) {
        if let Some(value) = confined::xattr::value(source, key)? {
            xattr::set(Target { dir: to, name: c"" }, key, &value, 0)?;
        }
    }
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.mode & 0o7777))?;
    set_times_of(to, &Times::of(&stat))
}

/// Replaces `names`, which are in directories below `layer`, by the file `staged` of the directory `work`. The
/// directories keep their times. Removes each name from `names` when it is replaced. If this fails, it can be tried again
/// with the rest.
///
/// # Errors
/// Those of `linkat(2)` and `renameat(2)`.
pub(crate) fn replace_names(
    layer: BorrowedFd<'_>,
    names: &mut Vec<(CString, CString)>,
    work: BorrowedFd<'_>,
    staged: &CStr,
) -> Result<(), Errno> {
    let next = CString::new([staged.to_bytes(), b".next"].concat()).map_err(|_| Errno::INVAL)?;
    while let [_, .., last] = names.as_slice() {
        match rustix::fs::linkat(work, staged, work, &next, AtFlags::empty()) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        let replaced = replace(layer, last, work, &next);
        // It is still there if the rename failed, or did nothing because the name was the copy's already.
        missing_is_fine(rustix::fs::unlinkat(work, &next, AtFlags::empty()))?;
        replaced?;
        names.pop();
    }
    match names.first() {
        // It is missing if the rename was done and only the directory's times could not be restored.
        Some(last) => missing_is_fine(replace(layer, last, work, staged))?,
        None => missing_is_fine(rustix::fs::unlinkat(work, staged, AtFlags::empty()))?,
    }
    names.clear();
    Ok(())
}

fn missing_is_fine(done: Result<(), Errno>) -> Result<(), Errno> {
    match done {
        Err(Errno::NOENT) => Ok(()),
        done => done,
    }
}

fn replace(
    layer: BorrowedFd<'_>,
    (dir, name): &(CString, CString),
    work: BorrowedFd<'_>,
    from: &CStr,
) -> Result<(), Errno> {
    let dir = confined::open_dir(layer, dir.to_bytes())?;
    confined::keeping_times(dir.as_fd(), || rustix::fs::renameat(work, from, &dir, name))
}

impl UpperLayer {
    /// Ends the move: every file that moved has its own copy in the layer.
    ///
    /// # Errors
    /// Those of removing the mark.
    pub(crate) fn end_moving(&self) -> Result<(), Errno> {
        let root = self.root();
        match root.remove_xattr(c"", moving_key(chain_namespace(root.as_fd())?)) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Completes a move that a crash interrupted (see the module).
    ///
    /// # Errors
    /// One line of text.
    pub(super) fn recover_moving(&self, below: Option<&Path>) -> Result<(), OpenError> {
        let (Some(below), Some(place)) = (below, self.location()) else { return Ok(()) };
        let fail = |errno| {
            OpenError(format!("layer {}: not separated from the upperdir: {}", below.display(), describe(errno)))
        };
        let namespace = chain_namespace(self.root().as_fd()).map_err(fail)?;
        if self.root().xattr(c"", moving_key(namespace)).map_err(fail)?.is_none() {
            return Ok(());
        }
        let open = |path: &Path| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty()).map_err(fail)
        };
        let separation = Separation { layer: open(below)?, work: open(&place.work)?, copier: Copier::new(|| Ok(())) };
        separation.walk(self.root().as_dir(), &mut Vec::new()).map_err(fail)?;
        rustix::fs::fsync(&separation.layer).map_err(fail)?;
        self.end_moving().map_err(fail)
    }
}

/// Gives a layer copies of the files that it shares with the upper.
struct Separation {
    layer: OwnedFd,
    work: OwnedFd,
    copier: Copier,
}

impl Separation {
    fn walk(&self, dir: &Dir, path: &mut Vec<u8>) -> Result<(), Errno> {
        let Ok(twin) = confined::open_dir(self.layer.as_fd(), path) else { return Ok(()) };
        let mut entries = Vec::new();
        dir.list(|entry| {
            entries.push((entry.name.to_owned(), entry.kind));
            Ok(())
        })?;
        for (name, kind) in entries {
            if kind == libc::DT_DIR {
                let length = path.len();
                if length > 0 {
                    path.push(b'/');
                }
                path.extend_from_slice(name.to_bytes());
                self.walk(&dir.open_dir(&name)?, path)?;
                path.truncate(length);
                continue;
            }
            let Some(stat) = dir.stat(&name)?.filter(|stat| stat.nlink > 1) else { continue };
            let same = |found: Stat| found.id() == stat.id() && found.file_type() == FileType::Regular;
            match Stat::of(twin.as_fd(), &name) {
                Ok(found) if same(found) => {}
                Ok(_) | Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno),
            }
            let copy = duplicate(&self.copier, dir.open_file(&name)?.as_fd(), self.work.as_fd(), c"#separated")?;
            rustix::fs::fsync(copy)?;
            confined::keeping_times(twin.as_fd(), || rustix::fs::renameat(&self.work, c"#separated", &twin, &name))?;
        }
        Ok(())
    }
}
