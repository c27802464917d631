//! The verbs, behind the gate. The FUSE side and tests call them.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::{RwLock, RwLockReadGuard};

use crate::config::OverlayConfig;
use crate::driver::checkpoint::Changes;
use crate::driver::readahead::ReadAhead;
use crate::driver::types::{
    Attr, Caller, DirSink, Entry, HandleId, KernelRef, NodeId, Opened, Result, SetAttr, StatFs, Validity,
};
use crate::driver::{OpenError, Union};
use crate::sys::flags::FSXATTR;

/// A mounted union.
///
/// Every verb may be called from any thread at any time. A verb holds the gate for reading from its start to its end; changes of
/// the stack of layers hold it for writing. So each verb runs entirely before or entirely after such a change.
pub struct Overlay {
    /// The union behind the gate.
    pub(super) union: RwLock<Union>,
    /// Changes of the stack of layers.
    pub(super) changes: Changes,
    /// The union's read-ahead: its thread waits for work without holding the gate.
    ahead: Arc<ReadAhead>,
}

impl Overlay {
    /// Opens and checks the layers, empties the work directory, and probes what the upper can do.
    ///
    /// Threads that call the verbs must have a umask of 0 (see `umask(2)`): the kernel sends every caller's umask.
    ///
    /// # Errors
    /// One line naming the layer and what is wrong with it.
    pub fn open(config: OverlayConfig) -> std::result::Result<Self, OpenError> {
        let union = Union::open(config)?;
        Ok(Self { ahead: Arc::clone(&union.read_ahead), changes: Changes::default(), union: RwLock::new(union) })
    }

    /// Enters the gate and holds it for reading.
    pub(super) fn enter(&self) -> RwLockReadGuard<'_, Union> {
        self.union.read()
    }

    /// Flushes everything to the disk, unless the mount never flushes.
    ///
    /// # Errors
    /// Errors of `syncfs(2)`.
    pub fn sync(&self) -> Result<()> {
        // No flush is made under the gate, because it may take long.
        let to_sync = self.enter().to_sync()?;
        to_sync.map_or(Ok(()), rustix::fs::syncfs)
    }

    /// Has the kernel write back what it keeps of open files, and waits for that: pages that were written through a mapping,
    /// and with `writeback` all writes. `syncfs(2)` on the mount only begins it with kernels that do not wait for FUSE
    /// (`wait_sb_inodes()` of Linux 6.18). Files that are not open have no such pages.
    ///
    /// Must not be called by a thread that answers requests.
    pub fn write_back(&self) {
        let (kernel, nodes) = {
            let union = self.enter();
            let nodes: BTreeSet<NodeId> = union.handles.cached_writers().iter().map(|node| node.id()).collect();
            (union.kernel.get().map(|attached| Arc::clone(&attached.kernel)), nodes)
        };
        // With the gate open, because the kernel's writes need it.
        if let Some(kernel) = kernel {
            nodes.into_iter().for_each(|node| kernel.invalidate_pages(node));
        }
    }

    /// Flushes an open file to the disk, unless the mount never flushes.
    ///
    /// # Errors
    /// `BADF`; errors of `fsync(2)`.
    pub fn fsync(&self, handle: HandleId, data_only: bool) -> Result<()> {
        let to_flush = self.enter().to_fsync(handle)?;
        to_flush.map_or(Ok(()), |flush| flush.run(data_only))
    }

    /// Flushes a directory to the disk, unless the mount never flushes.
    ///
    /// # Errors
    /// `NOTDIR`, `STALE`; errors of `fsync(2)`.
    pub fn fsync_dir(&self, node: NodeId, data_only: bool) -> Result<()> {
        let Some(dir) = self.enter().to_fsync_dir(node)? else { return Ok(()) };
        if data_only { rustix::fs::fdatasync(dir) } else { rustix::fs::fsync(dir) }
    }

    /// Reads ahead until [`Self::announce_end`]. Must be called by a thread of its own; without one, nothing is read ahead.
    pub fn read_ahead(&self) {
        self.ahead.attend();
        let mut kept = None;
        while let Some(job) = self.ahead.wait() {
            self.enter().read_ahead(&job, &mut kept);
        }
    }
}

