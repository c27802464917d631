//! Types that go into and come out of the verbs of the file system. No FUSE types: `fuse` translates.

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

pub use crate::driver::node::{NodeId, Timestamp};
pub use rustix::io::Errno;

/// Result of a verb; the error goes to the caller of the system call as it is.
pub type Result<T> = std::result::Result<T, Errno>;

/// The process that makes a request. Ids are relative to the mount's user namespace.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller {
    /// File system user id.
    pub uid: u32,
    /// File system group id.
    pub gid: u32,
    /// Process id in the daemon's pid namespace; 0 if it is not visible there.
    pub pid: u32,
    /// File mode creation mask; only set for the verbs that create.
    pub umask: u32,
}

/// Attributes of a node, as `stat(2)` shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// `st_ino`; never the node id.
    pub ino: u64,
    /// `st_mode`: type and permission bits.
    pub mode: u32,
    /// `st_nlink`.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device file: major, minor.
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
    /// Time of creation, if the layer's file system knows it.
    pub btime: Option<Timestamp>,
}

/// How long the kernel may use an answer without asking again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Until the kernel itself changes it.
    Forever,
    /// Not at all: a writable mapping of a backing file may change it without the kernel's FUSE code noticing.
    None,
}

/// A name resolved to a node. The kernel's lookup count of `node` went up by one.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The node.
    pub node: NodeId,
    /// Its attributes.
    pub attr: Attr,
    /// How long `attr` holds. The name itself is valid for ever.
    pub attr_validity: Validity,
}

/// Changes of `setattr`; `None` leaves an attribute as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Permission bits (07777).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
    /// The caller lacks `CAP_FSETID`: a change of size alone clears set-user-id and set-group-id.
    pub kill_suidgid: bool,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The current time, by the clock of the upper's file system.
    Now,
    /// This time.
    At(Timestamp),
}

/// Identifier of an open file. Directories are read without being opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HandleId(pub u64);

/// How the kernel shall do I/O on an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Through its page cache, keeping what is cached of the file.
    KeepCache,
    /// Through its page cache, dropping what is cached of the file.
    DropCache,
    /// Straight to the backing file that was registered under this id.
    Passthrough(u32),
}

/// An opened file.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// The handle; the kernel gives it back in every request on the open file.
    pub handle: HandleId,
    /// How the kernel shall do I/O on it.
    pub mode: OpenMode,
}

/// One entry of a directory listing.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    /// Name.
    pub name: &'a OsStr,
    /// `d_ino`; equals `st_ino`.
    pub ino: u64,
    /// `DT_*` of `readdir(3)`.
    pub kind: u8,
    /// Position after this entry; never 0, below 2^63.
    pub next: u64,
}

/// Receives the entries of a listing, in order.
pub trait DirSink {
    /// Takes one entry. `false` means that there was no room: the entry was not taken, and no more are wanted. In
    /// `readdirplus`, `entry` is the looked-up node, or `None` for `.`, `..` and names that vanished. Its lookup
    /// count was incremented; if the sink answers `false`, the overlay takes that back.
    fn push(&mut self, name: &DirEntry<'_>, entry: Option<&Entry>) -> bool;
}

/// Numbers of the file system, as `statvfs(3)` shows them.
#[derive(Debug)]
pub struct StatFs {
    /// Fundamental block size in bytes.
    pub frsize: u64,
    /// Preferred block size in bytes.
    pub bsize: u64,
    /// Blocks of `frsize`.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for unprivileged users.
    pub bavail: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Longest name in bytes.
    pub namelen: u32,
}

/// Requests of the overlay to the kernel's side of the mount. Absent in tests without FUSE.
pub trait Kernel: Send + Sync {
    /// Registers `file` for passthrough.
    ///
    /// # Errors
    /// The kernel's error; the file is then served through the page cache.
    fn register_backing(&self, file: BorrowedFd<'_>) -> Result<u32>;

    /// Ends a registration. Open files that use it are not affected.
    fn unregister_backing(&self, backing: u32);

    /// Makes the kernel forget the attributes of `node`.
    fn invalidate_attr(&self, node: NodeId);

    /// Makes the kernel forget attributes and cached pages of `node`. Must not be called within a request on the
    /// same node, whose pages the kernel may hold locked.
    fn invalidate_pages(&self, node: NodeId);

    /// Makes the kernel look `name` in `parent` up again. What is mounted below it is unmounted. Never from within a request,
    /// nor with the gate held: the kernel waits for the requests on `parent`.
    fn invalidate_entry(&self, parent: NodeId, name: &OsStr);

    /// As [`Self::invalidate_entry`], and `child`, which had that name, is deleted: those who have it open are told so.
    fn delete_entry(&self, parent: NodeId, name: &OsStr, child: NodeId);
}

/// A shared [`Kernel`].
pub type KernelRef = Arc<dyn Kernel>;
