//! Changes of nodes when the mount gets other layers (`driver/checkpoint/switch`). The gate is closed, so no other thread
//! uses the table and no names are locked. Only [`NodeTable::replace_lowers`] is also called with the gate open, for
//! layers that others change.

use std::ffi::CStr;

use crate::driver::node::{CopyUpGuard, Lowers, NodeRef, NodeTable, UpperId, UpperMarks};
use crate::union::layer::{Dir as LayerFile, LayerId, LowerRef, Protection, UpperDir};

/// What a node keeps of a file or directory that the new layers do not show.
#[derive(Debug)]
pub enum Remains {
    /// The file is in the old upper, which nothing else uses, so it may be changed.
    Upper(UpperDir),
    /// The file is in a layer.
    Layer(LayerFile),
    /// Nothing, because it is not open.
    Nothing,
}

/// The parts of a directory in the new layers.
#[derive(Debug)]
pub struct Parts {
    /// Its parts, topmost first.
    pub lowers: Vec<LowerRef>,
    /// Its `st_ino`.
    pub ino: u64,
    /// Changes that the directory refuses.
    pub protection: Protection,
}

impl NodeTable {
    /// Notes that the directory stays without an upper part.
    pub fn rebase_dir(&self, node: &NodeRef, parts: Parts) {
        let Some(dir) = node.dir() else { return };
        let top = parts.lowers.first().map(|part| part.layer);
        {
            let state = &mut *dir.state.lock();
            state.lowers = parts.lowers.into();
            state.upper = UpperMarks::default();
            state.listings.outdate();
        }
        node.set_ino(parts.ino);
        node.protect(parts.protection);
        node.forget_attributes();
        if let Some(layer) = top {
            node.state.lock().rebase(layer);
        }
    }

    /// Gives the directory other lower parts. Its upper part stays. If the gate is open, the caller must hold the names
    /// of the directory's parent for writing, and the topmost part of a directory without an upper part must stay in its
    /// layer.
    pub fn replace_lowers(&self, node: &NodeRef, lowers: Vec<LowerRef>) {
        let Some(dir) = node.dir() else { return };
        let top = lowers.first().map(|part| part.layer);
        {
            let state = &mut *dir.state.lock();
            state.lowers = lowers.into();
            state.listings.outdate();
        }
        if let Some(layer) = top {
            node.state.lock().move_in_lowers(layer);
        }
    }

    /// Notes that the file stays, and is in `layer` now.
    pub fn rebase_file(&self, node: &NodeRef, layer: LayerId) {
        node.state.lock().rebase(layer);
    }

    /// Notes that the file stays, and loses one of its names.
    pub fn lose_name(&self, parent: &NodeRef, name: &CStr, node: &NodeRef) {
        Self::detach(parent, name, node);
        node.state.lock().lose_name(parent, name);
    }

    /// Notes that the mount no longer shows the file or directory. Call this for the entries of a directory before the directory.
    pub fn abandon(&self, node: &NodeRef, remains: Remains) {
        node.note_abandoned();
        let (names, upper_file) = node.state.lock().abandon(remains);
        for (parent, name) in &names {
            Self::detach(parent, name, node);
        }
        if let Some(id) = upper_file {
            self.links.remove_if(&id, |_, known| NodeRef::ptr_eq(known, node));
        }
        if let Some(dir) = node.dir() {
            let state = &mut *dir.state.lock();
            self.forget_listings(state);
            (state.lowers, state.upper) = (Lowers::default(), UpperMarks::default());
        }
    }

    /// Ends the switch: the upper has another id. `shrunk`: directories that lost names.
    pub fn end_rebasing(&self, current: &UpperId, upper: LayerId, shrunk: &[NodeRef]) {
        current.set(upper);
        self.descriptors().clear();
        shrunk.iter().for_each(|dir| self.drop_if_unused(dir));
    }

    /// Notes that the copy of a node that was left in a layer is in the upper with the id `upper`.
    pub fn publish_left(&self, copy_up: &CopyUpGuard<'_>, held: UpperDir, upper: LayerId) {
        copy_up.node().state.lock().publish_left(held, upper);
    }
}
