//! Renames (kernel: `ovl_rename`). What moves is copied up first, so the upper does it in one step; what a lower
//! layer still has under the old name is whited out in the same step. A directory with lower parts gets a redirect
//! to where they are.

use std::ffi::{CStr, CString, OsStr};
use std::sync::Arc;

use rustix::fs::RenameFlags;

use crate::config::RedirectDir;
use crate::driver::node::{Name, Node, NodeId as Id, NodeRef};
use crate::driver::types::{Errno, NodeId, Result};
use crate::driver::{Overlay, checked_name, creatable_name};
use crate::marks::Mark;
use crate::union::layer::{Cleared, Move, Place, UpperDir};

/// Longest redirect written, in bytes; what is deeper gives EXDEV. Fits in the attribute space of one ext4 block.
const REDIRECT_MAX: usize = 3000;

/// One side of a rename.
struct Side {
    parent: NodeRef,
    /// The parent's upper part.
    dir: UpperDir,
    name: Name,
    /// What has the name; always there on the source side.
    node: Option<NodeRef>,
    /// Upper part of the node, if that is a directory with one.
    held: Option<UpperDir>,
}

/// What the upper has under the target name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Occupant {
    Nothing,
    Whiteout,
    File,
    Directory,
}

impl Overlay {
    /// Moves `name` in `from` to `new_name` in `to`. `flags`: `RENAME_NOREPLACE`, `RENAME_EXCHANGE`.
    ///
    /// # Errors
    /// `NOENT`, `EXIST`, `NOTEMPTY`, `ISDIR`, `NOTDIR`, `ROFS`; `XDEV` for a directory with lower parts when
    /// `redirect_dir` is not `on`; `INVAL` for other flags; those of copy-up and of the upper.
    pub fn rename(&self, from: NodeId, name: &OsStr, to: NodeId, new_name: &OsStr, flags: u32) -> Result<()> {
        self.upper()?;
        let flags = RenameFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        if flags != RenameFlags::empty() && flags != RenameFlags::NOREPLACE && flags != RenameFlags::EXCHANGE {
            return Err(Errno::INVAL);
        }
        let (from, to) = (self.dir_node(from)?, self.dir_node(to)?);
        let (name, new_name) = (checked_name(name)?, creatable_name(new_name)?);
        let old = self.known(&from, &name)?;
        let new = match self.target(&to, &new_name) {
            Ok(new) => new,
            Err(errno) => {
                self.forget(old.id(), 1);
                return Err(errno);
            }
        };
        let sides = (from, Name::from(name.as_c_str()), to, Name::from(new_name.as_c_str()));
        let renamed = self.rename_nodes(sides, &old, new.as_ref(), flags);
        self.forget(old.id(), 1);
        if let Some(new) = new {
            self.forget(new.id(), 1);
        }
        renamed
    }

    /// The node of the target name, if there is one; with one more lookup counted.
    fn target(&self, parent: &NodeRef, name: &CStr) -> Result<Option<NodeRef>> {
        if let Some(node) = self.nodes.child(parent, name) {
            return Ok(Some(node));
        }
        // Most renames are to a new name, and most directories have no lower part: then one look is enough.
        let exists = match self.upper_dir_if_any(parent)?.map(|dir| dir.stat(name)).transpose()?.flatten() {
            Some(stat) => !stat.is_whiteout_device(),
            None => self.exists_in_lower(parent, name)?,
        };
        if exists { Ok(self.find(parent, name)?.map(|(node, _)| node)) } else { Ok(None) }
    }

