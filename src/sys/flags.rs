//! `FS_IOC_FSGETXATTR` and `FS_IOC_FSSETXATTR`: the flags of an inode, its project and its extent sizes. rustix lacks them.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// `_IOR('X', 31, struct fsxattr)`
const FS_IOC_FSGETXATTR: libc::Ioctl = 0x801c_581f_u32 as libc::Ioctl;
/// `_IOW('X', 32, struct fsxattr)`
const FS_IOC_FSSETXATTR: libc::Ioctl = 0x401c_5820_u32 as libc::Ioctl;

/// Size of `struct fsxattr`, in bytes.
pub const FSXATTR: usize = 28;

/// The `struct fsxattr` of `file`. Its first four bytes are the flags.
///
/// # Errors
/// `NOTTY` and others of `ioctl(2)`.
pub fn get(file: BorrowedFd<'_>) -> Result<[u8; FSXATTR], Errno> {
    let mut attributes = [0; FSXATTR];
    // SAFETY: the kernel writes one `struct fsxattr`, for which the buffer has room; it copies bytes, so alignment does not
    // matter.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FSGETXATTR, attributes.as_mut_ptr()) };
    if done == 0 { Ok(attributes) } else { Err(last_error()) }
}

/// Sets the `struct fsxattr` of `file`.
///
/// # Errors
/// `NOTTY`, `INVAL` and others of `ioctl(2)`.
pub fn set(file: BorrowedFd<'_>, attributes: &[u8; FSXATTR]) -> Result<(), Errno> {
    // SAFETY: the kernel reads one `struct fsxattr`, which the buffer holds.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FSSETXATTR, attributes.as_ptr()) };
    if done == 0 { Ok(()) } else { Err(last_error()) }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
