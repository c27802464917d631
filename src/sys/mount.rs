//! Private copies of mounts (`open_tree(2)`, `mount_setattr(2)`, Linux 5.12).

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

/// `struct mount_attr` of `linux/mount.h`.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// The same number on every architecture.
const SYS_MOUNT_SETATTR: libc::c_long = 442;
const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_NOATIME: u64 = 0x10;
/// All bits of the setting that NOATIME is one value of.
const MOUNT_ATTR_ATIME: u64 = 0x70;

/// A private mount of the directory `dir`, which no process sees: mounts inside the directory are not in it, and nothing can
/// be mounted in it (kernel: `clone_private_mount`). With `read_only`, nothing can be written through it, and reading changes no
/// times of access, unless the mount came from another user namespace, whose setting stays.
///
/// # Errors
/// `PERM` if this process may not mount. `INVAL` if `dir` holds mounts of another user namespace, which must not be
/// uncovered. `NOSYS`; others of `open_tree(2)` and `mount_setattr(2)`.
pub fn private_copy(dir: BorrowedFd<'_>, read_only: bool) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let copy = open_tree(dir, c"", flags)?;
    if !read_only {
        set_private(&copy, 0, 0)?;
        return Ok(copy);
    }
    match set_private(&copy, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOATIME, MOUNT_ATTR_ATIME) {
        Err(Errno::PERM) => set_private(&copy, MOUNT_ATTR_RDONLY, 0)?,
        done => done?,
    }
    Ok(copy)
}

/// Makes the mount private, with other attributes.
fn set_private(mount: &OwnedFd, attr_set: u64, attr_clr: u64) -> Result<(), Errno> {
    let attributes = MountAttr { attr_set, attr_clr, propagation: libc::MS_PRIVATE, userns_fd: 0 };
    // SAFETY: the path is NUL-terminated, `attributes` is laid out as `struct mount_attr`, and both outlive the call.
    let done = unsafe {
        libc::syscall(
            SYS_MOUNT_SETATTR,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}
