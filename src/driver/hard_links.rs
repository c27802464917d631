//! The index: lower hard links stay one file over copy-up (kernel: `index=on`, `fs/overlayfs/namei.c`
//! `ovl_lookup_index`, `fs/overlayfs/copy_up.c` `ovl_link_up`, `fs/overlayfs/util.c` `ovl_nlink_start`).
//!
//! A lower file with several names is copied up into `work/index`, named by its origin mark in hexadecimal. From
//! there it is linked to each name that is used. The mount's link count is stored on the file relative to the
//! count of the upper file (`U+N`) or of the lower file (`L+N`), whichever the next step leaves unchanged.

use std::ffi::CStr;

use crate::driver::Union;
use crate::driver::copy_up::keep_mtime;
use crate::driver::node::{Indexed, LinksGuard, Name, Names, NamesWrite, Node, NodeRef};
use crate::driver::protection::marked;
use crate::driver::types::{Errno, Result};
use crate::marks::Mark;
use crate::marks::index::{decode_nlink, encode_nlink, entry_name};
use crate::union::layer::{Marks, Stat, UpperDir};
use crate::union::merge::{Found, Source};

/// A change of a file's link count that has begun. Other changes of the same file wait for its end.
pub(in crate::driver) struct NlinkChange<'n> {
    links: LinksGuard<'n>,
}

impl Union {
    /// The index directory, if the mount has one.
    fn index_dir(&self) -> Option<&UpperDir> {
        self.stack.upper().and_then(|upper| upper.index())
    }

    /// Returns the index entry of `found`, called `name` in `parent`, whether or not it exists yet; with the
    /// attributes of the entry's file if it exists.
    pub(in crate::driver) fn index_entry(
        &self,
        parent: &NodeRef,
        name: &CStr,
        found: &Found,
    ) -> Result<Option<(Indexed, Option<Stat>)>> {
        let Some(index) = self.index_dir() else { return Ok(None) };
        if found.stat.is_dir() || found.stat.nlink < 2 {
            return Ok(None);
        }
        let (origin, lower_nlink) = match found.source {
            Source::Lower(at) => {
                let lowers = parent.dir().ok_or(Errno::IO)?.lowers();
                let part = lowers.get(usize::from(at)).ok_or(Errno::IO)?;
                let fs = self.stack.lower(part.layer)?.fs();
                let dir = self.lower_dir(parent, part)?;
                (self.origins.encode(fs, &dir, name)?, found.stat.nlink)
            }
            Source::Upper => {
                let Some(origin) = found.marks.origin.clone() else { return Ok(None) };
                let lower = self.origins.resolve(&origin).map_or(0, |stat| stat.nlink);
                (origin, lower)
            }
        };
        // A file system without handles has no index.
        if origin.is_empty() {
            return Ok(None);
        }
        let entry = Name::from(entry_name(&origin).as_c_str());
        let stat = index.stat(&entry)?.filter(|stat| !stat.is_whiteout_device());
        match (found.source, &stat) {
            // A link made before the mount had an index: treated as an ordinary file.
            (Source::Upper, None) => return Ok(None),
            (Source::Upper, Some(stat)) if stat.id() != found.stat.id() => return Ok(None),
            _ => {}
        }
        let nlink = match &stat {
            None => lower_nlink,
            Some(stat) => {
                let key = self.upper()?.mark_key(Mark::Nlink);
                let mark = index.xattr(&entry, &key)?;
                let kept = mark.as_ref().and_then(|mark| decode_nlink(mark, stat.nlink, lower_nlink));
                if let (Some(mark), None) = (&mark, kept) {
                    let shown = mark.escape_ascii();
                    tracing::warn!(
                        "{:?}: damaged mark {key:?}: \"{shown}\"; the real count is shown",
                        index.shown_path(&entry)
                    );
                }
                kept.unwrap_or(stat.nlink)
            }
        };
        let marks = if stat.is_some() { index.marks(&entry)? } else { Marks::default() };
        let (metacopy, stat) = (marks.metacopy, stat.map(|stat| marked(stat, marks.protection)));
        Ok(Some((Indexed { name: entry, nlink, lower_nlink, metacopy }, stat)))
    }

