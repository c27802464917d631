//! Copies the content of a file: by shared blocks if the file system can, or else inside the kernel, or else
//! through memory. Holes remain holes.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use parking_lot::RwLock;
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use super::{Device, Stat};
use crate::sys::extents;

/// Bytes copied by one system call: enough to be cheap, but few enough that the process can be killed in between.
const CHUNK: usize = 16 << 20;
/// Files up to this size, in bytes, are only searched for holes if they have some.
const SMALL: u64 = 128 << 10;
/// Buffer for copies through memory, in bytes.
const BUFFER: usize = 256 << 10;

/// Copies content to files of one file system, and remembers what each source file system cannot do.
#[derive(Debug)]
pub(crate) struct Copier {
    /// Called between the pieces of a copy; an error ends it.
    check: fn() -> Result<(), Errno>,
    /// Source file systems with a missing feature; usually there are none.
    lacks: RwLock<Vec<(Device, Lack)>>,
}

/// A feature that a pair of file systems lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    /// Sharing blocks (`FICLONE`).
    Clone,
    /// `copy_file_range(2)`.
    Range,
}

/// The meaning of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// These two file systems do not support it, for any file.
    FileSystems,
    /// These two files do not support it: different checksumming (btrfs), swap files, realtime devices (xfs), odd sizes, …
    Files,
    /// A real error.
    Failure,
}

impl Refusal {
    fn of(errno: Errno) -> Self {
        match errno {
            Errno::XDEV | Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS => Self::FileSystems,
            Errno::INVAL | Errno::BADF | Errno::TXTBSY | Errno::PERM => Self::Files,
            _ => Self::Failure,
        }
    }
}

impl Copier {
    /// A copier that calls `check` between the pieces of a copy; its error ends the copy.
    pub(crate) fn new(check: fn() -> Result<(), Errno>) -> Self {
        Self { check, lacks: RwLock::default() }
    }

    fn can(&self, source: Device, lack: Lack) -> bool {
        !self.lacks.read().contains(&(source, lack))
    }

    /// Records a refusal. Returns the error if there is no other way to copy.
    fn refused(&self, source: Device, lack: Lack, errno: Errno) -> Result<(), Errno> {
        match Refusal::of(errno) {
            Refusal::FileSystems => {
                let mut lacks = self.lacks.write();
                if !lacks.contains(&(source, lack)) {
                    lacks.push((source, lack));
                }
                Ok(())
            }
            Refusal::Files => Ok(()),
            Refusal::Failure => Err(errno),
        }
    }

    /// Copies the first `length` bytes of `from`, which has the attributes `stat`, to the empty file `to`.
    ///
    /// # Errors
    /// Those of reading and writing; `IO` if `from` is shorter than `stat` says; the error of `check`.
    pub(crate) fn copy(&self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat, length: u64) -> Result<(), Errno> {
        if length == 0 {
            return Ok(());
        }
        if length == stat.size && self.can(stat.device, Lack::Clone) {
            match rustix::fs::ioctl_ficlone(to, from) {
                Ok(()) => return Ok(()),
                Err(errno) => self.refused(stat.device, Lack::Clone, errno)?,
            }
        }
        let range = Range { copier: self, device: stat.device, from, to, at: 0 };
        if stat.size <= SMALL && stat.blocks.saturating_mul(512) >= stat.size {
            return range.copy(0, length);
        }
        // If the file system does not report them, they count as data.
        let unwritten = extents::unwritten(from).unwrap_or_default();
        range.copy_data(length, &unwritten)?;
        allocate_ahead(to, length, &unwritten)
    }
}

/// Copies the first `length` bytes of `source` to `target` at offset `at`, keeping holes, and extends the target to
/// `at + length`.
///
/// # Errors
/// Those of reading and writing.
pub(crate) fn copy_extents(source: &File, target: &File, at: u64, length: u64) -> io::Result<()> {
    target.set_len(at.checked_add(length).ok_or(io::ErrorKind::FileTooLarge)?)?;
    let device = Stat::of(source.as_fd(), c"")?.device;
    let copier = Copier::new(|| Ok(()));
    let range = Range { copier: &copier, device, from: source.as_fd(), to: target.as_fd(), at };
    Ok(range.copy_data(length, &[])?)
}

/// Allocates blocks of `to`, which has `length` bytes, in the ranges `unwritten`, as in its source. Best effort:
/// otherwise there are holes (the kernel's `ovl_copy_up_file` always makes holes).
fn allocate_ahead(to: BorrowedFd<'_>, length: u64, unwritten: &[std::ops::Range<u64>]) -> Result<(), Errno> {
    for range in unwritten.iter().filter(|range| range.start < length) {
        let size = range.end.min(length) - range.start;
        match rustix::fs::fallocate(to, FallocateFlags::empty(), range.start, size) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NOSPC | Errno::DQUOT) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// A copy of bytes of `from` to the same offsets of `to` plus `at`.
struct Range<'a> {
    copier: &'a Copier,
    device: Device,
    from: BorrowedFd<'a>,
    to: BorrowedFd<'a>,
    at: u64,
}

