//! Reading the marks of one file in a layer.

use std::ffi::CStr;

use rustix::io::Errno;

use crate::marks::{self, Mark, Namespace, Opaque};
use crate::sys::xattr::{self, Target};

/// Bytes of a damaged mark that the log shows.
const SHOWN: usize = 64;

/// The marks of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// The opaque mark of a directory, raw.
    opaque: Option<Vec<u8>>,
    /// The redirect, raw: of a damaged one nobody knows what is below, which is an error for its reader.
    pub redirect: Option<Vec<u8>>,
    /// The origin, raw.
    pub origin: Option<Vec<u8>>,
    /// The file has its data in a layer below.
    pub metacopy: bool,
    /// The directory holds entries with an origin.
    pub impure: bool,
    /// The (empty, regular) file is a whiteout.
    pub whiteout: bool,
}

impl Marks {
    /// How the opaque mark reads.
    pub fn opaque(&self) -> Opaque {
        self.opaque.as_deref().map_or(Opaque::No, marks::decode_opaque)
    }
}

/// Names of all extended attributes of `target`, each ended by a NUL; empty where the file system has none.
///
/// # Errors
/// Those of `listxattr(2)`.
pub fn list(target: Target<'_>) -> Result<Vec<u8>, Errno> {
    let mut buffer = [0u8; 1024];
    match xattr::list(target, &mut buffer) {
        Ok(len) => return Ok(buffer.get(..len).unwrap_or_default().to_vec()),
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(Errno::RANGE) => {}
        Err(errno) => return Err(errno),
    }
    // 64 KiB is XATTR_LIST_MAX: the kernel lists no more.
    let mut buffer = vec![0; 65536];
    let len = xattr::list(target, &mut buffer)?;
    buffer.truncate(len);
    Ok(buffer)
}

/// Value of the extended attribute `key`; `None` if there is none.
///
/// # Errors
/// Those of `getxattr(2)`.
pub fn value(target: Target<'_>, key: &CStr) -> Result<Option<Vec<u8>>, Errno> {
    let mut buffer = [0u8; 512];
    match xattr::get(target, key, &mut buffer) {
        Ok(len) => return Ok(Some(buffer.get(..len).unwrap_or_default().to_vec())),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
        Err(Errno::RANGE) => {}
        Err(errno) => return Err(errno),
    }
    // 64 KiB is XATTR_SIZE_MAX.
    let mut buffer = vec![0; 65536];
    match xattr::get(target, key, &mut buffer) {
        Ok(len) => {
            buffer.truncate(len);
            Ok(Some(buffer))
        }
        Err(Errno::NODATA) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Which mark, and in which name space, an attribute is.
pub fn classify(key: &[u8]) -> Option<(Namespace, Option<Mark>)> {
    let (namespace, rest) =
        Namespace::ALL.into_iter().find_map(|n| Some((n, key.strip_prefix(n.prefix().as_bytes())?)))?;
    let mark = match rest {
        b"opaque" => Mark::Opaque,
        b"redirect" => Mark::Redirect,
        b"origin" => Mark::Origin,
        b"impure" => Mark::Impure,
        b"nlink" => Mark::Nlink,
        b"upper" => Mark::Upper,
        b"uuid" => Mark::Uuid,
        b"metacopy" => Mark::Metacopy,
        b"whiteout" => Mark::Whiteout,
        _ => return Some((namespace, None)),
    };
    Some((namespace, Some(mark)))
}

/// Reads the marks of `target`, of every name space. The log names those that are damaged.
///
/// # Errors
/// Those of `listxattr(2)` and `getxattr(2)`.
pub fn read(target: Target<'_>) -> Result<Marks, Errno> {
    let mut marks = Marks::default();
    let mut names = [0u8; 1024];
    let listed = match xattr::list(target, &mut names) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(marks),
        Ok(len) => names.get(..len).unwrap_or_default().to_vec(),
        Err(Errno::RANGE) => list(target)?,
        Err(errno) => return Err(errno),
    };
    for key in listed.split_inclusive(|&b| b == 0) {
        let Some((_, Some(mark))) = classify(key.strip_suffix(b"\0").unwrap_or(key)) else { continue };
        let Ok(key) = CStr::from_bytes_with_nul(key) else { continue };
        match mark {
            Mark::Opaque => marks.opaque = sound(target, key, mark)?.0,
            Mark::Redirect => marks.redirect = sound(target, key, mark)?.0,
            Mark::Origin => marks.origin = sound(target, key, mark)?.0,
            Mark::Metacopy => match sound(target, key, mark)? {
                (_, true) => marks.metacopy = true,
                // Nobody knows where the content is.
                (_, false) => return Err(Errno::IO),
            },
            Mark::Impure => marks.impure = sound(target, key, mark)?.0.as_deref() == Some(b"y"),
            Mark::Whiteout => marks.whiteout = true,
            Mark::Nlink | Mark::Upper | Mark::Uuid => {}
        }
    }
    Ok(marks)
}

/// Value of the mark `key`, and whether it means anything; the log tells of one that does not.
fn sound(target: Target<'_>, key: &CStr, mark: Mark) -> Result<(Option<Vec<u8>>, bool), Errno> {
    let value = value(target, key)?;
    let good = value.as_deref().is_none_or(|value| marks::is_good(mark, value));
    if !good {
        let shown = value.as_deref().unwrap_or_default();
        let start = shown.get(..SHOWN).unwrap_or(shown).escape_ascii();
        tracing::warn!("{:?}: damaged mark {key:?} of {} bytes: \"{start}\"", target.place(), shown.len());
    }
    Ok((value, good))
}
