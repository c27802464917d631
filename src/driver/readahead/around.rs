//! Random reads of files that the kernel caches: their surroundings are read from the disk too (see
//! [`crate::driver::node::ReadPattern`]).

use std::io::IoSliceMut;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::LazyLock;

use rustix::fs::Advice;
use rustix::io::ReadWriteFlags;

use crate::driver::node::ReadPattern;
use crate::driver::types::{Errno, Result};
use crate::union::layer::Stat;

/// Longest file that is read around, in bytes: reads in vain take no more than this share of the memory.
static LONGEST: LazyLock<u64> = LazyLock::new(|| {
    let memory = rustix::system::sysinfo();
    (memory.totalram * u64::from(memory.mem_unit) / 8).min(1 << 30)
});

/// Gives up on a file that is too long to be read around.
///
/// # Errors
/// Those of `statx(2)`.
pub(super) fn ask(pattern: &ReadPattern, file: &OwnedFd) -> Result<()> {
    if Stat::of(file.as_fd(), c"")?.size > *LONGEST {
        pattern.give_up();
    }
    Ok(())
}

/// Must be called before `buffer` is read at `offset`, in a series of random reads. Returns how many bytes it has
/// read: all, if they were in memory.
pub(super) fn here_and_there(pattern: &ReadPattern, file: &OwnedFd, offset: u64, buffer: &mut [u8]) -> usize {
    match rustix::io::preadv2(file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT) {
        // May be short, if the rest is not in memory or the file ends there.
        Ok(read) => read,
        Err(Errno::AGAIN) => {
            let (begin, length) = pattern.surroundings(offset);
            if let Err(errno) = rustix::fs::fadvise(file, begin, NonZeroU64::new(length), Advice::WillNeed) {
                // Best effort.
                tracing::debug!("a file cannot be read ahead: {errno}");
                pattern.give_up();
            }
            0
        }
        // The file system cannot tell; the plain read reports any other error.
        Err(_) => {
            pattern.give_up();
            0
        }
    }
}
