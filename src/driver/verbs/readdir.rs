//! Directory listings.

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use crate::driver::Overlay;
use crate::driver::node::{Node, NodeId as Id, NodeRef};
use crate::driver::types::{Attr, DirEntry, DirSink, Errno, NodeId, Result};
use crate::union::layer::UpperDir;
use crate::union::merge::listing::{FIRST_POSITION, Listed};
use crate::union::merge::{Found, Listing, Source};

/// `d_ino` of an entry whose number is not known: it is damaged. The kernel's own for such a case (`FUSE_UNKNOWN_INO`).
const UNKNOWN_INO: u64 = 0xffff_ffff;

/// Nothing behind `offset` means the end, unless the listing broke: then reading on gives the rest.
fn complete(listing: &Listing, offset: u64, last: u64) -> Result<()> {
    if offset > 0 && last == offset && listing.is_broken() { Err(Errno::IO) } else { Ok(()) }
}

impl Overlay {
    /// Gives the entries behind position `offset` to `sink`. Positions outlive everything, so there are no open
    /// directories to keep.
    ///
    /// # Errors
    /// `NOTDIR`, `STALE`; those of the layers.
    pub fn read_dir(&self, node: NodeId, offset: u64, sink: &mut dyn DirSink) -> Result<()> {
        let node = self.dir_node(node)?;
        let listing = self.merged_listing(&node, offset)?;
        if !self.push_dots(&node, offset, sink)? {
            return Ok(());
        }
        let mut last = offset;
        for listed in listing.after(offset.max(FIRST_POSITION - 1)) {
            let ino = self.listed_ino(&node, &listed)?;
            let name = OsStr::from_bytes(listed.name.to_bytes());
            let kind = self.listed_kind(&node, &listed)?;
            if !sink.push(&DirEntry { name, ino, kind, next: listed.position }, None) {
                break;
            }
            last = listed.position;
        }
        complete(&listing, offset, last)
    }

    /// `DT_*` of an entry: where types are kept beside the files, a regular one may stand for another.
    fn listed_kind(&self, parent: &NodeRef, listed: &Listed<'_>) -> Result<u8> {
        if self.permissions.is_none() || listed.kind != libc::DT_REG {
            return Ok(listed.kind);
        }
        Ok(self.find_or_damaged(parent, listed.name)?.map_or(listed.kind, |attr| (attr.mode >> 12) as u8))
    }