/// Passes verbs on to the union, where their contracts are.
macro_rules! verbs {
    ($($(#[$doc:meta])+ $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)+) => {
        impl Overlay {
            $($(#[$doc])+
            pub fn $name(&self, $($argument: $type),*) $(-> $result)? {
                self.enter().$name($($argument),*)
            })+
        }
    };
}

verbs! {
    /// Connects to the kernel. Called once, when INIT has been answered and before the first request.
    attach(kernel: KernelRef, passthrough: bool);
    /// True when POSIX ACLs are kept and shown.
    has_acls() -> bool;
    /// True if the mount is read-only.
    is_read_only() -> bool;
    /// Memory of the listings that are kept, in bytes.
    listing_memory() -> usize;
    /// Number of nodes that the kernel knows, and of open handles.
    population() -> (usize, usize);
    /// Closes cached descriptors. Called when the process or the system has run out of descriptors.
    free_descriptors();
    /// Notes that the mount is gone; its requests may still be running. A new mount of the same upper then
    /// waits for [`Self::close`] and the end of the process.
    announce_end();
    /// Called after the last request: closes what is open and empties the work directory.
    close();
    /// The path of a node in the mount, for messages: its first known name; empty if it has none.
    path_of(node: NodeId) -> PathBuf;

    /// Resolves a name in a directory (`verbs/lookup`).
    lookup(parent: NodeId, name: &OsStr) -> Result<Option<Entry>>;
    /// The kernel drops lookups of a node (`verbs/lookup`).
    forget(node: NodeId, count: u64);
    /// Lists a directory (`verbs/readdir`).
    read_dir(node: NodeId, offset: u64, sink: &mut dyn DirSink) -> Result<()>;
    /// Lists a directory and looks every name up (`verbs/readdir`).
    read_dir_plus(node: NodeId, offset: u64, sink: &mut dyn DirSink) -> Result<()>;

    /// Attributes of a node (`verbs/attr`).
    getattr(node: NodeId, handle: Option<HandleId>) -> Result<(Attr, Validity)>;
    /// Changes attributes of a node (`verbs/attr`).
    setattr(caller: &Caller, node: NodeId, handle: Option<HandleId>, set: &SetAttr) -> Result<(Attr, Validity)>;
    /// Target of a symlink (`verbs/attr`).
    readlink(node: NodeId) -> Result<OsString>;
    /// Numbers of the file system (`verbs/attr`).
    statfs() -> Result<StatFs>;
    /// Flags of a file or directory (`verbs/flags`).
    flags(node: NodeId) -> Result<u32>;
    /// Sets the flags of a file or directory (`verbs/flags`).
    set_flags(node: NodeId, flags: u32) -> Result<()>;
    /// The `struct fsxattr` of a file or directory (`verbs/flags`).
    extended_flags(node: NodeId) -> Result<[u8; FSXATTR]>;
    /// Sets the `struct fsxattr` of a file or directory (`verbs/flags`).
    set_extended_flags(node: NodeId, attributes: [u8; FSXATTR]) -> Result<()>;

    /// Value of an extended attribute (`verbs/xattr`).
    getxattr(node: NodeId, key: &OsStr) -> Result<Vec<u8>>;
    /// Names of all extended attributes, each ended by a NUL (`verbs/xattr`).
    listxattr(node: NodeId) -> Result<Vec<u8>>;
    /// Sets an extended attribute (`verbs/xattr`).
    setxattr(caller: &Caller, node: NodeId, key: &OsStr, value: &[u8], flags: u32, kill_sgid: bool) -> Result<()>;
    /// Removes an extended attribute (`verbs/xattr`).
    removexattr(node: NodeId, key: &OsStr) -> Result<()>;

    /// Makes a device, fifo, socket or empty regular file (`verbs/create`).
    mknod(caller: &Caller, parent: NodeId, name: &OsStr, mode: u32, rdev: (u32, u32)) -> Result<Entry>;
    /// Makes a directory (`verbs/create`).
    mkdir(caller: &Caller, parent: NodeId, name: &OsStr, mode: u32) -> Result<Entry>;
    /// Makes a symlink (`verbs/create`).
    symlink(caller: &Caller, parent: NodeId, name: &OsStr, target: &OsStr) -> Result<Entry>;
    /// Makes a regular file and opens it (`verbs/create`).
    create(caller: &Caller, parent: NodeId, name: &OsStr, mode: u32, flags: u32, kill_suidgid: bool) -> Result<(Entry, Opened)>;
    /// Makes a regular file without a name and opens it (`verbs/create`).
    tmpfile(caller: &Caller, parent: NodeId, mode: u32, flags: u32) -> Result<(Entry, Opened)>;
    /// Gives a file a further name (`verbs/link`).
    link(node: NodeId, parent: NodeId, name: &OsStr) -> Result<Entry>;
    /// Removes a name that is not a directory (`verbs/remove`).
    unlink(parent: NodeId, name: &OsStr) -> Result<()>;
    /// Removes an empty directory (`verbs/remove`).
    rmdir(parent: NodeId, name: &OsStr) -> Result<()>;
    /// Moves a name, and leaves a device 0:0 behind (`verbs/rename`).
    rename_with_whiteout(caller: &Caller, from: (NodeId, &OsStr), to: (NodeId, &OsStr), flags: u32) -> Result<()>;
    /// Moves a name (`verbs/rename`).
    rename(from: NodeId, name: &OsStr, to: NodeId, new_name: &OsStr, flags: u32) -> Result<()>;

    /// Opens a regular file (`verbs/io`).
    open_file(caller: &Caller, node: NodeId, flags: u32, kill_suidgid: bool) -> Result<Opened>;
    /// Closes a handle (`verbs/io`).
    release(handle: HandleId);
    /// Reads from an open file (`verbs/io`).
    read(handle: HandleId, offset: u64, buffer: &mut [u8]) -> Result<usize>;
    /// Writes to an open file (`verbs/io`).
    write(caller: &Caller, handle: HandleId, offset: u64, bytes: &[u8], kill_suidgid: bool) -> Result<usize>;
    /// Allocates or frees space of an open file (`verbs/io`).
    fallocate(handle: HandleId, mode: u32, offset: u64, length: u64) -> Result<()>;
    /// Finds data or a hole in an open file (`verbs/io`).
    lseek(handle: HandleId, offset: u64, whence: u32) -> Result<u64>;
    /// Copies from one open file to another inside the kernel (`verbs/io`).
    copy_file_range(from: HandleId, from_offset: u64, to: HandleId, to_offset: u64, length: u64) -> Result<usize>;
}
