//! Reading ahead: bytes of lower files that are read from the disk before they are asked for.
//!
//! [`ahead`] finds directories whose files are read one after the other, [`around`] finds random reads of one file.
//! Verbs call [`Union::read_ready`]; the mount runs [`Union::read_ahead`] in a thread of its own.

mod ahead;
mod around;

use std::os::fd::OwnedFd;

pub(in crate::driver) use ahead::ReadAhead;

use crate::driver::Union;
use crate::driver::node::{OpenFile, Reading};
use crate::driver::types::Result;

impl Union {
    /// Notes a read of `file` at `offset`. If finding out what is in memory fills `buffer` anyway, returns the number of bytes.
    ///
    /// # Errors
    /// Those of `statx(2)`.
    pub(in crate::driver) fn read_ready(
        &self,
        handle: &OpenFile,
        file: &OwnedFd,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize> {
        match handle.pattern.note(offset, buffer.len()) {
            Reading::Plain => Ok(0),
            Reading::First => Ok(self.first_read(handle, file, buffer)),
            Reading::Ask => around::ask(&handle.pattern, file).map(|()| 0),
            Reading::HereAndThere => Ok(around::here_and_there(&handle.pattern, file, offset, buffer)),
        }
    }
}
