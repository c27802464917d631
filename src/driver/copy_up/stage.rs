//! Copy-up: makes a complete copy of a lower file in the work directory, so that one link or rename can publish it.
//!
//! The order matters: data before attributes (writing drops capabilities and set-user-id), owner before mode and
//! capabilities (changing it drops them), times last.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::IFlags;
use rustix::io::Errno;

use crate::confined::{Copier, set_times_of};
use crate::driver::interrupt;
use crate::driver::verbs::create::mode_at_first;
use crate::marks::Mark;
use crate::marks::override_stat::PREFIX;
use crate::sys::xattr::{self, Target};
use crate::union::layer::{Dir, FileType, Staged, Stat, TimeTo, Times, UpperLayer, classify};

/// What to copy.
pub(crate) struct CopySource<'a> {
    /// Directory in its layer.
    pub dir: &'a Dir,
    /// Name in that directory; empty: the directory itself.
    pub name: &'a CStr,
    /// Its attributes.
    pub stat: &'a Stat,
    /// Its content, if that is in another file.
    pub content: Option<BorrowedFd<'a>>,
}

/// How to copy.
pub(crate) struct Plan<'a> {
    /// Value of the origin mark (empty if the file system has no handles). Absent for a lower hard link, which breaks.
    pub origin: Option<&'a [u8]>,
    /// Copy only this many bytes: the caller truncates the file to this length.
    pub length: Option<u64>,
    /// True if ACLs are kept.
    pub acls: bool,
    /// True if extended attributes are kept.
    pub xattrs: bool,
    /// Leave the content where it is (`metacopy`).
    pub metacopy: bool,
    /// Owner, mode and type are kept in an attribute (`xattr_permissions`); the copy stays the mounter's.
    pub kept: Option<Kept>,
    /// The content must reach the disk before the name does.
    pub sync: bool,
    /// The file has a mark's name but is an ordinary file.
    pub plain: bool,
}

/// Attributes that are kept in an extended attribute instead of the inode.
pub(crate) struct Kept {
    /// Name of the attribute.
    pub key: &'static CStr,
    /// Its value.
    pub value: String,
    /// True if `security.*` attributes can be set as they are; otherwise they are kept under another name.
    pub privileged: bool,
}

impl Plan<'_> {
    /// Permission bits of the copy itself.
    fn mode(&self, stat: &Stat) -> u32 {
        match &self.kept {
            None => stat.mode & 0o7777,
            Some(_) => (stat.mode & 0o777) | if stat.is_dir() { 0o700 } else { 0o600 },
        }
    }
}

/// Stages a copy of `source`.
///
/// # Errors
/// Errors of reading the layer and of writing the upper. Nothing of the attempt is left.
pub(crate) fn stage<'u>(
    upper: &'u UpperLayer,
    copier: &Copier,
    source: &CopySource<'_>,
    plan: &Plan<'_>,
) -> Result<Staged<'u>, Errno> {
    let work = upper.work()?;
    let staged = match source.stat.file_type() {
        FileType::Regular => {
            // The file gets its final permissions at once, but set-id bits only when its owner is right.
            let staged = work.stage_file(plan.mode(source.stat) & 0o777, true)?;
            if plan.metacopy {
                rustix::fs::ftruncate(staged.file()?, source.stat.size)?;
                xattr::set(target(&staged)?, &upper.mark_key(Mark::Metacopy), b"", 0)?;
            } else {
                let length = plan.length.map_or(source.stat.size, |l| l.min(source.stat.size));
                copy_content(copier, source, staged.file()?, length)?;
            }
            staged
        }
        FileType::Directory => work.stage_dir(plan.mode(source.stat) & 0o777)?,
        FileType::Symlink => work.stage_symlink(&source.dir.read_link(source.name)?)?,
        FileType::Special if plan.kept.is_some() => work.stage_file(plan.mode(source.stat) & 0o777, true)?,
        FileType::Special => work.stage_node(mode_at_first(source.stat.mode, source.stat.rdev), source.stat.rdev)?,
    };
    copy_attributes(upper, &staged, source, plan)?;
    copy_flags(upper, &staged, source)?;
    if plan.sync && !plan.metacopy && source.stat.file_type() == FileType::Regular {
        upper.settle(staged.file()?, interrupt::check)?;
    }
    Ok(staged)
}

/// Copies the first `length` bytes of the content of `source` into `to`.
///
/// # Errors
/// Those of reading and writing.
pub(crate) fn copy_content(
    copier: &Copier,
    source: &CopySource<'_>,
    to: BorrowedFd<'_>,
    length: u64,
) -> Result<(), Errno> {
    match source.content {
        Some(content) => copier.copy(content, to, &Stat::of(content, c"")?, length),
        None => copier.copy(source.dir.open_file(source.name)?.as_fd(), to, source.stat, length),
    }
}

/// The staged file as something to set attributes on.
fn target<'a>(staged: &'a Staged<'_>) -> Result<Target<'a>, Errno> {
    match staged.dir_and_name() {
        Some((dir, name)) => Ok(Target { dir: dir.as_fd(), name }),
        None => Ok(Target { dir: staged.file()?, name: c"" }),
    }
}

