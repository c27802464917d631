//! ioctls of `/dev/fuse` (`include/uapi/linux/fuse.h`).

#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// `_IOR(229, 0, uint32_t)`
const FUSE_DEV_IOC_CLONE: libc::Ioctl = 0x8004_e500u32 as libc::Ioctl;
/// `_IOW(229, 2, uint32_t)`
const FUSE_DEV_IOC_BACKING_CLOSE: libc::Ioctl = 0x4004_e502;

/// Another descriptor of the connection of `session`, with its own queue of requests and answers.
///
/// # Errors
/// From opening `/dev/fuse` (a user whose mount was made by `fusermount3` may not) or from the kernel.
pub fn clone_device(session: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let device = OwnedFd::from(OpenOptions::new().read(true).write(true).open("/dev/fuse")?);
    let mut source = session.as_raw_fd().cast_unsigned();
    // SAFETY: the ioctl reads one u32, a descriptor number, through the pointer; both live through the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), FUSE_DEV_IOC_CLONE, &raw mut source) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(device) }
}

/// Ends a passthrough registration. Open files that use it are not affected.
///
/// # Errors
/// From the kernel, if there is no such registration.
pub fn close_backing(session: impl AsFd, backing: u32) -> io::Result<()> {
    // SAFETY: the ioctl reads one u32 through the pointer, which lives through the call.
    let result = unsafe { libc::ioctl(session.as_fd().as_raw_fd(), FUSE_DEV_IOC_BACKING_CLOSE, &raw const backing) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
