//! Reading the marks of one file in a layer.

use std::ffi::{CStr, CString};

use rustix::io::Errno;

use crate::confined::xattr;
use crate::confined::{Dir, Stat};
use crate::marks::{self, Mark, Namespace, Opaque, Protection};

/// Bytes of a damaged mark that the log shows.
const SHOWN: usize = 64;

/// The marks of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// The opaque mark of a directory, raw.
    opaque: Option<Vec<u8>>,
    /// The redirect, raw. With a damaged one, the lower parts are unknown, so readers get an error.
    pub redirect: Option<Vec<u8>>,
    /// The origin, raw.
    pub origin: Option<Vec<u8>>,
    /// The file's content is in a lower layer.
    pub metacopy: bool,
    /// The directory holds entries with an origin.
    pub impure: bool,
    /// The (empty, regular) file is a whiteout.
    pub whiteout: bool,
    /// The file is immutable or append-only.
    pub protection: Protection,
    /// The file is an ordinary one, even if it has a mark's name.
    pub plain: bool,
}

impl Marks {
    /// The meaning of the opaque mark.
    pub fn opaque(&self) -> Opaque {
        self.opaque.as_deref().map_or(Opaque::No, marks::decode_opaque)
    }

    /// Reads `mark`, which is stored in the attribute `key` of `file`.
    fn read(&mut self, file: Entry<'_>, key: &CStr, mark: Mark) -> Result<(), Errno> {
        match mark {
            Mark::Opaque => self.opaque = sound(file, key, mark)?.0,
            Mark::Redirect => self.redirect = sound(file, key, mark)?.0,
            Mark::Origin => self.origin = sound(file, key, mark)?.0,
            Mark::Metacopy => match sound(file, key, mark)? {
                (_, true) => self.metacopy = true,
                // The place of the content is unknown.
                (_, false) => return Err(Errno::IO),
            },
            Mark::Impure => self.impure = sound(file, key, mark)?.0.as_deref() == Some(b"y"),
            Mark::Whiteout => self.whiteout = true,
            Mark::Plain => self.plain = sound(file, key, mark)?.0.as_deref() == Some(b"y"),
            Mark::Protattr => {
                self.protection = sound(file, key, mark)?.0.as_deref().map_or(Protection::NONE, Protection::decode);
            }
            Mark::Nlink | Mark::Upper | Mark::Uuid => {}
        }
        Ok(())
    }
}

impl Stat {
    /// Which changes the file's own flags forbid.
    pub fn protection(&self) -> Protection {
        Protection { immutable: self.immutable, append_only: self.append_only }
    }
}

/// Classifies an attribute: the mark it holds, and its name space.
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
        b"protattr" => Mark::Protattr,
        b"stratafs.plain" => Mark::Plain,
        _ => return Some((namespace, None)),
    };
    Some((namespace, Some(mark)))
}

impl Dir {
    /// The marks of `name`, or of the directory itself if it is empty. Damaged marks are logged.
    ///
    /// # Errors
    /// Those of `listxattr(2)` and `getxattr(2)`.
    pub fn marks(&self, name: &CStr) -> Result<Marks, Errno> {
        let mut marks = Marks::default();
        let target = self.inside(name)?;
        match xattr::list(target) {
            Ok(listed) => {
                for key in listed.split_inclusive(|&b| b == 0) {
                    let Some((_, Some(mark))) = classify(key.strip_suffix(b"\0").unwrap_or(key)) else { continue };
                    let Ok(key) = CStr::from_bytes_with_nul(key) else { continue };
                    marks.read((self, name), key, mark)?;
                }
            }
            // There are more names than a system call can list, so each mark is asked for. The mark read last counts.
            Err(Errno::TOOBIG) => {
                for (namespace, mark) in Namespace::ALL.into_iter().rev().flat_map(|n| FILE_MARKS.map(|mark| (n, mark)))
                {
                    let key = CString::new(namespace.xattr(mark)).unwrap_or_default();
                    if xattr::value(target, &key)?.is_some() {
                        marks.read((self, name), &key, mark)?;
                    }
                }
            }
            Err(errno) => return Err(errno),
        }
        Ok(marks)
    }
}

/// The marks that [`Marks`] holds.
const FILE_MARKS: [Mark; 8] = [
    Mark::Opaque,
    Mark::Redirect,
    Mark::Origin,
    Mark::Metacopy,
    Mark::Impure,
    Mark::Whiteout,
    Mark::Protattr,
    Mark::Plain,
];

/// A name in a directory; the directory itself if it is empty.
type Entry<'a> = (&'a Dir, &'a CStr);

/// The value of the mark `key`, and whether it is valid; invalid ones are logged.
fn sound(file: Entry<'_>, key: &CStr, mark: Mark) -> Result<(Option<Vec<u8>>, bool), Errno> {
    let (dir, name) = file;
    let value = dir.xattr(name, key)?;
    let good = value.as_deref().is_none_or(|value| marks::is_good(mark, value));
    if !good {
        let shown = value.as_deref().unwrap_or_default();
        let start = shown.get(..SHOWN).unwrap_or(shown).escape_ascii();
        tracing::warn!("{:?}: damaged mark {key:?} of {} bytes: \"{start}\"", dir.shown_path(name), shown.len());
    }
    Ok((value, good))
}
