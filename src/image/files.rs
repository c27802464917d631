//! Small files and directories by path, as the store and archives read and write them.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use super::spec::DOCUMENT_LIMIT;
use super::{ImageError, IoContext, Result};
use crate::confined;

/// Writes the names in a directory to the disk.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).at(path)
}

/// Reads a document to its end.
///
/// # Errors
/// When it is larger than `DOCUMENT_LIMIT`, or reading fails.
pub(crate) fn read_limited(input: &mut dyn Read, name: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(DOCUMENT_LIMIT + 1).read_to_end(&mut bytes).at(name)?;
    if bytes.len() as u64 > DOCUMENT_LIMIT {
        return Err(ImageError::document(name, format!("larger than {} MiB", DOCUMENT_LIMIT >> 20)));
    }
    Ok(bytes)
}

/// Makes a directory unless it exists. Its mode does not depend on the umask.
pub(crate) fn make_dir(path: &Path, mode: u32) -> Result<()> {
    match fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(mode)).at(path),
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error).at(path),
    }
}

/// True if nothing has this name. If the lookup fails, for example because a directory may not be searched, the name may exist.
///
/// # Errors
/// When the lookup fails.
pub(crate) fn is_gone(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error).at(path),
    }
}

/// Removes a file or a whole directory. Succeeds if it does not exist.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::INVAL).at(path) };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let name = CString::new(name.as_bytes()).map_err(|_| Errno::INVAL).at(path)?;
    match open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(dir) => confined::remove_tree(dir.as_fd(), &name).at(path),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error).at(path),
    }
}

/// Opens a directory to work below it.
pub(crate) fn open_dir(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    open(path, flags, Mode::empty()).at(path)
}