    fn rename_nodes(
        &self,
        (from, name, to, new_name): (NodeRef, Name, NodeRef, Name),
        old: &NodeRef,
        new: Option<&NodeRef>,
        flags: RenameFlags,
    ) -> Result<()> {
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
            return Ok(());
        }
        self.check_types(old, new, exchange)?;
        self.copy_up(old)?;
        self.copy_up(&from)?;
        self.copy_up(&to)?;
        if let Some(new) = new.filter(|new| exchange || self.indexed(new).is_some()) {
            self.copy_up(new)?;
        }
        let (dir, to_dir) = (self.upper_dir(&from)?, self.upper_dir(&to)?);
        let source = Side { parent: from, dir, name, node: Some(old.clone()), held: self.held(old)? };
        let held = new.map(|new| self.held(new)).transpose()?.flatten();
        let target = Side { parent: to, dir: to_dir, name: new_name, node: new.cloned(), held };
        let across = !NodeRef::ptr_eq(&source.parent, &target.parent);
        let _rename = across.then(|| self.rename.lock());
        let (Some(a), Some(b)) = (source.parent.dir(), target.parent.dir()) else { return Err(Errno::NOTDIR) };
        let (first, second) = if source.parent.id() <= target.parent.id() { (a, b) } else { (b, a) };
        let _first = first.names.write();
        let _second = across.then(|| second.names.write());
        self.check_still_there(&source, old)?;
        match new {
            Some(new) => self.check_still_there(&target, new)?,
            None if self.nodes.peek_child(&target.parent, &target.name).is_some() => return Err(Errno::AGAIN),
            None => {}
        }
        if target.parent.is_removed() {
            return Err(Errno::NOENT);
        }
        if exchange {
            self.swap(&source, &target, across)?;
        } else {
            self.replace(&source, &target, across)?;
        }
        a.state.lock().note_removal();
        b.state.lock().note_addition();
        if exchange {
            a.state.lock().note_addition();
        }
        Ok(())
    }

    fn held(&self, node: &NodeRef) -> Result<Option<UpperDir>> {
        if node.dir().is_some() { self.upper_dir_if_any(node) } else { Ok(None) }
    }

    fn check_types(&self, old: &Node, new: Option<&NodeRef>, exchange: bool) -> Result<()> {
        let writes_redirects = self.config.redirect_dir == RedirectDir::On && self.upper()?.keeps_marks();
        let moved = |node: &Node| match node.dir() {
            Some(dir) if !dir.lowers.is_empty() && !writes_redirects => Err(Errno::XDEV),
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

    fn check_still_there(&self, side: &Side, node: &NodeRef) -> Result<()> {
        if node.is_named(&side.parent, &side.name) && !node.is_removed() { Ok(()) } else { Err(Errno::NOENT) }
    }

    /// Moves the source over the target.
    fn replace(&self, source: &Side, target: &Side, across: bool) -> Result<()> {
        let Some(old) = &source.node else { return Err(Errno::NOENT) };
        let whiteout_behind = self.exists_in_lower(&source.parent, &source.name)?;
        if let Some(new) = &target.node {
            self.link_up(new, &target.parent, &target.dir, &target.name)?;
        }
        let occupant = self.occupant(target)?;
        if let Some(new) = &target.node
            && new.dir().is_some()
            && !self.is_empty_dir(new, target.held.as_ref())?
        {
            return Err(Errno::NOTEMPTY);
        }
        if old.dir().is_some() {
            self.prepare_dir(source, target, across)?;
        }
        self.link_up(old, &source.parent, &source.dir, &source.name)?;
        self.carry_impure(source, target)?;
        if let (Some(new), Occupant::File) = (&target.node, occupant) {
            self.keep_orphan(new, &target.dir, &target.name)?;
        }
        let change = target.node.as_ref().map(|new| self.begin_nlink_change(new)).transpose()?;
        let emptied = match (occupant, &target.held) {
            (Occupant::Directory, Some(held)) if held_entries(held)? => {
                Some(self.clear_dir(&target.dir, &target.name, held)?)
            }
            _ => None,
        };
        let moved = self.move_over(source, target, occupant, whiteout_behind, old.dir().is_some());
        self.end_clearing(target, emptied, moved.is_ok())?;
        moved?;
        if let (Some(new), Some(change)) = (&target.node, change) {
            self.detach_replaced(target, new);
            self.end_nlink_change(change, new, -1);
        }
        self.nodes.remove_name(&source.parent, &source.name, old);
        self.nodes.add_name(&target.parent, &target.name, old);
        Ok(())
    }

    /// After the rename over a directory that was cleared for it.
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

    fn detach_replaced(&self, target: &Side, new: &NodeRef) {
        if new.has_upper() {
            self.nodes.remove_name(&target.parent, &target.name, new);
            if let Some(held) = &target.held {
                new.state.lock().set_orphan(Some(held.clone()));
            }
        } else {
            self.nodes.hide(&target.parent, &target.name, new);
        }
    }

    fn occupant(&self, target: &Side) -> Result<Occupant> {
        Ok(match target.dir.stat(&target.name)? {
            None => Occupant::Nothing,
            Some(stat) if stat.is_dir() => Occupant::Directory,
            Some(_) if self.is_whiteout_in_upper(&target.parent, &target.dir, &target.name)? => Occupant::Whiteout,
            Some(_) => Occupant::File,
        })
    }

    /// The rename itself, in one step where the file system can.
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
    fn swap(&self, source: &Side, target: &Side, across: bool) -> Result<()> {
        let (Some(old), Some(new)) = (&source.node, &target.node) else { return Err(Errno::NOENT) };
        if old.dir().is_some() {
            self.prepare_dir(source, target, across)?;
        }
        if new.dir().is_some() {
            self.prepare_dir(target, source, across)?;
        }
        self.carry_impure(source, target)?;
        self.carry_impure(target, source)?;
        self.link_up(old, &source.parent, &source.dir, &source.name)?;
        self.link_up(new, &target.parent, &target.dir, &target.name)?;
        source.dir.rename(&source.name, &target.dir, &target.name, RenameFlags::EXCHANGE)?;
        self.nodes.remove_name(&source.parent, &source.name, old);
        self.nodes.remove_name(&target.parent, &target.name, new);
        self.nodes.add_name(&target.parent, &target.name, old);
        self.nodes.add_name(&source.parent, &source.name, new);
        Ok(())
    }

    /// A directory that takes files with an origin in is impure as well.
    fn carry_impure(&self, source: &Side, target: &Side) -> Result<()> {
        let impure = |dir: &crate::driver::node::Dir| dir.state.lock().upper.as_ref().is_some_and(|part| part.impure);
        let merged = source.node.as_ref().and_then(|n| n.dir()).is_some_and(|dir| !dir.lowers.is_empty());
        if merged || source.parent.dir().is_some_and(impure) {
            self.mark_impure(&target.parent, &target.dir)?;
        }
        Ok(())
    }

    /// Before a directory moves from `source` to `target`: a redirect to its lower parts, or, if it has none, the
    /// mark that hides what the target has below.
    fn prepare_dir(&self, source: &Side, target: &Side, across: bool) -> Result<()> {
        let Some(node) = &source.node else { return Ok(()) };
        let (Some(dir), Some(held)) = (node.dir(), &source.held) else { return Ok(()) };
        if dir.lowers.is_empty() {
            let is_opaque = dir.state.lock().upper.as_ref().is_some_and(|part| part.opaque);
            if !is_opaque && self.exists_in_lower(&target.parent, &target.name)? {
                self.mark_opaque(held, c"")?;
                if let Some(part) = &mut dir.state.lock().upper {
                    part.opaque = true;
                }
            }
            return Ok(());
        }
        let present = dir.state.lock().upper.as_ref().and_then(|part| part.redirect.clone());
        let redirect = match present {
            // It already says where the lower parts are, whatever the directory is called.
            Some(redirect) if !across || redirect.first() == Some(&b'/') => return Ok(()),
            _ if across => absolute_redirect(node)?,
            _ => source.name.to_bytes().to_vec(),
        };
        if redirect.len() > REDIRECT_MAX {
            return Err(Errno::XDEV);
        }
        held.set_xattr(c"", &self.upper()?.mark_key(Mark::Redirect), &redirect, 0)?;
        if let Some(part) = &mut dir.state.lock().upper {
            part.redirect = Some(Arc::from(redirect));
        }
        Ok(())
    }
}

/// True if the upper directory physically holds anything.
fn held_entries(held: &UpperDir) -> Result<bool> {
    let mut any = false;
    held.list(|_| {
        any = true;
        Ok(())
    })?;
    Ok(any)
}

/// The path by which the lower layers know the directory: its names from the root down, where a redirect counts
/// instead of a name and an absolute one ends the walk (kernel: `ovl_get_redirect`).
fn absolute_redirect(node: &NodeRef) -> Result<Vec<u8>> {
    let mut components: Vec<CString> = Vec::new();
    let mut current = node.clone();
    let mut prefix = Vec::new();
    while current.id() != Id::ROOT {
        let redirect = current.dir().and_then(|d| d.state.lock().upper.as_ref().and_then(|p| p.redirect.clone()));
        let (parent, name) = current.name().ok_or(Errno::STALE)?;
        match redirect.as_deref() {
            Some(absolute @ [b'/', ..]) => {
                prefix = absolute.to_vec();
                break;
            }
            Some(relative) => components.push(CString::new(relative).map_err(|_| Errno::IO)?),
            None => components.push(CStr::to_owned(&name)),
        }
        current = parent;
    }
    for component in components.iter().rev() {
        prefix.push(b'/');
        prefix.extend_from_slice(component.to_bytes());
    }
    Ok(prefix)
}