impl Range<'_> {
    /// Copies the first `length` bytes, except holes and the ranges `unwritten`. `SEEK_DATA` alone is not enough: it counts
    /// the part of an unwritten range that is in the page cache because it was read as data.
    fn copy_data(&self, length: u64, unwritten: &[std::ops::Range<u64>]) -> Result<(), Errno> {
        let mut unwritten = unwritten.iter().peekable();
        let mut position = 0;
        while position < length {
            let start = match rustix::fs::seek(self.from, SeekFrom::Data(position)) {
                Ok(start) => start.min(length),
                Err(Errno::NXIO) => length,
                Err(Errno::INVAL | Errno::OPNOTSUPP) => return self.copy(position, length),
                Err(errno) => return Err(errno),
            };
            if start >= length {
                break;
            }
            while unwritten.next_if(|range| range.end <= start).is_some() {}
            if let Some(range) = unwritten.peek()
                && range.start <= start
            {
                position = range.end;
                continue;
            }
            let next = unwritten.peek().map_or(length, |range| range.start.min(length));
            let end = rustix::fs::seek(self.from, SeekFrom::Hole(start))?.min(next);
            self.copy(start, end)?;
            position = end;
        }
        // After a hole at the end, the length must be set.
        rustix::fs::ftruncate(self.to, self.at + length)
    }

    fn copy(&self, start: u64, end: u64) -> Result<(), Errno> {
        let mut position = start;
        while position < end && self.copier.can(self.device, Lack::Range) {
            (self.copier.check)()?;
            let (mut read_at, mut write_at) = (position, self.at + position);
            let wanted = usize::try_from(end - position).unwrap_or(CHUNK).min(CHUNK);
            match rustix::fs::copy_file_range(self.from, Some(&mut read_at), self.to, Some(&mut write_at), wanted) {
                // Some file systems (procfs-like ones) copy nothing although there is content: read it.
                Ok(0) => break,
                Ok(copied) => position += copied as u64,
                Err(Errno::INTR) => {}
                Err(errno) => {
                    self.copier.refused(self.device, Lack::Range, errno)?;
                    break;
                }
            }
        }
        self.copy_through_memory(position, end)
    }

    fn copy_through_memory(&self, start: u64, end: u64) -> Result<(), Errno> {
        let mut position = start;
        let mut buffer = vec![0; if start < end { BUFFER } else { 0 }];
        while position < end {
            (self.copier.check)()?;
            let wanted = usize::try_from(end - position).unwrap_or(BUFFER).min(BUFFER);
            let chunk = buffer.get_mut(..wanted).ok_or(Errno::IO)?;
            let read = match rustix::io::pread(self.from, chunk, position) {
                Ok(0) => return Err(Errno::IO),
                Ok(read) => read,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno),
            };
            let mut rest = buffer.get(..read).ok_or(Errno::IO)?;
            while !rest.is_empty() {
                let written = match rustix::io::pwrite(self.to, rest, self.at + position) {
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn files() -> (File, File) {
        let file = || tempfile::tempfile_in("/tmp").expect("a file");
        (file(), file())
    }

    /// A refusal for these files is not remembered for other files of the same file systems.
    #[test]
    fn only_file_systems_are_remembered() {
        let device = (1, 2);
        for (errno, again) in [
            (Errno::INVAL, true),
            (Errno::BADF, true),
            (Errno::TXTBSY, true),
            (Errno::XDEV, false),
            (Errno::OPNOTSUPP, false),
            (Errno::NOTTY, false),
        ] {
            let copier = Copier::new(|| Ok(()));
            assert_eq!(copier.refused(device, Lack::Clone, errno), Ok(()), "{errno:?}");
            assert_eq!(copier.can(device, Lack::Clone), again, "{errno:?}");
            assert!(copier.can(device, Lack::Range) && copier.can((1, 3), Lack::Clone));
        }
        let copier = Copier::new(|| Ok(()));
        assert_eq!(copier.refused(device, Lack::Range, Errno::NOSPC), Err(Errno::NOSPC));
        assert!(copier.can(device, Lack::Range));
    }

    #[test]
    fn holes_stay_holes_at_any_offset() {
        let (from, to) = files();
        from.write_all_at(b"begin", 0).expect("written");
        from.write_all_at(b"middle", 8 << 20).expect("written");
        from.set_len(16 << 20).expect("extended");
        to.write_all_at(b"before", 0).expect("written");
        copy_extents(&from, &to, 4096, 16 << 20).expect("copied");
        let bytes = |at: u64, length: usize| {
            let mut bytes = vec![0; length];
            to.read_exact_at(&mut bytes, at).expect("read");
            bytes
        };
        assert_eq!((bytes(0, 6), bytes(4096, 5)), (b"before".to_vec(), b"begin".to_vec()));
        assert_eq!(bytes((8 << 20) + 4096, 6), b"middle");
        let stat = Stat::of(to.as_fd(), c"").expect("stat");
        assert_eq!(stat.size, (16 << 20) + 4096);
        assert!(stat.blocks * 512 < 1 << 20, "{} blocks", stat.blocks);
    }

    #[test]
    fn a_file_shorter_than_it_says() {
        let (from, to) = files();
        from.write_all_at(&[7; 100], 0).expect("written");
        let stat = Stat::of(from.as_fd(), c"").expect("stat");
        from.set_len(50).expect("cut");
        assert_eq!(Copier::new(|| Ok(())).copy(from.as_fd(), to.as_fd(), &stat, 100), Err(Errno::IO));
    }
}
