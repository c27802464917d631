//! Copying the content of a file: shared blocks where the file system can, else inside the kernel, else through
//! memory. Holes stay holes.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::driver::interrupt;
use crate::union::layer::{FsId, Stat};

/// Bytes copied by one system call: large enough to be cheap, small enough for the process to be killed in between.
const CHUNK: usize = 16 << 20;
/// Buffer for copies through memory, in bytes.
const BUFFER: usize = 256 << 10;

/// Copies contents, remembering what each lower file system cannot do.
#[derive(Debug, Default)]
pub struct Copier {
    /// Bit per file system: blocks cannot be shared with the upper.
    no_clone: AtomicU64,
    /// Bit per file system: `copy_file_range(2)` does not work to the upper.
    no_range: AtomicU64,
}

fn bit(fs: FsId) -> u64 {
    1 << (u32::from(fs) % 64)
}

impl Copier {
    /// Copies the first `length` bytes of `from`, of attributes `stat`, to the empty file `to`.
    ///
    /// # Errors
    /// Those of reading and writing; `IO` if `from` is shorter than `stat` says; `INTR` if nobody waits for it any more.
    pub fn copy(
        &self,
        fs: FsId,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        stat: &Stat,
        length: u64,
    ) -> Result<(), Errno> {
        if length == 0 {
            return Ok(());
        }
        if length == stat.size && self.no_clone.load(Ordering::Relaxed) & bit(fs) == 0 {
            match rustix::fs::ioctl_ficlone(to, from) {
                Ok(()) => return Ok(()),
                Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS) => {
                    self.no_clone.fetch_or(bit(fs), Ordering::Relaxed);
                }
                Err(errno) => return Err(errno),
            }
        }
        if stat.blocks.saturating_mul(512) >= stat.size {
            return self.copy_range(fs, from, to, 0, length);
        }
        self.copy_data(fs, from, to, length)
    }

    /// Copies what is not a hole.
    fn copy_data(&self, fs: FsId, from: BorrowedFd<'_>, to: BorrowedFd<'_>, length: u64) -> Result<(), Errno> {
        let mut position = 0;
        while position < length {
            let start = match rustix::fs::seek(from, SeekFrom::Data(position)) {
                Ok(start) => start.min(length),
                Err(Errno::NXIO) => length,
                Err(Errno::INVAL | Errno::OPNOTSUPP) => return self.copy_range(fs, from, to, position, length),
                Err(errno) => return Err(errno),
            };
            if start >= length {
                break;
            }
            let end = rustix::fs::seek(from, SeekFrom::Hole(start))?.min(length);
            self.copy_range(fs, from, to, start, end)?;
            position = end;
        }
        // A hole at the end leaves no byte to write.
        rustix::fs::ftruncate(to, length)
    }

    fn copy_range(
        &self,
        fs: FsId,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        start: u64,
        end: u64,
    ) -> Result<(), Errno> {
        let mut position = start;
        while position < end && self.no_range.load(Ordering::Relaxed) & bit(fs) == 0 {
            interrupt::check()?;
            let (mut read_at, mut write_at) = (position, position);
            let wanted = usize::try_from(end - position).unwrap_or(CHUNK).min(CHUNK);
            match rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), wanted) {
                // Some file systems (procfs-like ones) copy nothing though there is something: read it.
                Ok(0) => break,
                Ok(copied) => position += copied as u64,
                Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::BADF) => {
                    self.no_range.fetch_or(bit(fs), Ordering::Relaxed);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        copy_through_memory(from, to, position, end)
    }
}

fn copy_through_memory(from: BorrowedFd<'_>, to: BorrowedFd<'_>, start: u64, end: u64) -> Result<(), Errno> {
    let mut position = start;
    let mut buffer = vec![0; if start < end { BUFFER } else { 0 }];
    while position < end {
        interrupt::check()?;
        let wanted = usize::try_from(end - position).unwrap_or(BUFFER).min(BUFFER);
        let chunk = buffer.get_mut(..wanted).ok_or(Errno::IO)?;
        let read = match rustix::io::pread(from, chunk, position) {
            Ok(0) => return Err(Errno::IO),
            Ok(read) => read,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        };
        let mut rest = buffer.get(..read).ok_or(Errno::IO)?;
        while !rest.is_empty() {
            let written = match rustix::io::pwrite(to, rest, position) {
                Ok(written) => written,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno),
            };
            position += written as u64;
            rest = rest.get(written..).unwrap_or_default();
        }
    }
    Ok(())
}