fn copy_attributes(
    upper: &UpperLayer,
    staged: &Staged<'_>,
    source: &CopySource<'_>,
    plan: &Plan<'_>,
) -> Result<(), Errno> {
    let stat = source.stat;
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let owner_in_inode = plan.kept.as_ref().is_none_or(|k| stat.file_type() == FileType::Symlink && !k.privileged);
    if owner_in_inode && (uid, gid) != (stat.uid, stat.gid) {
        match staged.dir_and_name() {
            Some((dir, name)) => dir.set_owner(name, Some(stat.uid), Some(stat.gid)),
            None => set_owner_of(staged.file()?, stat),
        }
        .or_else(tolerate_unprivileged_chown)?;
    }
    copy_xattrs(target(staged)?, source, plan)?;
    if let (Some(kept), false) = (&plan.kept, owner_in_inode) {
        xattr::set(target(staged)?, kept.key, kept.value.as_bytes(), 0)?;
    }
    if plan.plain {
        xattr::set(target(staged)?, &upper.mark_key(Mark::Plain), b"y", 0)?;
    }
    if let Some(origin) = plan.origin {
        match xattr::set(target(staged)?, &upper.mark_key(Mark::Origin), origin, 0) {
            // Without marks, inode numbers change at the next mount; nothing else is lost. The kernel does the same.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
    }
    match (stat.file_type(), staged.dir_and_name()) {
        (FileType::Symlink, _) => {}
        // The file was made with its final mode, which only an ACL may have changed.
        (FileType::Regular, None) if plan.mode(stat) & 0o7000 == 0 && !plan.acls => {}
        (_, None) => rustix::fs::fchmod(staged.file()?, rustix::fs::Mode::from_raw_mode(plan.mode(stat)))?,
        (_, Some((dir, name))) => dir.set_mode(name, plan.mode(stat))?,
    }
    let mut times = Times::of(stat);
    if plan.length.is_some_and(|length| length < stat.size) {
        // Truncation is a change: it sets the modification time, and readers must see both together.
        times.mtime = Some(TimeTo::Now);
    }
    match staged.dir_and_name() {
        Some((dir, name)) => dir.set_times(name, &times),
        None => set_times_of(staged.file()?, &times),
    }
}

/// Keeps the inode flags that users rely on (kernel: `ovl_copy_fileattr`). Immutable and append-only become a mark,
/// because the real flags would prevent the copy from getting its name.
fn copy_flags(upper: &UpperLayer, staged: &Staged<'_>, source: &CopySource<'_>) -> Result<(), Errno> {
    if !matches!(source.stat.file_type(), FileType::Regular | FileType::Directory) {
        return Ok(());
    }
    let protection = source.stat.protection();
    if protection.is_any() {
        match xattr::set(target(staged)?, &upper.mark_key(Mark::Protattr), protection.encode(), 0) {
            Err(Errno::OPNOTSUPP | Errno::PERM) => {
                tracing::warn!(
                    "{:?}: the copy is not protected: the upper keeps no marks",
                    source.dir.shown_path(source.name)
                );
            }
            done => done?,
        }
    }
    let kept = match source.dir.open_file(source.name).and_then(rustix::fs::ioctl_getflags) {
        Ok(flags) => flags.intersection(IFlags::SYNC | IFlags::NOATIME),
        // The layer's file system has no flags, or shows none to an ordinary user.
        Err(Errno::NOTTY | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::ACCESS | Errno::PERM) => {
            return Ok(());
        }
        Err(errno) => return Err(errno),
    };
    if kept.is_empty() {
        return Ok(());
    }
    let set = |file: BorrowedFd<'_>| rustix::fs::ioctl_setflags(file, rustix::fs::ioctl_getflags(file)?.union(kept));
    let done = match staged.dir_and_name() {
        Some((dir, name)) => dir.open_file(name).and_then(|file| set(file.as_fd())),
        None => set(staged.file()?),
    };
    match done {
        // The upper's file system has no flags.
        Err(Errno::NOTTY | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::ACCESS) => Ok(()),
        done => done,
    }
}

fn set_owner_of(file: BorrowedFd<'_>, stat: &Stat) -> Result<(), Errno> {
    use rustix::fs::{Gid, Uid};
    rustix::fs::fchown(file, Some(Uid::from_raw(stat.uid)), Some(Gid::from_raw(stat.gid)))
}

/// An ordinary user cannot give files away, so the copy belongs to the mounting user.
fn tolerate_unprivileged_chown(errno: Errno) -> Result<(), Errno> {
    match errno {
        Errno::PERM | Errno::INVAL if !rustix::process::geteuid().is_root() => Ok(()),
        errno => Err(errno),
    }
}

/// True for attributes that must be copied: if the upper cannot store them, copy-up fails (kernel:
/// `ovl_must_copy_xattr`).
fn must_copy(key: &[u8]) -> bool {
    key.starts_with(b"system.posix_acl_") || key.starts_with(b"security.")
}

/// True for our marks, which belong to their layer and are not copied. Escaped marks are ordinary attributes
/// of the user and are copied.
pub(crate) fn is_mark(key: &[u8]) -> bool {
    classify(key).is_some_and(|(namespace, _)| {
        !key.strip_prefix(namespace.prefix().as_bytes()).unwrap_or_default().starts_with(b"overlay.")
    })
}

fn copy_xattrs(to: Target<'_>, source: &CopySource<'_>, plan: &Plan<'_>) -> Result<(), Errno> {
    for key in source.dir.list_xattrs(source.name)?.split(|&b| b == 0).filter(|k| !k.is_empty()) {
        let is_acl = key.starts_with(b"system.posix_acl_");
        if is_mark(key) || (is_acl && !plan.acls) || (!is_acl && !plan.xattrs) {
            continue;
        }
        let name = CString::new(key).map_err(|_| Errno::INVAL)?;
        let Some(value) = source.dir.xattr(source.name, &name)? else { continue };
        let name = match &plan.kept {
            Some(kept) if !kept.privileged && key.starts_with(b"security.") => {
                CString::new([PREFIX.as_bytes(), key].concat()).map_err(|_| Errno::INVAL)?
            }
            _ => name,
        };
        match xattr::set(to, &name, &value, 0) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP) if !must_copy(key) => {}
            Err(Errno::PERM) if !rustix::process::geteuid().is_root() => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
