//! How to unpack, and what to accept.

use std::os::fd::BorrowedFd;

use crate::image::layer::marks::MarkStyle;
use crate::tar::Limits;
use crate::union::layer::XattrPermissions;

/// How to unpack a layer. The default is for root.
#[derive(Clone, Debug)]
pub struct UnpackOptions {
    /// The marks for whiteouts and opaque directories.
    pub marks: MarkStyle,
    /// The limits.
    pub limits: Limits,
    /// Give files their owner, mode and device numbers. Without it (if the caller is not root), they are
    /// recorded in `user.containers.override_stat`, and devices and FIFOs become empty files.
    pub keep_ownership: bool,
    /// Decompress, hash and extract in parallel; the result is the same either way.
    pub threads: bool,
    /// The layer will be synced: start writing large files while others are still extracted.
    pub write_out: bool,
}

impl Default for UnpackOptions {
    fn default() -> Self {
        Self {
            marks: MarkStyle::default(),
            limits: Limits::default(),
            keep_ownership: true,
            threads: true,
            write_out: false,
        }
    }
}

impl UnpackOptions {
    /// Where a mount of these layers finds owner, mode and type of their files.
    pub fn permissions(&self) -> XattrPermissions {
        if self.keep_ownership { XattrPermissions::Inode } else { XattrPermissions::Containers }
    }

    /// The default for root, otherwise [`UnpackOptions::unprivileged`].
    pub fn for_this_user() -> Self {
        if rustix::process::geteuid().is_root() { Self::default() } else { Self::unprivileged() }
    }

    /// For users without privileges.
    pub fn unprivileged() -> Self {
        Self { marks: MarkStyle::unprivileged(), keep_ownership: false, ..Self::default() }
    }
}

/// The layer directories below, topmost first.
#[derive(Clone, Copy)]
pub struct Lowers<'a> {
    /// The directories.
    pub dirs: &'a [BorrowedFd<'a>],
    /// Called before they are used; waits until they are complete. Returns false if they never will be.
    pub ready: &'a (dyn Fn() -> bool + Sync),
}
