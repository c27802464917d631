//! Flags of inodes, as `chattr` sets them and `lsattr` shows them (kernel: `ovl_fileattr_get`, `ovl_fileattr_set`).
//!
//! Immutable and append-only are kept as a mark of the upper's file, never as its real flags, which would stop the driver
//! from changing it. All other flags are the real file's. The kernel has checked that the caller may change them.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::IFlags;

use crate::driver::Union;
use crate::driver::node::NodeRef;
use crate::driver::types::{Errno, NodeId, Result};
use crate::marks::{Mark, Protection};
use crate::sys::flags::{self, FSXATTR};

/// `FS_XFLAG_IMMUTABLE`, `FS_XFLAG_APPEND`
const XFLAGS: [u32; 2] = [1 << 3, 1 << 4];

/// The flags that are kept as a mark.
const KEPT: IFlags = IFlags::IMMUTABLE.union(IFlags::APPEND);

impl Union {
    /// Flags of a file or directory (`FS_IOC_GETFLAGS`).
    ///
    /// # Errors
    /// `NOTTY` if the layer's file system has no flags; others of `ioctl(2)`.
    pub(crate) fn flags(&self, node: NodeId) -> Result<u32> {
        let node = self.node(node)?;
        let Protection { immutable, append_only } = node.protection();
        let mut flags = rustix::fs::ioctl_getflags(self.open_for_flags(&node)?)?;
        flags.set(IFlags::IMMUTABLE, immutable || flags.contains(IFlags::IMMUTABLE));
        flags.set(IFlags::APPEND, append_only || flags.contains(IFlags::APPEND));
        Ok(flags.bits())
    }

    /// Sets the flags of a file or directory (`FS_IOC_SETFLAGS`).
    ///
    /// # Errors
    /// `ROFS`; `PERM` if the upper cannot store marks; those of copy-up and `ioctl(2)`.
    pub(crate) fn set_flags(&self, node: NodeId, flags: u32) -> Result<()> {
        let flags = IFlags::from_bits_retain(flags);
        let protection =
            Protection { immutable: flags.contains(IFlags::IMMUTABLE), append_only: flags.contains(IFlags::APPEND) };
        self.change_flags(node, protection, |file| rustix::fs::ioctl_setflags(file, flags.difference(KEPT)))
    }

    /// The `struct fsxattr` of a file or directory (`FS_IOC_FSGETXATTR`).
    ///
    /// # Errors
    /// As [`Self::flags`].
    pub(crate) fn extended_flags(&self, node: NodeId) -> Result<[u8; FSXATTR]> {
        let node = self.node(node)?;
        let Protection { immutable, append_only } = node.protection();
        let attributes = flags::get(self.open_for_flags(&node)?.as_fd())?;
        let mut shown = xflags(&attributes);
        for (is_set, flag) in [immutable, append_only].into_iter().zip(XFLAGS) {
            shown |= if is_set { flag } else { 0 };
        }
        Ok(with_xflags(attributes, shown))
    }

    /// Sets the `struct fsxattr` of a file or directory (`FS_IOC_FSSETXATTR`).
    ///
    /// # Errors
    /// As [`Self::set_flags`].
    pub(crate) fn set_extended_flags(&self, node: NodeId, attributes: [u8; FSXATTR]) -> Result<()> {
        let asked = xflags(&attributes);
        let [immutable, append_only] = XFLAGS.map(|flag| asked & flag != 0);
        let real = with_xflags(attributes, asked & !(XFLAGS[0] | XFLAGS[1]));
        self.change_flags(node, Protection { immutable, append_only }, |file| flags::set(file.as_fd(), &real))
    }

    fn open_for_flags(&self, node: &NodeRef) -> Result<OwnedFd> {
        self.on_real(node, |dir, name| dir.open_file(name))
    }

    fn change_flags(
        &self,
        asked: NodeId,
        protection: Protection,
        set_real: impl FnOnce(&OwnedFd) -> Result<()>,
    ) -> Result<()> {
        self.upper()?;
        let node = self.node(asked)?;
        self.copy_up(&node)?;
        // A file system without flags refuses here, before any change is made.
        self.on_upper(&node, |dir, name| set_real(&dir.open_file(name)?))?;
        self.mark_protection(&node, protection)?;
        node.protect(protection);
        self.changed_under(&node, asked);
        if let Some(kernel) = self.kernel() {
            // The change updated `ctime`.
            kernel.invalidate_attr(asked);
        }
        Ok(())
    }

    /// Stores immutable and append-only in the mark of the upper's file (kernel: `ovl_set_protattr`).
    fn mark_protection(&self, node: &NodeRef, protection: Protection) -> Result<()> {
        let key = self.upper()?.mark_key(Mark::Protattr);
        if !protection.is_any() {
            if !node.protection().is_any() {
                return Ok(());
            }
            return match self.on_upper(node, |dir, name| dir.remove_xattr(name, &key)) {
                Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
                done => done,
            };
        }
        // For files, marks are read only in impure directories.
        if node.dir().is_none()
            && let Some((parent, _)) = node.name()
        {
            self.mark_impure(&parent, &self.upper_dir(&parent)?)?;
        }
        match self.on_upper(node, |dir, name| dir.set_xattr(name, &key, protection.encode(), 0)) {
            Err(Errno::OPNOTSUPP) => Err(Errno::PERM),
            done => done,
        }
    }
}

/// The first field of a `struct fsxattr`.
fn xflags(attributes: &[u8; FSXATTR]) -> u32 {
    attributes.first_chunk().map_or(0, |field| u32::from_ne_bytes(*field))
}

fn with_xflags(mut attributes: [u8; FSXATTR], flags: u32) -> [u8; FSXATTR] {
    if let Some(field) = attributes.first_chunk_mut() {
        *field = flags.to_ne_bytes();
    }
    attributes
}
