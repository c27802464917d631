//! Removal. A file that only the upper has is unlinked; a file that a lower layer has gets a whiteout. Both take one step.

use std::ffi::{CStr, CString, OsStr};

use crate::driver::node::{LookupRef, NamesPair, NamesWrite, Node, NodeRef, Turn};
use crate::driver::types::{Errno, NodeId, Result};
use crate::driver::{Union, checked_name};
use crate::marks::Mark;
use crate::union::layer::{Cleared, Place, UpperDir, UpperWhiteouts};
use crate::union::merge::Listing;
use crate::union::merge::listing::Moved;

/// Result of a change whose names were looked up before they were locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::driver) enum Attempt {
    /// The change is made.
    Done,
    /// The names have changed since the lookup: nothing was done, and the caller looks them up again.
    Outdated,
}

impl Union {
    /// Removes a name that is not a directory.
    ///
    /// # Errors
    /// `NOENT`, `ISDIR`, `ROFS`; those of the upper.
    pub(crate) fn unlink(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        self.upper()?;
        let parent = self.dir_node(parent)?;
        let name = checked_name(name)?;
        loop {
            let node = self.known(&parent, &name)?;
            if self.unlink_node(&parent, &name, &node)? == Attempt::Done {
                self.changed_dirs(&[&parent]);
                return Ok(());
            }
        }
    }

