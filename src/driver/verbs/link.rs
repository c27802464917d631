//! Hard links.

use std::ffi::OsStr;

use crate::driver::node::{Name, Node, NodeRef, Real, State};
use crate::driver::types::{Entry, Errno, NodeId, Result};
use crate::driver::{Overlay, creatable_name};
use crate::union::layer::UpperDir;
use crate::union::merge::Found;

impl Overlay {
    /// Gives `node` the further name `name` in `parent`.
    ///
    /// # Errors
    /// `EXIST`, `MLINK`, `PERM` for directories and reserved names, `ROFS`; those of copy-up and of the upper.
    pub fn link(&self, node: NodeId, parent: NodeId, name: &OsStr) -> Result<Entry> {
        self.upper()?;
        let asked = node;
        let node = self.node(asked)?;
        let parent = self.dir_node(parent)?;
        let name = creatable_name(name)?;
        if node.dir().is_some() {
            return Err(Errno::PERM);
        }
        self.copy_up(&node)?;
        self.copy_up(&parent)?;
        let index_place = self.index_place(&node);
        let dir = self.upper_dir(&parent)?;
        let old = node.name();
        let old_dir = match &old {
            // An indexed file is linked from its entry; the directory of its old name need not be in the upper.
            Some((old_parent, _)) if index_place.is_none() => Some(self.upper_dir(old_parent)?),
            _ => None,
        };
        let name = Name::from(name.as_c_str());
        {
            let _rename = self.rename.lock();
            let parent_dir = parent.dir().ok_or(Errno::NOTDIR)?;
            // `rename` is held, so the old name stays; names in the new directory need its lock.
            let _names = parent_dir.names.write();
            if parent.is_removed() {
                return Err(Errno::NOENT);
            }
            if let Some((old_parent, _)) = &old
                && old_parent.dir().is_some_and(|d| d.state.lock().upper.as_ref().is_some_and(|p| p.impure))
            {
                self.mark_impure(&parent, &dir)?;
            }
            let orphan = node.state.lock().orphan().cloned();
            let from = match (&old, &old_dir, &orphan) {
                (_, _, Some(orphan)) => From::Open(orphan),
                _ if let Some((index, entry)) = &index_place => From::Named(index, entry),
                (Some((_, old_name)), Some(old_dir), None) => From::Named(old_dir, old_name),
                _ => return Err(Errno::NOENT),
            };
            if index_place.is_some() {
                self.mark_impure(&parent, &dir)?;
            }
            let change = self.begin_nlink_change(&node)?;
            self.link_real(&from, &parent, &dir, &name)?;
            self.end_nlink_change(change, &node, 1);
            node.state.lock().set_orphan(None);
            node.acquire();
            self.nodes.add_name(&parent, &name, &node);
            parent_dir.state.lock().note_addition();
        }
        let stat = self.shown_stat(&dir, &name, dir.stat(&name)?.ok_or(Errno::STALE)?)?;
        self.nodes.share(stat.id(), &node);
        self.changed_under(&node, asked);
        Ok(self.entry(&node, self.show(&node, &stat)))
    }

    fn link_real(&self, from: &From<'_>, parent: &NodeRef, dir: &UpperDir, name: &Name) -> Result<()> {
        let linked = match from {
            From::Named(old_dir, old_name) => dir.link(old_dir, old_name, name),
            From::Open(file) => dir.link_open_file(std::os::fd::AsFd::as_fd(*file), name),
        };
        match linked {
            Err(Errno::EXIST) if self.is_whiteout_in_upper(parent, dir, name)? => {
                let work = self.upper()?.work()?;
                let staged = match from {
                    From::Named(old_dir, old_name) => work.stage_link(old_dir, old_name)?,
                    From::Open(file) => work.stage_open_file(std::os::fd::AsFd::as_fd(*file))?,
                };
                staged.publish_over(dir, name).map(|_| ())
            }
            done => done,
        }
    }

    /// Puts an upper file without a name into the table, with one lookup counted.
    pub(in crate::driver) fn admit_nameless(&self, found: Found, held: UpperDir) -> NodeRef {
        let mut state = State::new(None, Real::Upper);
        state.set_orphan(Some(held));
        let ino = self.stack.shown_ino(&found.stat);
        let node = NodeRef::new(Node::new(self.nodes.next_id(), ino, found.stat.file_type(), state, None));
        self.nodes.adopt_nameless(&node);
        node
    }
}

/// The file that gets a further name.
enum From<'a> {
    Named(&'a UpperDir, &'a Name),
    Open(&'a UpperDir),
}
