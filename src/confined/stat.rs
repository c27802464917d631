//! Attributes of a file.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;

/// Identity of a file system: `st_dev`.
pub type Device = (u32, u32);

/// Identity of a file: inode numbers are only unique within a file system or subvolume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// The file system or subvolume.
    pub device: Device,
    /// The inode number there.
    pub ino: u64,
}

/// A point in time, since 1970-01-01 UTC; seconds may be negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Whole seconds, rounded down.
    pub sec: i64,
    /// Nanoseconds, 0..1,000,000,000.
    pub nsec: u32,
}

/// Attributes from `statx(2)`.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    /// Inode number in its own file system.
    pub ino: u64,
    /// The file system.
    pub device: Device,
    /// Type and permission bits.
    pub mode: u32,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device file.
    pub rdev: (u32, u32),
    /// Size in bytes.
    pub size: u64,
    /// Allocated size in units of 512 bytes.
    pub blocks: u64,
    /// Preferred I/O size in bytes.
    pub blksize: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of attributes.
    pub ctime: Timestamp,
    /// Creation, where known.
    pub btime: Option<Timestamp>,
    /// The mount through which the file was reached.
    pub mount: u64,
    /// True if it is immutable. An inventory does not tell.
    pub immutable: bool,
    /// True if it is append-only. An inventory does not tell.
    pub append_only: bool,
}

/// Type of a file, from its mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    /// Regular file.
    Regular,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Device, fifo or socket.
    Special,
}

impl Stat {
    /// Attributes of `name` in `dir`, not following a symlink; of `dir` itself if `name` is empty.
    ///
    /// # Errors
    /// Those of `statx(2)`.
    pub fn of(dir: BorrowedFd<'_>, name: &CStr) -> Result<Self, Errno> {
        let flags = if name.is_empty() { AtFlags::EMPTY_PATH } else { AtFlags::SYMLINK_NOFOLLOW };
        let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID;
        let stx = rustix::fs::statx(dir, name, flags | AtFlags::NO_AUTOMOUNT, mask)?;
        let has = |attribute: StatxAttributes| stx.stx_attributes.contains(attribute);
        let time = |t: rustix::fs::StatxTimestamp| Timestamp { sec: t.tv_sec, nsec: t.tv_nsec };
        Ok(Self {
            ino: stx.stx_ino,
            device: (stx.stx_dev_major, stx.stx_dev_minor),
            mode: u32::from(stx.stx_mode),
            nlink: stx.stx_nlink,
            uid: stx.stx_uid,
            gid: stx.stx_gid,
            rdev: (stx.stx_rdev_major, stx.stx_rdev_minor),
            size: stx.stx_size,
            blocks: stx.stx_blocks,
            blksize: stx.stx_blksize,
            atime: time(stx.stx_atime),
            mtime: time(stx.stx_mtime),
            ctime: time(stx.stx_ctime),
            btime: (stx.stx_mask & StatxFlags::BTIME.bits() != 0).then(|| time(stx.stx_btime)),
            mount: stx.stx_mnt_id,
            // A file system that does not report APPEND (erofs) reports every file as immutable because it is read-only.
            immutable: has(StatxAttributes::IMMUTABLE) && stx.stx_attributes_mask.contains(StatxAttributes::APPEND),
            append_only: has(StatxAttributes::APPEND),
        })
    }

    /// Identity of the file.
    pub fn id(&self) -> FileId {
        FileId { device: self.device, ino: self.ino }
    }

    /// Type of the file.
    pub fn file_type(&self) -> FileType {
        match self.mode & libc::S_IFMT {
            libc::S_IFREG => FileType::Regular,
            libc::S_IFDIR => FileType::Directory,
            libc::S_IFLNK => FileType::Symlink,
            _ => FileType::Special,
        }
    }

    /// True for a directory.
    pub fn is_dir(&self) -> bool {
        self.file_type() == FileType::Directory
    }

    /// True for a character device 0:0 that is a whiteout and not a user's ([`Self::is_users_device`]).
    pub fn is_whiteout_device(&self) -> bool {
        is_whiteout_device(self.mode, self.rdev)
    }

    /// True for a character device 0:0 that a user made through a mount. Its sticky bit on disk says so: the bit has no
    /// meaning for a device, and no whiteout has it. The mount hides the bit.
    pub fn is_users_device(&self) -> bool {
        is_zero_device(self.mode, self.rdev) && self.mode & libc::S_ISVTX != 0
    }

    /// True for an empty regular file, which may be an xattr whiteout.
    pub fn may_be_xattr_whiteout(&self) -> bool {
        self.file_type() == FileType::Regular && self.size == 0
    }
}

/// True for the mode and device number of any character device 0:0.
pub(crate) fn is_zero_device(mode: u32, rdev: (u32, u32)) -> bool {
    mode & libc::S_IFMT == libc::S_IFCHR && rdev == (0, 0)
}

/// True for the mode and device number of a whiteout device.
pub(crate) fn is_whiteout_device(mode: u32, rdev: (u32, u32)) -> bool {
    is_zero_device(mode, rdev) && mode & libc::S_ISVTX == 0
}
