//! Where the mount is, and whether it is still there.
//!
//! fuser unmounts by path only: if somebody else has unmounted us, its `Drop` and `unmount()` hit whatever is mounted
//! at the path by then (its guard `is_mounted()` takes POLLERR, the sign of a dead connection, for "mounted"). So the
//! mount is looked up in `/proc/self/mountinfo` by its id before anything is unmounted.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

/// A mount of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mountpoint {
    path: PathBuf,
    /// Mount id and `major:minor`, as in `/proc/self/mountinfo`. The kernel uses an id again only after the mount is
    /// gone, and the device number only after the file system is.
    identity: Identity,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    mount: u64,
    device: OsString,
}

/// How unmounting went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unmounted {
    /// Nothing of ours is mounted there (any more).
    Gone,
    /// Somebody still uses it.
    Busy,
    /// Only `fusermount3` may do it.
    NotPermitted,
}

impl Mountpoint {
    /// The topmost mount at `path`, which must be canonical.
    pub(super) fn find(path: &Path) -> io::Result<Self> {
        match topmost(&fs::read("/proc/self/mountinfo")?, path) {
            Some(identity) => Ok(Self { path: path.to_owned(), identity }),
            None => Err(io::Error::other("the mount does not show in /proc/self/mountinfo")),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Has the kernel read ahead in pieces of `kilobytes`. What is asked for in `INIT` can only lower its default.
    pub(super) fn set_readahead(&self, kilobytes: u32) -> io::Result<()> {
        let device = self.identity.device.to_string_lossy();
        fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), kilobytes.to_string())
    }

    /// True if unmounting the path would unmount us.
    fn is_ours(&self) -> io::Result<bool> {
        Ok(topmost(&fs::read("/proc/self/mountinfo")?, &self.path).as_ref() == Some(&self.identity))
    }

    /// `lazily`: even if it is in use.
    pub(super) fn unmount(&self, lazily: bool) -> io::Result<Unmounted> {
        if !self.is_ours()? {
            return Ok(Unmounted::Gone);
        }
        let flags = if lazily { UnmountFlags::NOFOLLOW | UnmountFlags::DETACH } else { UnmountFlags::NOFOLLOW };
        match unmount(&self.path, flags) {
            Ok(()) | Err(Errno::INVAL) => Ok(Unmounted::Gone),
            Err(Errno::BUSY) => Ok(Unmounted::Busy),
            Err(Errno::PERM) => Ok(Unmounted::NotPermitted),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// The last mount at `path` in a mountinfo file (`proc_pid_mountinfo(5)`): `ID PARENT MAJOR:MINOR ROOT MOUNTPOINT …`.
fn topmost(mountinfo: &[u8], path: &Path) -> Option<Identity> {
    mountinfo.split(|&byte| byte == b'\n').rev().find_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ');
        let mount = str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let device = OsString::from_vec(fields.nth(1)?.to_vec());
        let mountpoint = unescape(fields.nth(1)?);
        (mountpoint == path.as_os_str().as_bytes()).then_some(Identity { mount, device })
    })
}

/// Takes the octal escapes (`\040`) away.
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
    fn the_topmost_mount_counts() {
        let at = |path: &str| topmost(MOUNTINFO, Path::new(path)).map(|identity| identity.mount);
        assert_eq!(at("/"), Some(22));
        assert_eq!(at("/m"), Some(38));
        assert_eq!(at("/with space\\"), Some(37));
        assert_eq!(at("/with"), None);
        assert_eq!(at("/m/"), None);
    }

    #[test]
    fn damaged_lines_are_passed_over() {
        for length in 0..MOUNTINFO.len() {
            topmost(&MOUNTINFO[..length], Path::new("/nowhere"));
        }
        assert_eq!(unescape(b"a\\04"), b"a\\04");
        assert_eq!(unescape(b"\\777"), b"\\777");
    }
}
