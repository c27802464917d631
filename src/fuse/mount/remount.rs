//! Changes the flags of an existing mount. The kernel keeps them, so its daemon is not involved.

use std::io;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, StatVfsMountFlags, openat, statfs, statvfs};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount_remount};

use crate::config::remount::Remount;
use crate::fuse::MountError;

/// `FUSE_SUPER_MAGIC` of `linux/magic.h`.
const FUSE_MAGIC: u32 = 0x6573_5546;

/// Changes the flags of the mount at `mountpoint`.
///
/// # Errors
/// The mount is no FUSE mount. `EBUSY`: it has files open for writing and cannot become read-only. `EROFS`: it has no
/// writable upper, so it stays read-only. `EPERM`.
pub fn remount(mountpoint: &Path, change: &Remount) -> Result<(), MountError> {
    try_remount(mountpoint, change).map_err(|cause| MountError { mountpoint: mountpoint.to_owned(), cause })
}

fn try_remount(mountpoint: &Path, change: &Remount) -> io::Result<()> {
    let kind = statfs(mountpoint)?.f_type;
    if u32::try_from(kind).ok() != Some(FUSE_MAGIC) {
        return Err(io::Error::other("nothing to remount there"));
    }
    let before = statvfs(mountpoint)?.f_flag;
    mount_remount(mountpoint, flags(before, change), c"")?;
    if before.contains(StatVfsMountFlags::RDONLY) && change.read_only == Some(false) && !is_writable(mountpoint)? {
        mount_remount(mountpoint, flags(before, &Remount { read_only: Some(true), ..*change }), c"")?;
        return Err(Errno::ROFS.into());
    }
    Ok(())
}

/// The kernel now admits writers. Creates a nameless file to find out whether the daemon does too; that leaves nothing behind.
fn is_writable(mountpoint: &Path) -> io::Result<bool> {
    match openat(CWD, mountpoint, OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR) {
        Err(Errno::ROFS) => Ok(false),
        // The request reached the upper's file system.
        Ok(_) | Err(Errno::OPNOTSUPP | Errno::NOSPC | Errno::DQUOT | Errno::ACCESS) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

/// All flags of the mount: a flag that is not passed to the kernel is switched off, except those for access times.
fn flags(before: StatVfsMountFlags, change: &Remount) -> MountFlags {
    let mut flags = MountFlags::empty();
    let mut set = |flag, asked: Option<bool>, is: StatVfsMountFlags| {
        if asked.unwrap_or(before.contains(is)) {
            flags |= flag;
        }
    };
    let not = |asked: Option<bool>| asked.map(|on| !on);
    set(MountFlags::RDONLY, change.read_only, StatVfsMountFlags::RDONLY);
    set(MountFlags::NOSUID, not(change.suid), StatVfsMountFlags::NOSUID);
    set(MountFlags::NODEV, not(change.dev), StatVfsMountFlags::NODEV);
    set(MountFlags::NOEXEC, not(change.exec), StatVfsMountFlags::NOEXEC);
    set(MountFlags::SYNCHRONOUS, change.sync, StatVfsMountFlags::SYNCHRONOUS);
    match change.atime {
        Some(true) => flags |= MountFlags::RELATIME,
        Some(false) => flags |= MountFlags::NOATIME,
        None => {}
    }
    flags
}
