//! Opening and copying files without ever leaving a directory.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, SeekFrom, Stat};
use rustix::io::Errno;

use crate::image::layer::path::or_dot;

/// Opens `path` below `root`; no component of it may be a symbolic link, so that nothing in the tree can lead out
/// of it, whatever another process does to it at the same time.
pub(crate) fn open(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(
            root,
            or_dot(path),
            flags | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::empty(),
            resolve,
        ) {
            // The kernel's "a rename raced with the walk, try again".
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Opens the directory at `path` for reading.
pub(crate) fn open_dir(root: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    open(root, path, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Attributes of `name` in `dir` itself, not of what it points to; `None` when there is nothing.
pub(crate) fn stat_entry(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Option<Stat>> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The names in the directory `dir`, without `.` and `..`, sorted by bytes.
pub(crate) fn sorted_names(dir: BorrowedFd<'_>) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        match entry.file_name().to_bytes() {
            b"." | b".." => {}
            name => names.push(name.to_vec()),
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Copies the first `len` bytes of `source` to `target` at offset `at`, holes staying holes, and extends the target
/// to `at + len`.
pub(crate) fn copy_extents(source: &File, target: &File, at: u64, len: u64) -> io::Result<()> {
    target.set_len(at.checked_add(len).ok_or(io::ErrorKind::FileTooLarge)?)?;
    let mut buffer = vec![0; 256 << 10];
    let mut offset = 0;
    while offset < len {
        let start = match rustix::fs::seek(source.as_fd(), SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            // No SEEK_DATA here: all of it is data.
            Err(Errno::INVAL) => offset,
            Err(error) => return Err(error.into()),
        };
        let end = match rustix::fs::seek(source.as_fd(), SeekFrom::Hole(start)) {
            Ok(end) => end.min(len),
            Err(Errno::INVAL) => len,
            Err(error) => return Err(error.into()),
        };
        offset = start;
        while offset < end {
            let wanted = buffer.len().min(usize::try_from(end - offset).unwrap_or(usize::MAX));
            let part = buffer.get_mut(..wanted).unwrap_or_default();
            source.read_exact_at(part, offset)?;
            target.write_all_at(part, at + offset)?;
            offset += wanted as u64;
        }
    }
    Ok(())
}
