//! Owner, mode, times and extended attributes of one file: reading and setting them.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{AtFlags, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::image::layer::error::{AtPath, LayerError, Result, printable};
use crate::marks::override_stat::{CONTAINERS as OVERRIDE_STAT, NAMES as OVERRIDE_NAMES, is_override};
use crate::marks::{Namespace, Visible, escape_xattr, unescape_xattr};
pub(crate) use crate::tar::Attributes;
use crate::tar::Time;

/// The attribute that records the owner and mode that the inode cannot have.
pub(crate) const RECORDED: &[u8] = OVERRIDE_STAT.as_bytes();

/// The access and default ACLs, as attributes.
const ACL_ACCESS: &str = "system.posix_acl_access";
const ACL_DEFAULT: &str = "system.posix_acl_default";

impl Attributes {
    /// The attributes of a directory that no layer describes.
    pub(crate) fn of_implied_directory() -> Self {
        Self { mode: 0o755, ..Self::default() }
    }
}

/// A file whose attributes are set.
pub(crate) struct Target<'a> {
    /// Held open for reading or writing, except for symbolic links and special files.
    pub(crate) fd: Option<BorrowedFd<'a>>,
    /// Its directory and name, for files without a descriptor.
    pub(crate) dir: BorrowedFd<'a>,
    pub(crate) name: &'a [u8],
    /// Path in the layer, for messages.
    pub(crate) path: &'a [u8],
    /// The override attribute's word for the type, if a plain file stands in for another type.
    pub(crate) override_type: &'a str,
    pub(crate) is_symlink: bool,
    pub(crate) is_directory: bool,
}

/// A path by which the kernel finds the entry of `dir` itself, for calls without a `*at` form.
fn proc_path(dir: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    [format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes(), name].concat()
}

