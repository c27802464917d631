//! The fixed parts of the format.

use rustix::fs::{Statx, StatxFlags, StatxTimestamp};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// First bytes of the file.
const MAGIC: &[u8; 8] = b"stratinv";
/// Version of the format.
const VERSION: u32 = 2;

/// A point in time in nanoseconds since 1970; 1677 to 2262.
pub type Tick = i64;

/// Attributes must be read from the layer: they do not fit the record, or the file is on another file system.
const ASK: u16 = 1;
/// The file has no extended attribute at all.
const NO_XATTRS: u16 = 1 << 1;
/// None of its extended attributes is a mark.
const NO_MARKS: u16 = 1 << 2;
/// Its time of creation is known.
const HAS_BTIME: u16 = 1 << 3;
/// Position of the preferred I/O size, as a power of two, in the flags.
const BLKSIZE_SHIFT: u32 = 8;

/// The first bytes of the file. All numbers in the file have the byte order of the machine that made it; on a machine
/// with the other order, the version does not match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Header {
    magic: [u8; 8],
    version: u32,
    /// Nonzero if the process that made the file could see `trusted.*` attributes.
    saw_trusted: u32,
    /// Length of the file.
    pub(super) length: u64,
    /// Offset of the [`DirRecord`]s.
    pub(super) dirs_at: u64,
    /// Number of [`DirRecord`]s.
    pub(super) dirs: u32,
    /// The user namespace of the process that made the file.
    pub(super) namespace: u32,
    /// Number of names in the layer.
    pub(super) entries: u64,
    unused: [u8; 12],
    /// Checksum of the bytes before it.
    sum: u32,
}

/// Why a header cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadHeader {
    Version,
    Damaged,
}

impl Header {
    pub(super) const SIZE: usize = size_of::<Self>();

    /// The header of a file of `length` bytes whose `dirs` directory records begin at `dirs_at`.
    pub(super) fn new(saw_trusted: bool, length: u64, dirs_at: u64, dirs: u32, namespace: u32, entries: u64) -> Self {
        let mut header = Self {
            magic: *MAGIC,
            version: VERSION,
            saw_trusted: saw_trusted.into(),
            length,
            dirs_at,
            dirs,
            namespace,
            entries,
            unused: [0; 12],
            sum: 0,
        };
        header.sum = header.checksum();
        header
    }

    /// Reads the header at the start of `from`.
    pub(super) fn decode(from: &[u8]) -> Result<Self, BadHeader> {
        let (header, _) = Self::read_from_prefix(from).map_err(|_| BadHeader::Damaged)?;
        if header.magic != *MAGIC || header.sum != header.checksum() {
            return Err(BadHeader::Damaged);
        }
        if header.version == VERSION { Ok(header) } else { Err(BadHeader::Version) }
    }

    /// True if the process that made the file could see `trusted.*` attributes.
    pub(super) fn saw_trusted(&self) -> bool {
        self.saw_trusted != 0
    }

    fn checksum(&self) -> u32 {
        super::checksum(&[self.as_bytes().get(..Self::SIZE - size_of::<u32>()).unwrap_or_default()])
    }
}

/// The record of one name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Record {
    /// Position in listings; unique in the directory.
    pub position: u64,
    /// Inode number.
    pub ino: u64,
    /// Size in bytes.
    pub size: u64,
    /// Last change of content.
    pub mtime: Tick,
    /// Last change of attributes.
    pub ctime: Tick,
    /// Last access before the inventory was made.
    pub atime: Tick,
    /// Creation; 0 unless `Self::has_btime`.
    pub btime: Tick,
    /// Allocated size in units of 512 bytes.
    pub blocks: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names.
    pub nlink: u32,
    /// For a device file: its number. For a directory: its number in the inventory (0 if it is not in it), and 0.
    pub special: [u32; 2],
    /// Type and permission bits.
    pub mode: u16,
    flags: u16,
    /// Position of its name in the directory's names.
    pub(super) name_at: u32,
}

impl Record {
    pub(super) const SIZE: usize = size_of::<Self>();

