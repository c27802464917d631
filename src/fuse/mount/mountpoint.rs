//! Finds out where the mount is, and whether it is still there.
//!
//! fuser unmounts only by path: after an unmount from outside, its `Drop` and `unmount()` hit whatever is mounted at the path by
//! then. (Its check `is_mounted()` takes POLLERR, which means a dead connection, for "mounted".) So before anything is
//! unmounted, the mount is looked up in `/proc/self/mountinfo` by its id. This also finds a mount that was moved.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::confined::mountinfo as table;

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
    /// `major:minor`
    device: OsString,
}

/// Result of unmounting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unmounted {
    /// None of our mounts is there (any more).
    Gone,
    /// It is still in use.
    Busy,
    /// Only `fusermount3` may do it.
    NotPermitted,
}

impl Mountpoint {
    /// The topmost mount at `path`, which must be canonical.
    pub(super) fn find(path: &Path) -> io::Result<Self> {
        let found = mounts(&mountinfo()?).filter(|mount| mount.path == path).last();
        let found = found.ok_or_else(|| io::Error::other("the mount does not show in /proc/self/mountinfo"))?;
        Ok(Self::of(found))
    }

    fn of(Mount { identity, path }: Mount) -> Self {
        let unique = unique_id(&path);
        Self { path, identity, unique }
    }

    /// The mount of the connection that `device` belongs to. `None` if no namespace of ours has it, or if the kernel
    /// does not say which one it is (before Linux 6.16).
    pub(super) fn of_connection(device: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        let shown = fs::read_to_string(format!("/proc/self/fdinfo/{}", device.as_raw_fd()))?;
        // fuse_dev_show_fdinfo(): the minor number of the file system's device, whose major number is 0.
        let Some(minor) = shown.lines().find_map(|line| line.strip_prefix("fuse_connection:")) else { return Ok(None) };
        let device = OsString::from(format!("0:{}", minor.trim()));
        Ok(mounts(&mountinfo()?).find(|mount| mount.identity.device == device).map(Self::of))
    }

    /// Its present path. `None` if it is gone, or if another mount covers it and would be unmounted instead.
    pub(super) fn path(&self) -> io::Result<Option<PathBuf>> {
        let shown = mountinfo()?;
        let Some(path) = mounts(&shown).find(|mount| mount.identity == self.identity).map(|mount| mount.path) else {
            return Ok(None);
        };
        let topmost = mounts(&shown).filter(|mount| mount.path == path).last();
        let is_topmost = topmost.is_some_and(|mount| mount.identity == self.identity);
        // Without a unique id, a mount at another path may be a different one.
        let is_ours = if self.unique.is_some() { unique_id(&path) == self.unique } else { path == self.path };
        Ok((is_topmost && is_ours).then_some(path))
    }

    /// Sets the kernel's readahead to `kilobytes`. `INIT` can only lower its default.
    pub(super) fn set_readahead(&self, kilobytes: u32) -> io::Result<()> {
        let device = self.identity.device.to_string_lossy();
        fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), kilobytes.to_string())
    }

    /// With `lazily`, unmounts even if it is in use.
    pub(super) fn unmount(&self, lazily: bool) -> io::Result<Unmounted> {
        let Some(path) = self.path()? else { return Ok(Unmounted::Gone) };
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
    let table = mountinfo().unwrap_or_default();
    table::parse(&table)
        .filter(|mount| mount.point == path)
        .last()
        .is_some_and(|mount| KINDS.contains(&mount.kind.as_slice()))
}

/// A line of a mountinfo file.
struct Mount {
    identity: Identity,
    path: PathBuf,
}

/// The unique id of the topmost mount at `path`, if the kernel has such ids. Asks the file system nothing, so our own
/// mount need not answer.
fn unique_id(path: &Path) -> Option<u64> {
    const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT | AtFlags::SYMLINK_NOFOLLOW;
    let shown = statx(CWD, path, flags, MNT_ID_UNIQUE).ok()?;
    (shown.stx_mask & MNT_ID_UNIQUE.bits() != 0).then_some(shown.stx_mnt_id)
}

/// True if a mountinfo file has a mount of the file system `device` (`major:minor`).
pub(super) fn is_mounted(mountinfo: &[u8], device: &str) -> bool {
    mounts(mountinfo).any(|mount| mount.identity.device == device)
}

fn mountinfo() -> io::Result<Vec<u8>> {
    fs::read("/proc/self/mountinfo")
}

/// The mounts in a mountinfo file (`proc_pid_mountinfo(5)`): `ID PARENT MAJOR:MINOR ROOT MOUNTPOINT …`. The last one at a
/// path is the topmost.
fn mounts(mountinfo: &[u8]) -> impl Iterator<Item = Mount> {
    mountinfo.split(|&byte| byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ');
        let mount = str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let device = OsString::from_vec(fields.nth(1)?.to_vec());
        let path = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
        Some(Mount { identity: Identity { mount, device }, path })
    })
}

/// Decodes the octal escapes (`\040`).
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = match (byte, after.first_chunk::<3>()) {
            (b'\\', Some(digits)) => str::from_utf8(digits).ok().and_then(|digits| u8::from_str_radix(digits, 8).ok()),
            _ => None,
        };
        plain.push(octal.unwrap_or(byte));
        rest = if octal.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &[u8] = b"22 1 254:0 / / rw - ext4 /dev/root rw\n\
        36 22 0:39 / /m rw,nodev - fuse.stratafs a rw\n\
        37 22 0:40 / /with\\040space\\134 rw - fuse.stratafs b rw\n\
        38 36 0:41 / /m rw - tmpfs c rw\n";

    #[test]
    fn mounts_have_ids_devices_and_paths() {
        let all: Vec<_> = mounts(MOUNTINFO).map(|mount| (mount.identity.mount, mount.path)).collect();
        let expected = [(22, "/"), (36, "/m"), (37, "/with space\\"), (38, "/m")];
        assert_eq!(all, expected.map(|(id, path)| (id, PathBuf::from(path))));
        assert!(mounts(MOUNTINFO).any(|mount| mount.identity.device == "0:40"));
    }

    #[test]
    fn damaged_lines_are_passed_over() {
        for length in 0..MOUNTINFO.len() {
            assert!(mounts(&MOUNTINFO[..length]).count() <= 4);
        }
        assert_eq!(unescape(b"a\\04"), b"a\\04");
        assert_eq!(unescape(b"\\777"), b"\\777");
    }
}
