//! Renames (kernel: `ovl_rename`). The source is copied up first, so that the upper can move it in one step. If a lower layer has
//! the old name, the same step leaves a whiteout there. A directory with lower parts gets a redirect to them.

use std::ffi::{CStr, OsStr};
use std::sync::Arc;

use rustix::fs::RenameFlags;

use crate::config::RedirectDir;
use crate::driver::node::{LookupRef, Name, NamesPair, NewEntry, Node, NodeRef, Replaced, Turn, path_in_lowers};
use crate::driver::types::{Caller, Errno, NodeId, Result};
use crate::driver::verbs::remove::Attempt;
use crate::driver::{Union, checked_name};
use crate::marks::Mark;
use crate::union::layer::{Cleared, LayerDir, Move, Place, Staged, UpperDir};
use crate::union::merge::acts_by_name;

/// Longest redirect that is written, in bytes; for deeper directories, rename fails with EXDEV. It fits into
/// the attribute space of one ext4 block.
const REDIRECT_MAX: usize = 3000;

/// One side of a rename.
struct Side {
    parent: NodeRef,
    /// The parent's upper part.
    dir: UpperDir,
    name: Name,
    /// The node with the name; always present on the source side.
    node: Option<NodeRef>,
    /// The upper part of the node, if it is a directory with one.
    held: Option<UpperDir>,
}

/// The locks under which a rename happens.
struct Moving<'g> {
    names: &'g NamesPair<'g>,
    /// Source and target are in different directories.
    across: bool,
}

/// The upper's file or directory under the target name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Occupant {
    Nothing,
    Whiteout,
    File,
    Directory,
}

impl Union {
    /// Moves `name` in `from` to `new_name` in `to`. `flags`: `RENAME_NOREPLACE`, `RENAME_EXCHANGE`.
    ///
    /// # Errors
    /// `NOENT`, `EXIST`, `NOTEMPTY`, `ISDIR`, `NOTDIR`, `ROFS`; `XDEV` for a directory with lower parts when
    /// `redirect_dir` is not `on`; `INVAL` for other flags; those of copy-up and of the upper.
    pub(crate) fn rename(&self, from: NodeId, name: &OsStr, to: NodeId, new_name: &OsStr, flags: u32) -> Result<()> {
        let flags = RenameFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        self.rename_with((from, name), (to, new_name), flags, None)
    }

    /// As [`Self::rename`], and a character device 0:0 that belongs to `caller` takes the place of `name`
    /// (`RENAME_WHITEOUT`).
    ///
    /// # Errors
    /// As [`Self::rename`] and [`Self::mknod`].
    pub(crate) fn rename_with_whiteout(
        &self,
        caller: &Caller,
        (from, name): (NodeId, &OsStr),
        (to, new_name): (NodeId, &OsStr),
        flags: u32,
    ) -> Result<()> {
        let flags = RenameFlags::from_bits(flags).ok_or(Errno::INVAL)?.difference(RenameFlags::WHITEOUT);
        if flags.contains(RenameFlags::EXCHANGE) {
            return Err(Errno::INVAL);
        }
        self.rename_with((from, name), (to, new_name), flags, Some(caller))
    }

    fn rename_with(
        &self,
        (from, name): (NodeId, &OsStr),
        (to, new_name): (NodeId, &OsStr),
        flags: RenameFlags,
        leaves: Option<&Caller>,
    ) -> Result<()> {
        self.upper()?;
        if flags != RenameFlags::empty() && flags != RenameFlags::NOREPLACE && flags != RenameFlags::EXCHANGE {
            return Err(Errno::INVAL);
        }
        let (from, to) = (self.dir_node(from)?, self.dir_node(to)?);
        let (name, new_name) = (checked_name(name)?, self.creatable_name(new_name)?);
        let (name, new_name) = (Name::from(name.as_c_str()), Name::from(new_name.as_c_str()));
        loop {
            let old = self.known(&from, &name)?;
            let new = self.target(&to, &new_name)?;
            let new = new.as_deref();
            if self.rename_nodes((&from, &name), (&to, &new_name), (&old, new), flags, leaves)? == Attempt::Done {
                self.changed_dirs(&[&from, &to]);
                return Ok(());
            }
        }
    }

