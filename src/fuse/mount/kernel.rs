//! Requests of the overlay to the kernel.

use std::ffi::OsStr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::{BackingId, INodeNo, Notifier};

use crate::driver::node::NodeId;
use crate::driver::types::{Errno, Kernel, Result};
use crate::sys::fuse_device;

/// The kernel's end of the connection.
pub(super) struct Connection {
    /// Any descriptor of the connection: registrations belong to the whole connection.
    device: OwnedFd,
    notifier: Notifier,
    /// The kernel will never accept a registration from us.
    no_passthrough: AtomicBool,
    /// A refusal was logged; later ones are not.
    refusal_logged: AtomicBool,
}

impl Connection {
    pub(super) fn new(device: OwnedFd, notifier: Notifier) -> Self {
        Self { device, notifier, no_passthrough: AtomicBool::new(false), refusal_logged: AtomicBool::new(false) }
    }

    /// An invalidation can only fail because the kernel does not know the inode, which is just as good.
    fn invalidate(&self, node: NodeId, offset: i64) {
        if let Err(error) = self.notifier.inval_inode(INodeNo(node.0), offset, 0) {
            tracing::debug!(node = node.0, %error, "the kernel did not take an invalidation");
        }
    }
}

impl Kernel for Connection {
    fn register_backing(&self, file: BorrowedFd<'_>) -> Result<u32> {
        if self.no_passthrough.load(Ordering::Relaxed) {
            return Err(Errno::PERM);
        }
        BackingId::create_raw(&self.device, file).map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            // EPERM concerns the process; ELOOP (a backing file on a stacked file system) and EOPNOTSUPP concern this file.
            if errno == Errno::PERM {
                self.no_passthrough.store(true, Ordering::Relaxed);
            }
            if !self.refusal_logged.swap(true, Ordering::Relaxed) {
                tracing::info!(%error, "a file cannot be passed through; it goes through the page cache");
            }
            errno
        })
    }

    fn unregister_backing(&self, backing: u32) {
        if let Err(error) = fuse_device::close_backing(&self.device, backing) {
            tracing::error!(backing, %error, "a passthrough registration cannot be taken back");
        }
    }

    fn invalidate_attr(&self, node: NodeId) {
        // fuse_reverse_inval_inode(): a negative offset leaves the pages alone.
        self.invalidate(node, -1);
    }

    fn invalidate_pages(&self, node: NodeId) {
        self.invalidate(node, 0);
    }

    fn invalidate_entry(&self, parent: NodeId, name: &OsStr) {
        if let Err(error) = self.notifier.inval_entry(INodeNo(parent.0), name) {
            tracing::debug!(parent = parent.0, ?name, %error, "the kernel did not take an invalidation");
        }
    }

    fn delete_entry(&self, parent: NodeId, name: &OsStr, child: NodeId) {
        // fuse_reverse_inval_entry() drops the name in any case. It fails for a directory in which files are still in use; then
        // the only loss is that the directory is not marked as deleted.
        if let Err(error) = self.notifier.delete(INodeNo(parent.0), INodeNo(child.0), name) {
            tracing::debug!(parent = parent.0, ?name, %error, "the kernel did not delete an entry");
        }
    }
}