    /// Attributes of a listed name; `None` if it is gone or damaged, which must not hide the others.
    fn find_or_damaged(&self, parent: &NodeRef, name: &CStr) -> Result<Option<Attr>> {
        match self.find(parent, name) {
            Ok(Some((node, attr))) => {
                self.forget(node.id(), 1);
                Ok(Some(attr))
            }
            Ok(None) | Err(Errno::IO | Errno::PERM) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// As [`Self::read_dir`], looking every name up.
    ///
    /// # Errors
    /// `NOTDIR`, `STALE`; those of the layers.
    pub fn read_dir_plus(&self, node: NodeId, offset: u64, sink: &mut dyn DirSink) -> Result<()> {
        let parent = self.dir_node(node)?;
        let listing = self.merged_listing(&parent, offset)?;
        if !self.push_dots(&parent, offset, sink)? {
            return Ok(());
        }
        let upper = self.upper_dir_if_any(&parent)?;
        let mut last = offset;
        for listed in listing.after(offset.max(FIRST_POSITION - 1)) {
            let name = OsStr::from_bytes(listed.name.to_bytes());
            let (node, attr) = match self.find_listed(&parent, upper.as_ref(), &listed) {
                Ok(Some(found)) => found,
                // Removed since the listing was made.
                Ok(None) => continue,
                // A damaged entry must not hide the others: it is listed, and looking it up gives the error.
                Err(errno) => {
                    tracing::debug!("{:?}: {errno}", listed.name);
                    let ino = listed.id.map_or(UNKNOWN_INO, |id| self.stack.shown_ino_of(id));
                    if !sink.push(&DirEntry { name, ino, kind: listed.kind, next: listed.position }, None) {
                        break;
                    }
                    continue;
                }
            };
            let entry = self.entry(&node, attr);
            let dirent = DirEntry { name, ino: attr.ino, kind: (attr.mode >> 12) as u8, next: listed.position };
            if !sink.push(&dirent, Some(&entry)) {
                self.forget(node.id(), 1);
                break;
            }
            last = listed.position;
        }
        if offset > 0 && last == offset && upper.is_none() {
            Self::drop_listing(&parent);
        }
        complete(&listing, offset, last)
    }

    /// After the end of the directory was read. Its names have nodes now, so that of a directory of one layer the listing
    /// says nothing that these and one system call for a missing name do not: it is made again by who needs it.
    pub(in crate::driver) fn drop_listing(node: &Node) {
        if let Some(dir) = node.dir()
            && dir.lowers.len() == 1
        {
            dir.state.lock().lower_listing = None;
        }
    }

    /// Writes the directory to the disk, unless the mount is volatile.
    ///
    /// # Errors
    /// `NOTDIR`, `STALE`; those of `fsync(2)`.
    pub fn fsync_dir(&self, node: NodeId, data_only: bool) -> Result<()> {
        match self.upper_dir_if_any(&self.dir_node(node)?)? {
            Some(dir) if self.flushes() => {
                let dir = dir.open_self()?;
                if data_only { rustix::fs::fdatasync(dir) } else { rustix::fs::fsync(dir) }
            }
            _ => Ok(()),
        }
    }

    /// The merged listing of everything in the directory, for reading on from position `offset`; a fresh one for
    /// reading from the start.
    fn merged_listing(&self, node: &NodeRef, offset: u64) -> Result<Arc<Listing>> {
        if node.is_removed() {
            return Ok(Arc::default());
        }
        let dir = node.dir().ok_or(Errno::NOTDIR)?;
        let lowers = self.lower_listing(node)?;
        let Some(upper) = self.upper_dir_if_any(node)? else { return Ok(lowers.unwrap_or_default()) };
        let _names = dir.names.read();
        let (version, by_xattr, kept) = {
            let state = dir.state.lock();
            let known = if offset == 0 { state.listing_now() } else { state.listing_in_progress() };
            if let Some(listing) = known {
                return Ok(listing);
            }
            (state.version, state.upper.as_ref().is_some_and(|part| part.xattr_whiteouts), state.moved.clone())
        };
        let listing = Arc::new(Listing::with_upper(&upper, by_xattr, lowers.as_deref(), &kept)?);
        let mut state = dir.state.lock();
        state.moved = listing.moved();
        state.listing = Some((version, listing.clone()));
        Ok(listing)
    }

    /// `.` and `..`, at positions 1 and 2; `false` if the sink is full.
    fn push_dots(&self, node: &NodeRef, offset: u64, sink: &mut dyn DirSink) -> Result<bool> {
        let kind = libc::DT_DIR;
        let own = DirEntry { name: OsStr::new("."), ino: node.ino(), kind, next: 1 };
        if offset == 0 && !sink.push(&own, None) {
            return Ok(false);
        }
        let parent = if node.id() == Id::ROOT { None } else { node.name() };
        let ino = parent.map_or(node.ino(), |(parent, _)| parent.ino());
        let above = DirEntry { name: OsStr::new(".."), ino, kind, next: 2 };
        Ok(offset > 1 || sink.push(&above, None))
    }

    /// `d_ino` of an entry: its `st_ino`.
    fn listed_ino(&self, parent: &NodeRef, listed: &Listed<'_>) -> Result<u64> {
        let dir = parent.dir().ok_or(Errno::NOTDIR)?;
        let known = dir.state.lock().children.get(listed.name).map(|node| node.ino());
        if let Some(ino) = known {
            return Ok(ino);
        }
        // Only files that were copied up, and merged directories, have another number than their own.
        let may_differ = listed.source == Source::Upper && {
            let impure = dir.state.lock().upper.as_ref().is_some_and(|part| part.impure);
            impure || (listed.kind == libc::DT_DIR && !dir.lowers.is_empty())
        };
        if (may_differ || listed.id.is_none())
            && let Some(attr) = self.find_or_damaged(parent, listed.name)?
        {
            return Ok(attr.ino);
        }
        Ok(listed.id.map_or(UNKNOWN_INO, |id| self.stack.shown_ino_of(id)))
    }

    /// Looks a listed name up; with one more lookup counted.
    fn find_listed(
        &self,
        parent: &NodeRef,
        upper: Option<&UpperDir>,
        listed: &Listed<'_>,
    ) -> Result<Option<(NodeRef, Attr)>> {
        if let Some(node) = self.nodes.child(parent, listed.name) {
            return match self.attr(&node) {
                Ok(attr) => Ok(Some((node, attr))),
                Err(errno) => {
                    self.forget(node.id(), 1);
                    Err(errno)
                }
            };
        }
        let dir = parent.dir().ok_or(Errno::NOTDIR)?;
        let _names = dir.names.read();
        // A file of a directory without an upper part is where the listing says, and nowhere else.
        if let (None, Source::Lower(index)) = (upper, listed.source)
            && listed.kind != libc::DT_DIR
            && !self.config.metacopy
            && !self.config.index
            && let dir = self.lower_view(parent, usize::from(index))?
            && let Some(stat) = dir.stat(listed.name)?
        {
            let stat = self.shown_lower_stat(&dir, listed.name, stat)?;
            let found = Found::single(stat, listed.source);
            let node = self.admit(parent, listed.name, found)?;
            let attr = self.show(&node, &stat);
            return Ok(Some((node, attr)));
        }
        self.find_unknown(parent, upper, listed.name)
    }
}
