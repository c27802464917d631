//! Reading a union's marks from a layer directory, and putting them there. The formats are in [`crate::marks`].

use std::ffi::CString;
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Mode, OFlags, Stat, XattrFlags};
use rustix::io::Errno;

use crate::confined;
use crate::image::layer::attributes::FileKind;
use crate::image::layer::error::{AtPath, LayerError, Result};
use crate::marks::{Mark, Namespace, Opaque};
use crate::union;
use crate::union::layer::Dir;
use crate::union::view::UpperPart;

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
pub struct MarkStyle {
    /// Where attributes go.
    pub namespace: Namespace,
    /// Form of whiteouts; where devices are not permitted, [`WhiteoutForm::Xattr`] is used all the same.
    pub whiteouts: WhiteoutForm,
}

impl Default for MarkStyle {
    /// What the kernel writes for root.
    fn default() -> Self {
        Self { namespace: Namespace::Trusted, whiteouts: WhiteoutForm::Device }
    }
}

impl MarkStyle {
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

/// The marks of `name` in `dir`, or of `dir` itself if that is empty, as the driver reads them.
fn read(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<union::layer::Marks> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    Dir::new(rustix::io::fcntl_dupfd_cloexec(dir, 0)?).marks(&name)
}

/// Whether the entry is a whiteout by its inode: a character device 0:0, or among xattr whiteouts (the directory's opaque
/// mark is `x`) an empty file with the attribute.
pub(crate) fn is_whiteout(dir: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> rustix::io::Result<bool> {
    match FileKind::of(stat) {
        FileKind::CharDevice(0, 0) => Ok(confined::is_whiteout_device(stat.st_mode, (0, 0))),
        FileKind::Regular if stat.st_size == 0 => {
            Ok(read(dir, name)?.whiteout && opaque(dir)? == Opaque::XattrWhiteouts)
        }
        _ => Ok(false),
    }
}

/// What the opaque attribute of the open directory says.
pub(crate) fn opaque(dir: BorrowedFd<'_>) -> rustix::io::Result<Opaque> {
    Ok(read(dir, b"")?.opaque())
}

/// Whether nothing below the open directory shows through, by its attributes or by an AUFS entry.
pub(crate) fn hides_lower(dir: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    Ok(UpperPart::root(rustix::io::fcntl_dupfd_cloexec(dir, 0)?)?.is_opaque())
}
