//! Replies. The payload is encoded in the transport's buffer, so a reply allocates and copies nothing.

use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use super::fopen;
use crate::driver::node::{NodeId, Timestamp};
use crate::driver::types::{
    Attr, DirEntry, DirSink, Entry, Errno, HandleId, OpenMode, Opened, Result, StatFs, Validity,
};

/// Size of `struct fuse_out_header`.
pub(in crate::fuse) const HEADER: usize = 16;

/// The parts of a reply other than the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fuse) struct Answer {
    /// The request that is answered.
    pub(in crate::fuse) unique: u64,
    /// 0, or a negative errno.
    pub(in crate::fuse) error: i32,
    /// Bytes of payload.
    pub(in crate::fuse) length: usize,
}

impl Answer {
    /// An answer without payload.
    pub(in crate::fuse) fn failed(unique: u64, errno: Errno) -> Self {
        Self { unique, error: -errno.raw_os_error(), length: 0 }
    }

    /// `struct fuse_out_header`
    pub(in crate::fuse) fn header(&self) -> [u8; HEADER] {
        let length = u32::try_from(HEADER + self.length).unwrap_or(u32::MAX);
        let mut header = [0; HEADER];
        let (lengths, unique) = header.split_at_mut(8);
        let (length_field, error) = lengths.split_at_mut(4);
        length_field.copy_from_slice(&length.to_ne_bytes());
        error.copy_from_slice(&self.error.to_ne_bytes());
        unique.copy_from_slice(&self.unique.to_ne_bytes());
        header
    }
}

/// The notification `FUSE_NOTIFY_RETRIEVE` for zero bytes of the regular file `node`: the kernel answers with a request of
/// its own (`NOTIFY_REPLY`), which carries `unique`.
pub(in crate::fuse) fn retrieve_nothing(unique: u64, node: NodeId) -> [u8; 48] {
    const FUSE_NOTIFY_RETRIEVE: u32 = 5;
    // struct fuse_out_header, struct fuse_notify_retrieve_out
    let [length, code] = [48, FUSE_NOTIFY_RETRIEVE].map(u32::to_ne_bytes);
    let fields = length.into_iter().chain(code).chain([0; 8]).chain(unique.to_ne_bytes()).chain(node.0.to_ne_bytes());
    let mut message = [0; 48];
    message.iter_mut().zip(fields).for_each(|(byte, field)| *byte = field);
    message
}

/// How long the kernel may keep names and attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fuse) struct Ttl {
    sec: u64,
    nsec: u32,
}

impl Ttl {
    /// 136 years; the kernel's MAX_JIFFY_OFFSET is less.
    const FOREVER: Self = Self { sec: u32::MAX as u64, nsec: 0 };
    const ZERO: Self = Self { sec: 0, nsec: 0 };

    /// `timeout` is the option of that name.
    pub(in crate::fuse) fn new(timeout: Option<Duration>) -> Self {
        timeout.map_or(Self::FOREVER, |timeout| Self { sec: timeout.as_secs(), nsec: timeout.subsec_nanos() })
    }

    fn limited(self, validity: Validity) -> Self {
        match validity {
            Validity::Forever => self,
            Validity::None => Self::ZERO,
        }
    }
}

/// The payload of a reply under construction.
pub(in crate::fuse) struct Reply<'b> {
    bytes: &'b mut [u8],
    /// End of the encoded bytes.
    end: usize,
    ttl: Ttl,
}

impl<'b> Reply<'b> {
    /// Encodes into `bytes`, which must have room for the longest payload.
    pub(in crate::fuse) fn new(bytes: &'b mut [u8], ttl: Ttl) -> Self {
        Self { bytes, end: 0, ttl }
    }

    /// Drops what was encoded.
    pub(in crate::fuse) fn clear(&mut self) {
        self.end = 0;
    }

    /// The answer to request `unique`; the payload is dropped if the request failed.
    pub(in crate::fuse) fn finish(&mut self, unique: u64, outcome: Result<()>) -> Answer {
        match outcome {
            Ok(()) => Answer { unique, error: 0, length: self.end },
            Err(errno) => {
                self.clear();
                Answer::failed(unique, errno)
            }
        }
    }

    /// The payload that belongs to `answer`, which came from this reply.
    #[cfg(test)]
    pub(in crate::fuse) fn payload(&self, answer: &Answer) -> &[u8] {
        &self.bytes[..answer.length]
    }

