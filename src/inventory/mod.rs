//! The inventory of a layer: every name in it with its attributes, in one file beside the layer. With it, a lookup, a
//! `stat` and a listing need no system call on the layer.
//!
//! The inventory of the layer directory `DIR` is the file `DIR.inventory` beside it (in a store,
//! `layers/ID/diff.inventory`). `strata` writes it when it unpacks a layer and when it is asked (`strata inventory`);
//! `stratafs` maps it into memory and uses it where it can be believed, and the layer itself where not.
//!
//! # What is believed
//!
//! - The whole file, if it belongs to root or to the user who mounts, no other user may write it, its header is sound, the user
//!   namespace is the one that it was made in, and the layer's root is the directory that it was made of, unchanged:
//!   inode, mode, owner, size, link count, mtime and ctime are compared. A layer that was copied has other inodes.
//! - A directory, if its part of the file has the right checksum and the directory is the same and unchanged, which
//!   one `statx(2)` tells when it is used first. So a name that came, went or was replaced is noticed.
//! - A file: when it is opened, its inode, size, mtime and ctime are compared. Until then, attributes that were
//!   changed in place while nothing was mounted show as they were. Layers are not to be changed; as with the kernel's
//!   overlayfs, who does so anyway makes the inventory again or removes it.
//!
//! What is not believed is read from the layer, as if there were no inventory; one line in the log says so.
//!
//! # Format
//!
//! Numbers are in the machine's byte order. A header; for each directory a block, holding its [`Record`]s in the order of
//! their positions (see [`position::allot`]) and then their names, each ended by a NUL; then one [`DirRecord`] for each
//! directory, number 1 (the root) first. The header and each directory (record and block together) have a checksum
//! (CRC-32) of their own, so that a mount does not read what it does not use.

mod check;
pub mod position;
mod read;
mod record;
mod write;

use std::ffi::OsString;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use rustix::thread::CapabilitySet;

use crate::sys::namespace::has_everywhere;

pub use check::check;
pub use read::{Directory, Entry, Inventory};
pub use record::{DirRecord, Record, Tick};
pub(crate) use write::write_while;
pub use write::{Written, write};

/// Number of a directory in an inventory; the root has the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DirNumber(NonZeroU32);

impl DirNumber {
    /// The layer's root.
    pub const ROOT: Self = Self(NonZeroU32::MIN);

    fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    fn get(self) -> u32 {
        self.0.get()
    }

    /// From 0 on.
    fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// Why an inventory is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// There is none.
    #[error("there is none")]
    Absent,
    /// It is not one, or is damaged.
    #[error("damaged: {0}")]
    Damaged(&'static str),
    /// It was made by a later version of this program.
    #[error("of another version")]
    Version,
    /// A user who may not mount may write it.
    #[error("others than root and who mounts may write it")]
    Untrusted,
    /// Owners in it are those of another user namespace.
    #[error("made in another user namespace")]
    Namespace,
    /// The layer is not the directory that it was made of, or its root has changed.
    #[error("the layer is another or has changed since it was made")]
    Stale,
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(rustix::io::Errno),
}

/// Where the inventory of the layer directory `dir` is.
pub(crate) fn path_of(dir: &Path) -> Option<PathBuf> {
    let mut name = OsString::from(dir.file_name()?);
    name.push(".inventory");
    Some(dir.with_file_name(name))
}

/// Checksum of what `parts` hold together.
fn checksum(parts: &[&[u8]]) -> u32 {
    let mut crc = flate2::Crc::new();
    parts.iter().for_each(|part| crc.update(part));
    crc.sum()
}

/// The user namespace's mappings, as a number to compare: owners in an inventory are numbers of its maker's.
fn namespace() -> u32 {
    let read = |path: &str| std::fs::read(path).unwrap_or_default();
    checksum(&[&read("/proc/self/uid_map"), &read("/proc/self/gid_map")])
}

/// True if `trusted.*` attributes show to this process; to others, a file that has them seems to have none.
fn sees_trusted() -> bool {
    has_everywhere(CapabilitySet::SYS_ADMIN)
}
