//! Names to nodes.

use std::ffi::{CStr, OsStr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::driver::node::{
    self, ContentRef, Indexed, LookupRef, Name, Names, NamesRead, NamesWrite, Node, NodeRef, OpenState, Residence,
    State, Turn, UpperMarks,
};
use crate::driver::types::{Attr, Entry, Errno, NodeId, Result, Validity};
use crate::driver::{Union, checked_name};
use crate::marks::Opaque;
use crate::union::layer::{Dir as LayerFile, FileId, LowerRef, Stat, UpperDir};
use crate::union::merge::{Found, Resolution, Source};

impl Union {
    /// Resolves `name` in `parent`. `None` means that there is no such name, and that the kernel may remember that
    /// until the name is created.
    ///
    /// # Errors
    /// `NAMETOOLONG`, `NOTDIR`, `STALE`; `IO` for a damaged mark; those of the layers.
    pub(crate) fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Option<Entry>> {
        let parent = self.dir_node(parent)?;
        let name = checked_name(name)?;
        match self.find(&parent, &name)? {
            None => Ok(None),
            Some((node, attr)) => Ok(Some(self.entry(node, attr))),
        }
    }

    /// The node and attributes of `name`.
    pub(in crate::driver) fn find(&self, parent: &NodeRef, name: &CStr) -> Result<Option<(LookupRef<'_>, Attr)>> {
        if let Some(node) = self.nodes.child(parent, name)
            && !self.was_replaced(parent, name, &node)?
        {
            let attr = self.attr(&node)?;
            return Ok(Some((node, attr)));
        }
        loop {
            let upper = self.upper_dir_if_any(parent)?;
            let mut turn = Turn::begin();
            let names = NamesRead::lock(&mut turn, parent)?;
            // The directory may have been copied up while the lock was not held.
            if upper.is_some() == parent.has_upper() {
                let Some((node, stat)) = self.find_unknown(&names, upper.as_ref(), name)? else { return Ok(None) };
                drop(names);
                return self.with_attr(node, &stat).map(Some);
            }
        }
    }

    /// With `timeout`, a lower layer may change: returns true if `name` no longer means the known `node`. The node has then
    /// lost the name. A directory that stays gets its new lower parts.
    fn was_replaced(&self, parent: &NodeRef, name: &CStr, node: &NodeRef) -> Result<bool> {
        if self.config.timeout.is_none() || (node.has_upper() && node.dir().is_none()) {
            return Ok(false);
        }
        let upper = self.upper_dir_if_any(parent)?;
        let mut turn = Turn::begin();
        let names = NamesWrite::lock(&mut turn, parent)?;
        if upper.is_some() != parent.has_upper() || !node.is_named(parent, name) {
            return Ok(false);
        }
        let found = match self.resolve(parent, upper.as_ref(), name)? {
            Resolution::Absent | Resolution::WhiteoutInUpper => None,
            Resolution::Found(found) => Some(found),
        };
        let in_lowers = node.state().lower().map(|(_, layer)| layer);
        let found = found.filter(|found| match (in_lowers, found.source, found.lowers.first()) {
            (None, source, _) => source == Source::Upper,
            (Some(_), Source::Upper, _) => false,
            (Some(layer), Source::Lower(_), Some(top)) => top.layer == layer && self.shows(found, node),
            (Some(layer), Source::Lower(at), None) => {
                let part = names.dir().lowers().get(usize::from(at)).map(|part| part.layer);
                part == Some(layer) && self.shows(found, node)
            }
        });
        let Some(found) = found else {
            if in_lowers.is_some() {
                // Open handles keep their file, as if it had been removed.
                self.nodes.hide(&names, name, node);
            }
            return Ok(in_lowers.is_some());
        };
        if node.dir().is_some_and(|dir| !is_same_parts(&dir.lowers(), &found.lowers)) {
            self.nodes.replace_lowers(node, found.lowers);
        }
        Ok(false)
    }

    /// True if the lower file `found` is the one of the node. Inode numbers of removed files are used again.
    fn shows(&self, found: &Found, node: &Node) -> bool {
        found.stat.file_type() == node.file_type && self.stack.shown_ino(&found.stat) == node.ino()
    }

    /// As [`Self::find`], for a name without a node in the directory whose names are held.
    pub(in crate::driver) fn find_unknown(
        &self,
        names: &impl Names,
        upper: Option<&UpperDir>,
        name: &CStr,
    ) -> Result<Option<(LookupRef<'_>, Stat)>> {
        let parent = names.parent();
        match self.resolve(parent, upper, name)? {
            Resolution::Absent | Resolution::WhiteoutInUpper => Ok(None),
            Resolution::Found(mut found) => {
                self.apply_permissions(parent, upper, name, &mut found)?;
                let stat = found.stat;
                let node = self.admit(names, name, found)?;
                Ok(Some((node, stat)))
            }
        }
    }

    /// A node with its attributes, when it was found to have the attributes `stat`. The caller holds no names: those of an
    /// indexed file are read where the file is.
    pub(in crate::driver) fn with_attr<'u>(
        &'u self,
        node: LookupRef<'u>,
        stat: &Stat,
    ) -> Result<(LookupRef<'u>, Attr)> {
        let attr = if self.indexed(&node).is_some() { self.attr(&node)? } else { self.show(&node, stat) };
        Ok((node, attr))
    }

    /// Replaces the real owner and mode by those kept in the attribute.
    fn apply_permissions(
        &self,
        parent: &NodeRef,
        upper: Option<&UpperDir>,
        name: &CStr,
        found: &mut Found,
    ) -> Result<()> {
        if self.permissions.is_none() {
            return Ok(());
        }
        found.stat = match (found.source, upper, found.lowers.first()) {
            (Source::Upper, Some(upper), _) => self.shown_stat(upper, name, found.stat)?,
            (Source::Upper, None, _) => return Err(Errno::IO),
            // With a redirect, the name there may differ.
            (Source::Lower(_), _, Some(part)) => {
                self.shown_stat(&self.stack.lower(part.layer)?.open_dir(&part.path)?, c"", found.stat)?
            }
            (Source::Lower(index), _, None) => {
                let lowers = parent.dir().ok_or(Errno::NOTDIR)?.lowers();
                let part = lowers.get(usize::from(index)).ok_or(Errno::IO)?;
                self.shown_lower_stat(&self.lower_view(parent, part)?, name, found.stat)?
            }
        };
        Ok(())
    }

    /// Puts `found`, called `name` in the directory whose names are held, into the table.
    pub(in crate::driver) fn admit(
        &self,
        names: &impl Names,
        name: &CStr,
        found: crate::union::merge::Found,
    ) -> Result<LookupRef<'_>> {
        let (parent, name) = (names.parent(), Name::from(name));
        let is_upper = found.source == Source::Upper;
        let is_linked = !found.stat.is_dir() && found.stat.nlink > 1 && (is_upper || self.was_in_upper(parent, &found));
        let upper_file = is_linked.then_some(found.stat.id());
        let indexed = self.index_entry(parent, &name, &found)?;
        if let Some(node) = self.shared(upper_file, indexed.as_ref()) {
            self.nodes.add_name(names, &name, &node);
            return Ok(node);
        }
        let node = NodeRef::new(self.make_node(parent, &name, found, indexed.as_ref())?);
        if upper_file.is_none() && indexed.is_none() {
            return Ok(self.nodes.adopt(names, &name, node));
        }
        let _multiple = self.nodes.multiple(names);
        if let Some(node) = self.shared(upper_file, indexed.as_ref()) {
            self.nodes.add_name(names, &name, &node);
            return Ok(node);
        }
        let node = self.nodes.adopt(names, &name, node);
        if let Some(id) = upper_file {
            self.nodes.share(id, &node);
        }
        if let Some((entry, _)) = &indexed {
            self.nodes.share_index(&entry.name, &node);
        }
        Ok(node)
    }

    /// True for a file of a layer that was this mount's upper: its names are still one file.
    fn was_in_upper(&self, parent: &NodeRef, found: &crate::union::merge::Found) -> bool {
        let Source::Lower(index) = found.source else { return false };
        let lowers = parent.dir().map(|dir| dir.lowers()).unwrap_or_default();
        let part = lowers.get(usize::from(index));
        part.is_some_and(|part| self.was_upper(part.layer))
    }

    /// The node of another name of the same file, if there is one.
    fn shared(&self, upper_file: Option<FileId>, indexed: Option<&(Indexed, Option<Stat>)>) -> Option<LookupRef<'_>> {
        let by_index = indexed.and_then(|(entry, _)| self.nodes.by_index(&entry.name));
        by_index.or_else(|| upper_file.and_then(|id| self.nodes.by_upper_file(id)))
    }

    fn make_node(
        &self,
        parent: &NodeRef,
        name: &Name,
        found: crate::union::merge::Found,
        indexed: Option<&(Indexed, Option<Stat>)>,
    ) -> Result<Node> {
        let ino = self.ino_of(parent, name, &found)?;
        let id = self.nodes.next_id();
        let file_type = found.stat.file_type();
        let protection = match indexed {
            Some((_, Some(entry))) => entry.protection(),
            _ => found.stat.protection().with(found.marks.protection),
        };
        let at = (parent.clone(), name.clone());
        let layer = match (found.source, found.lowers.first()) {
            (Source::Upper, _) => None,
            (Source::Lower(_), Some(top)) => Some(top.layer),
            (Source::Lower(index), None) => {
                let lowers = parent.dir().ok_or(Errno::NOTDIR)?.lowers();
                Some(lowers.get(usize::from(index)).ok_or(Errno::IO)?.layer)
            }
        };
        let mut content = found.data.map(|(layer, path)| ContentRef { layer, path });
        let place = match (layer, indexed) {
            // The index has the file, wherever this name still is.
            (Some(layer), Some((entry, Some(_)))) => {
                content = content.or(self.own_content(parent, layer, name)).filter(|_| entry.metacopy);
                Residence::Upper { at, layer: self.stack.upper_id() }
            }
            (Some(layer), _) => Residence::Lower { at, layer },
            (None, _) => Residence::Upper { at, layer: self.stack.upper_id() },
        };
        let state = State::new(place).with_content(content).with_index(indexed.map(|(entry, _)| entry.clone()));
        let dir = found.stat.is_dir().then(|| {
            let upper = match found.source {
                Source::Lower(_) => UpperMarks::default(),
                Source::Upper => UpperMarks {
                    impure: found.marks.impure,
                    xattr_whiteouts: found.marks.opaque() == Opaque::XattrWhiteouts,
                    opaque: found.marks.opaque() == Opaque::Yes,
                    redirect: found.marks.redirect.map(Arc::from),
                    inheritance: None,
                },
            };
            Box::new(node::Dir::new(found.lowers.into(), upper, &self.upper_id))
        });
        let node = Node::new(id, ino, file_type, state, dir);
        node.protect(protection);
        Ok(node)
    }

    /// `st_ino` (kernel: `ovl_getattr`). A copied-up file keeps the number of its lower file. A lower hard link
    /// breaks on copy-up, so its copies have their own numbers.
    fn ino_of(&self, parent: &NodeRef, name: &CStr, found: &crate::union::merge::Found) -> Result<u64> {
        let own = self.stack.shown_ino(&found.stat);
        match found.source {
            Source::Lower(index) if found.lowers.is_empty() => {
                let lowers = parent.dir().ok_or(Errno::NOTDIR)?.lowers();
                let Some(part) = lowers.get(usize::from(index)).filter(|part| part.impure) else { return Ok(own) };
                self.ino_of_copy(&self.lower_dir(parent, part)?, name, &found.stat)
            }
            Source::Lower(_) => match found.lowers.first() {
                Some(part) => self.ino_of_part(part),
                None => Ok(own),
            },
            Source::Upper if found.stat.is_dir() => match found.lowers.first() {
                Some(part) => self.ino_of_part(part),
                None => Ok(own),
            },
            Source::Upper => {
                let Some(mark) = &found.marks.origin else { return Ok(own) };
                match self.origins.resolve(mark) {
                    Some(origin)
                        if (origin.nlink == 1 || self.config.index)
                            // A kept type may differ from the real one.
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

    /// `st_ino` of a directory whose topmost lower part is `part`.
    pub(in crate::driver) fn ino_of_part(&self, part: &LowerRef) -> Result<u64> {
        let layer = self.stack.lower(part.layer)?;
        let dir = layer.open_dir(&part.path)?;
        let stat = dir.stat_self()?;
        if layer.chain().is_none() { Ok(self.stack.shown_ino(&stat)) } else { self.ino_of_copy(&dir, c"", &stat) }
    }

    /// `st_ino` of a file or directory of a checkpoint layer, whose attributes are `stat`: the number of its origin, as when
    /// the layer was the upper.
    fn ino_of_copy(&self, dir: &LayerFile, name: &CStr, stat: &Stat) -> Result<u64> {
        let origin = dir.marks(name)?.origin.and_then(|mark| self.origins.resolve(&mark));
        let is_it = |origin: &Stat| {
            (origin.nlink == 1 || origin.is_dir())
                && (self.permissions.is_some() || origin.file_type() == stat.file_type())
        };
        Ok(self.stack.shown_ino(&origin.filter(is_it).unwrap_or(*stat)))
    }

    /// Attributes to show for a node whose real file has `stat`.
    pub(in crate::driver) fn show(&self, node: &Node, stat: &Stat) -> Attr {
        let (uid, gid) = self.shown_owner(stat.uid, stat.gid);
        let (is_upper, nlink, content, is_left) = {
            let state = node.state();
            let nlink = state.index().map(|entry| entry.nlink).or_else(|| state.known_nlink());
            (state.is_upper(), nlink, state.content().cloned(), state.left().is_some())
        };
        let merged = node.dir().is_some_and(|dir| dir.lowers().len() + usize::from(is_upper) > 1);
        Attr {
            ino: node.ino(),
            mode: if stat.is_users_device() { stat.mode & !libc::S_ISVTX } else { stat.mode },
            // Subdirectories of a merged directory are not counted (kernel: `ovl_getattr`).
            nlink: match merged || self.config.static_nlink {
                _ if is_left => 0,
                true => 1,
                false => nlink.unwrap_or_else(|| self.shown_nlink(node, stat)),
            },
            uid,
            gid,
            rdev: stat.rdev,
            size: stat.size,
            blocks: content.and_then(|content| self.content_blocks(&content)).unwrap_or(stat.blocks),
            blksize: stat.blksize,
            atime: stat.atime,
            mtime: stat.mtime,
            ctime: stat.ctime,
            btime: stat.btime,
        }
    }

    /// Allocated size of a file that has its content in a lower layer.
    fn content_blocks(&self, content: &ContentRef) -> Option<u64> {
        let stat = self.stack.lower(content.layer).ok()?.stat_file(&content.path).ok()??;
        Some(stat.blocks)
    }

    /// The answer to the kernel for a node that was looked up. The lookup now belongs to the kernel.
    pub(in crate::driver) fn entry(&self, node: LookupRef<'_>, attr: Attr) -> Entry {
        let entry = Self::entry_of(&node, attr);
        node.hand_over();
        entry
    }

    /// As [`Self::entry`], if the kernel may not be told after all.
    pub(in crate::driver) fn entry_of(node: &Node, attr: Attr) -> Entry {
        Entry { node: node.id(), attr, attr_validity: Self::validity(node) }
    }

    /// While a backing file may be mapped for writing, attributes change without the kernel noticing.
    pub(in crate::driver) fn validity(node: &Node) -> Validity {
        let mapped = node.file_state().is_some_and(|state| state.open().is_some_and(OpenState::is_mappable));
        if mapped { Validity::None } else { Validity::Forever }
    }

    /// Called when the kernel drops `count` of its lookups of `node`.
    pub(crate) fn forget(&self, node: NodeId, count: u64) {
        /// Number of freed nodes after which their memory is given back to the system.
        const TRIM: u64 = 16_384;
        let counted = self.usage.as_ref().and_then(|_| self.nodes.get(node));
        if let Some(node) = &counted {
            self.count_again(node);
        }
        let gone = self.nodes.forget(node, count) as u64;
        if gone == 0 {
            return;
        }
        if let Some(counted) = counted.filter(|_| self.nodes.get(node).is_none()) {
            self.count_forgotten(&counted);
        }
        let before = self.forgotten.fetch_add(gone, Ordering::Relaxed);
        if before / TRIM != (before + gone) / TRIM {
            crate::sys::memory::trim();
        }
    }
}

/// True if both are the same directories of the same layers.
fn is_same_parts(a: &[LowerRef], b: &[LowerRef]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.layer == b.layer && a.path == b.path)
}
