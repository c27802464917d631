//! Changes of where files are. Each is one call, made after the change on disk and under the same guard of the names as that:
//! nobody sees the one without the other. Lookups of known names take no lock of names; they see a node before or after.

use std::ffi::CStr;

use crate::driver::node::{
    ContentRef, CopyUpGuard, LinksGuard, LookupRef, Name, Names, NamesPair, NamesWrite, NewEntry, NodeRef, NodeTable,
};
use crate::union::layer::UpperDir;

/// What a rename replaces.
#[derive(Debug)]
pub struct Replaced<'n> {
    /// The node.
    pub node: &'n NodeRef,
    /// Its upper file or directory, to be held for those who have it open; `None` if only a lower layer has it.
    pub held: Option<UpperDir>,
}

/// What a copy-up has published.
#[derive(Debug, Default)]
pub struct Published {
    /// Where the content stays, if only the attributes were copied.
    pub content: Option<ContentRef>,
    /// The `st_ino` that the copy of a lower hard link has from now on.
    pub ino: Option<u64>,
}

impl NodeTable {
    /// The name `name` of an upper file or directory was removed. `held` is the file itself, for those who have it open.
    pub fn unlink(&self, names: &NamesWrite<'_>, name: &CStr, node: &NodeRef, held: UpperDir) {
        Self::detach(names.parent(), name, node);
        node.state.lock().remove_name(names.parent(), name, held);
        self.note_removal(names, name);
    }

    /// The name of what only a lower layer has was whited out.
    pub fn hide(&self, names: &NamesWrite<'_>, name: &CStr, node: &NodeRef) {
        Self::detach(names.parent(), name, node);
        node.state.lock().hide(names.parent(), name);
        self.note_removal(names, name);
    }

    /// `node` got the further name `name`.
    pub fn link(&self, names: &NamesWrite<'_>, name: &Name, node: &LookupRef<'_>) {
        self.add_name(names, name, node);
        self.note_addition(names, name, NewEntry::of(node));
    }

    /// `node` was moved from the name `from` to `to`.
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

    /// `a`, called `name_a` in the first directory, and `b`, called `name_b` in the second, have changed places.
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

    /// The copy of `node` has its name in the upper, or its place in the index. `names` are those of its first name.
    pub fn publish(&self, names: &NamesWrite<'_>, node: &NodeRef, published: Published) {
        if let Some(ino) = published.ino {
            node.set_ino(ino);
            // The listing says another number.
            self.drop_merged_listing(names.dir());
        }
        node.state.lock().publish(names.dir().upper_id().get(), published.content);
    }

    /// The copy of `node`, whose name was whited out, is held without a name.
    pub fn publish_nameless(
        &self,
        names: &NamesWrite<'_>,
        node: &NodeRef,
        held: UpperDir,
        content: Option<ContentRef>,
    ) {
        node.state.lock().publish_nameless(held, names.dir().upper_id().get(), content);
    }

    /// The content of a file that had only its attributes in the upper was copied up.
    pub fn content_copied(&self, copy_up: &CopyUpGuard<'_>) {
        copy_up.node().state.lock().replace_content(None);
    }

    /// The mount has `difference` more names of an indexed file. How many it has; `None` if it has no index entry.
    pub fn count_link(&self, links: &LinksGuard<'_>, difference: i32) -> Option<u32> {
        links.node().state.lock().count_link(difference)
    }

    /// The index entry of the file is gone.
    pub fn leave_index(&self, links: &LinksGuard<'_>) {
        let Some(entry) = links.node().state.lock().leave_index() else { return };
        self.indexed.remove_if(&entry.name, |_, known| std::ptr::eq(&raw const **known, links.node()));
    }
}