    /// The node's index entry.
    pub(in crate::driver) fn indexed(&self, node: &Node) -> Option<Indexed> {
        node.file_state()?.index().cloned()
    }

    /// Directory and name of the node's file in the index, if it has been copied up there.
    pub(in crate::driver) fn index_place(&self, node: &Node) -> Option<(UpperDir, Name)> {
        let state = node.file_state()?;
        let entry = state.index().filter(|_| state.is_upper())?;
        Some((self.index_dir()?.clone(), entry.name.clone()))
    }

    /// Writes the link count mark of an indexed file, relative to the upper's count (`letter` is `U`) or the lower's (`L`).
    fn write_nlink(&self, entry: &Indexed, letter: char) -> Result<()> {
        let index = self.index_dir().ok_or(Errno::IO)?;
        let base = match letter {
            'L' => entry.lower_nlink,
            _ => index.stat(&entry.name)?.ok_or(Errno::STALE)?.nlink,
        };
        let mark = encode_nlink(letter, entry.nlink, base);
        index.set_xattr(&entry.name, &self.upper()?.mark_key(Mark::Nlink), mark.as_bytes(), 0)
    }

    /// Publishes a staged copy as the node's index entry.
    pub(in crate::driver) fn publish_indexed(
        &self,
        entry: &Indexed,
        staged: crate::union::layer::Staged<'_>,
    ) -> Result<()> {
        let index = self.index_dir().ok_or(Errno::IO)?;
        // The new file has one name, that of the index entry.
        let mark = encode_nlink('U', entry.nlink, 1);
        staged.set_xattr(&self.upper()?.mark_key(Mark::Nlink), mark.as_bytes())?;
        staged.publish_new(index, &entry.name).map(|_| ())
    }

    /// Makes sure that the indexed file has the name `name` in `dir`, the upper part of the directory whose names are held.
    pub(in crate::driver) fn link_up(
        &self,
        names: &NamesWrite<'_>,
        node: &Node,
        dir: &UpperDir,
        name: &CStr,
    ) -> Result<()> {
        let Some((index, entry)) = self.index_place(node) else { return Ok(()) };
        if dir.stat(name)?.is_some() {
            return Ok(());
        }
        self.mark_impure(names.parent(), dir)?;
        let _links = LinksGuard::lock(names, node);
        let Some(indexed) = self.indexed(node) else { return Ok(()) };
        // The upper gets one more name, but the mount does not.
        self.write_nlink(&indexed, 'L')?;
        let before = dir.stat_self()?;
        self.mark_plain(&index, &entry, name)?;
        self.counting_dirs(&[dir], || dir.link(&index, &entry, name))?;
        keep_mtime(dir, &before);
        Ok(())
    }

    /// Must be called before the mount's link count of an indexed file changes together with the upper's. The
    /// result goes to [`Self::end_nlink_change`] when both have changed.
    pub(in crate::driver) fn begin_nlink_change<'n>(
        &self,
        names: &'n NamesWrite<'_>,
        node: &'n Node,
    ) -> Result<NlinkChange<'n>> {
        let links = LinksGuard::lock(names, node);
        match self.indexed(node) {
            Some(entry) if node.has_upper() => self.write_nlink(&entry, 'U')?,
            _ => {}
        }
        Ok(NlinkChange { links })
    }

    /// Ends a change by `difference`. A file without names leaves the index; open handles hold it
    /// ([`crate::driver::node::NodeTable::unlink`]).
    ///
    /// Best effort: the change itself stands, and an entry that cannot be removed is left for the next mount.
    pub(in crate::driver) fn end_nlink_change(&self, change: NlinkChange<'_>, difference: i32) {
        let NlinkChange { links } = change;
        let Some((index, entry)) = self.index_place(links.node()) else { return };
        if self.nodes.count_link(&links, difference) != Some(0) {
            return;
        }
        self.nodes.leave_index(&links);
        if let Err(errno) = index.remove_file(&entry) {
            tracing::warn!("an index entry of a removed file is left behind: {entry:?}: {errno}");
        }
    }
}