    /// Appends `bytes` to the payload.
    pub(in crate::fuse) fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let room =
            self.bytes.get_mut(self.end..).and_then(|rest| rest.get_mut(..bytes.len())).ok_or(Errno::OVERFLOW)?;
        room.copy_from_slice(bytes);
        self.end += bytes.len();
        Ok(())
    }

    /// Lets `fill` write up to `size` bytes of payload; it returns how many it wrote.
    pub(in crate::fuse) fn fill(&mut self, size: u32, fill: impl FnOnce(&mut [u8]) -> Result<usize>) -> Result<()> {
        let room = self.bytes.get_mut(self.end..).unwrap_or_default();
        let size = usize::try_from(size).unwrap_or(usize::MAX).min(room.len());
        let written = fill(room.get_mut(..size).unwrap_or_default())?;
        self.end += written.min(size);
        Ok(())
    }

    fn u32(&mut self, value: u32) -> Result<()> {
        self.bytes(&value.to_ne_bytes())
    }

    fn u64(&mut self, value: u64) -> Result<()> {
        self.bytes(&value.to_ne_bytes())
    }

    fn u64s<const N: usize>(&mut self, values: [u64; N]) -> Result<()> {
        values.into_iter().try_for_each(|value| self.u64(value))
    }

    fn u32s<const N: usize>(&mut self, values: [u32; N]) -> Result<()> {
        values.into_iter().try_for_each(|value| self.u32(value))
    }

    /// `struct fuse_attr`
    fn fuse_attr(&mut self, attr: &Attr) -> Result<()> {
        let seconds = |time: Timestamp| time.sec.cast_unsigned();
        self.u64s([attr.ino, attr.size, attr.blocks, seconds(attr.atime), seconds(attr.mtime), seconds(attr.ctime)])?;
        self.u32s([attr.atime.nsec, attr.mtime.nsec, attr.ctime.nsec, attr.mode, attr.nlink, attr.uid, attr.gid])?;
        self.u32s([encode_device(attr.rdev), attr.blksize, 0])
    }

    /// `struct fuse_attr_out`
    pub(in crate::fuse) fn attr(&mut self, attr: &Attr, validity: Validity) -> Result<()> {
        let ttl = self.ttl.limited(validity);
        self.u64(ttl.sec)?;
        self.u32s([ttl.nsec, 0])?;
        self.fuse_attr(attr)
    }

    /// `struct fuse_statx_out`
    pub(in crate::fuse) fn statx(&mut self, attr: &Attr, validity: Validity) -> Result<()> {
        const STATX_BASIC_STATS: u32 = 0x7ff;
        const STATX_BTIME: u32 = 0x800;
        let ttl = self.ttl.limited(validity);
        self.u64(ttl.sec)?;
        self.u32s([ttl.nsec, 0])?;
        self.u64s([0; 2])?;
        let mask = STATX_BASIC_STATS | if attr.btime.is_some() { STATX_BTIME } else { 0 };
        self.u32s([mask, attr.blksize])?;
        self.u64(0)?;
        self.u32s([attr.nlink, attr.uid, attr.gid])?;
        let mode = u16::try_from(attr.mode & 0xffff).map_err(|_| Errno::OVERFLOW)?;
        self.bytes(&mode.to_ne_bytes())?;
        self.bytes(&[0; 2])?;
        self.u64s([attr.ino, attr.size, attr.blocks, 0])?;
        for time in [attr.atime, attr.btime.unwrap_or_default(), attr.ctime, attr.mtime] {
            self.u64(time.sec.cast_unsigned())?;
            self.u32s([time.nsec, 0])?;
        }
        self.u32s([attr.rdev.0, attr.rdev.1, 0, 0])?;
        self.u64s([0; 14])
    }

    /// `struct fuse_entry_out`. The node id is ours, the inode number the user's: they are never mixed up.
    pub(in crate::fuse) fn entry(&mut self, entry: &Entry) -> Result<()> {
        let (name, attr) = (self.ttl, self.ttl.limited(entry.attr_validity));
        // Node ids are never reused, so one generation is enough.
        self.u64s([entry.node.0, 0, name.sec, attr.sec])?;
        self.u32s([name.nsec, attr.nsec])?;
        self.fuse_attr(&entry.attr)
    }

    /// The name does not exist, and the kernel may remember that.
    pub(in crate::fuse) fn no_entry(&mut self) -> Result<()> {
        let ttl = self.ttl;
        self.u64s([0, 0, ttl.sec, 0])?;
        self.u32s([ttl.nsec, 0])?;
        self.bytes(&[0; FUSE_ATTR])
    }

    /// `struct fuse_open_out` of a file.
    pub(in crate::fuse) fn opened(&mut self, opened: &Opened) -> Result<()> {
        let (flags, backing) = match opened.mode {
            OpenMode::KeepCache => (fopen::KEEP_CACHE, 0),
            OpenMode::DropCache => (0, 0),
            // The kernel's FOPEN_PASSTHROUGH_MASK allows no caching flags with it.
            OpenMode::Passthrough(backing) => (fopen::PASSTHROUGH, backing),
        };
        self.u64(opened.handle.0)?;
        self.u32s([flags, backing])
    }

    /// `struct fuse_open_out` of a directory.
    pub(in crate::fuse) fn opened_dir(&mut self, handle: HandleId) -> Result<()> {
        self.u64(handle.0)?;
        let flags = if self.ttl == Ttl::FOREVER { fopen::CACHE_DIR | fopen::KEEP_CACHE } else { 0 };
        self.u32s([flags, 0])
    }

    /// `struct fuse_write_out`
    pub(in crate::fuse) fn written(&mut self, count: usize) -> Result<()> {
        self.u32s([u32::try_from(count).map_err(|_| Errno::OVERFLOW)?, 0])
    }

    /// `struct fuse_ioctl_out`, then `output`, for which the kernel has room for `room` bytes.
    pub(in crate::fuse) fn ioctl(&mut self, output: &[u8], room: u32) -> Result<()> {
        let room = usize::try_from(room).map_err(|_| Errno::INVAL)?;
        self.u32s([0; 4])?;
        self.bytes(output.get(..room).ok_or(Errno::INVAL)?)
    }

    /// `struct fuse_lseek_out`, `struct fuse_copy_file_range_out`
    pub(in crate::fuse) fn number(&mut self, number: u64) -> Result<()> {
        self.u64(number)
    }

    /// `struct fuse_statfs_out`
    pub(in crate::fuse) fn statfs(&mut self, stat: &StatFs) -> Result<()> {
        let narrow = |size: u64| u32::try_from(size).map_err(|_| Errno::OVERFLOW);
        self.u64s([stat.blocks, stat.bfree, stat.bavail, stat.files, stat.ffree])?;
        self.u32s([narrow(stat.bsize)?, stat.namelen, narrow(stat.frsize)?, 0])?;
        self.u32s([0; 6])
    }

    /// The value or the list of an extended attribute; only its length if `size` is 0.
    pub(in crate::fuse) fn xattr(&mut self, value: &[u8], size: u32) -> Result<()> {
        let length = u32::try_from(value.len()).map_err(|_| Errno::TOOBIG)?;
        match size {
            0 => self.u32s([length, 0]),
            size if size < length => Err(Errno::RANGE),
            _ => self.bytes(value),
        }
    }
}

