//! Names to nodes.

use std::ffi::{CStr, OsStr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::{Mutex, RwLock};

use crate::driver::node::{self, DataRef, DirState, Name, Node, NodeRef, Real, State, UpperPart};
use crate::driver::types::{Attr, Entry, Errno, NodeId, Result, Validity};
use crate::driver::{Overlay, checked_name, is_reserved};
use crate::marks::Opaque;
use crate::union::layer::{Stat, UpperDir};
use crate::union::merge::{Resolution, Source};

impl Overlay {
    /// Resolves `name` in `parent`; `None`: there is no such name, and there will be none until somebody creates it.
    ///
    /// # Errors
    /// `NAMETOOLONG`, `NOTDIR`, `STALE`; `IO` for a damaged mark; those of the layers.
    pub fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Option<Entry>> {
        let parent = self.dir_node(parent)?;
        let name = checked_name(name)?;
        match self.find(&parent, &name)? {
            None => Ok(None),
            Some((node, attr)) => Ok(Some(self.entry(&node, attr))),
        }
    }

    /// The node and attributes of `name`, with one more lookup counted.
    pub(in crate::driver) fn find(&self, parent: &NodeRef, name: &CStr) -> Result<Option<(NodeRef, Attr)>> {
        if is_reserved(name) {
            return Ok(None);
        }
        if let Some(node) = self.nodes.child(parent, name) {
            return match self.attr(&node) {
                Ok(attr) => Ok(Some((node, attr))),
                Err(errno) => {
                    self.forget(node.id(), 1);
                    Err(errno)
                }
            };
        }
        let upper = self.upper_dir_if_any(parent)?;
        let _names = parent.dir().ok_or(Errno::NOTDIR)?.names.read();
        self.find_unknown(parent, upper.as_ref(), name)
    }

    /// As [`Self::find`], for a name without a node; the caller holds the directory's `names` lock.
    pub(in crate::driver) fn find_unknown(
        &self,
        parent: &NodeRef,
        upper: Option<&UpperDir>,
        name: &CStr,
    ) -> Result<Option<(NodeRef, Attr)>> {
        match self.resolve(parent, upper, name)? {
            Resolution::Absent | Resolution::WhiteoutInUpper => Ok(None),
            Resolution::Found(mut found) => {
                self.apply_permissions(parent, upper, name, &mut found)?;
                let stat = found.stat;
                let node = self.admit(parent, name, found)?;
                let attr = if self.indexed(&node).is_some() { self.attr(&node)? } else { self.show(&node, &stat) };
                Ok(Some((node, attr)))
            }
        }
    }

    /// Puts what is kept of the file's owner and mode in the place of what is really there.
    fn apply_permissions(
        &self,
        parent: &NodeRef,
        upper: Option<&UpperDir>,
        name: &CStr,
        found: &mut crate::union::merge::Found,
    ) -> Result<()> {
        if self.permissions.is_none() {
            return Ok(());
        }
        found.stat = match (found.source, upper, found.lowers.first()) {
            (Source::Upper, Some(upper), _) => self.shown_stat(upper, name, found.stat)?,
            (Source::Upper, None, _) => return Err(Errno::IO),
            // Its name there may be another one (a redirect).
            (Source::Lower(_), _, Some(part)) => {
                self.shown_stat(&self.stack.lower(part.layer)?.open_dir(&part.path)?, c"", found.stat)?
            }
            (Source::Lower(index), _, None) => {
                self.shown_lower_stat(&self.lower_view(parent, usize::from(index))?, name, found.stat)?
            }
        };
        Ok(())
    }

    /// Puts what was found as `name` into the table, with one lookup counted.
    pub(in crate::driver) fn admit(
        &self,
        parent: &NodeRef,
        name: &CStr,
        found: crate::union::merge::Found,
    ) -> Result<NodeRef> {
        let name = Name::from(name);
        let is_upper = found.source == Source::Upper;
        let has_links = is_upper && !found.stat.is_dir() && found.stat.nlink > 1;
        if has_links && let Some(node) = self.nodes.by_upper_file(found.stat.id()) {
            self.nodes.add_name(parent, &name, &node);
            return Ok(node);
        }
        let upper_file = found.stat.id();
        let indexed = self.index_entry(parent, &name, &found)?;
        if let Some((entry, _)) = &indexed
            && let Some(node) = self.nodes.by_index(&entry.name)
        {
            self.nodes.add_name(parent, &name, &node);
            return Ok(node);
        }
        let node = self.make_node(parent, &name, found)?;
        if let (Some((entry, stat)), Some(mut state)) = (&indexed, node.file_state()) {
            if let (Some(_), Real::Lower(_)) = (stat, state.real) {
                // The index has it, whatever this name still is.
                let content = state.data().cloned().or_else(|| self.own_data_ref(state.real, parent, &name));
                state.set_data(content.filter(|_| entry.metacopy));
                state.real = Real::Upper;
            }
            state.set_index(entry.clone());
        }
        let _multiple = (has_links || indexed.is_some()).then(|| self.nodes.multiple());
        let known = match &indexed {
            Some((entry, _)) => self.nodes.by_index(&entry.name),
            None if has_links => self.nodes.by_upper_file(upper_file),
            None => None,
        };
        if let Some(node) = known {
            self.nodes.add_name(parent, &name, &node);
            return Ok(node);
        }
        let node = self.nodes.adopt(parent, &name, NodeRef::new(node));
        if has_links {
            self.nodes.share(upper_file, &node);
        }
        if let Some(entry) = self.indexed(&node) {
            self.nodes.share_index(&entry.name, &node);
        }
        Ok(node)
    }

    fn make_node(&self, parent: &NodeRef, name: &Name, found: crate::union::merge::Found) -> Result<Node> {
        let ino = self.ino_of(parent, name, &found)?;
        let id = self.nodes.next_id();
        let file_type = found.stat.file_type();
        let real = match found.source {
            Source::Upper => Real::Upper,
            Source::Lower(index) => Real::Lower(index),
        };
        let mut own = State::new(Some((parent.clone(), name.clone())), real);
        own.set_data(found.data.map(|(layer, path)| DataRef { layer, path }));
        let dir = found.stat.is_dir().then(|| {
            let upper = (found.source == Source::Upper).then(|| UpperPart {
                impure: found.marks.impure,
                xattr_whiteouts: found.marks.opaque() == Opaque::XattrWhiteouts,
                opaque: found.marks.opaque() == Opaque::Yes,
                redirect: found.marks.redirect.map(Arc::from),
                inheritance: None,
            });
            let state = DirState { upper, ..DirState::default() };
            let dir = node::Dir { lowers: found.lowers.into(), names: RwLock::new(()), state: Mutex::new(state) };
            Box::new(dir)
        });
        Ok(Node::new(id, ino, file_type, own, dir))
    }

    /// `st_ino` (kernel: `ovl_getattr`): that of the lower file that it came from, so that copy-up does not change
    /// it; a lower hard link breaks on copy-up, so its copies have numbers of their own.
    fn ino_of(&self, parent: &NodeRef, name: &CStr, found: &crate::union::merge::Found) -> Result<u64> {
        let own = self.stack.shown_ino(&found.stat);
        match found.source {
            Source::Lower(_) => Ok(own),
            Source::Upper if found.stat.is_dir() => {
                let Some(part) = found.lowers.first() else { return Ok(own) };
                let dir = self.stack.lower(part.layer)?.open_dir(&part.path)?;
                Ok(self.stack.shown_ino(&dir.stat_self()?))
            }
            Source::Upper => {
                let Some(mark) = &found.marks.origin else { return Ok(own) };
                match self.origins.resolve(mark) {
                    Some(origin)
                        if (origin.nlink == 1 || self.config.index)
                            // A kept type may be another than the real one.
                            && (self.permissions.is_some() || origin.file_type() == found.stat.file_type()) =>
                    {
                        Ok(self.stack.shown_ino(&origin))
                    }
                    _ => {
                        tracing::trace!(parent = parent.id().0, ?name, "origin not found or not unique");
                        Ok(own)
                    }
                }
            }
        }
    }

    /// Attributes to show for a node whose real file has `stat`.
    pub(in crate::driver) fn show(&self, node: &Node, stat: &Stat) -> Attr {
        let (uid, gid) = self.shown_owner(stat.uid, stat.gid);
        let merged = node.dir().is_some_and(|dir| {
            let parts = dir.lowers.len() + usize::from(dir.state.lock().upper.is_some());
            parts > 1
        });
        let indexed = self.indexed(node);
        Attr {
            ino: node.ino(),
            mode: stat.mode,
            // Subdirectories of a merged directory are not counted (kernel: `ovl_getattr`).
            nlink: if merged || self.config.static_nlink { 1 } else { indexed.map_or(stat.nlink, |entry| entry.nlink) },
            uid,
            gid,
            rdev: stat.rdev,
            size: stat.size,
            blocks: self.data_blocks(node).unwrap_or(stat.blocks),
            blksize: stat.blksize,
            atime: stat.atime,
            mtime: stat.mtime,
            ctime: stat.ctime,
            btime: stat.btime,
        }
    }

    /// Allocated size of a file that has its content in a lower layer.
    fn data_blocks(&self, node: &Node) -> Option<u64> {
        let data = node.file_state()?.data().cloned()?;
        let stat = self.stack.lower(data.layer).ok()?.stat_file(&data.path).ok()??;
        Some(stat.blocks)
    }

    pub(in crate::driver) fn entry(&self, node: &Node, attr: Attr) -> Entry {
        Entry { node: node.id(), attr, attr_validity: Self::validity(node) }
    }

    /// Attributes change behind the kernel's back while a backing file may be mapped for writing.
    pub(in crate::driver) fn validity(node: &Node) -> Validity {
        let mapped = node.file_state().is_some_and(|state| state.open().is_some_and(|open| open.mappable > 0));
        if mapped { Validity::None } else { Validity::Forever }
    }

    /// The kernel drops `count` of its lookups of `node`.
    pub fn forget(&self, node: NodeId, count: u64) {
        /// Nodes after which the memory that they leave is worth giving back.
        const TRIM: u64 = 16_384;
        for gone in self.nodes.forget(node, count) {
            if self.forgotten.fetch_add(1, Ordering::Relaxed) % TRIM == TRIM - 1 {
                crate::sys::memory::trim();
            }
            let Some(dir) = gone.dir() else {
                self.lower_files.remove((gone.id().0, 0));
                continue;
            };
            self.upper_dirs.remove((gone.id().0, 0));
            for index in 0..u32::try_from(dir.lowers.len()).unwrap_or(u32::MAX) {
                self.lower_dirs.remove((gone.id().0, index));
            }
        }
    }
}
