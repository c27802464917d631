//! `sync_file_range(2)`, which rustix lacks.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// Writes dirty content of `file` to the disk and waits for it. The disk may still have it in its own cache, and
/// attributes are not written: this gives an order, not durability.
///
/// # Errors
/// Those of `sync_file_range(2)`.
pub fn write_out(file: BorrowedFd<'_>) -> Result<(), Errno> {
    write_out_range(file, 0, 0)
}

/// Like [`write_out`], for `length` bytes from `start` on; 0 means up to the end.
///
/// # Errors
/// Those of `sync_file_range(2)`.
pub fn write_out_range(file: BorrowedFd<'_>, start: u64, length: u64) -> Result<(), Errno> {
    const ALL: libc::c_uint =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    sync_range(file, start, length, ALL)
}

/// Starts writing the content of `file` out, so that a later sync has less to wait for.
///
/// # Errors
/// Those of `sync_file_range(2)`.
pub fn begin(file: BorrowedFd<'_>) -> Result<(), Errno> {
    sync_range(file, 0, 0, libc::SYNC_FILE_RANGE_WRITE)
}

fn sync_range(file: BorrowedFd<'_>, start: u64, length: u64, flags: libc::c_uint) -> Result<(), Errno> {
    let (start, length) = (start.cast_signed(), length.cast_signed());
    loop {
        // SAFETY: the call takes no pointers.
        if unsafe { libc::sync_file_range(file.as_raw_fd(), start, length, flags) } == 0 {
            return Ok(());
        }
        match Errno::from_io_error(&std::io::Error::last_os_error()) {
            Some(Errno::INTR) => {}
            errno => return Err(errno.unwrap_or(Errno::IO)),
        }
    }
}
