//! Reading a union's marks from a layer directory, and putting them there. The formats are in [`crate::marks`].

use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Mode, OFlags, Stat, XattrFlags};
use rustix::io::Errno;

use crate::confined;
use crate::image::layer::attributes::{FileKind, xattr, xattr_at};
use crate::image::layer::error::{AtPath, LayerError, Result};
use crate::marks::{AUFS_OPAQUE, AUFS_PREFIX, Mark, Namespace, Opaque, Redirect, decode_opaque, decode_redirect};

/// How a layer directory says that a name is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhiteoutForm {
    /// A character device 0:0 in the place of the name.
    Device,
    /// An empty regular file with a whiteout attribute, in a directory whose opaque attribute is `x`.
    Xattr,
}

/// The marks that unpacking writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Where attributes go.
    pub namespace: Namespace,
    /// Form of whiteouts; where devices are not permitted, [`WhiteoutForm::Xattr`] is used all the same.
    pub whiteouts: WhiteoutForm,
}

impl Default for Marks {
    /// What the kernel writes for root.
    fn default() -> Self {
        Self { namespace: Namespace::Trusted, whiteouts: WhiteoutForm::Device }
    }
}

impl Marks {
    /// What the kernel writes with `userxattr`, for users without privileges.
    pub const fn unprivileged() -> Self {
        Self { namespace: Namespace::User, whiteouts: WhiteoutForm::Device }
    }

    fn name(&self, mark: Mark) -> &'static str {
        self.namespace.xattr(mark)
    }

    /// Deletes `name` for the layers below; there must be nothing by that name in `dir`.
    pub(crate) fn put_whiteout(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<()> {
        if self.whiteouts == WhiteoutForm::Device {
            match rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0) {
                Err(Errno::PERM | Errno::ACCESS) => self.whiteouts = WhiteoutForm::Xattr,
                other => return other.at(path),
            }
        }
        match opaque(dir).at(path)? {
            // Nothing shows through here anyway, and here a reader would take the file for a plain one.
            Opaque::Yes => return Ok(()),
            Opaque::XattrWhiteouts => {}
            Opaque::No => self.set(dir, Mark::Opaque, b"x").at(path)?,
        }
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR).at(path)?;
        rustix::fs::fsetxattr(&file, self.name(Mark::Whiteout), b"y", XattrFlags::empty()).at(path)
    }

    /// Makes the directory opaque.
    pub(crate) fn put_opaque(&self, dir: BorrowedFd<'_>, path: &[u8]) -> Result<()> {
        if opaque(dir).at(path)? == Opaque::XattrWhiteouts {
            remove_xattr_whiteouts(dir, path)?;
        }
        self.set(dir, Mark::Opaque, b"y").map_err(|error| match error {
            Errno::PERM | Errno::OPNOTSUPP => LayerError::entry(
                path,
                format!("cannot be made opaque: attribute {}: {error}", self.name(Mark::Opaque)),
            ),
            other => LayerError::io(path, other),
        })
    }

    fn set(&self, dir: BorrowedFd<'_>, mark: Mark, value: &[u8]) -> rustix::io::Result<()> {
        rustix::fs::fsetxattr(dir, self.name(mark), value, XattrFlags::empty())
    }
}

/// In an opaque directory they would be plain files.
fn remove_xattr_whiteouts(dir: BorrowedFd<'_>, path: &[u8]) -> Result<()> {
    for name in confined::sorted_names(dir).at(path)? {
        let Some(stat) = confined::stat_entry(dir, &name).at(path)? else { continue };
        if FileKind::of(&stat) == FileKind::Regular && is_whiteout(dir, &name, &stat).at(path)? {
            rustix::fs::unlinkat(dir, name.as_slice(), rustix::fs::AtFlags::empty()).at(path)?;
        }
    }
    Ok(())
}

/// Whether the entry is a whiteout by its inode: a character device 0:0, or an empty file with the attribute.
pub(crate) fn is_whiteout(dir: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> rustix::io::Result<bool> {
    match FileKind::of(stat) {
        FileKind::CharDevice(0, 0) => Ok(true),
        FileKind::Regular if stat.st_size == 0 => {
            for namespace in Namespace::ALL {
                if xattr_at(dir, name, namespace.xattr(Mark::Whiteout).as_bytes())?.is_some() {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        _ => Ok(false),
    }
}

/// What the opaque attributes of the open directory say, in any name space.
pub(crate) fn opaque(dir: BorrowedFd<'_>) -> rustix::io::Result<Opaque> {
    let mut found = Opaque::No;
    for namespace in Namespace::ALL {
        match xattr(dir, namespace.xattr(Mark::Opaque).as_bytes())?.map_or(Opaque::No, |value| decode_opaque(&value)) {
            Opaque::Yes => return Ok(Opaque::Yes),
            Opaque::XattrWhiteouts => found = Opaque::XattrWhiteouts,
            Opaque::No => {}
        }
    }
    Ok(found)
}

/// Whether nothing below the open directory shows through, by its attributes or by an AUFS entry.
pub(crate) fn hides_lower(dir: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    Ok(opaque(dir)? == Opaque::Yes || confined::stat_entry(dir, AUFS_OPAQUE)?.is_some())
}

/// Whether an AUFS entry deletes `name`.
pub(crate) fn has_aufs_whiteout(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<bool> {
    match confined::stat_entry(dir, &[AUFS_PREFIX, name].concat()) {
        Ok(found) => Ok(found.is_some()),
        // A name that is so long has no such whiteout.
        Err(Errno::NAMETOOLONG) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The entry's redirect, if it has one; a malformed one is an error, as in the kernel.
pub(crate) fn redirect(dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<Option<Redirect>> {
    for namespace in Namespace::ALL {
        if let Some(value) = xattr_at(dir, name, namespace.xattr(Mark::Redirect).as_bytes()).at(path)? {
            return match decode_redirect(&value) {
                Ok(redirect) => Ok(Some(redirect)),
                Err(malformed) => Err(LayerError::entry(path, malformed.to_string())),
            };
        }
    }
    Ok(None)
}

/// Whether the entry has its contents in a layer below.
pub(crate) fn is_metacopy(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<bool> {
    for namespace in Namespace::ALL {
        if xattr_at(dir, name, namespace.xattr(Mark::Metacopy).as_bytes())?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}
