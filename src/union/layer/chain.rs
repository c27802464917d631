//! Chain marks on disk, and the root of an empty directory that replaces the upper.

use std::fs::File;
use std::io::Read;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use crate::confined;
use crate::confined::xattr::{self, Target};
use crate::marks::chain::{Chain, ChainId};
use crate::marks::{Mark, Namespace, Visible, override_stat, unescape_xattr};
use crate::sys::namespace::has_everywhere;

/// A new random id.
///
/// # Errors
/// Those of reading `/dev/urandom`.
pub fn new_id() -> std::io::Result<ChainId> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(ChainId::new(bytes))
}

/// The name space in which this process stores the chain mark of `dir`: `trusted.*` if it can set those, otherwise
/// `user.*`. Only that one is read: on a privileged mount, every user can set `user.*` through the mount.
///
/// # Errors
/// Those of `getxattr(2)`.
pub fn chain_namespace(dir: BorrowedFd<'_>) -> Result<Namespace, Errno> {
    if !has_everywhere(CapabilitySet::SYS_ADMIN) {
        return Ok(Namespace::User);
    }
    match crate::sys::xattr::get(Target { dir, name: c"" }, Namespace::Trusted.chain(), &mut []) {
        Err(Errno::OPNOTSUPP) => Ok(Namespace::User),
        // `RANGE` means that there is a value: the buffer is empty.
        Ok(_) | Err(Errno::NODATA | Errno::RANGE) => Ok(Namespace::Trusted),
        Err(errno) => Err(errno),
    }
}

/// The chain mark of `dir` in `namespace`.
///
/// # Errors
/// `IO` if it is damaged; others of `getxattr(2)`.
pub fn read_chain(dir: BorrowedFd<'_>, namespace: Namespace) -> Result<Option<Chain>, Errno> {
    match xattr::value(Target { dir, name: c"" }, namespace.chain())? {
        None => Ok(None),
        Some(value) => Chain::decode(&value).map(Some).ok_or(Errno::IO),
    }
}

/// Sets the chain mark of `dir`.
///
/// # Errors
/// Those of `setxattr(2)`.
pub fn write_chain(dir: BorrowedFd<'_>, namespace: Namespace, chain: &Chain) -> Result<(), Errno> {
    xattr::set(Target { dir, name: c"" }, namespace.chain(), chain.encode().as_bytes(), 0)
}

/// Gives the empty directory `to` everything that a mount shows of the root of the upper directory `from`: owner, mode,
/// times and attributes. Marks that concern the content of `from`, or the layers below it, are left out.
///
/// # Errors
/// Those of `fsetxattr(2)`, `fchown(2)`, `fchmod(2)` and `futimens(2)`.
pub fn copy_root(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    confined::copy_attributes(from, to, is_shown)
}

/// True for an attribute of the directory itself.
fn is_shown(name: &[u8]) -> bool {
    let is_protection = |namespace: &Namespace| name == namespace.xattr(Mark::Protattr).as_bytes();
    override_stat::is_override(name)
        || Namespace::ALL.iter().any(is_protection)
        || Namespace::ALL.iter().all(|&namespace| unescape_xattr(namespace, name) != Visible::Hidden)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_of_the_root() {
        for shown in [
            "user.x",
            "system.posix_acl_default",
            "trusted.overlay.overlay.x",
            "trusted.overlay.protattr",
            "user.containers.override_stat",
            "user.fuseoverlayfs.override_stat",
        ] {
            assert!(is_shown(shown.as_bytes()), "{shown}");
        }
        for mark in [
            "trusted.overlay.opaque",
            "user.overlay.origin",
            "trusted.overlay.stratafs.chain",
            "user.overlay.impure",
            "user.fuseoverlayfs.opaque",
            "trusted.overlay.uuid",
        ] {
            assert!(!is_shown(mark.as_bytes()), "{mark}");
        }
    }

    #[test]
    fn ids_differ() {
        assert_ne!(new_id().expect("random"), new_id().expect("random"));
    }
}
