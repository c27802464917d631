//! Owner, mode and type of files that are stored in an extended attribute instead of the inode: in which, and what the values
//! mean. Used both by the driver and by code that reads layers without a mount, so that a snapshot holds what a mount shows.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::config::XattrPermissions;
use crate::confined::xattr::{self, Target};
use crate::marks::override_stat::{OverrideKey, OverrideStat};

/// Longest value that is read; a longer one is malformed.
const LONGEST: usize = 128;

/// The attribute in which a union keeps owner, mode and type of its files; `None`: its inodes have them. `roots` are the
/// roots of its layers, topmost first: without an option, a union follows the first mark on them (containers/storage sets it,
/// and fuse-overlayfs follows it too).
///
/// # Errors
/// Those of `getxattr(2)`.
pub fn override_key<'r>(
    permissions: XattrPermissions,
    roots: impl IntoIterator<Item = BorrowedFd<'r>>,
) -> Result<Option<OverrideKey>, Errno> {
    match permissions {
        XattrPermissions::Privileged => return Ok(Some(OverrideKey::Privileged)),
        XattrPermissions::Containers => return Ok(Some(OverrideKey::Containers)),
        XattrPermissions::Inode => return Ok(None),
        XattrPermissions::Auto => {}
    }
    for root in roots {
        for key in OverrideKey::ALL {
            // By its name: there may be more attributes than a system call lists.
            if xattr::value(Target { dir: root, name: c"" }, key.name())?.is_some() {
                return Ok(Some(key));
            }
        }
    }
    Ok(None)
}

/// What is stored for `target` in `key`; `None` if there is nothing, or nothing readable, which is logged. `place`
/// says where the file is.
///
/// # Errors
/// Those of `getxattr(2)`.
pub fn read_override(
    target: Target<'_>,
    key: OverrideKey,
    place: impl FnOnce() -> PathBuf,
) -> Result<Option<OverrideStat>, Errno> {
    let mut value = [0; LONGEST];
    let length = match crate::sys::xattr::get(target, key.name(), &mut value) {
        Ok(length) => length,
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => return Ok(None),
        Err(Errno::RANGE) => 0,
        Err(errno) => return Err(errno),
    };
    let kept = OverrideStat::decode(value.get(..length).unwrap_or_default());
    if kept.is_none() {
        tracing::warn!("{:?}: damaged mark {:?}: shown as it really is", place(), key.name());
    }
    Ok(kept)
}
