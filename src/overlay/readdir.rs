//! Directory listings.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Overlay;
use super::types::{DirEntry, DirSink, Errno, HandleId, NodeId, Result};
use crate::layer::{LayerStack, UpperDir};
use crate::merge::listing::{FIRST_POSITION, Listed};
use crate::merge::{Found, Listing, Source};
use crate::node::{DirHandle, Handle, Node, NodeId as Id};

impl Overlay {
    /// Opens a directory for reading.
    ///
    /// # Errors
    /// `NOTDIR`, `STALE`.
    pub fn open_dir(&self, node: NodeId) -> Result<HandleId> {
        let node = self.dir_node(node)?;
        let handle = Arc::new(DirHandle { node, listing: Mutex::new(None) });
        Ok(HandleId(self.handles.insert(Handle::Dir(handle))))
    }

    /// Closes a directory.
    pub fn release_dir(&self, handle: HandleId) {
        self.handles.remove(handle.0);
    }

    /// Gives the entries behind position `offset` to `sink`.
    ///
    /// # Errors
    /// `BADF`; those of the layers.
    pub fn read_dir(&self, handle: HandleId, offset: u64, sink: &mut dyn DirSink) -> Result<()> {
        let handle = self.handles.dir(handle.0).ok_or(Errno::BADF)?;
        let listing = self.listing_at(&handle, offset)?;
        if !self.push_dots(&handle.node, offset, sink)? {
            return Ok(());
        }
        for listed in listing.after(offset.max(FIRST_POSITION - 1)) {
            let ino = self.listed_ino(&handle.node, &listed)?;
            let name = OsStr::from_bytes(listed.name.to_bytes());
            if !sink.push(&DirEntry { name, ino, kind: listed.kind, next: listed.position }, None) {
                break;
            }
        }
        Ok(())
    }

    /// As [`Self::read_dir`], looking every name up.
    ///
    /// # Errors
    /// `BADF`; those of the layers.
    pub fn read_dir_plus(&self, handle: HandleId, offset: u64, sink: &mut dyn DirSink) -> Result<()> {
        let handle = self.handles.dir(handle.0).ok_or(Errno::BADF)?;
        let listing = self.listing_at(&handle, offset)?;
        if !self.push_dots(&handle.node, offset, sink)? {
            return Ok(());
        }
        let upper = self.upper_dir_if_any(&handle.node)?;
        for listed in listing.after(offset.max(FIRST_POSITION - 1)) {
            let name = OsStr::from_bytes(listed.name.to_bytes());
            // A damaged entry must not hide the others: it is listed, and looking it up gives the error.
            let found = self.find_listed(&handle.node, upper.as_ref(), &listed).unwrap_or_default();
            let Some((node, attr)) = found else {
                let ino = self.stack.show_ino(LayerStack::UPPER_FS, listed.ino);
                if !sink.push(&DirEntry { name, ino, kind: listed.kind, next: listed.position }, None) {
                    break;
                }
                continue;
            };
            let entry = self.entry(&node, attr);
            let dirent = DirEntry { name, ino: attr.ino, kind: (attr.mode >> 12) as u8, next: listed.position };
            if !sink.push(&dirent, Some(&entry)) {
                self.forget(node.id, 1);
                break;
            }
        }
        Ok(())
    }

    /// Writes the directory to the disk, unless the mount is volatile.
    ///
    /// # Errors
    /// `BADF`; those of `fsync(2)`.
    pub fn fsync_dir(&self, handle: HandleId, data_only: bool) -> Result<()> {
        let handle = self.handles.dir(handle.0).ok_or(Errno::BADF)?;
        match self.upper_dir_if_any(&handle.node)? {
            Some(dir) if self.flushes() => {
                let dir = dir.open_self()?;
                if data_only { rustix::fs::fdatasync(dir) } else { rustix::fs::fsync(dir) }
            }
            _ => Ok(()),
        }
    }

