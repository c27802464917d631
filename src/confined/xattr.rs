//! Extended attributes of any size, of a name in a directory or of an open file.

use std::ffi::CStr;

use rustix::io::Errno;

pub(crate) use crate::sys::xattr::{Target, remove, set};

/// A size, in bytes, that most lists and values fit in.
const USUAL: usize = 1024;

/// The kernel's `XATTR_LIST_MAX` and `XATTR_SIZE_MAX`: it never returns a longer list or value.
const LARGEST: usize = 65536;

/// Calls with a sufficiently large buffer.
fn grown(call: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut usual = [0; USUAL];
    match call(&mut usual) {
        Ok(length) => return Ok(usual.get(..length).unwrap_or_default().to_vec()),
        Err(Errno::RANGE) => {}
        Err(errno) => return Err(errno),
    }
    let mut largest = vec![0; LARGEST];
    let length = call(&mut largest)?;
    largest.truncate(length);
    Ok(largest)
}

/// Names of all extended attributes of `target`, each ended by a NUL; empty if the file system has none.
///
/// # Errors
/// `2BIG`: the names take more than 64 KiB, which only xfs and btrfs can list, and only with `CAP_SYS_ADMIN`; each attribute can
/// still be read by its name. Others of `listxattr(2)`.
pub(crate) fn list(target: Target<'_>) -> Result<Vec<u8>, Errno> {
    match grown(|buffer| crate::sys::xattr::list(target, buffer)) {
        Err(Errno::OPNOTSUPP) => Ok(Vec::new()),
        Err(Errno::TOOBIG) => crate::sys::xattr_search::names(target).map_err(|errno| {
            tracing::debug!("{:?}: more attributes than can be listed: {errno}", target.shown_path());
            Errno::TOOBIG
        }),
        listed => listed,
    }
}

/// The names in a list, one by one.
pub(crate) fn names(list: &[u8]) -> impl Iterator<Item = &CStr> {
    list.split_inclusive(|&byte| byte == 0).filter_map(|name| CStr::from_bytes_with_nul(name).ok())
}

/// Value of the extended attribute `key`; `None` if there is none.
///
/// # Errors
/// Those of `getxattr(2)`.
pub(crate) fn value(target: Target<'_>, key: &CStr) -> Result<Option<Vec<u8>>, Errno> {
    match grown(|buffer| crate::sys::xattr::get(target, key, buffer)) {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// True if `target` has no extended attribute `key`, but its file system could store it.
///
/// # Errors
/// Those of `getxattr(2)`.
pub(crate) fn is_missing(target: Target<'_>, key: &CStr) -> Result<bool, Errno> {
    match crate::sys::xattr::get(target, key, &mut []) {
        Ok(_) | Err(Errno::RANGE | Errno::OPNOTSUPP) => Ok(false),
        Err(Errno::NODATA) => Ok(true),
        Err(errno) => Err(errno),
    }
}