    /// The record for a file with these attributes. `no_xattrs` and `no_marks`: `false` means unknown.
    pub(super) fn of(stat: &Statx, same_device: bool, no_xattrs: bool, no_marks: bool) -> Self {
        let mut flags = if no_xattrs { NO_XATTRS } else { 0 } | if no_marks { NO_MARKS } else { 0 };
        let has_btime = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
        let time = |time: StatxTimestamp| {
            let whole = time.tv_sec.checked_mul(1_000_000_000)?;
            whole.checked_add(i64::from(time.tv_nsec))
        };
        let times = (|| {
            let btime = if has_btime { time(stat.stx_btime)? } else { 0 };
            Some((time(stat.stx_mtime)?, time(stat.stx_ctime)?, time(stat.stx_atime)?, btime))
        })();
        let blocks = u32::try_from(stat.stx_blocks);
        if !same_device || times.is_none() || blocks.is_err() || !stat.stx_blksize.is_power_of_two() {
            flags |= ASK;
        }
        if has_btime {
            flags |= HAS_BTIME;
        }
        flags |= ((stat.stx_blksize.trailing_zeros() & 31) << BLKSIZE_SHIFT) as u16;
        let (mtime, ctime, atime, btime) = times.unwrap_or_default();
        Self {
            position: 0,
            ino: stat.stx_ino,
            size: stat.stx_size,
            mtime,
            ctime,
            atime,
            btime,
            blocks: blocks.unwrap_or_default(),
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            nlink: stat.stx_nlink,
            special: [stat.stx_rdev_major, stat.stx_rdev_minor],
            mode: stat.stx_mode,
            flags,
            name_at: 0,
        }
    }

    /// True if only the layer knows the attributes.
    pub(crate) fn must_ask(&self) -> bool {
        self.flags & ASK != 0
    }

    /// True if the file has no extended attributes.
    pub(crate) fn has_no_xattrs(&self) -> bool {
        self.flags & NO_XATTRS != 0
    }

    /// True if the file has no marks.
    pub(crate) fn has_no_marks(&self) -> bool {
        self.flags & NO_MARKS != 0
    }

    /// True if its time of creation is known.
    pub(crate) fn has_btime(&self) -> bool {
        self.flags & HAS_BTIME != 0
    }

    /// Preferred I/O size in bytes.
    pub(crate) fn blksize(&self) -> u32 {
        1u32.checked_shl(u32::from(self.flags) >> BLKSIZE_SHIFT).unwrap_or(4096)
    }

    /// `DT_*`.
    pub fn kind(&self) -> u8 {
        (self.mode >> 12) as u8
    }

    /// For a directory in the inventory: its number.
    pub fn directory(&self) -> Option<super::DirNumber> {
        if self.kind() == libc::DT_DIR { super::DirNumber::new(self.special[0]) } else { None }
    }

    /// True if `other` is the same file and unchanged, ignoring access times.
    pub(crate) fn is_unchanged(&self, other: &Self) -> bool {
        let seen = |r: &Self| (r.ino, r.size, r.mtime, r.ctime, r.uid, r.gid, r.nlink, r.mode);
        !self.must_ask() && !other.must_ask() && seen(self) == seen(other)
    }
}

/// The record of one directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DirRecord {
    /// Checksum of the directory's number, of the rest of this record and of its block.
    sum: u32,
    /// Nonzero if none of its names is or may be a whiteout, or begins with `.wh.`.
    plain: u32,
    /// Offset of its block.
    block_at: u64,
    /// Number of names in it.
    pub(super) entries: u32,
    /// Length of the names.
    names: u32,
    /// The directory itself.
    pub own: Record,
}

impl DirRecord {
    pub(super) const SIZE: usize = size_of::<Self>();

    /// The record for directory `number`. Its block, with `entries` records and `names` bytes of names, is at `block_at`.
    pub(super) fn new(
        own: Record,
        plain: bool,
        (number, entries, names): (u32, u32, u32),
        at: u64,
        block: &[u8],
    ) -> Self {
        let mut record = Self { sum: 0, plain: plain.into(), block_at: at, entries, names, own };
        record.sum = record.checksum(number, block);
        record
    }

    /// Its block in `file`; `None` if that is out of range. The record may be damaged.
    pub(super) fn block<'a>(&self, file: &'a [u8]) -> Option<&'a [u8]> {
        let length = (self.entries as usize).checked_mul(Record::SIZE)?.checked_add(self.names as usize)?;
        let at = usize::try_from(self.block_at).ok()?;
        file.get(at..at.checked_add(length)?)
    }

    /// True if no name is or may be a whiteout, or begins with `.wh.`.
    pub(super) fn is_plain(&self) -> bool {
        self.plain != 0
    }

    /// True if the checksum matches directory `number` with this block.
    pub(super) fn is_sound(&self, number: u32, block: &[u8]) -> bool {
        self.sum == self.checksum(number, block)
    }

    fn checksum(&self, number: u32, block: &[u8]) -> u32 {
        let fields = self.as_bytes().get(size_of::<u32>()..).unwrap_or_default();
        super::checksum(&[&number.to_ne_bytes(), fields, block])
    }
}
