//! `FS_IOC_FIEMAP`: the blocks of a file. rustix lacks it.

use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// `_IOWR('f', 11, struct fiemap)`
const FS_IOC_FIEMAP: libc::Ioctl = 0xc020_660b_u32 as libc::Ioctl;
/// Dirty data is written first, because it may be in blocks that count as unwritten.
const FIEMAP_FLAG_SYNC: u32 = 0x1;
const FIEMAP_EXTENT_LAST: u32 = 0x1;
const FIEMAP_EXTENT_UNWRITTEN: u32 = 0x800;

/// Number of extents requested at once.
const BATCH: usize = 64;

/// `struct fiemap_extent`
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved2: [u32; 3],
}

/// `struct fiemap`, with room for extents.
#[repr(C)]
struct Map {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    room: u32,
    reserved: u32,
    extents: [Extent; BATCH],
}

/// The ranges of bytes of `file` that have blocks but were never written (`fallocate(2)`), in order. They read as zeros.
///
/// # Errors
/// `OPNOTSUPP`, `NOTTY` and others of `ioctl(2)` if the file system does not tell.
pub fn unwritten(file: BorrowedFd<'_>) -> Result<Vec<Range<u64>>, Errno> {
    find(file, 0..u64::MAX, FIEMAP_FLAG_SYNC, |flags| flags & FIEMAP_EXTENT_UNWRITTEN != 0)
}

/// The ranges of bytes of `file` that overlap `range` and have blocks, or will get some when what is dirty is written, in
/// order.
///
/// # Errors
/// As [`unwritten`].
pub fn allocated(file: BorrowedFd<'_>, range: Range<u64>) -> Result<Vec<Range<u64>>, Errno> {
    find(file, range, 0, |_| true)
}

/// The extents in `within` whose flags are `wanted`. Neighbours are one range.
fn find(
    file: BorrowedFd<'_>,
    within: Range<u64>,
    flags: u32,
    wanted: impl Fn(u32) -> bool,
) -> Result<Vec<Range<u64>>, Errno> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let mut start = within.start;
    while start < within.end {
        let (room, extents) = (BATCH as u32, [Extent::default(); BATCH]);
        let mut map = Map { start, length: within.end - start, flags, mapped: 0, room, reserved: 0, extents };
        // SAFETY: the kernel reads the head of the structure and writes at most `room` extents after it, for which there
        // is space.
        if unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut map) } != 0 {
            return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
        }
        let mut found = map.extents.iter().take(map.mapped as usize);
        for extent in found.clone() {
            start = extent.logical.saturating_add(extent.length);
            if !wanted(extent.flags) {
                continue;
            }
            match ranges.last_mut() {
                Some(last) if last.end == extent.logical => last.end = start,
                _ => ranges.push(extent.logical..start),
            }
        }
        if found.next_back().is_none_or(|last| last.flags & FIEMAP_EXTENT_LAST != 0) {
            break;
        }
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use rustix::fs::FallocateFlags;

    use super::*;

    /// What is dirty has no blocks on the disk yet, and is allocated all the same.
    #[test]
    fn what_is_dirty_or_preallocated_is_allocated() {
        let file = tempfile::tempfile_in("/var/tmp").expect("a file");
        file.write_all_at(&[1; 4096], 8192).expect("written");
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 65_536, 8192).expect("allocated");
        let found = match allocated(file.as_fd(), 0..1 << 20) {
            Err(Errno::OPNOTSUPP | Errno::NOTTY) => return,
            found => found.expect("extents"),
        };
        assert_eq!(found, [8192..12_288, 65_536..73_728]);
        assert_eq!(unwritten(file.as_fd()).expect("extents").first(), Some(&(65_536..73_728)));
        assert_eq!(allocated(file.as_fd(), 12_288..65_536).expect("extents"), []);
    }
}
