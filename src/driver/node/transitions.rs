//! Transitions: changes of the place where a file is. Each is one call, made after the change on disk and under the same
//! guard of the names, so that other threads see both changes or neither. Lookups of known names do not lock names; they
//! see the node either before or after the change.

use std::ffi::CStr;

use crate::driver::node::{
    ContentRef, CopyUpGuard, LinksGuard, LookupRef, Name, Names, NamesPair, NamesWrite, NewEntry, NodeRef, NodeTable,
};
use crate::union::layer::{LayerId, UpperDir};

/// The node that a rename replaces.
#[derive(Debug)]
pub struct Replaced<'n> {
    /// The node.
    pub node: &'n NodeRef,
    /// Its upper file or directory, held for open handles; `None` if it has no upper part.
    pub held: Option<UpperDir>,
}

/// The result of a copy-up.
#[derive(Debug, Default)]
pub struct Published {
    /// Where the content stays if only the attributes were copied.
    pub content: Option<ContentRef>,
    /// The new `st_ino`, if this is the copy of a lower hard link.
    pub ino: Option<u64>,
    /// If the inode itself moved, with its open handles: the layer that it came from. `None` for a copy.
    pub carried_from: Option<LayerId>,
}

impl NodeTable {
    /// Notes that the name `name` of an upper file or directory was removed. `held` is the file itself, for open handles.
    pub fn unlink(&self, names: &NamesWrite<'_>, name: &CStr, node: &NodeRef, held: UpperDir) {
        Self::detach(names.parent(), name, node);
        node.state.lock().remove_name(names.parent(), name, held);
        self.note_removal(names, name);
    }

    /// Notes that the name of a node without an upper part was whited out.
    pub fn hide(&self, names: &NamesWrite<'_>, name: &CStr, node: &NodeRef) {
        Self::detach(names.parent(), name, node);
        node.state.lock().hide(names.parent(), name);
        self.note_removal(names, name);
    }

    /// Notes that `node` got one more name, `name`.
    pub fn link(&self, names: &NamesWrite<'_>, name: &Name, node: &LookupRef<'_>) {
        self.add_name(names, name, node);
        self.note_addition(names, name, NewEntry::of(node));
    }

    /// Notes that `node` was moved from the name `from` to `to`.
    pub fn rename(
        &self,
        names: &NamesPair<'_>,
        node: &NodeRef,
        from: &Name,
        to: &Name,
        replaced: Option<Replaced<'_>>,
    ) {
        let (source, target) = (names.source(), names.target());
        if let Some(Replaced { node, held }) = replaced {
            let mut state = node.state.lock();
            match held {
                Some(held) => state.remove_name(target.parent(), to, held),
                None => state.hide(target.parent(), to),
            }
        }
        target.dir().state.lock().children.insert(to.clone(), node.clone());
        node.state.lock().replace_name((source.parent(), from), (target.parent(), to));
        Self::detach(source.parent(), from, node);
        self.note_removal(source, from);
        self.note_addition(target, to, NewEntry::of(node));
    }

    /// Notes that `a`, called `name_a` in the first directory, and `b`, called `name_b` in the second, have changed places.
    pub fn exchange(&self, names: &NamesPair<'_>, a: (&NodeRef, &Name), b: (&NodeRef, &Name)) {
        let (first, second) = (names.source(), names.target());
        let place = |names: &NamesWrite<'_>, name: &Name, node: &NodeRef| {
            names.dir().state.lock().children.insert(name.clone(), node.clone());
            self.note_addition(names, name, NewEntry::of(node));
        };
        place(first, a.1, b.0);
        place(second, b.1, a.0);
        a.0.state.lock().replace_name((first.parent(), a.1), (second.parent(), b.1));
        b.0.state.lock().replace_name((second.parent(), b.1), (first.parent(), a.1));
    }

    /// Notes that the copy of `node` has its name in the upper, or its place in the index. `names` guards the node's first name.
    pub fn publish(&self, names: &NamesWrite<'_>, node: &NodeRef, published: Published) {
        if let Some(ino) = published.ino {
            node.set_ino(ino);
            // The listing shows the old number.
            self.drop_merged_listing(names.dir());
        }
        let upper = names.dir().upper_id().get();
        let mut state = node.state.lock();
        state.publish(upper, published.content);
        if let Some(layer) = published.carried_from {
            state.carry(layer, upper);
        }
    }

    /// Notes that the copy of `node`, whose name was whited out, is held without a name.
    pub fn publish_nameless(
        &self,
        names: &NamesWrite<'_>,
        node: &NodeRef,
        held: UpperDir,
        content: Option<ContentRef>,
    ) {
        node.state.lock().publish_nameless(held, names.dir().upper_id().get(), content);
    }

    /// Notes that the content was copied up too, for a file that had only its attributes in the upper.
    pub fn content_copied(&self, copy_up: &CopyUpGuard<'_>) {
        copy_up.node().state.lock().replace_content(None);
    }

    /// Changes the mount's link count of an indexed file by `difference`. Returns the new count; `None` if it has no index entry.
    pub fn count_link(&self, links: &LinksGuard<'_>, difference: i32) -> Option<u32> {
        links.node().state.lock().count_link(difference)
    }

    /// Notes that the index entry of the file was removed.
    pub fn leave_index(&self, links: &LinksGuard<'_>) {
        let Some(entry) = links.node().state.lock().leave_index() else { return };
        self.indexed.remove_if(&entry.name, |_, known| std::ptr::eq(&raw const **known, links.node()));
    }
}