    /// The node of the target name, if it exists.
    fn target(&self, parent: &NodeRef, name: &CStr) -> Result<Option<LookupRef<'_>>> {
        if let Some(node) = self.nodes.child(parent, name) {
            return Ok(Some(node));
        }
        // Most renames are to a new name, and most directories have no lower part: then one check is enough.
        let exists = match self.upper_dir_if_any(parent)?.map(|dir| dir.stat(name)).transpose()?.flatten() {
            Some(stat) => !stat.is_whiteout_device(),
            None => self.exists_in_lower(parent, name)?,
        };
        if exists { Ok(self.find(parent, name)?.map(|(node, _)| node)) } else { Ok(None) }
    }

    fn rename_nodes(
        &self,
        (from, name): (&NodeRef, &Name),
        (to, new_name): (&NodeRef, &Name),
        (old, new): (&NodeRef, Option<&NodeRef>),
        flags: RenameFlags,
        leaves: Option<&Caller>,
    ) -> Result<Attempt> {
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        if exchange && !self.upper()?.work()?.capabilities().exchange {
            return Err(Errno::INVAL);
        }
        if flags.contains(RenameFlags::NOREPLACE) && new.is_some() {
            return Err(Errno::EXIST);
        }
        if exchange && new.is_none() {
            return Err(Errno::NOENT);
        }
        if new.is_some_and(|new| NodeRef::ptr_eq(new, old)) {
            return Ok(Attempt::Done);
        }
        from.check_removal(old)?;
        new.map_or_else(|| to.check_addition(), |new| to.check_removal(new))?;
        self.check_types(old, new, exchange)?;
        self.copy_up(old)?;
        self.copy_up(from)?;
        self.copy_up(to)?;
        if let Some(new) = new.filter(|new| exchange || self.indexed(new).is_some()) {
            self.copy_up(new)?;
        }
        let (dir, to_dir) = (self.upper_dir(from)?, self.upper_dir(to)?);
        let left = leaves.map(|caller| self.stage_device(caller, from, &dir)).transpose()?;
        let source =
            Side { parent: from.clone(), dir, name: name.clone(), node: Some(old.clone()), held: self.held(old)? };
        let held = new.map(|new| self.held(new)).transpose()?.flatten();
        let target = Side { parent: to.clone(), dir: to_dir, name: new_name.clone(), node: new.cloned(), held };
        // Redirects hold paths of directories, and these change only under this lock.
        let moves_dir = old.dir().is_some() || (exchange && new.is_some_and(|new| new.dir().is_some()));
        let across = !NodeRef::ptr_eq(from, to);
        let mut turn = Turn::begin();
        let mut guard;
        let names = if across {
            guard = self.rename.lock(&mut turn);
            NamesPair::across(&mut guard, from, to)?
        } else if moves_dir {
            guard = self.rename.lock(&mut turn);
            NamesPair::within(guard.after(), from)?
        } else {
            NamesPair::within(&mut turn, from)?
        };
        if !Self::is_current(&source, &target) {
            return Ok(Attempt::Outdated);
        }
        if to.is_removed() {
            return Err(Errno::NOENT);
        }
        let moving = Moving { names: &names, across };
        if exchange {
            self.swap(&moving, &source, &target)?
        } else {
            self.replace(&moving, &source, &target)?;
            if let Some(left) = left {
                self.leave_device(&moving, &source, left);
            }
        }
        Ok(Attempt::Done)
    }

    /// Puts the staged device under the old name. No system call does both steps: after a crash in between the name is
    /// free, and so it is after an error, because the rename cannot be undone.
    fn leave_device(&self, moving: &Moving<'_>, source: &Side, left: Staged<'_>) {
        let published = left.stat().and_then(|stat| {
            left.publish_over(&source.dir, &source.name)?;
            Ok(NewEntry { id: Some(stat.id()), kind: libc::DT_CHR })
        });
        match published {
            Ok(entry) => self.nodes.note_addition(moving.names.source(), &source.name, Some(entry)),
            Err(errno) => tracing::error!("{:?}: no device left: {errno}", source.dir.shown_path(&source.name)),
        }
    }

    /// True if the names still are what the lookup found before they were held.
    fn is_current(source: &Side, target: &Side) -> bool {
        let is_same = |side: &Side| match &side.node {
            Some(node) => {
                let is_held = side.held.is_some() == node.has_upper();
                node.is_named(&side.parent, &side.name) && (node.dir().is_none() || is_held)
            }
            None => side.parent.dir().is_none_or(|dir| !dir.has_child(&side.name)),
        };
        is_same(source) && is_same(target)
    }

    fn held(&self, node: &NodeRef) -> Result<Option<UpperDir>> {
        if node.dir().is_some() { self.upper_dir_if_any(node) } else { Ok(None) }
    }

    fn check_types(&self, old: &Node, new: Option<&NodeRef>, exchange: bool) -> Result<()> {
        let writes_redirects = self.config.redirect_dir == RedirectDir::On && self.upper()?.keeps_marks();
        let moved = |node: &Node| match node.dir() {
            Some(dir) if dir.has_lowers() && !writes_redirects => Err(Errno::XDEV),
            _ => Ok(()),
        };
        moved(old)?;
        match (old.dir().is_some(), new.map(|new| new.dir().is_some())) {
            (_, Some(_)) if exchange => new.map_or(Ok(()), |new| moved(new)),
            (true, Some(false)) => Err(Errno::NOTDIR),
            (false, Some(true)) => Err(Errno::ISDIR),
            _ => Ok(()),
        }
    }

    /// Moves the source over the target.
    fn replace(&self, moving: &Moving<'_>, source: &Side, target: &Side) -> Result<()> {
        let names = moving.names;
        let Some(old) = &source.node else { return Err(Errno::NOENT) };
        let whiteout_behind = self.exists_in_lower(&source.parent, &source.name)?;
        if let Some(new) = &target.node {
            self.link_up(names.target(), new, &target.dir, &target.name)?;
        }
        let occupant = self.occupant(target)?;
        if let Some(new) = &target.node
            && new.dir().is_some()
            && !self.is_empty_dir(new, target.held.as_ref())?
        {
            return Err(Errno::NOTEMPTY);
        }
        if old.dir().is_some() {
            self.prepare_dir(moving, source, target)?;
        }
        self.link_up(names.source(), old, &source.dir, &source.name)?;
        self.mark_plain(&source.dir, &source.name, &target.name)?;
        self.carry_impure(source, target)?;
        let replaced = match &target.node {
            Some(node) if occupant == Occupant::File => {
                Some(Replaced { node, held: Some(self.hold_file(&target.dir, &target.name)?) })
            }
            Some(node) => Some(Replaced { node, held: target.held.clone() }),
            None => None,
        };
        let change = target.node.as_ref().map(|new| self.begin_nlink_change(names.target(), new)).transpose()?;
        let link = target.node.as_ref().map_or(Ok(None), |new| self.former_link(new))?;
        let gone = replaced.as_ref().and_then(|replaced| Some((replaced.node, replaced.held.clone()?)));
        let changed: Vec<&UpperDir> = [&source.dir, &target.dir].into_iter().chain(target.held.as_ref()).collect();
        self.counting_dirs(&changed, || {
            let emptied = match (occupant, &target.held) {
                (Occupant::Directory, Some(held)) if held_entries(held)? => {
                    Some(self.clear_dir(&target.dir, &target.name, held)?)
                }
                _ => None,
            };
            let moved = self.move_over(source, target, occupant, whiteout_behind, old.dir().is_some());
            self.end_clearing(target, emptied, moved.is_ok())?;
            moved
        })?;
        if let Some(file) = link {
            self.former_links.note_removed(file, self.stack.upper_id());
        }
        self.nodes.rename(names, old, &source.name, &target.name, replaced);
        if let Some(change) = change {
            self.end_nlink_change(change, -1);
        }
        if let Some((node, held)) = gone {
            self.count_removed(node, &held);
        }
        Ok(())
    }

    /// Called after the rename over a directory that was cleared for it.
    fn end_clearing(&self, target: &Side, cleared: Option<Cleared<'_>>, was_replaced: bool) -> Result<()> {
        let (Some(cleared), Some(held)) = (cleared, &target.held) else { return Ok(()) };
        let (work, place) = (self.upper()?.work()?, Place::new(&target.dir, &target.name));
        if was_replaced {
            work.end_cleared(cleared, place);
        } else if let Err(errno) = work.put_back(&cleared, place, held) {
            tracing::error!("the target of a failed rename cannot be put back: {errno}");
        }
        Ok(())
    }

    fn occupant(&self, target: &Side) -> Result<Occupant> {
        Ok(match target.dir.stat(&target.name)? {
            None => Occupant::Nothing,
            Some(stat) if stat.is_dir() => Occupant::Directory,
            Some(_) if self.is_whiteout_in_upper(&target.parent, &target.dir, &target.name)? => Occupant::Whiteout,
            Some(stat) if acts_by_name(&LayerDir::Held(target.dir.as_dir().clone()), &target.name, &stat)? => {
                return Err(Errno::PERM);
            }
            Some(_) => Occupant::File,
        })
    }

    /// The rename itself, in one step if the file system can.
    fn move_over(
        &self,
        source: &Side,
        target: &Side,
        occupant: Occupant,
        whiteout_behind: bool,
        is_dir: bool,
    ) -> Result<()> {
        if whiteout_behind {
            self.allow_whiteouts(&source.parent, &source.dir)?;
        }
        let how = Move { whiteout_behind, over_whiteout: occupant == Occupant::Whiteout, is_dir };
        let (from, to) = (Place::new(&source.dir, &source.name), Place::new(&target.dir, &target.name));
        self.upper()?.work()?.move_to(from, to, how)
    }

    /// Exchanges source and target.
    fn swap(&self, moving: &Moving<'_>, source: &Side, target: &Side) -> Result<()> {
        let names = moving.names;
        let (Some(old), Some(new)) = (&source.node, &target.node) else { return Err(Errno::NOENT) };
        if old.dir().is_some() {
            self.prepare_dir(moving, source, target)?;
        }
        if new.dir().is_some() {
            self.prepare_dir(moving, target, source)?;
        }
        self.carry_impure(source, target)?;
        self.carry_impure(target, source)?;
        self.link_up(names.source(), old, &source.dir, &source.name)?;
        self.link_up(names.target(), new, &target.dir, &target.name)?;
        self.mark_plain(&source.dir, &source.name, &target.name)?;
        self.mark_plain(&target.dir, &target.name, &source.name)?;
        source.dir.rename(&source.name, &target.dir, &target.name, RenameFlags::EXCHANGE)?;
        self.nodes.exchange(names, (old, &source.name), (new, &target.name));
        Ok(())
    }

    /// A directory that receives files with an origin becomes impure too.
    fn carry_impure(&self, source: &Side, target: &Side) -> Result<()> {
        let impure = |dir: &crate::driver::node::Dir| dir.upper_part(|part| part.impure);
        let merged = source.node.as_ref().and_then(|n| n.dir()).is_some_and(|dir| dir.has_lowers());
        if merged || source.parent.dir().is_some_and(impure) {
            self.mark_impure(&target.parent, &target.dir)?;
        }
        Ok(())
    }

    /// Called before a directory moves from `source` to `target`. Sets a redirect to its lower parts; if it has
    /// none, sets the mark that hides the lower files of the target.
    fn prepare_dir(&self, moving: &Moving<'_>, source: &Side, target: &Side) -> Result<()> {
        let Some(node) = &source.node else { return Ok(()) };
        let (Some(dir), Some(held)) = (node.dir(), &source.held) else { return Ok(()) };
        if !dir.has_lowers() {
            let is_opaque = dir.upper_part(|part| part.opaque);
            if !is_opaque && self.exists_in_lower(&target.parent, &target.name)? {
                self.counting_dirs(&[held], || self.mark_opaque(held, c""))?;
                dir.note_upper_part(|part| part.opaque = true);
            }
            return Ok(());
        }
        let present = dir.upper_part(|part| part.redirect.clone());
        let redirect = match present {
            // The redirect already names the lower parts, whatever the directory is called.
            Some(redirect) if !moving.across || redirect.first() == Some(&b'/') => return Ok(()),
            _ if moving.across => path_in_lowers(moving.names.rename().ok_or(Errno::IO)?, node)?,
            _ => source.name.to_bytes().to_vec(),
        };
        if redirect.len() > REDIRECT_MAX {
            return Err(Errno::XDEV);
        }
        let key = self.upper()?.mark_key(Mark::Redirect);
        self.counting_dirs(&[held], || held.set_xattr(c"", &key, &redirect, 0))?;
        dir.note_upper_part(|part| part.redirect = Some(Arc::from(redirect)));
        Ok(())
    }
}

/// True if the upper directory has any entry on disk.
fn held_entries(held: &UpperDir) -> Result<bool> {
    let mut any = false;
    held.list(|_| {
        any = true;
        Ok(())
    })?;
    Ok(any)
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests;
