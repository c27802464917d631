//! Replaces the upper of a container that is not mounted.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, RenameFlags, fsync, renameat_with, syncfs, unlinkat};
use rustix::io::Errno;

use super::super::Container;
use super::exclusive;
use crate::image::files::{make_dir, open_dir, remove_tree, sync_dir};
use crate::image::{ImageError, IoContext, Result};
use crate::marks::chain::Chain;
use crate::union::layer::chain::{chain_namespace, copy_root, write_chain};

/// Exchanges the container's upper with an empty directory made at `place`, which has the attributes of `root` and the mark
/// `chain`. Everything is on the disk when this returns.
///
/// When the file system cannot exchange names.
/// When another program uses the upper, or the disk is full. If the exchange did not happen, nothing is at `place`.
pub(super) fn exchange(container: &Container, root: &Path, place: &Path, chain: &Chain) -> Result<()> {
    let upper = container.upper();
    let _held = exclusive::hold(container)?;
    drop_index(&container.work())?;
    let made = make_empty(root, place, chain);
    let exchanged = made.and_then(|empty| {
        // A mount that starts right after the exchange waits for this lock.
        let _lock = exclusive::lock(place)?;
        syncfs(&empty).at(place)?;
        swap(place, &upper)
    });
    match exchanged {
        Ok(()) => sync_both(place, &upper),
        Err(error) => {
            if let Err(left) = remove_tree(place) {
                tracing::debug!("left to gc: {left}");
            }
            Err(error)
        }
    }
}

/// Makes an empty writable directory.
fn make_empty(root: &Path, place: &Path, chain: &Chain) -> Result<OwnedFd> {
    make_dir(place, 0o700)?;
    let (from, empty) = (open_dir(root)?, open_dir(place)?);
    mark_root(&from, &empty, chain).at(place)?;
    Ok(empty)
}

/// Gives an empty directory the attributes of `from` and a mark of its own.
pub(super) fn mark_root(from: &OwnedFd, empty: &OwnedFd, chain: &Chain) -> Result<(), Errno> {
    copy_root(from.as_fd(), empty.as_fd())?;
    write_chain(empty.as_fd(), chain_namespace(empty.as_fd())?, chain)?;
    fsync(empty)
}

/// Exchanges two directories in one step.
///
/// When the file system cannot exchange names.
/// When the file system cannot do that.
pub(super) fn swap(one: &Path, other: &Path) -> Result<()> {
    match renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE) {
        Err(Errno::INVAL | Errno::NOSYS) => {
            Err(ImageError::refused(other.display().to_string(), "its file system cannot exchange two directories"))
        }
        exchanged => exchanged.at(other),
    }
}

/// Writes the names of two directories to the disk.
pub(super) fn sync_both(one: &Path, other: &Path) -> Result<()> {
    [one, other].iter().filter_map(|path| path.parent()).try_for_each(sync_dir)
}

/// An index (`index=on`) belongs to one upper. The next mount that wants one makes a new, empty one.
fn drop_index(work: &Path) -> Result<()> {
    let index = work.join("index");
    match unlinkat(CWD, &index, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Err(ImageError::refused(
            index.display().to_string(),
            "holds hard links (index=on), which no checkpoint can keep",
        )),
        Err(error) => Err(error).at(index),
    }
}