impl Target<'_> {
    fn set_xattr(&self, name: &[u8], value: &[u8]) -> rustix::io::Result<()> {
        match self.fd {
            Some(fd) => rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()),
            None => rustix::fs::lsetxattr(proc_path(self.dir, self.name), name, value, XattrFlags::empty()),
        }
    }

    fn remove_xattr(&self, name: &[u8]) -> rustix::io::Result<()> {
        let removed = match self.fd {
            Some(fd) => rustix::fs::fremovexattr(fd, name),
            None => rustix::fs::lremovexattr(proc_path(self.dir, self.name), name),
        };
        match removed {
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
            None if self.is_symlink => Ok(()),
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
        } else if self.is_symlink {
            // It cannot have the attribute, but in a namespace with that owner it can have the owner.
            match self.chown(attributes.uid, attributes.gid) {
                Ok(()) | Err(Errno::PERM | Errno::INVAL) => {}
                Err(error) => return Err(error).at(self.path),
            }
        } else {
            let own = if self.is_directory { 0o700 } else { 0o600 };
            self.chmod(attributes.mode & 0o777 | own).at(self.path)?;
            let Attributes { uid, gid, mode, .. } = attributes;
            let value = format!("{uid}:{gid}:{mode:o}:{}", self.override_type);
            self.set_xattr(OVERRIDE_STAT.as_bytes(), value.as_bytes()).at(self.path)?;
        }
        if inherits_acl && !self.is_symlink {
            self.remove_xattr(ACL_ACCESS.as_bytes()).at(self.path)?;
            if self.is_directory {
                self.remove_xattr(ACL_DEFAULT.as_bytes()).at(self.path)?;
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
            match self.set_xattr(&name, value) {
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
        for name in xattr_names(fd).at(self.path)? {
            if !is_mark(&name) {
                self.remove_xattr(&name).at(self.path)?;
            }
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

/// Names of the extended attributes of an open file, sorted.
pub(crate) fn xattr_names(fd: BorrowedFd<'_>) -> rustix::io::Result<Vec<Vec<u8>>> {
    names_by(|buffer| rustix::fs::flistxattr(fd, buffer))
}

fn names_by(list: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<Vec<u8>>> {
    let bytes = match grown(list) {
        Ok(bytes) => bytes,
        Err(Errno::OPNOTSUPP) => Vec::new(),
        Err(error) => return Err(error),
    };
    let mut names: Vec<Vec<u8>> =
        bytes.split(|&byte| byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect();
    names.sort_unstable();
    Ok(names)
}

/// Calls with a sufficiently large buffer.
fn grown(call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 256];
    loop {
        match call(&mut buffer) {
            Ok(len) => {
                buffer.truncate(len);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < 1 << 20 => buffer.resize(buffer.len() * 4, 0),
            Err(error) => return Err(error),
        }
    }
}

/// Value of one attribute of an open file; `None` if it has no such attribute.
pub(crate) fn xattr(fd: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Option<Vec<u8>>> {
    present(grown(|buffer| rustix::fs::fgetxattr(fd, name, buffer)))
}

/// True if the entry `entry` of `dir` could have the image's attribute `name`, but does not.
pub(crate) fn lacks_xattr(dir: BorrowedFd<'_>, entry: &[u8], name: &[u8]) -> rustix::io::Result<bool> {
    match rustix::fs::lgetxattr_query(proc_path(dir, entry), escaped(name)) {
        Ok(_) | Err(Errno::OPNOTSUPP) => Ok(false),
        Err(Errno::NODATA) => Ok(true),
        Err(error) => Err(error),
    }
}

fn present(value: rustix::io::Result<Vec<u8>>) -> rustix::io::Result<Option<Vec<u8>>> {
    match value {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// True if new files in this directory get ACLs from it.
pub(crate) fn has_default_acl(dir: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    match rustix::fs::fgetxattr_query(dir, ACL_DEFAULT) {
        Ok(_) => Ok(true),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The type of a file; a mark may override the inode's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    Regular,
    Directory,
    Symlink,
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
    Socket,
}

impl FileKind {
    pub(crate) fn of(stat: &Stat) -> Self {
        use rustix::fs::FileType as T;
        let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        match T::from_raw_mode(stat.st_mode) {
            T::Directory => Self::Directory,
            T::Symlink => Self::Symlink,
            T::CharacterDevice => Self::CharDevice(device.0, device.1),
            T::BlockDevice => Self::BlockDevice(device.0, device.1),
            T::Fifo => Self::Fifo,
            T::Socket => Self::Socket,
            T::RegularFile | T::Unknown => Self::Regular,
        }
    }

    /// The override attribute's word for it.
    pub(crate) fn override_type(self) -> String {
        match self {
            Self::Regular => "file".into(),
            Self::Directory => "dir".into(),
            Self::Symlink => "symlink".into(),
            Self::CharDevice(major, minor) => format!("char-{major}-{minor}"),
            Self::BlockDevice(major, minor) => format!("block-{major}-{minor}"),
            Self::Fifo => "pipe".into(),
            Self::Socket => "socket".into(),
        }
    }

    fn from_override_type(text: &str) -> Option<Self> {
        let device = |numbers: &str| {
            let (major, minor) = numbers.split_once('-')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        };
        Some(match text {
            "file" => Self::Regular,
            "dir" => Self::Directory,
            "symlink" => Self::Symlink,
            "pipe" => Self::Fifo,
            "socket" => Self::Socket,
            _ => match text.split_once('-')? {
                ("char", numbers) => device(numbers).map(|(major, minor)| Self::CharDevice(major, minor))?,
                ("block", numbers) => device(numbers).map(|(major, minor)| Self::BlockDevice(major, minor))?,
                _ => return None,
            },
        })
    }
}

/// Reads the attributes of the entry `name` of `dir`. Marks are left out, escaped attributes get their own
/// names, and owner, mode and type recorded by a rootless engine replace the inode's.
pub(crate) fn read(dir: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> rustix::io::Result<(FileKind, Attributes)> {
    let mut kind = FileKind::of(stat);
    let mut attributes = Attributes {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: mtime(stat),
        xattrs: Vec::new(),
    };
    let path = proc_path(dir, name);
    let mut kept: Option<(usize, Vec<u8>)> = None;
    for stored in names_by(|buffer| rustix::fs::llistxattr(path.as_slice(), buffer))? {
        let Some(value) = present(grown(|buffer| rustix::fs::lgetxattr(path.as_slice(), stored.as_slice(), buffer)))?
        else {
            continue;
        };
        if let Some(rank) = OVERRIDE_NAMES.iter().position(|known| stored == known.as_bytes()) {
            // Like the driver, uses the first of the names.
            if kept.as_ref().is_none_or(|(other, _)| rank < *other) {
                kept = Some((rank, value));
            }
        } else if let Some(plain) = image_xattr(&stored) {
            attributes.xattrs.push((plain, value));
        }
    }
    if let Some((_, value)) = kept {
        apply_override(&value, &mut kind, &mut attributes);
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

/// Applies `uid:gid:mode[:type]`; an unreadable value is ignored, as in containers/storage.
fn apply_override(value: &[u8], kind: &mut FileKind, attributes: &mut Attributes) {
    let Ok(text) = std::str::from_utf8(value) else { return };
    let mut fields = text.trim_end_matches('\0').splitn(4, ':');
    let (Some(uid), Some(gid), Some(mode)) = (fields.next(), fields.next(), fields.next()) else { return };
    let (Ok(uid), Ok(gid), Ok(mode)) = (uid.parse(), gid.parse(), u32::from_str_radix(mode, 8)) else { return };
    (attributes.uid, attributes.gid, attributes.mode) = (uid, gid, mode & 0o7777);
    // A directory or link keeps its type; a plain file may stand in for a special one.
    let recorded = fields.next().and_then(FileKind::from_override_type);
    if let (FileKind::Regular, Some(recorded)) = (*kind, recorded.filter(|kind| *kind != FileKind::Directory)) {
        *kind = recorded;
    }
}

pub(crate) fn mtime(stat: &Stat) -> Time {
    Time { seconds: stat.st_mtime, nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) }
}