    /// The handle's listing; a fresh one when it is read from the start.
    fn listing_at(&self, handle: &DirHandle, offset: u64) -> Result<Arc<Listing>> {
        if offset != 0
            && let Some(listing) = handle.listing.lock().clone()
        {
            return Ok(listing);
        }
        let listing = self.merged_listing(&handle.node)?;
        *handle.listing.lock() = Some(listing.clone());
        Ok(listing)
    }

    /// The merged listing of everything in the directory.
    fn merged_listing(&self, node: &Arc<Node>) -> Result<Arc<Listing>> {
        if node.place.lock().removed {
            return Ok(Arc::default());
        }
        let dir = node.dir().ok_or(Errno::NOTDIR)?;
        let lowers = self.lower_listing(node)?;
        let Some(upper) = self.upper_dir_if_any(node)? else { return Ok(lowers.unwrap_or_default()) };
        let _names = dir.names.read();
        let (version, by_xattr) = {
            let state = dir.state.lock();
            if let Some((version, listing)) = &state.listing
                && *version == state.version
            {
                return Ok(listing.clone());
            }
            (state.version, state.upper.as_ref().is_some_and(|part| part.xattr_whiteouts))
        };
        let listing = Arc::new(Listing::with_upper(&upper, by_xattr, lowers.as_deref())?);
        dir.state.lock().listing = Some((version, listing.clone()));
        Ok(listing)
    }

    /// `.` and `..`, at positions 1 and 2; `false` if the sink is full.
    fn push_dots(&self, node: &Arc<Node>, offset: u64, sink: &mut dyn DirSink) -> Result<bool> {
        let kind = libc::DT_DIR;
        let own = DirEntry { name: OsStr::new("."), ino: node.ino(), kind, next: 1 };
        if offset == 0 && !sink.push(&own, None) {
            return Ok(false);
        }
        let parent = if node.id == Id::ROOT { None } else { node.name() };
        let ino = parent.map_or(node.ino(), |(parent, _)| parent.ino());
        let above = DirEntry { name: OsStr::new(".."), ino, kind, next: 2 };
        Ok(offset > 1 || sink.push(&above, None))
    }

    /// `d_ino` of an entry: its `st_ino`.
    fn listed_ino(&self, parent: &Arc<Node>, listed: &Listed<'_>) -> Result<u64> {
        let dir = parent.dir().ok_or(Errno::NOTDIR)?;
        let known = dir.state.lock().children.get(listed.name).map(|node| node.ino());
        if let Some(ino) = known {
            return Ok(ino);
        }
        match listed.source {
            Source::Lower(index) => {
                let part = dir.lowers.get(usize::from(index)).ok_or(Errno::IO)?;
                Ok(self.stack.show_ino(self.stack.lower(part.layer)?.fs(), listed.ino))
            }
            Source::Upper => {
                let impure = dir.state.lock().upper.as_ref().is_some_and(|part| part.impure);
                // Only files that were copied up, and merged directories, have another number than their own.
                let may_differ = impure || (listed.kind == libc::DT_DIR && !dir.lowers.is_empty());
                if may_differ && let Some((node, _)) = self.find(parent, listed.name)? {
                    let ino = node.ino();
                    self.forget(node.id, 1);
                    return Ok(ino);
                }
                Ok(self.stack.show_ino(LayerStack::UPPER_FS, listed.ino))
            }
        }
    }

    /// Looks a listed name up; with one more lookup counted.
    fn find_listed(
        &self,
        parent: &Arc<Node>,
        upper: Option<&UpperDir>,
        listed: &Listed<'_>,
    ) -> Result<Option<(Arc<Node>, super::types::Attr)>> {
        if let Some(node) = self.nodes.child(parent, listed.name) {
            return match self.attr(&node) {
                Ok(attr) => Ok(Some((node, attr))),
                Err(errno) => {
                    self.forget(node.id, 1);
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
            && let Some(stat) = self.lower_dir(parent, usize::from(index))?.stat(listed.name)?
        {
            let found = Found::single(stat, listed.source);
            let node = self.admit(parent, listed.name, found)?;
            let attr = self.show(&node, &stat);
            return Ok(Some((node, attr)));
        }
        self.find_unknown(parent, upper, listed.name)
    }
}
