//! Hard links.

use std::ffi::OsStr;
use std::os::fd::AsFd;

use crate::driver::Union;
use crate::driver::node::{LookupRef, Name, NamesPair, Node, NodeRef, Residence, State, Turn};
use crate::driver::types::{Entry, Errno, NodeId, Result};
use crate::union::layer::{Stat, UpperDir};
use crate::union::merge::Found;

impl Union {
    /// Gives `node` the further name `name` in `parent`.
    ///
    /// # Errors
    /// `EXIST`, `MLINK`, `PERM` for directories and reserved names, `ROFS`; those of copy-up and of the upper.
    pub(crate) fn link(&self, node: NodeId, parent: NodeId, name: &OsStr) -> Result<Entry> {
        self.upper()?;
        let asked = node;
        let node = self.node(asked)?;
        let parent = self.dir_node(parent)?;
        let name = self.creatable_name(name)?;
        if node.dir().is_some() {
            return Err(Errno::PERM);
        }
        node.check_unprotected()?;
        parent.check_addition()?;
        let node = self.nodes.count(&node).ok_or(Errno::STALE)?;
        self.copy_up(&node)?;
        self.copy_up(&parent)?;
        let name = Name::from(name.as_c_str());
        let stat = loop {
            if let Linked::At(stat) = self.link_once(&node, &parent, &name)? {
                break stat;
            }
        };
        self.changed_under(&node, asked);
        self.changed_dirs(&[&parent]);
        let attr = self.show(&node, &stat);
        Ok(self.entry(node, attr))
    }

    /// Links the file at its present place, if it is still there when the names are held.
    fn link_once(&self, node: &LookupRef<'_>, parent: &NodeRef, name: &Name) -> Result<Linked> {
        let dir = self.upper_dir(parent)?;
        let (at, orphan) = {
            let state = node.state();
            (state.first_name().cloned(), state.orphan().cloned())
        };
        let mut turn = Turn::begin();
        let (names, from) = match (self.index_place(node), orphan, &at) {
            // The directory of an indexed file's old name may be missing in the upper.
            (Some((index, entry)), ..) => (NamesPair::within(&mut turn, parent)?, From::Named(index, entry)),
            (None, Some(held), _) => (NamesPair::within(&mut turn, parent)?, From::Open(held)),
            (None, None, Some((old_parent, old_name))) => {
                let old_dir = self.upper_dir(old_parent)?;
                (NamesPair::ordered(&mut turn, old_parent, parent)?, From::Named(old_dir, old_name.clone()))
            }
            (None, None, None) => return Err(Errno::NOENT),
        };
        let moved = match (&from, &at) {
            (From::Open(_), _) => node.state().orphan().is_none(),
            (From::Named(..), Some((old_parent, old_name))) => {
                self.index_place(node).is_none() && !node.is_named(old_parent, old_name)
            }
            (From::Named(..), None) => self.index_place(node).is_none(),
        };
        if moved {
            return Ok(Linked::Moved);
        }
        let names = names.target();
        if parent.is_removed() {
            return Err(Errno::NOENT);
        }
        let is_impure = |dir: &NodeRef| dir.dir().is_some_and(|dir| dir.upper_part(|part| part.impure));
        if self.indexed(node).is_some() || at.as_ref().is_some_and(|(old_parent, _)| is_impure(old_parent)) {
            self.mark_impure(parent, &dir)?;
        }
        self.check_growth()?;
        let change = self.begin_nlink_change(names, node)?;
        self.counting_dirs(&[&dir], || self.link_real(&from, parent, &dir, name))?;
        self.nodes.link(names, name, node);
        self.end_nlink_change(change, 1);
        let stat = self.shown_stat(&dir, name, dir.stat(name)?.ok_or(Errno::STALE)?)?;
        self.nodes.share(stat.id(), node);
        self.count_revived(node, &stat);
        Ok(Linked::At(stat))
    }

    fn link_real(&self, from: &From, parent: &NodeRef, dir: &UpperDir, name: &Name) -> Result<()> {
        match from {
            From::Named(old_dir, old_name) => self.mark_plain(old_dir, old_name, name)?,
            From::Open(file) => self.mark_plain(file, c"", name)?,
        }
        let linked = match from {
            From::Named(old_dir, old_name) => dir.link(old_dir, old_name, name),
            From::Open(file) => dir.link_open_file(file.as_fd(), name),
        };
        match linked {
            Err(Errno::EXIST) if self.is_whiteout_in_upper(parent, dir, name)? => {
                let work = self.upper()?.work()?;
                let staged = match from {
                    From::Named(old_dir, old_name) => work.stage_link(old_dir, old_name)?,
                    From::Open(file) => work.stage_open_file(file.as_fd())?,
                };
                staged.publish_over(dir, name).map(|_| ())
            }
            done => done,
        }
    }

    /// Puts an upper file without a name into the table.
    pub(in crate::driver) fn admit_nameless(&self, found: Found, held: UpperDir) -> LookupRef<'_> {
        let state = State::new(Residence::Orphan { held, layer: self.stack.upper_id() });
        let ino = self.stack.shown_ino(&found.stat);
        let node = Node::new(self.nodes.next_id(), ino, found.stat.file_type(), state, None);
        self.nodes.adopt_nameless(NodeRef::new(node))
    }
}

/// The file that gets another name.
enum From {
    Named(UpperDir, Name),
    Open(UpperDir),
}

/// Result of an attempt to link a file.
enum Linked {
    /// The file has the name.
    At(Stat),
    /// The file was moved or removed before its names were held.
    Moved,
}
