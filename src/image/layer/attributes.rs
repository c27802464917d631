//! Owner, mode, times and extended attributes of one file: reading and setting them.

use std::ffi::{CStr, CString};
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Gid, Mode, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::confined::xattr::{self, Target};
use crate::image::layer::error::{AtPath, LayerError, Result, printable};
use crate::marks::override_stat::is_override;
pub(crate) use crate::marks::override_stat::{FileKind, OverrideKey, OverrideStat};
use crate::marks::{Namespace, Visible, escape_xattr, unescape_xattr};
pub(crate) use crate::tar::Attributes;
use crate::tar::Time;
use crate::union::layer::read_override;

/// The access and default ACLs, as attributes.
const ACL_ACCESS: &CStr = c"system.posix_acl_access";
const ACL_DEFAULT: &CStr = c"system.posix_acl_default";

impl Attributes {
    /// The attributes of a directory that no layer describes.
    pub(crate) fn of_implied_directory() -> Self {
        Self { mode: 0o755, ..Self::default() }
    }
}

/// A file whose attributes are set.
pub(crate) struct MadeFile<'a> {
    /// Held open for reading or writing, except for symbolic links and special files.
    pub(crate) fd: Option<BorrowedFd<'a>>,
    /// Its directory and name, for files without a descriptor.
    pub(crate) dir: BorrowedFd<'a>,
    pub(crate) name: &'a [u8],
    /// Path in the layer, for messages.
    pub(crate) path: &'a [u8],
    /// The type of the file, or the one that a regular file stands for.
    pub(crate) kind: FileKind,
}

/// A name as system calls take it.
fn c_name(name: &[u8]) -> rustix::io::Result<CString> {
    CString::new(name).map_err(|_| Errno::INVAL)
}

/// The open file `fd` itself.
fn open_file(fd: BorrowedFd<'_>) -> Target<'_> {
    Target { dir: fd, name: c"" }
}

impl MadeFile<'_> {
    fn is_symlink(&self) -> bool {
        self.kind == FileKind::Symlink
    }

    /// Calls `act` with a target by which the file's extended attributes can be read.
    fn with_target<T>(&self, act: impl FnOnce(Target<'_>) -> rustix::io::Result<T>) -> rustix::io::Result<T> {
        match self.fd {
            Some(fd) => act(open_file(fd)),
            None => act(Target { dir: self.dir, name: &c_name(self.name)? }),
        }
    }

    fn set_xattr(&self, name: &CStr, value: &[u8]) -> rustix::io::Result<()> {
        self.with_target(|target| xattr::set(target, name, value, 0))
    }

    fn remove_xattr(&self, name: &CStr) -> rustix::io::Result<()> {
        match self.with_target(|target| xattr::remove(target, name)) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn chown(&self, uid: u32, gid: u32) -> rustix::io::Result<()> {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        match self.fd {
            Some(fd) => rustix::fs::fchown(fd, uid, gid),
            None => rustix::fs::chownat(self.dir, self.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW),
        }
    }

    fn chmod(&self, mode: u32) -> rustix::io::Result<()> {
        match self.fd {
            Some(fd) => rustix::fs::fchmod(fd, Mode::from_raw_mode(mode)),
            None if self.is_symlink() => Ok(()),
            // This follows no link: the caller made this entry, and it is no symbolic link.
            None => rustix::fs::chmodat(self.dir, self.name, Mode::from_raw_mode(mode), AtFlags::empty()),
        }
    }

    /// Sets access and modification time.
    pub(crate) fn set_times(&self, mtime: Time) -> Result<()> {
        let times = timestamps(mtime);
        match self.fd {
            Some(fd) => rustix::fs::futimens(fd, &times),
            None => rustix::fs::utimensat(self.dir, self.name, &times, AtFlags::SYMLINK_NOFOLLOW),
        }
        .at(self.path)
    }

    /// Sets everything except the times. The owner comes first: changing it clears setuid bits and
    /// capabilities. The mode comes before the ACL, which it would rewrite.
    ///
    /// `inherits_acl` is true if the directory has a default ACL, of which the new file got a copy that the
    /// image does not have.
    pub(crate) fn set(&self, attributes: &Attributes, put: &Put, inherits_acl: bool) -> Result<Vec<String>> {
        if put.keep_ownership {
            self.chown(attributes.uid, attributes.gid).at(self.path)?;
            self.chmod(attributes.mode).at(self.path)?;
        } else if self.is_symlink() {
            // It cannot have the attribute, but in a namespace with that owner it can have the owner.
            match self.chown(attributes.uid, attributes.gid) {
                Ok(()) | Err(Errno::PERM | Errno::INVAL) => {}
                Err(error) => return Err(error).at(self.path),
            }
        } else {
            let own = if self.kind == FileKind::Directory { 0o700 } else { 0o600 };
            self.chmod(attributes.mode & 0o777 | own).at(self.path)?;
            let &Attributes { uid, gid, mode, .. } = attributes;
            let kept = OverrideStat { uid, gid, mode, kind: Some(self.kind) };
            self.set_xattr(OverrideKey::Containers.name(), kept.encode().as_bytes()).at(self.path)?;
        }
        if inherits_acl && !self.is_symlink() {
            self.remove_xattr(ACL_ACCESS).at(self.path)?;
            if self.kind == FileKind::Directory {
                self.remove_xattr(ACL_DEFAULT).at(self.path)?;
            }
        }
        self.set_xattrs(&attributes.xattrs, put)
    }

    /// Sets extended attributes; returns those that this file system or user cannot store.
    fn set_xattrs(&self, xattrs: &[(Vec<u8>, Vec<u8>)], put: &Put) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        for (name, value) in xattrs {
            if is_override(name) {
                let (path, name) = (printable(self.path), printable(name));
                warnings.push(format!("{path}: attribute {name} is a mark of container engines; dropped"));
                continue;
            }
            let name = escaped(name);
            match c_name(&name).and_then(|name| self.set_xattr(&name, value)) {
                Ok(()) => {}
                Err(error) if is_unsupported(error, &name, put) => {
                    let name = printable(&name);
                    warnings.push(format!("{}: attribute {name} not kept: {error}", printable(self.path)));
                }
                Err(error) => {
                    let reason = format!("attribute {}: {}", printable(&name), std::io::Error::from(error));
                    return Err(LayerError::entry(self.path, reason));
                }
            }
        }
        Ok(warnings)
    }

    /// Removes the extended attributes that the image gave the file earlier; marks stay.
    pub(crate) fn clear_xattrs(&self) -> Result<()> {
        let Some(fd) = self.fd else { return Ok(()) };
        let listed = xattr::list(open_file(fd)).at(self.path)?;
        for name in xattr::names(&listed).filter(|name| !is_mark(name.to_bytes())) {
            self.remove_xattr(name).at(self.path)?;
        }
        Ok(())
    }
}

/// How attributes are set on files.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Put {
    pub(crate) keep_ownership: bool,
}