const FUSE_ATTR: usize = 88;
const FUSE_ENTRY_OUT: usize = 40 + FUSE_ATTR;
const FUSE_DIRENT: usize = 24;

/// Encodes a listing for `READDIR` or `READDIRPLUS`.
pub(in crate::fuse) struct DirReply<'a, 'b> {
    reply: &'a mut Reply<'b>,
    /// Maximum length of the payload.
    limit: usize,
    plus: bool,
}

impl<'a, 'b> DirReply<'a, 'b> {
    /// `size` is the kernel's room; `plus` is true for looked-up entries.
    pub(in crate::fuse) fn new(reply: &'a mut Reply<'b>, size: u32, plus: bool) -> Self {
        let limit = usize::try_from(size).map_or(reply.bytes.len(), |size| reply.bytes.len().min(size));
        Self { reply, limit, plus }
    }

    fn add(&mut self, name: &DirEntry<'_>, entry: Option<&Entry>) -> Result<()> {
        if self.plus {
            match entry {
                Some(entry) => self.reply.entry(entry)?,
                // fuse_direntplus_link(): node id 0 means that the entry was not looked up.
                None => self.reply.bytes(&[0; FUSE_ENTRY_OUT])?,
            }
        }
        let bytes = name.name.as_bytes();
        self.reply.u64s([name.ino, name.next])?;
        self.reply.u32s([u32::try_from(bytes.len()).map_err(|_| Errno::OVERFLOW)?, u32::from(name.kind)])?;
        self.reply.bytes(bytes)?;
        let padding = bytes.len().next_multiple_of(8) - bytes.len();
        self.reply.bytes([0; 8].get(..padding).unwrap_or_default())
    }
}

impl DirSink for DirReply<'_, '_> {
    fn push(&mut self, name: &DirEntry<'_>, entry: Option<&Entry>) -> bool {
        let start = self.reply.end;
        let before_name = if self.plus { FUSE_ENTRY_OUT + FUSE_DIRENT } else { FUSE_DIRENT };
        let size = before_name + name.name.len().next_multiple_of(8);
        if start.saturating_add(size) > self.limit {
            return false;
        }
        let added = self.add(name, entry).is_ok();
        if !added {
            self.reply.end = start;
        }
        added
    }
}

/// The kernel's `new_encode_dev()`.
fn encode_device((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}
