//! The fixed parts of the format.

use rustix::fs::{Statx, StatxFlags, StatxTimestamp};

/// First bytes of the file.
const MAGIC: &[u8; 8] = b"stratinv";
/// Version of the format.
const VERSION: u32 = 2;

/// A point in time in nanoseconds since 1970; 1677 to 2262.
pub type Tick = i64;

/// Attributes must be asked of the layer: they do not fit, or the file is on another file system.
const ASK: u16 = 1;
/// The file has no extended attribute at all.
const NO_XATTRS: u16 = 1 << 1;
/// None of its extended attributes is a mark.
const NO_MARKS: u16 = 1 << 2;
/// Its time of creation is known.
const HAS_BTIME: u16 = 1 << 3;
/// Where in the flags the preferred I/O size is, as a power of two.
const BLKSIZE_SHIFT: u32 = 8;

/// The bytes of `from` at `at`.
fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u32_at(from: &[u8], at: usize) -> Option<u32> {
    bytes(from, at).map(u32::from_le_bytes)
}

fn u64_at(from: &[u8], at: usize) -> Option<u64> {
    bytes(from, at).map(u64::from_le_bytes)
}

fn i64_at(from: &[u8], at: usize) -> Option<i64> {
    bytes(from, at).map(i64::from_le_bytes)
}

/// The first bytes of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// `trusted.*` attributes showed to who made it.
    pub(super) saw_trusted: bool,
    /// Length of the file.
    pub(super) length: u64,
    /// Where the [`DirRecord`]s begin.
    pub(super) dirs_at: u64,
    /// How many there are.
    pub(super) dirs: u32,
    /// The user namespace that it was made in.
    pub(super) namespace: u32,
    /// Number of names in the layer.
    pub(super) entries: u64,
}

/// Why a header is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadHeader {
    Version,
    Damaged,
}

impl Header {
    pub(super) const SIZE: usize = 64;
    /// Where its checksum is.
    const SUM_AT: usize = 60;

    pub(super) fn encode(&self) -> [u8; Self::SIZE] {
        let mut out = Vec::with_capacity(Self::SIZE);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&u32::from(self.saw_trusted).to_le_bytes());
        out.extend_from_slice(&self.length.to_le_bytes());
        out.extend_from_slice(&self.dirs_at.to_le_bytes());
        out.extend_from_slice(&self.dirs.to_le_bytes());
        out.extend_from_slice(&self.namespace.to_le_bytes());
        out.extend_from_slice(&self.entries.to_le_bytes());
        out.resize(Self::SUM_AT, 0);
        let sum = super::checksum(&[&out]);
        out.extend_from_slice(&sum.to_le_bytes());
        fixed(&out)
    }

    pub(super) fn decode(from: &[u8]) -> Result<Self, BadHeader> {
        if from.get(..MAGIC.len()) != Some(MAGIC) {
            return Err(BadHeader::Damaged);
        }
        let summed = from.get(..Self::SUM_AT).ok_or(BadHeader::Damaged)?;
        if u32_at(from, Self::SUM_AT) != Some(super::checksum(&[summed])) {
            return Err(BadHeader::Damaged);
        }
        if u32_at(from, 8) != Some(VERSION) {
            return Err(BadHeader::Version);
        }
        let header = || {
            Some(Self {
                saw_trusted: u32_at(from, 12)? != 0,
                length: u64_at(from, 16)?,
                dirs_at: u64_at(from, 24)?,
                dirs: u32_at(from, 32)?,
                namespace: u32_at(from, 36)?,
                entries: u64_at(from, 40)?,
            })
        };
        header().ok_or(BadHeader::Damaged)
    }
}

/// `from`, which has this many bytes.
fn fixed<const N: usize>(from: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    out
}

/// What is known of one name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    /// Last access, when the inventory was made.
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
    /// Of a device file: its number. Of a directory: its number in the inventory, 0 if it is not in it, and 0.
    pub special: (u32, u32),
    /// Type and permission bits.
    pub mode: u16,
    flags: u16,
    /// Where its name is among those of the directory.
    pub(super) name_at: u32,
}

impl Record {
    pub(super) const SIZE: usize = 88;

