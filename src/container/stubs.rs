//! Mountpoints that an image lacks. A runtime would make them, and a commit would count them as changes of the
//! container. So they are made here, without changing the times of their parents, and removed afterwards.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, fchmod, mkdirat, openat, statat, unlinkat};
use rustix::io::{Errno, Result};
use serde_json::Value;

use super::paths::{ContainerView, Place, is_kernels};
use crate::confined;
use crate::image::ImageError;

/// Checks the mountpoints of the kernel's file systems. If the image had a symbolic link there, a runtime
/// would mount the file system somewhere else and leave the real path uncovered.
///
/// # Errors
/// When one of them is not a directory.
pub(super) fn check(root: &File, image: &str) -> crate::image::Result<()> {
    for name in ["dev", "proc", "sys"] {
        match statat(root, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {}
            Err(Errno::NOENT) => {}
            Ok(_) => return Err(ImageError::refused(image, format!("its /{name} is no directory"))),
            Err(error) => return Err(ImageError::refused(image, format!("/{name}: {error}"))),
        }
    }
    Ok(())
}

/// Makes the missing mountpoints of an OCI runtime's configuration, below `root`; returns them, parents first.
pub(super) fn make(root: &File, mounts: &[Value]) -> Result<Vec<PathBuf>> {
    let view = ContainerView::new(root.as_fd(), std::iter::empty())?;
    let mut made = Vec::new();
    for mount in mounts {
        let Some(destination) = mount["destination"].as_str().map(Path::new) else { continue };
        // A dangling symbolic link, as /etc/resolv.conf often is: its target is made, as the runtime would do.
        let destination = match view.resolve(destination) {
            Ok(Place::Missing(path)) if !is_kernels(&path) => path,
            Ok(_) | Err(Errno::NOTDIR | Errno::LOOP) => continue,
            Err(error) => return Err(error),
        };
        let destination = destination.as_path();
        let bound = mount["type"] == "bind";
        let is_file = bound && mount["source"].as_str().is_some_and(|source| !Path::new(source).is_dir());
        let missing: Vec<&Path> =
            destination.ancestors().take_while(|path| open(root, path, OFlags::PATH).is_err()).collect();
        for path in missing.into_iter().rev() {
            if make_one(root, path, is_file && path == destination)? {
                made.push(path.to_path_buf());
            }
        }
    }
    Ok(made)
}

/// Returns false if its parent is no directory or a dangling link is in the way; the runtime will report it.
fn make_one(root: &File, path: &Path, is_file: bool) -> Result<bool> {
    let Some((parent, name)) = path.parent().zip(path.file_name()) else { return Ok(false) };
    let parent = match open(root, parent, OFlags::RDONLY | OFlags::DIRECTORY) {
        Ok(parent) => parent,
        Err(Errno::NOTDIR | Errno::NOENT | Errno::LOOP) => return Ok(false),
        Err(error) => return Err(error),
    };
    confined::keeping_times(parent.as_fd(), || {
        let made = if is_file {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
            openat(&parent, name, flags, Mode::from_raw_mode(0o644))
                .map(|file| fchmod(file, Mode::from_raw_mode(0o644)))
        } else {
            mkdirat(&parent, name, Mode::from_raw_mode(0o755)).map(|()| {
                // The mode must not depend on the umask.
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                openat(&parent, name, flags, Mode::empty()).and_then(|dir| fchmod(dir, Mode::from_raw_mode(0o755)))
            })
        };
        match made {
            Ok(result) => result.map(|()| true),
            Err(Errno::EXIST) => Ok(false),
            Err(error) => Err(error),
        }
    })
}

/// Removes the stubs that are still empty.
pub(super) fn remove(root: &File, stubs: &[PathBuf]) -> Result<()> {
    for stub in stubs.iter().rev() {
        let Some((parent, name)) = stub.parent().zip(stub.file_name()) else { continue };
        let Ok(parent) = open(root, parent, OFlags::RDONLY | OFlags::DIRECTORY) else { continue };
        let Ok(stat) = statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let flags = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => AtFlags::REMOVEDIR,
            FileType::RegularFile if stat.st_size == 0 => AtFlags::empty(),
            _ => continue,
        };
        confined::keeping_times(parent.as_fd(), || match unlinkat(&parent, name, flags) {
            Ok(()) | Err(Errno::NOTEMPTY) => Ok(()),
            Err(error) => Err(error),
        })?;
    }
    Ok(())
}

fn open(root: &File, path: &Path, flags: OFlags) -> Result<OwnedFd> {
    confined::in_root(root.as_fd(), path.as_os_str().as_bytes(), flags)
}