/// True for attributes that may be missing afterwards: those that the file system lacks, labels of an absent
/// security module, and those that need a privilege that the user has not claimed.
fn is_unsupported(error: Errno, name: &[u8], put: &Put) -> bool {
    match error {
        Errno::OPNOTSUPP => true,
        Errno::PERM | Errno::ACCESS => !put.keep_ownership,
        Errno::INVAL => name.starts_with(b"security.") && name != b"security.capability",
        _ => false,
    }
}

/// An attribute of an image must never act as a mark: in a marks' name space, it is escaped, as the kernel does
/// for nested mounts.
fn escaped(name: &[u8]) -> Vec<u8> {
    Namespace::ALL.into_iter().find_map(|namespace| escape_xattr(namespace, name)).unwrap_or_else(|| name.to_vec())
}

/// True if the attribute is a mark of a union and not a part of the image.
fn is_mark(name: &[u8]) -> bool {
    Namespace::ALL.into_iter().any(|namespace| unescape_xattr(namespace, name) == Visible::Hidden)
}

pub(crate) fn timestamps(mtime: Time) -> Timestamps {
    let time = Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// True if owners and modes of the layer's files are stored in attributes: it was unpacked without privileges.
pub(crate) fn is_recorded(layer: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    Ok(xattr::value(open_file(layer), OverrideKey::Containers.name())?.is_some())
}

/// True if the entry `entry` of `dir` could have the image's attribute `name`, but does not.
pub(crate) fn lacks_xattr(dir: BorrowedFd<'_>, entry: &[u8], name: &[u8]) -> rustix::io::Result<bool> {
    xattr::is_missing(Target { dir, name: &c_name(entry)? }, &c_name(&escaped(name))?)
}

/// True if new files in this directory get ACLs from it.
pub(crate) fn has_default_acl(dir: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    Ok(xattr::value(open_file(dir), ACL_DEFAULT)?.is_some())
}

/// The type of an inode.
pub(crate) fn kind_of(stat: &Stat) -> FileKind {
    FileKind::of(stat.st_mode, (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)))
}

/// Reads the attributes of the entry `name` of `dir`: without marks, and with escaped attributes under their own names;
/// owner, mode and type from `key`, if they are stored there.
pub(crate) fn read(
    dir: BorrowedFd<'_>,
    name: &[u8],
    stat: &Stat,
    key: Option<OverrideKey>,
) -> rustix::io::Result<(FileKind, Attributes)> {
    let mut kind = kind_of(stat);
    let mut attributes = Attributes {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: mtime(stat),
        xattrs: Vec::new(),
    };
    let name = c_name(name)?;
    let target = Target { dir, name: &name };
    let listed = xattr::list(target)?;
    let is_listed = |key: &OverrideKey| xattr::names(&listed).any(|name| name == key.name());
    if let Some(key) = key.filter(is_listed)
        && let Some(kept) = read_override(target, key, || target.shown_path())?
    {
        kind = kept.shown_kind(kind);
        (attributes.uid, attributes.gid, attributes.mode) = (kept.uid, kept.gid, kept.mode);
    }
    for stored in xattr::names(&listed) {
        if let Some(plain) = image_xattr(stored.to_bytes())
            && let Some(value) = xattr::value(target, stored)?
        {
            attributes.xattrs.push((plain, value));
        }
    }
    attributes.xattrs.sort_unstable();
    Ok((kind, attributes))
}

/// The name of the stored attribute in an image; `None` if it belongs to this machine: marks, labels and hashes
/// of its security modules, and attributes of its file system.
fn image_xattr(stored: &[u8]) -> Option<Vec<u8>> {
    match stored {
        b"security.selinux" | b"security.ima" | b"security.evm" | b"security.apparmor" => return None,
        name if is_override(name) => return None,
        _ => {}
    }
    let known = [&b"user."[..], b"trusted.", b"security.", b"system.posix_acl_"];
    if !known.iter().any(|prefix| stored.starts_with(prefix)) {
        return None;
    }
    for namespace in Namespace::ALL {
        match unescape_xattr(namespace, stored) {
            Visible::Plain => {}
            Visible::Unescaped(plain) => return Some(plain),
            Visible::Hidden => return None,
        }
    }
    Some(stored.to_vec())
}

pub(crate) fn mtime(stat: &Stat) -> Time {
    Time { seconds: stat.st_mtime, nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) }
}