    /// The node of an existing name.
    pub(in crate::driver) fn known(&self, parent: &NodeRef, name: &CStr) -> Result<LookupRef<'_>> {
        if let Some(node) = self.nodes.child(parent, name) {
            return Ok(node);
        }
        self.find(parent, name)?.map(|(node, _)| node).ok_or(Errno::NOENT)
    }

    fn unlink_node(&self, parent: &NodeRef, name: &CStr, node: &NodeRef) -> Result<Attempt> {
        if node.dir().is_some() {
            return Err(Errno::ISDIR);
        }
        parent.check_removal(node)?;
        self.copy_up(parent)?;
        let dir = self.upper_dir(parent)?;
        if self.indexed(node).is_some() {
            self.copy_up(node)?;
        }
        let link = self.former_link(node)?;
        let mut turn = Turn::begin();
        let names = NamesWrite::lock(&mut turn, parent)?;
        if !node.is_named(parent, name) {
            return Ok(Attempt::Outdated);
        }
        if !node.has_upper() {
            self.counting_dirs(&[&dir], || self.put_whiteout(parent, &dir, name))?;
            if let Some(file) = link {
                self.former_links.note_removed(file, self.stack.upper_id());
            }
            self.nodes.hide(&names, name, node);
            return Ok(Attempt::Done);
        }
        self.link_up(&names, node, &dir, name)?;
        let change = self.begin_nlink_change(&names, node)?;
        let held = self.hold_file(&dir, name)?;
        let in_lower = self.exists_in_lower(parent, name)?;
        self.counting_dirs(&[&dir], || match in_lower {
            true => self.whiteout_over(parent, &dir, name),
            false => dir.remove_file(name),
        })?;
        self.nodes.unlink(&names, name, node, held.clone());
        self.end_nlink_change(change, -1);
        self.count_removed(node, &held);
        Ok(Attempt::Done)
    }

    /// Called before a name of an upper file is removed: holds the file for open handles. Only after the removal is it
    /// known whether that name was the last one, so every file is held.
    pub(in crate::driver) fn hold_file(&self, dir: &UpperDir, name: &CStr) -> Result<UpperDir> {
        Ok(self.upper()?.hold(dir.open_reference(name)?))
    }

    /// Makes `name` a whiteout. The upper has nothing under that name.
    pub(in crate::driver) fn put_whiteout(&self, parent: &Node, dir: &UpperDir, name: &CStr) -> Result<()> {
        self.allow_whiteouts(parent, dir)?;
        self.upper()?.work()?.link_whiteout(dir, name)
    }

    /// Replaces the upper's file `name` by a whiteout.
    pub(in crate::driver) fn whiteout_over(&self, parent: &Node, dir: &UpperDir, name: &CStr) -> Result<()> {
        self.allow_whiteouts(parent, dir)?;
        self.upper()?.work()?.stage_whiteout()?.publish_over(dir, name).map(|_| ())
    }

    /// Replaces the upper's directory `name`, with everything in it, by a whiteout.
    pub(in crate::driver) fn whiteout_for_dir(&self, parent: &Node, dir: &UpperDir, name: &CStr) -> Result<()> {
        self.allow_whiteouts(parent, dir)?;
        self.upper()?.work()?.whiteout_over_dir(Place::new(dir, name))
    }

    /// Xattr whiteouts are only recognized in directories with a mark that allows them.
    pub(in crate::driver) fn allow_whiteouts(&self, parent: &Node, dir: &UpperDir) -> Result<()> {
        let upper = self.upper()?;
        if upper.whiteout_form() == UpperWhiteouts::Device {
            return Ok(());
        }
        let known = parent.dir().ok_or(Errno::NOTDIR)?;
        if known.upper_part(|part| part.xattr_whiteouts || part.opaque) {
            return Ok(());
        }
        dir.set_xattr(c"", &upper.mark_key(Mark::Opaque), b"x", 0)?;
        known.note_upper_part(|part| part.xattr_whiteouts = true);
        Ok(())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `NOENT`, `NOTDIR`, `NOTEMPTY`, `ROFS`; those of the upper.
    pub(crate) fn rmdir(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        self.upper()?;
        let parent = self.dir_node(parent)?;
        let name = checked_name(name)?;
        loop {
            let node = self.known(&parent, &name)?;
            if self.rmdir_node(&parent, &name, &node)? == Attempt::Done {
                self.changed_dirs(&[&parent]);
                return Ok(());
            }
        }
    }

    fn rmdir_node(&self, parent: &NodeRef, name: &CStr, node: &NodeRef) -> Result<Attempt> {
        if node.dir().is_none() {
            return Err(Errno::NOTDIR);
        }
        parent.check_removal(node)?;
        self.copy_up(parent)?;
        let dir = self.upper_dir(parent)?;
        let held = self.upper_dir_if_any(node)?;
        let mut turn = Turn::begin();
        let pair = NamesPair::ordered(&mut turn, parent, node)?;
        let names = pair.source();
        // The directory may have been moved or copied up while the names were not held.
        if !node.is_named(parent, name) || held.is_some() != node.has_upper() {
            return Ok(Attempt::Outdated);
        }
        if !self.is_empty_dir(node, held.as_ref())? {
            return Err(Errno::NOTEMPTY);
        }
        let in_lower = self.exists_in_lower(parent, name)?;
        let changed: Vec<&UpperDir> = std::iter::once(&dir).chain(held.as_ref()).collect();
        self.counting_dirs(&changed, || match (&held, in_lower) {
            (None, _) => self.put_whiteout(parent, &dir, name),
            (Some(_), true) => self.whiteout_for_dir(parent, &dir, name),
            (Some(_), false) => match dir.remove_dir(name) {
                // It looks empty to users, but holds whiteouts.
                Err(Errno::NOTEMPTY | Errno::EXIST) => self.upper()?.work()?.discard(&dir, name),
                done => done,
            },
        })?;
        match held {
            Some(held) => {
                self.nodes.unlink(names, name, node, held.clone());
                self.count_removed(node, &held);
            }
            None => self.nodes.hide(names, name, node),
        }
        Ok(Attempt::Done)
    }

    /// True if users see no entries in the directory. The caller holds its `names` lock or knows that nothing can be created in
    /// it.
    pub(in crate::driver) fn is_empty_dir(&self, node: &NodeRef, upper: Option<&UpperDir>) -> Result<bool> {
        if let Some(timeout) = self.config.timeout {
            self.nodes.drop_outdated_listings(node, timeout);
        }
        let lowers = self.lower_listing(node)?;
        match upper {
            None => Ok(lowers.is_none_or(|listing| listing.is_empty())),
            Some(upper) => {
                let by_xattr = node.dir().is_some_and(|dir| dir.upper_part(|part| part.xattr_whiteouts));
                if lowers.as_ref().is_none_or(|listing| listing.is_empty()) {
                    return Ok(!Listing::has_entries(upper, by_xattr)?);
                }
                Ok(Listing::with_upper(upper, by_xattr, lowers.as_deref(), &Moved::default())?.is_empty())
            }
        }
    }

    /// Removes the whiteouts from the upper directory `name`, so that something can be renamed over it. The lower files
    /// stay hidden. An empty directory takes its place (kernel: `ovl_clear_empty`), and the directory itself becomes the
    /// staged one, because the nodes below know it. Without `RENAME_EXCHANGE`, the directory is emptied in place.
    pub(in crate::driver) fn clear_dir(&self, dir: &UpperDir, name: &CStr, held: &UpperDir) -> Result<Cleared<'_>> {
        let work = self.upper()?.work()?;
        if !work.capabilities().exchange {
            return work.empty_in_place(Place::new(dir, name), held);
        }
        let stat = held.stat_self()?;
        let staged = work.stage_dir(stat.mode & 0o777)?;
        {
            let (work, staged_name) = staged.dir_and_name().ok_or(Errno::IO)?;
            let staged_name: CString = staged_name.to_owned();
            work.set_owner(&staged_name, Some(stat.uid), Some(stat.gid))?;
            work.set_mode(&staged_name, stat.mode & 0o7777)?;
            self.mark_opaque(work, &staged_name)?;
        }
        staged.swap(dir, name)?;
        Ok(Cleared::Swapped(staged))
    }
}
