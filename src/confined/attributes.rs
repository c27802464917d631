//! Copies attributes from one open file to another, and keeps a directory's times.

use std::os::fd::BorrowedFd;

use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;

use super::xattr::{self, Target};
use super::{Stat, Times, set_times_of};

/// Gives the open file `to` attributes of `from`: the extended attributes whose names `wanted` accepts, its owner if
/// this process is root, its mode and its times. Neither may be `O_PATH`.
///
/// # Errors
/// Those of `fgetxattr(2)`, `fsetxattr(2)`, `fchown(2)`, `fchmod(2)` and `futimens(2)`.
pub(crate) fn copy_attributes(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    wanted: impl Fn(&[u8]) -> bool,
) -> Result<(), Errno> {
    let source = Target { dir: from, name: c"" };
    for key in xattr::names(&xattr::list(source)?).filter(|key| wanted(key.to_bytes())) {
        // `None` if the attribute was removed in the meantime.
        if let Some(value) = xattr::value(source, key)? {
            xattr::set(Target { dir: to, name: c"" }, key, &value, 0)?;
        }
    }
    let stat = Stat::of(from, c"")?;
    if rustix::process::geteuid().is_root() {
        rustix::fs::fchown(to, Some(Uid::from_raw(stat.uid)), Some(Gid::from_raw(stat.gid)))?;
    }
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.mode & 0o7777))?;
    set_times_of(to, &Times::of(&stat))
}

/// Calls `change`, which changes the open directory `dir`, and restores the directory's times.
///
/// # Errors
/// The error of `change`; those of `futimens(2)`.
pub(crate) fn keeping_times<T>(dir: BorrowedFd<'_>, change: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    let times = Times::of(&Stat::of(dir, c"")?);
    let changed = change()?;
    set_times_of(dir, &times)?;
    Ok(changed)
}
