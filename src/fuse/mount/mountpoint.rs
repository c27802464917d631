//! Finds out where the mount is, and whether it is still there.
//!
//! fuser unmounts only by path: after an unmount from outside, its `Drop` and `unmount()` hit whatever is mounted at the path by
//! then. (Its check `is_mounted()` takes POLLERR, which means a dead connection, for "mounted".) So before anything is
//! unmounted, the mount is looked up in `/proc/self/mountinfo` by its id. This also finds a mount that was moved.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::confined::Device;
use crate::confined::mountinfo::{self, MountEntry, parse};

/// The file system types of our mounts: stratafs, and the type by which engines recognise their mount program.
const KINDS: [&[u8]; 2] = [b"fuse.stratafs", b"fuse.fuse-overlayfs"];

/// One of our mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mountpoint {
    /// The path where it was found. The mount may be moved, or a directory above it renamed.
    path: PathBuf,
    identity: Identity,
    /// An id that the kernel never gives to another mount (Linux 6.8).
    unique: Option<u64>,
}

/// What identifies a mount in `/proc/self/mountinfo`. When the mount is gone, the kernel soon gives both numbers to another one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    mount: u64,
    /// The file system.
    device: Device,
}

impl Identity {
    fn of(mount: &MountEntry) -> Self {
        Self { mount: mount.id, device: mount.device }
    }
}

/// Result of unmounting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unmounted {
    /// None of our mounts is there (any more).
    Gone,
    /// It is there, but another mount covers it and would be unmounted instead.
    Covered,
    /// It is still in use.
    Busy,
    /// Only `fusermount3` may do it.
    NotPermitted,
}

/// Where a mount is.
enum Place {
    /// Nowhere.
    Gone,
    /// Under another mount.
    Covered,
    At(PathBuf),
}

impl Mountpoint {
    /// The topmost mount at `path`, which must be canonical.
    pub(super) fn find(path: &Path) -> io::Result<Self> {
        let found = parse(&table()?).filter(|mount| mount.point == path).last();
        let found = found.ok_or_else(|| io::Error::other("the mount does not show in /proc/self/mountinfo"))?;
        Ok(Self::of(found))
    }

    fn of(mount: MountEntry) -> Self {
        let unique = unique_id(&mount.point);
        Self { identity: Identity::of(&mount), path: mount.point, unique }
    }

    /// The mount of the connection that `device` belongs to. `None` if no namespace of ours has it, or if the kernel
    /// does not say which one it is (before Linux 6.16).
    pub(super) fn of_connection(device: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        let shown = fs::read_to_string(format!("/proc/self/fdinfo/{}", device.as_raw_fd()))?;
        // fuse_dev_show_fdinfo(): the minor number of the file system's device, whose major number is 0.
        let Some(minor) = shown.lines().find_map(|line| line.strip_prefix("fuse_connection:")) else { return Ok(None) };
        let Ok(minor) = minor.trim().parse() else { return Ok(None) };
        Ok(parse(&table()?).find(|mount| mount.device == (0, minor)).map(Self::of))
    }

    /// The other mounts of the same file system. The file system must be in use: the kernel gives its number to another one soon.
    pub(super) fn copies(&self) -> io::Result<Vec<Self>> {
        let is_copy = |mount: &MountEntry| mount.device == self.identity.device && mount.id != self.identity.mount;
        Ok(parse(&table()?).filter(is_copy).map(Self::of).collect())
    }

    /// Its present path. `None` if it is gone, or if another mount covers it and would be unmounted instead.
    pub(super) fn path(&self) -> io::Result<Option<PathBuf>> {
        Ok(if let Place::At(path) = self.place()? { Some(path) } else { None })
    }

    fn place(&self) -> io::Result<Place> {
        let shown = table()?;
        let is_this = |mount: &MountEntry| Identity::of(mount) == self.identity;
        let Some(path) = parse(&shown).find(is_this).map(|mount| mount.point) else { return Ok(Place::Gone) };
        let is_topmost = parse(&shown).filter(|mount| mount.point == path).last().is_some_and(|mount| is_this(&mount));
        // Without a unique id, a mount at another path may be a different one.
        let is_ours = if self.unique.is_some() { unique_id(&path) == self.unique } else { path == self.path };
        Ok(match (is_ours, is_topmost, self.unique) {
            (true, true, _) => Place::At(path),
            // Another one at this place has the number.
            (false, true, Some(_)) if mount_id(&path) == Some(self.identity.mount) => Place::Gone,
            (false, _, None) => Place::Gone,
            _ => Place::Covered,
        })
    }

    /// Sets the kernel's readahead to `kilobytes`. `INIT` can only lower its default.
    pub(super) fn set_readahead(&self, kilobytes: u32) -> io::Result<()> {
        let (major, minor) = self.identity.device;
        fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), kilobytes.to_string())
    }

    /// With `lazily`, unmounts even if it is in use.
    pub(super) fn unmount(&self, lazily: bool) -> io::Result<Unmounted> {
        let path = match self.place()? {
            Place::Gone => return Ok(Unmounted::Gone),
            Place::Covered => return Ok(Unmounted::Covered),
            Place::At(path) => path,
        };
        let flags = if lazily { UnmountFlags::NOFOLLOW | UnmountFlags::DETACH } else { UnmountFlags::NOFOLLOW };
        match unmount(&path, flags) {
            Ok(()) | Err(Errno::INVAL) => Ok(Unmounted::Gone),
            Err(Errno::BUSY) => Ok(Unmounted::Busy),
            Err(Errno::PERM) => Ok(Unmounted::NotPermitted),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// True if the topmost mount at `path`, which must be canonical, is one of stratafs.
pub fn is_mounted_at(path: &Path) -> bool {
    parse(&table().unwrap_or_default())
        .filter(|mount| mount.point == path)
        .last()
        .is_some_and(|mount| KINDS.contains(&mount.kind.as_slice()))
}

/// The unique id of the topmost mount at `path`, if the kernel has such ids.
fn unique_id(path: &Path) -> Option<u64> {
    const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);
    id_of(path, MNT_ID_UNIQUE)
}

/// The number in the table of the topmost mount at `path`.
fn mount_id(path: &Path) -> Option<u64> {
    id_of(path, StatxFlags::MNT_ID)
}

/// Asks the file system nothing, so our own mount need not answer.
fn id_of(path: &Path, kind: StatxFlags) -> Option<u64> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT | AtFlags::SYMLINK_NOFOLLOW;
    let shown = statx(CWD, path, flags, kind).ok()?;
    (shown.stx_mask & kind.bits() != 0).then_some(shown.stx_mnt_id)
}

/// A file that is ready (`PRI`) whenever mounts have changed.
pub(super) fn changes() -> io::Result<fs::File> {
    fs::File::open(mountinfo::OWN)
}

/// True if the table has a mount of the file system `device`.
pub(super) fn is_mounted(table: &[u8], device: Device) -> bool {
    parse(table).any(|mount| mount.device == device)
}

fn table() -> io::Result<Vec<u8>> {
    fs::read(mountinfo::OWN)
}
