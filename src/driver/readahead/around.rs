//! Reads here and there of files that the kernel caches: what is around them is read from the disk as well, see
//! [`crate::driver::node::ReadPattern`].

use std::io::IoSliceMut;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::LazyLock;

use rustix::fs::Advice;
use rustix::io::ReadWriteFlags;

use crate::driver::node::ReadPattern;
use crate::driver::types::{Errno, Result};
use crate::union::layer::Stat;

/// Longest file that is read around, in bytes: what is read in vain takes no more memory than this share of it.
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

/// To be called before `buffer` is read at `offset`, a place of many. How many bytes of it are read then: all, if they
/// were in memory.
pub(super) fn here_and_there(pattern: &ReadPattern, file: &OwnedFd, offset: u64, buffer: &mut [u8]) -> usize {
    match rustix::io::preadv2(file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT) {
        // Perhaps not all, if the rest is not in memory or the file ends there.
        Ok(read) => read,
        Err(Errno::AGAIN) => {
            let (begin, length) = pattern.surroundings(offset);
            if let Err(errno) = rustix::fs::fadvise(file, begin, NonZeroU64::new(length), Advice::WillNeed) {
                // Nothing depends on it.
                tracing::debug!("a file cannot be read ahead: {errno}");
                pattern.give_up();
            }
            0
        }
        // The file system cannot tell; the plain read shows what else is wrong.
        Err(_) => {
            pattern.give_up();
            0
        }
    }
}
