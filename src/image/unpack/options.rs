//! How to unpack, and how much to accept.

use std::os::fd::BorrowedFd;

use crate::image::layer::marks::MarkStyle;
use crate::tar::Limits;

/// How a layer is unpacked. The default is right for root.
#[derive(Clone, Debug)]
pub struct UnpackOptions {
    /// The marks that whiteouts and opaque directories become.
    pub marks: MarkStyle,
    /// How much to accept.
    pub limits: Limits,
    /// Give files their owner, mode and device numbers. Without it (the caller is not root) they are recorded in
    /// `user.containers.override_stat`, and devices and FIFOs become empty files.
    pub keep_ownership: bool,
    /// Inflate, hash and extract at the same time; the result is the same either way.
    pub threads: bool,
    /// The layer will be synced: begin to write large files out while others are still being extracted.
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
    /// The default for root, else [`UnpackOptions::unprivileged`].
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
    /// Called before they are looked at: waits until they are complete. False if they never will be.
    pub ready: &'a (dyn Fn() -> bool + Sync),
}
