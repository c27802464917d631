//! The order in which changes reach the disk.
//!
//! The content of a copied-up file must be safe before the file gets its name: otherwise, after a crash, the name
//! would hide the lower file and show less content. An fsync ensures that, but costs a commit of the journal and a
//! flush of the disk for each file (2.5 ms here; one write takes 0.6 ms). The kernel's overlayfs pays that price
//! (`ovl_copy_up_file`).
//!
//! A journal makes it cheaper. It commits changes of names and attributes in the order in which they were made, and
//! flushes the disk's cache before each commit. So it is enough that the content was *written* before the name is
//! given: writing allocates the blocks and sets the size on the disk, and both come before the name in the journal.
//! An fsync of the file by a user still commits the journal up to that point.
//!
//! - ext4, where `ext4_end_io_end` ends the writing of a page only after it has recorded its blocks; with `data=ordered`,
//!   which is the default. Not used without a journal, nor with `data=writeback`.
//! - xfs, where `iomap_finish_ioend` likewise comes after `xfs_setfilesize` and `xfs_iomap_write_unwritten`. Not used
//!   with a realtime device, which has its own cache.
//! - Not used on btrfs: `btrfs_finish_ordered_io` runs long after the page was marked clean.

use std::fs;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::confined::mountinfo;
use crate::union::layer::{Stat, UpperDir};

/// `f_type` of ext2, ext3 and ext4.
const EXT4: u64 = 0xef53;
/// `f_type` of xfs.
const XFS: u64 = 0x5846_5342;

/// How a file's content is made safe before the file gets its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Written: the journal does the rest.
    Journal,
    /// By fsync: the file system is not known to keep an order.
    Unknown,
}

impl Order {
    /// The order on the file system of `root`, whose attributes are `stat`.
    pub(super) fn of(root: &UpperDir, stat: &Stat) -> Self {
        let kind = root.open_self().and_then(rustix::fs::fstatfs).map(|found| found.f_type.cast_unsigned());
        let ordered = match kind {
            Ok(EXT4) => ext4_options(stat).is_some_and(|options| is_ordered_ext4(&options)),
            Ok(XFS) => has_realtime_device(stat) == Some(false),
            Ok(_) | Err(_) => false,
        };
        if ordered { Self::Journal } else { Self::Unknown }
    }

    /// Makes sure that the content of `file` reaches the disk no later than any later change of names. Calls `go_on`
    /// between pieces; its error ends the work.
    pub(super) fn settle(
        self,
        file: std::os::fd::BorrowedFd<'_>,
        go_on: impl Fn() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        /// Bytes that a disk writes in about ten milliseconds.
        const PIECE: u64 = 16 << 20;
        let size = rustix::fs::fstat(file)?.st_size.cast_unsigned();
        for start in (0..size.saturating_sub(PIECE)).step_by(PIECE as usize) {
            go_on()?;
            match crate::sys::write_out::write_out_range(file, start, PIECE) {
                Ok(()) => {}
                Err(Errno::NOSYS | Errno::OPNOTSUPP) => break,
                Err(errno) => return Err(errno),
            }
        }
        go_on()?;
        match self {
            Self::Unknown => rustix::fs::fsync(file),
            Self::Journal => match crate::sys::write_out::write_out(file) {
                Err(Errno::NOSYS | Errno::OPNOTSUPP) => rustix::fs::fsync(file),
                done => done,
            },
        }
    }
}

/// The content of `/proc/fs/ext4/DEVICE/options` for the mounted file system; `None` if there is no such file.
fn ext4_options(stat: &Stat) -> Option<String> {
    let (major, minor) = stat.device;
    let device = fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    fs::read_to_string(PathBuf::from("/proc/fs/ext4").join(device.file_name()?).join("options")).ok()
}

fn is_ordered_ext4(options: &str) -> bool {
    options.lines().any(|line| line == "data=ordered")
}

/// True if the mounted file system has a realtime device; `None` if the table of mounts does not list it.
fn has_realtime_device(stat: &Stat) -> Option<bool> {
    let table = fs::read(mountinfo::OWN).ok()?;
    let mount = mountinfo::parse(&table).find(|mount| mount.device == stat.device)?;
    Some(mount.options.split(|&byte| byte == b',').any(|option| option.starts_with(b"rtdev=")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_ordered_journal_counts() {
        assert!(is_ordered_ext4("rw\nbarrier\ndata=ordered\nmax_batch_time=15000\n"));
        assert!(!is_ordered_ext4("rw\ndata=writeback\n"));
        assert!(!is_ordered_ext4("rw\nbarrier\n"), "no journal");
        assert!(!is_ordered_ext4(""));
    }
}
