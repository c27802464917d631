//! Negotiation with the kernel at the start (`INIT`).

use std::io;
use std::sync::{Arc, OnceLock};

use fuser::{Filesystem, InitFlags, KernelConfig, Request};

use crate::fuse::wire::MAX_WRITE;

/// Most requests that the kernel sends without a waiting process (readahead, write-back).
const MAX_BACKGROUND: u16 = 64;

/// Features that we ask for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wishes {
    /// The upper supports POSIX ACLs.
    pub(super) acls: bool,
    /// The option `writeback`.
    pub(super) writeback: bool,
    /// Passthrough is wanted, and the process is privileged enough for it.
    pub(super) passthrough: bool,
    /// Mounts of this mount may map ids (Linux 6.12). The kernel refuses `INIT` if it does not check permissions itself
    /// (`default_permissions`). With this, it sends the caller's ids only with requests that create files.
    pub(super) idmap: bool,
    /// The kernel may keep the targets of symbolic links: no layer changes. It keeps them for as long as it knows the inode.
    pub(super) keep_links: bool,
    /// Rings are wanted for requests, and this process may have them.
    pub(super) rings: bool,
}

/// Features that the kernel granted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Agreed {
    /// `FUSE_PASSTHROUGH`
    pub(super) passthrough: bool,
    /// `FUSE_OVER_IO_URING`: all requests wait until the rings exist or are refused.
    pub(super) rings: bool,
    /// `FUSE_SETXATTR_EXT`: `SETXATTR` has longer arguments.
    pub(super) setxattr_ext: bool,
    /// `FUSE_NO_OPENDIR_SUPPORT`: directories need no open.
    pub(super) no_opendir: bool,
}

/// The file system that fuser sees; it only answers `INIT`.
pub(super) struct Handshake {
    wishes: Wishes,
    /// Set when `INIT` was answered.
    agreed: Arc<OnceLock<Agreed>>,
}

impl Handshake {
    pub(super) fn new(wishes: Wishes) -> (Self, Arc<OnceLock<Agreed>>) {
        let agreed = Arc::new(OnceLock::new());
        (Self { wishes, agreed: Arc::clone(&agreed) }, agreed)
    }

    /// Asks only for what `serve` implements. Left out on purpose: `POSIX_LOCKS` and `FLOCK_LOCKS` (the kernel then keeps
    /// locks on its inodes, where they outlive a copy-up), `HANDLE_KILLPRIV` (we use v2), `AUTO_INVAL_DATA` (nothing
    /// changes without the kernel knowing), `NO_OPEN_SUPPORT` (handles keep open files through copy-up and unlink),
    /// `SPLICE_*` (we copy).
    fn flags(&self) -> InitFlags {
        let mut flags = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_BIG_WRITES
            | InitFlags::FUSE_MAX_PAGES
            | InitFlags::FUSE_ATOMIC_O_TRUNC
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA
            | InitFlags::FUSE_DONT_MASK
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_SETXATTR_EXT
            | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP
            | InitFlags::FUSE_NO_EXPORT_SUPPORT
            | InitFlags::FUSE_NO_OPENDIR_SUPPORT
            | InitFlags::FUSE_ABORT_ERROR;
        if self.wishes.acls {
            flags |= InitFlags::FUSE_POSIX_ACL;
        }
        if self.wishes.keep_links {
            flags |= InitFlags::FUSE_CACHE_SYMLINKS;
        }
        if self.wishes.idmap {
            flags |= InitFlags::FUSE_ALLOW_IDMAP;
        }
        if self.wishes.rings {
            flags |= InitFlags::FUSE_OVER_IO_URING;
        }
        // process_init_reply() accepts one of the two.
        if self.wishes.writeback {
            flags |= InitFlags::FUSE_WRITEBACK_CACHE;
        } else if self.wishes.passthrough {
            flags |= InitFlags::FUSE_PASSTHROUGH;
        }
        flags
    }
}

impl Filesystem for Handshake {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let refused = |what: &str| io::Error::other(format!("the FUSE library refused {what}"));
        let granted = self.flags() & config.capabilities();
        config.add_capabilities(granted).map_err(|_| refused("capabilities that the kernel has"))?;
        config.set_max_write(MAX_WRITE).map_err(|_| refused("max_write"))?;
        config.set_max_background(MAX_BACKGROUND).map_err(|_| refused("max_background"))?;
        // 1, so that an overlayfs can still be mounted on us. Backing files on a stacked file system are refused
        // (ELOOP) one by one.
        config.set_max_stack_depth(1).map_err(|_| refused("max_stack_depth"))?;
        let agreed = Agreed {
            passthrough: granted.contains(InitFlags::FUSE_PASSTHROUGH),
            rings: granted.contains(InitFlags::FUSE_OVER_IO_URING),
            setxattr_ext: granted.contains(InitFlags::FUSE_SETXATTR_EXT),
            no_opendir: granted.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT),
        };
        tracing::debug!(kernel = %config.kernel_abi(), ?granted, "INIT");
        self.agreed.set(agreed).map_err(|_| refused("a second INIT"))
    }
}
