//! Directory listings.

use std::ffi::{CStr, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use crate::driver::Union;
use crate::driver::node::{LookupRef, NamesRead, NodeId as Id, NodeRef, Turn};
use crate::driver::types::{Attr, DirEntry, DirSink, Errno, NodeId, Result};
use crate::union::layer::UpperDir;
use crate::union::merge::listing::{FIRST_POSITION, Listed};
use crate::union::merge::{Found, Listing, Source};

/// `d_ino` of a damaged entry, whose number is not known. The kernel uses the same number in that case
/// (`FUSE_UNKNOWN_INO`).
const UNKNOWN_INO: u64 = 0xffff_ffff;

/// If nothing comes after `offset`, that is the end, unless the listing broke: then reading on gives the rest.
fn complete(listing: &Listing, offset: u64, last: u64) -> Result<()> {
    if offset > 0 && last == offset && listing.is_broken() { Err(Errno::IO) } else { Ok(()) }
}

impl Union {
    /// Passes the entries after position `offset` to `sink`. Positions stay valid for ever, so directories need no handles.
    ///
    /// # Errors
    /// `NOTDIR`, `STALE`; those of the layers.
    pub(crate) fn read_dir(&self, node: NodeId, offset: u64, sink: &mut dyn DirSink) -> Result<()> {
        let node = self.any_dir_node(node)?;
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

    /// `DT_*` of an entry. If types are kept in attributes, a regular file may stand for another type.
    fn listed_kind(&self, parent: &NodeRef, listed: &Listed<'_>) -> Result<u8> {
        if self.permissions.is_none() || listed.kind != libc::DT_REG {
            return Ok(listed.kind);
        }
        Ok(self.find_or_damaged(parent, listed.name)?.map_or(listed.kind, |attr| (attr.mode >> 12) as u8))
    }

    /// Attributes of a listed name; `None` if it is gone or damaged. A damaged entry must not hide the others.
    fn find_or_damaged(&self, parent: &NodeRef, name: &CStr) -> Result<Option<Attr>> {
        match self.find(parent, name) {
            Ok(Some((_, attr))) => Ok(Some(attr)),
            Ok(None) | Err(Errno::IO | Errno::PERM) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// As [`Self::read_dir`], looking every name up.
    ///
    /// # Errors
    /// `NOTDIR`, `STALE`; those of the layers.
    pub(crate) fn read_dir_plus(&self, node: NodeId, offset: u64, sink: &mut dyn DirSink) -> Result<()> {
        let parent = self.any_dir_node(node)?;
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
                // The name was removed after the listing was made.
                Ok(None) => continue,
                // A damaged entry must not hide the others: it is listed, and its lookup reports the error.
                Err(errno) => {
                    tracing::debug!("{:?}: {errno}", listed.name);
                    let ino = listed.id.map_or(UNKNOWN_INO, |id| self.stack.shown_ino_of(id));
                    if !sink.push(&DirEntry { name, ino, kind: listed.kind, next: listed.position }, None) {
                        break;
                    }
                    continue;
                }
            };
            let entry = Self::entry_of(&node, attr);
            let dirent = DirEntry { name, ino: attr.ino, kind: (attr.mode >> 12) as u8, next: listed.position };
            if !sink.push(&dirent, Some(&entry)) {
                break;
            }
            node.hand_over();
            last = listed.position;
        }
        if offset > 0 && last == offset && upper.is_none() {
            // The names have nodes now. So for a directory with one layer, the listing adds nothing to these and to one
            // system call for a missing name.
            self.nodes.drop_single_listing(&parent);
        }
        complete(&listing, offset, last)
    }

    /// The directory to flush for an fsync of `node`; `None` if there is nothing to flush.
    ///
    /// # Errors
    /// `NOTDIR`, `STALE`; those of `openat(2)`.
    pub(crate) fn to_fsync_dir(&self, node: NodeId) -> Result<Option<OwnedFd>> {
        match self.upper_dir_if_any(&self.any_dir_node(node)?)? {
            Some(dir) if self.flushes() => dir.open_self().map(Some),
            _ => Ok(None),
        }
    }

    /// The merged listing of everything in the directory: a current one to read from the start, or one to
    /// continue at position `offset`.
    fn merged_listing(&self, node: &NodeRef, offset: u64) -> Result<Arc<Listing>> {
        if node.is_removed() {
            return Ok(Arc::default());
        }
        let dir = node.dir().ok_or(Errno::NOTDIR)?;
        if offset == 0
            && let Some(timeout) = self.config.timeout
        {
            self.nodes.drop_outdated_listings(node, timeout);
        }
        let Some(upper) = self.upper_dir_if_any(node)? else {
            return Ok(self.lower_listing(node)?.unwrap_or_default());
        };
        let mut turn = Turn::begin();
        let names = NamesRead::lock(&mut turn, node)?;
        if let Some(listing) = self.nodes.merged_listing(&names, offset > 0) {
            return Ok(listing);
        }
        let lowers = self.lower_listing(node)?;
        let by_xattr = dir.upper_part(|part| part.xattr_whiteouts);
        let listing = Arc::new(Listing::with_upper(&upper, by_xattr, lowers.as_deref(), &dir.moved_names())?);
        self.nodes.keep_merged_listing(&names, listing.clone());
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
        if let Some(ino) = dir.child_ino(listed.name) {
            return Ok(ino);
        }
        // Only copied-up files and merged directories have a number that differs from their own.
        let may_differ = match listed.source {
            Source::Upper => dir.upper_part(|part| part.impure) || (listed.kind == libc::DT_DIR && dir.has_lowers()),
            Source::Lower(index) => {
                let layer = dir.lowers().get(usize::from(index)).map(|part| (part.impure, part.layer));
                let is_copy = |layer| self.stack.lower(layer).is_ok_and(|layer| layer.chain().is_some());
                layer.is_some_and(|(impure, layer)| impure || (listed.kind == libc::DT_DIR && is_copy(layer)))
            }
        };
        if (may_differ || listed.id.is_none())
            && let Some(attr) = self.find_or_damaged(parent, listed.name)?
        {
            return Ok(attr.ino);
        }
        Ok(listed.id.map_or(UNKNOWN_INO, |id| self.stack.shown_ino_of(id)))
    }

    /// Looks a listed name up.
    fn find_listed(
        &self,
        parent: &NodeRef,
        upper: Option<&UpperDir>,
        listed: &Listed<'_>,
    ) -> Result<Option<(LookupRef<'_>, Attr)>> {
        if self.config.timeout.is_some() {
            return self.find(parent, listed.name);
        }
        if let Some(node) = self.nodes.child(parent, listed.name) {
            let attr = self.attr(&node)?;
            return Ok(Some((node, attr)));
        }
        if upper.is_some() != parent.has_upper() {
            return self.find(parent, listed.name);
        }
        let mut turn = Turn::begin();
        let names = NamesRead::lock(&mut turn, parent)?;
        // In a directory without an upper part, a file can only be where the listing says.
        if let (None, Source::Lower(index)) = (upper, listed.source)
            && listed.kind != libc::DT_DIR
            && !self.config.metacopy
            && !self.config.index
            && let lowers = parent.dir().ok_or(Errno::NOTDIR)?.lowers()
            && let dir = self.lower_view(parent, lowers.get(usize::from(index)).ok_or(Errno::IO)?)?
            && let Some(stat) = dir.stat(listed.name)?
        {
            let stat = self.shown_lower_stat(&dir, listed.name, stat)?;
            let found = Found::single(stat, listed.source);
            let node = self.admit(&names, listed.name, found)?;
            let attr = self.show(&node, &stat);
            return Ok(Some((node, attr)));
        }
        let Some((node, stat)) = self.find_unknown(&names, upper, listed.name)? else { return Ok(None) };
        drop(names);
        self.with_attr(node, &stat).map(Some)
    }
}