    /// What `statx(2)` says; `None` of `no_xattrs` and `no_marks` means unknown is not known to be absent.
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
            special: (stat.stx_rdev_major, stat.stx_rdev_minor),
            mode: stat.stx_mode,
            flags,
            name_at: 0,
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        for word in [self.position, self.ino, self.size] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        for time in [self.mtime, self.ctime, self.atime, self.btime] {
            out.extend_from_slice(&time.to_le_bytes());
        }
        for word in [self.blocks, self.uid, self.gid, self.nlink, self.special.0, self.special.1] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&self.mode.to_le_bytes());
        out.extend_from_slice(&self.flags.to_le_bytes());
        out.extend_from_slice(&self.name_at.to_le_bytes());
    }

    /// Reads one from the first bytes of `from`.
    pub(super) fn decode(from: &[u8]) -> Option<Self> {
        let u16_at = |at| bytes(from, at).map(u16::from_le_bytes);
        Some(Self {
            position: u64_at(from, 0)?,
            ino: u64_at(from, 8)?,
            size: u64_at(from, 16)?,
            mtime: i64_at(from, 24)?,
            ctime: i64_at(from, 32)?,
            atime: i64_at(from, 40)?,
            btime: i64_at(from, 48)?,
            blocks: u32_at(from, 56)?,
            uid: u32_at(from, 60)?,
            gid: u32_at(from, 64)?,
            nlink: u32_at(from, 68)?,
            special: (u32_at(from, 72)?, u32_at(from, 76)?),
            mode: u16_at(80)?,
            flags: u16_at(82)?,
            name_at: u32_at(from, 84)?,
        })
    }

    /// The position alone, of the record that begins `from`.
    pub(super) fn position_in(from: &[u8]) -> Option<u64> {
        u64_at(from, 0)
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

    /// Its number in the inventory, of a directory that is in it.
    pub fn directory(&self) -> Option<super::DirNumber> {
        if self.kind() == libc::DT_DIR { super::DirNumber::new(self.special.0) } else { None }
    }

    /// True if it is the same file as `other` and unchanged, as far as that can be seen: access times are left out.
    pub(crate) fn is_unchanged(&self, other: &Self) -> bool {
        let seen = |r: &Self| (r.ino, r.size, r.mtime, r.ctime, r.uid, r.gid, r.nlink, r.mode);
        !self.must_ask() && !other.must_ask() && seen(self) == seen(other)
    }
}

/// What is known of one directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirRecord {
    /// Where its block is.
    pub(super) block_at: u64,
    /// Number of names in it.
    pub(super) entries: u32,
    /// Length of the names.
    pub(super) names: u32,
    /// None of its names is a whiteout, or may be one, or speaks of another (`.wh.…`).
    pub(super) plain: bool,
    /// The directory itself.
    pub own: Record,
}

impl DirRecord {
    pub(super) const SIZE: usize = 24 + Record::SIZE;

    /// The record as directory `number` with this block, and its checksum.
    pub(super) fn encode(&self, number: u32, block: &[u8]) -> [u8; Self::SIZE] {
        let fields = self.fields();
        let sum = super::checksum(&[&number.to_le_bytes(), &fields, block]);
        fixed(&[&sum.to_le_bytes()[..], &fields].concat())
    }

    fn fields(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::SIZE);
        out.extend_from_slice(&u32::from(self.plain).to_le_bytes());
        out.extend_from_slice(&self.block_at.to_le_bytes());
        out.extend_from_slice(&self.entries.to_le_bytes());
        out.extend_from_slice(&self.names.to_le_bytes());
        self.own.encode(&mut out);
        out
    }

    /// Reads the record that begins `from`, without believing it.
    pub(super) fn decode(from: &[u8]) -> Option<Self> {
        Some(Self {
            plain: u32_at(from, 4)? != 0,
            block_at: u64_at(from, 8)?,
            entries: u32_at(from, 16)?,
            names: u32_at(from, 20)?,
            own: Record::decode(from.get(24..)?)?,
        })
    }

    /// Length of its block.
    pub(super) fn block_length(&self) -> Option<usize> {
        (self.entries as usize).checked_mul(Record::SIZE)?.checked_add(self.names as usize)
    }

    /// True if the record that begins `from`, number `number`, has the right checksum with this block.
    pub(super) fn is_sound(from: &[u8], number: u32, block: &[u8]) -> bool {
        let Some(fields) = from.get(4..Self::SIZE) else { return false };
        u32_at(from, 0) == Some(super::checksum(&[&number.to_le_bytes(), fields, block]))
    }
}
