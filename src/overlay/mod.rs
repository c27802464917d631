//! The union file system itself, one file per group of verbs. Takes the locks; knows nothing of FUSE.

#![allow(unused_variables, unused_imports, missing_docs)]

pub mod types;

use std::ffi::{OsStr, OsString};

use types::{
    Attr, Caller, DirSink, Entry, Errno, HandleId, KernelRef, NodeId, Opened, Result, SetAttr, StatFs, Timestamp,
    Validity,
};

use crate::config::OverlayConfig;

/// A mounted union: the layers, the inode table and the open handles.
///
/// Every verb may be called from any thread at any time.
pub struct Overlay {}

/// Why a union could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct OpenError(pub String);

impl Overlay {
    /// Opens and checks the layers (exist, are directories, upper and work on one file system, not nested in each other, not in use by
    /// another mount), empties the work directory, probes what the upper can do.
    ///
    /// # Errors
    /// One message naming the layer and what is wrong with it.
    pub fn open(config: OverlayConfig) -> std::result::Result<Self, OpenError> {
        unimplemented!()
    }

    /// Connects to the kernel. Called once, when INIT has been answered and before the first request.
    pub fn attach(&self, kernel: KernelRef, passthrough: bool) {
        unimplemented!()
    }

    /// True when the upper's file system keeps POSIX ACLs (decides `FUSE_POSIX_ACL`).
    pub fn has_acls(&self) -> bool {
        unimplemented!()
    }
    /// True when there is no upper (or `ro`).
    pub fn is_read_only(&self) -> bool {
        unimplemented!()
    }

    /// Resolves `name` in `parent`; `None`: there is no such name, and there will be none until somebody creates it.
    pub fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Option<Entry>> {
        unimplemented!()
    }
    /// The kernel drops `count` of its lookups of `node`.
    pub fn forget(&self, node: NodeId, count: u64) {
        unimplemented!()
    }
    pub fn getattr(&self, node: NodeId, handle: Option<HandleId>) -> Result<(Attr, Validity)> {
        unimplemented!()
    }
    pub fn setattr(
        &self,
        caller: &Caller,
        node: NodeId,
        handle: Option<HandleId>,
        set: &SetAttr,
    ) -> Result<(Attr, Validity)> {
        unimplemented!()
    }
    pub fn readlink(&self, node: NodeId) -> Result<OsString> {
        unimplemented!()
    }
    /// `mode` holds type and permission bits, before the umask.
    pub fn mknod(&self, caller: &Caller, parent: NodeId, name: &OsStr, mode: u32, rdev: (u32, u32)) -> Result<Entry> {
        unimplemented!()
    }
    pub fn mkdir(&self, caller: &Caller, parent: NodeId, name: &OsStr, mode: u32) -> Result<Entry> {
        unimplemented!()
    }
    pub fn symlink(&self, caller: &Caller, parent: NodeId, name: &OsStr, target: &OsStr) -> Result<Entry> {
        unimplemented!()
    }
    pub fn link(&self, node: NodeId, parent: NodeId, name: &OsStr) -> Result<Entry> {
        unimplemented!()
    }
    pub fn unlink(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        unimplemented!()
    }
    pub fn rmdir(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        unimplemented!()
    }
    /// `flags`: `RENAME_NOREPLACE`, `RENAME_EXCHANGE`, `RENAME_WHITEOUT` of `rename(2)`.
    pub fn rename(&self, from: NodeId, name: &OsStr, to: NodeId, new_name: &OsStr, flags: u32) -> Result<()> {
        unimplemented!()
    }
    /// `flags`: those of `open(2)`.
    pub fn open_file(&self, caller: &Caller, node: NodeId, flags: u32, kill_suidgid: bool) -> Result<Opened> {
        unimplemented!()
    }
    pub fn create(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        flags: u32,
        kill_suidgid: bool,
    ) -> Result<(Entry, Opened)> {
        unimplemented!()
    }
    pub fn tmpfile(&self, caller: &Caller, parent: NodeId, mode: u32, flags: u32) -> Result<(Entry, Opened)> {
        unimplemented!()
    }
    /// Reads into `buffer`; fewer bytes than its length only at the end of the file.
    pub fn read(&self, handle: HandleId, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        unimplemented!()
    }
    pub fn write(&self, handle: HandleId, offset: u64, bytes: &[u8], kill_suidgid: bool) -> Result<usize> {
        unimplemented!()
    }
    pub fn release(&self, handle: HandleId) {
        unimplemented!()
    }
    pub fn fsync(&self, handle: HandleId, data_only: bool) -> Result<()> {
        unimplemented!()
    }
    pub fn fallocate(&self, handle: HandleId, mode: u32, offset: u64, length: u64) -> Result<()> {
        unimplemented!()
    }
    pub fn lseek(&self, handle: HandleId, offset: u64, whence: u32) -> Result<u64> {
        unimplemented!()
    }
    pub fn copy_file_range(
        &self,
        from: HandleId,
        from_offset: u64,
        to: HandleId,
        to_offset: u64,
        length: u64,
    ) -> Result<usize> {
        unimplemented!()
    }
    pub fn open_dir(&self, node: NodeId) -> Result<HandleId> {
        unimplemented!()
    }
    pub fn read_dir(&self, handle: HandleId, offset: u64, sink: &mut dyn DirSink) -> Result<()> {
        unimplemented!()
    }
    pub fn read_dir_plus(&self, handle: HandleId, offset: u64, sink: &mut dyn DirSink) -> Result<()> {
        unimplemented!()
    }
    pub fn release_dir(&self, handle: HandleId) {
        unimplemented!()
    }
    pub fn fsync_dir(&self, handle: HandleId, data_only: bool) -> Result<()> {
        unimplemented!()
    }
    pub fn statfs(&self) -> Result<StatFs> {
        unimplemented!()
    }
    pub fn getxattr(&self, node: NodeId, name: &OsStr) -> Result<Vec<u8>> {
        unimplemented!()
    }
    /// Names, each ended by a NUL.
    pub fn listxattr(&self, node: NodeId) -> Result<Vec<u8>> {
        unimplemented!()
    }
    pub fn setxattr(
        &self,
        caller: &Caller,
        node: NodeId,
        name: &OsStr,
        value: &[u8],
        flags: u32,
        kill_sgid: bool,
    ) -> Result<()> {
        unimplemented!()
    }
    pub fn removexattr(&self, node: NodeId, name: &OsStr) -> Result<()> {
        unimplemented!()
    }
    /// Flushes everything to the disk (syncfs of the upper).
    pub fn sync(&self) -> Result<()> {
        unimplemented!()
    }
    /// After the last request: drops handles, empties the work directory, removes the volatile mark.
    pub fn close(&self) {
        unimplemented!()
    }
}
