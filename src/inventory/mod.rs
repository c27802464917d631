//! The inventory of a layer: a file beside it with every name in the layer and its attributes. With it, lookups,
//! `stat` and listings need no system calls on the layer.
//!
//! The inventory of the layer directory `DIR` is the file `DIR.inventory` beside it (in a store,
//! `layers/ID/diff.inventory`). `strata` writes it when it unpacks a layer or on request (`strata inventory`).
//! `stratafs` maps it into memory, uses the parts that it can trust, and reads the rest from the layer.
//!
//! # Which parts are trusted
//!
//! - The whole file is trusted if it belongs to root or to the mounting user, no other user may write to it, its header is
//!   valid, it was made in the same user namespace, and the layer's root is unchanged: inode, mode, owner, size, link count,
//!   mtime and ctime are compared. (A copied layer has other inodes.)
//! - A directory is trusted if its part of the file has the right checksum and the directory is unchanged; one
//!   `statx(2)` at its first use checks that. So added, removed and replaced names are noticed.
//! - A file is checked when it is opened: its inode, size, mtime and ctime are compared. Until then, attributes that
//!   were changed in place while the layer was not mounted are shown with their old values. Layers must not change,
//!   as with the kernel's overlayfs. After such a change, make the inventory again or remove it.
//!
//! Parts that are not trusted are read from the layer, as if there were no inventory; one line in the log says so.
//!
//! # Format
//!
//! Numbers are in the machine's byte order. The file has a header. Then, for each directory, it has a block with its
//! [`Record`]s in the order of their positions (see [`position::allot`]) and their names, each ended by a NUL. Then it
//! has one [`DirRecord`] for each directory, number 1 (the root) first. The header and each directory (record and block
//! together) have their own checksum (CRC-32), so a mount need not read the parts that it does not use.

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

/// Number of a directory in an inventory; the root is the first.
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

    /// As an index from 0.
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
    /// The file is not an inventory, or is damaged.
    #[error("damaged: {0}")]
    Damaged(&'static str),
    /// It was made by a later version of this program.
    #[error("of another version")]
    Version,
    /// A user without the right to mount may write to it.
    #[error("users other than root and the mounting user may write to it")]
    Untrusted,
    /// Its owners are those of another user namespace.
    #[error("made in another user namespace")]
    Namespace,
    /// It belongs to another directory, or the layer's root has changed.
    #[error("the layer is another or has changed since it was made")]
    Stale,
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(rustix::io::Errno),
}

/// The path of the inventory for the layer directory `dir`.
pub(crate) fn path_of(dir: &Path) -> Option<PathBuf> {
    let mut name = OsString::from(dir.file_name()?);
    name.push(".inventory");
    Some(dir.with_file_name(name))
}

/// Checksum over all of `parts`.
fn checksum(parts: &[&[u8]]) -> u32 {
    let mut crc = flate2::Crc::new();
    parts.iter().for_each(|part| crc.update(part));
    crc.sum()
}

/// The user namespace's mappings as a number for comparison: owners in an inventory are those in its maker's namespace.
fn namespace() -> u32 {
    let read = |path: &str| std::fs::read(path).unwrap_or_default();
    checksum(&[&read("/proc/self/uid_map"), &read("/proc/self/gid_map")])
}

/// True if this process can see `trusted.*` attributes; for others, a file with only such attributes seems to have none.
fn sees_trusted() -> bool {
    has_everywhere(CapabilitySet::SYS_ADMIN)
}
