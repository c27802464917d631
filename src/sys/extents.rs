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
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let mut start = 0;
    loop {
        let (room, extents) = (BATCH as u32, [Extent::default(); BATCH]);
        let length = u64::MAX - start;
        let mut map = Map { start, length, flags: FIEMAP_FLAG_SYNC, mapped: 0, room, reserved: 0, extents };
        // SAFETY: the kernel reads the head of the structure and writes at most `room` extents after it, for which there
        // is space.
        if unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut map) } != 0 {
            return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
        }
        let mut found = map.extents.iter().take(map.mapped as usize);
        for extent in found.clone() {
            start = extent.logical.saturating_add(extent.length);
            if extent.flags & FIEMAP_EXTENT_UNWRITTEN == 0 {
                continue;
            }
            match ranges.last_mut() {
                Some(last) if last.end == extent.logical => last.end = start,
                _ => ranges.push(extent.logical..start),
            }
        }
        if found.next_back().is_none_or(|last| last.flags & FIEMAP_EXTENT_LAST != 0) {
            return Ok(ranges);
        }
    }
}
