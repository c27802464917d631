//! Reads here and there of files that the kernel caches: what is around them is read from the disk as well, see
//! [`crate::node::ReadPattern`].

use std::io::IoSliceMut;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::LazyLock;

use rustix::fs::Advice;
use rustix::io::ReadWriteFlags;

use super::types::{Errno, Result};
use crate::layer::Stat;
use crate::node::{ReadPattern, Reading};

/// Longest file that is read around, in bytes: what is read in vain takes no more memory than this share of it.
static LONGEST: LazyLock<u64> = LazyLock::new(|| {
    let memory = rustix::system::sysinfo();
    (memory.totalram * u64::from(memory.mem_unit) / 8).min(1 << 30)
});

/// To be called before `buffer` is read at `offset`. True if the read was done, for all was in memory.
pub(super) fn before_read(pattern: &ReadPattern, file: &OwnedFd, offset: u64, buffer: &mut [u8]) -> Result<bool> {
    match pattern.note(offset, buffer.len()) {
        Reading::Plain => return Ok(false),
        Reading::Ask => {
            if Stat::of(file.as_fd(), c"")?.size > *LONGEST {
                pattern.give_up();
            }
            return Ok(false);
        }
        Reading::HereAndThere => {}
    }
    match rustix::io::preadv2(file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT) {
        Ok(read) if read == buffer.len() => Ok(true),
        // Part of it is in memory, or the file ends here.
        Ok(_) => Ok(false),
        Err(Errno::AGAIN) => {
            let (begin, length) = pattern.surroundings(offset);
            match rustix::fs::fadvise(file, begin, NonZeroU64::new(length), Advice::WillNeed) {
                Ok(()) => {}
                // Nothing depends on it.
                Err(errno) => {
                    tracing::debug!("a file cannot be read ahead: {errno}");
                    pattern.give_up();
                }
            }
            Ok(false)
        }
        // The file system cannot tell; the plain read shows what else is wrong.
        Err(_) => {
            pattern.give_up();
            Ok(false)
        }
    }
}
