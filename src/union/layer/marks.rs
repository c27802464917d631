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
    /// The file is immutable or append-only.
    pub protection: Protection,
    /// The file is an ordinary one, whatever its name says.
    pub plain: bool,
}

impl Marks {
    /// How the opaque mark reads.
    pub fn opaque(&self) -> Opaque {
        self.opaque.as_deref().map_or(Opaque::No, marks::decode_opaque)
    }

    /// Reads `mark`, which `file` has as the attribute `key`.
    fn read(&mut self, file: Entry<'_>, key: &CStr, mark: Mark) -> Result<(), Errno> {
        match mark {
            Mark::Opaque => self.opaque = sound(file, key, mark)?.0,
            Mark::Redirect => self.redirect = sound(file, key, mark)?.0,
            Mark::Origin => self.origin = sound(file, key, mark)?.0,
            Mark::Metacopy => match sound(file, key, mark)? {
                (_, true) => self.metacopy = true,
                // Nobody knows where the content is.
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
    /// What may not be changed of the file, by its own flags.
    pub fn protection(&self) -> Protection {
        Protection { immutable: self.immutable, append_only: self.append_only }
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
        b"protattr" => Mark::Protattr,
        b"stratafs.plain" => Mark::Plain,
        _ => return Some((namespace, None)),
    };
    Some((namespace, Some(mark)))
}

impl Dir {
    /// The marks of `name`, or of the directory itself if it is empty. The log names those that are damaged.
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
            // More names than a system call lists: each mark is asked for. What is read last counts.
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

/// The marks that [`Marks`] knows.
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

/// Value of the mark `key`, and whether it means anything; the log tells of one that does not.
fn sound(file: Entry<'_>, key: &CStr, mark: Mark) -> Result<(Option<Vec<u8>>, bool), Errno> {
    let (dir, name) = file;
    let value = dir.xattr(name, key)?;
    let good = value.as_deref().is_none_or(|value| marks::is_good(mark, value));
    if !good {
        let shown = value.as_deref().unwrap_or_default();
        let start = shown.get(..SHOWN).unwrap_or(shown).escape_ascii();
        tracing::warn!("{:?}: damaged mark {key:?} of {} bytes: \"{start}\"", dir.place(name), shown.len());
    }
    Ok((value, good))
}
