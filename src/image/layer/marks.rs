//! Reads and writes a union's marks in a layer directory. The formats are in [`crate::marks`].

use std::ffi::CString;
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Mode, OFlags, Stat, XattrFlags};
use rustix::io::Errno;

use crate::confined;
use crate::image::layer::attributes::{FileKind, kind_of};
use crate::image::layer::error::{AtPath, LayerError, Result};
use crate::marks::{Mark, Namespace, Opaque};
use crate::union;
use crate::union::layer::Dir;
use crate::union::view::UpperPart;

/// How a layer directory marks a name as deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhiteoutForm {
    /// A character device 0:0 in the place of the name.
    Device,
    /// An empty regular file with a whiteout attribute, in a directory whose opaque attribute is `x`.
    Xattr,
}

/// The marks that unpacking writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkStyle {
    /// The name space of attributes.
    pub namespace: Namespace,
    /// Form of whiteouts. If devices are not permitted, [`WhiteoutForm::Xattr`] is used instead.
    pub whiteouts: WhiteoutForm,
}

impl Default for MarkStyle {
    /// The kernel's choice for root.
    fn default() -> Self {
        Self { namespace: Namespace::Trusted, whiteouts: WhiteoutForm::Device }
    }
}

impl MarkStyle {
    /// The kernel's choice with `userxattr`, for users without privileges.
    pub const fn unprivileged() -> Self {
        Self { namespace: Namespace::User, whiteouts: WhiteoutForm::Device }
    }

    fn name(&self, mark: Mark) -> &'static str {
        self.namespace.xattr(mark)
    }

    /// Deletes `name` for the layers below; `dir` must not have that name.
    pub(crate) fn put_whiteout(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<()> {
        if self.whiteouts == WhiteoutForm::Device {
            match rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0) {
                Err(Errno::PERM | Errno::ACCESS) => self.whiteouts = WhiteoutForm::Xattr,
                other => return other.at(path),
            }
        }
        match opaque(dir).at(path)? {
            // Nothing shows through in this directory, and a whiteout here would be read as a plain file.
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
        if kind_of(&stat) == FileKind::Regular && is_whiteout(dir, &name, &stat).at(path)? {
            rustix::fs::unlinkat(dir, name.as_slice(), rustix::fs::AtFlags::empty()).at(path)?;
        }
    }
    Ok(())
}

/// The marks of `name` in `dir`, or of `dir` itself if `name` is empty, read in the same way as by the driver.
fn read(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<union::layer::Marks> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    Dir::new(rustix::io::fcntl_dupfd_cloexec(dir, 0)?).marks(&name)
}

/// True if the inode is a whiteout: a character device 0:0, or, in a directory whose opaque mark is `x`, an empty file
/// with the whiteout attribute.
pub(crate) fn is_whiteout(dir: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> rustix::io::Result<bool> {
    match kind_of(stat) {
        FileKind::CharDevice(0, 0) => Ok(confined::is_whiteout_device(stat.st_mode, (0, 0))),
        FileKind::Regular if stat.st_size == 0 => {
            Ok(read(dir, name)?.whiteout && opaque(dir)? == Opaque::XattrWhiteouts)
        }
        _ => Ok(false),
    }
}

/// The value of the opaque attribute of the open directory.
pub(crate) fn opaque(dir: BorrowedFd<'_>) -> rustix::io::Result<Opaque> {
    Ok(read(dir, b"")?.opaque())
}

/// True if nothing below the open directory shows through, because of its attributes or an AUFS entry.
pub(crate) fn hides_lower(dir: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    Ok(UpperPart::root(rustix::io::fcntl_dupfd_cloexec(dir, 0)?)?.is_opaque())
}
