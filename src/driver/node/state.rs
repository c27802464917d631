//! Where a node's file is: one value, which only the transitions of [`crate::driver::node::NodeTable`] change.

use std::ffi::CStr;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::driver::node::rebase::Remains;
use crate::driver::node::{Name, NodeRef, OpenFile, OpenState};
use crate::union::layer::{Dir as LayerFile, FileId, LayerId, UpperDir};

/// A directory and a name in it.
pub type Dentry = (NodeRef, Name);

/// Where a node's file is.
///
/// ```text
/// Lower ──publish──▶ Upper ──unlink (last name)──▶ Orphan ──link──▶ Upper
///   └────hide────▶ Hidden ──publish_nameless──▶ Orphan
/// ```
///
/// If the mount gets other layers, `abandon` turns a node that they do not show into `Orphan` or `Left`.
#[derive(Debug)]
pub enum Residence {
    /// The root, which has no name.
    Root {
        /// True if the mount has an upper.
        upper: bool,
    },
    /// In a lower layer, with the name `at.1` in the part that the directory `at.0` has there. For a directory, this is
    /// its topmost part.
    Lower {
        /// Its first name.
        at: Dentry,
        /// The layer.
        layer: LayerId,
    },
    /// Like [`Residence::Lower`], but the name was whited out. The layer still has it.
    Hidden {
        /// The name that it had.
        at: Dentry,
        /// The layer.
        layer: LayerId,
    },
    /// In the upper, under `at` and the further names. For a directory, this is the upper part. If the upper has become a
    /// lower layer since, this means the same as `Lower`, and is changed to it at the next look (`settle`).
    Upper {
        /// Its first name.
        at: Dentry,
        /// The id of the upper.
        layer: LayerId,
    },
    /// In the upper, or in a layer that was the upper, without a known name; held by a descriptor.
    Orphan {
        /// The file or directory.
        held: UpperDir,
        /// The id of the upper.
        layer: LayerId,
    },
    /// In a layer, although the mount no longer shows it; held by descriptor. It is only read, because other mounts may
    /// use the layer.
    Left {
        /// The file or directory.
        held: LayerFile,
        /// The id that the layer had.
        layer: LayerId,
    },
    /// The node has left the table, or the mount no longer shows it and no descriptor holds it.
    Gone,
}

/// Where a node is; for a file also where its content is and how it is open.
#[derive(Debug)]
pub struct State {
    residence: Residence,
    rare: Option<Box<Rare>>,
}

/// Parts that few nodes have, or that nodes have for a short time.
#[derive(Debug, Default)]
struct Rare {
    /// Names after the first.
    names: Vec<Dentry>,
    /// The upper file by which [`crate::driver::node::NodeTable::by_upper_file`] finds the node, if it can.
    upper_file: Option<FileId>,
    /// Where the content is if only the attributes were copied up (`metacopy`).
    content: Option<Box<ContentRef>>,
    /// For a lower hard link on a mount with an index: the entry that all its names share.
    index: Option<Box<Indexed>>,
    /// Present while the file is open.
    open: Option<Box<OpenState>>,
    /// True if all names of the file are known. The file's `st_nlink` may be higher: it includes names in a checkpoint
    /// layer.
    all_names: bool,
}

/// A regular file in a lower layer that holds the content of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentRef {
    /// The layer.
    pub layer: LayerId,
    /// Path below the layer's root.
    pub path: Arc<CStr>,
}

/// What the index knows of a lower file with several names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Indexed {
    /// Name in the index directory.
    pub name: Name,
    /// `st_nlink` as the mount shows it.
    pub nlink: u32,
    /// Number of names in the lower layer.
    pub lower_nlink: u32,
    /// True if the entry had only attributes when it was found.
    pub metacopy: bool,
}

impl State {
    /// The state of a node that is not open.
    pub fn new(residence: Residence) -> Self {
        Self { residence, rare: None }
    }

    /// Sets another file as the place of the content.
    #[must_use]
    pub fn with_content(mut self, content: Option<ContentRef>) -> Self {
        if let Some(content) = content {
            self.rare_mut().content = Some(Box::new(content));
        }
        self
    }

    /// Sets an index entry.
    #[must_use]
    pub fn with_index(mut self, index: Option<Indexed>) -> Self {
        if let Some(index) = index {
            self.rare_mut().index = Some(Box::new(index));
        }
        self
    }

    fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// Changes the rare parts, and frees their memory if nothing is left.
    fn change_rare<R>(&mut self, change: impl FnOnce(&mut Rare) -> R) -> Option<R> {
        let rare = self.rare.as_deref_mut()?;
        let changed = change(rare);
        if rare.is_empty() {
            self.rare = None;
        }
        Some(changed)
    }

    // -------------------------------------------------------------------------------------------------- reading

    /// Where the file is.
    pub fn residence(&self) -> &Residence {
        &self.residence
    }

    /// One directory and name; for a removed lower file, the name that its layer still has.
    pub fn first_name(&self) -> Option<&Dentry> {
        match &self.residence {
            Residence::Lower { at, .. } | Residence::Hidden { at, .. } | Residence::Upper { at, .. } => Some(at),
            Residence::Root { .. } | Residence::Orphan { .. } | Residence::Left { .. } | Residence::Gone => None,
        }
    }

    /// All known names.
    pub fn names(&self) -> impl Iterator<Item = &Dentry> {
        let further = self.rare.as_ref().map_or(&[][..], |rare| &rare.names);
        self.first_name().into_iter().chain(further)
    }

    /// True if `name` in `parent` is one of the names.
    pub fn is_named(&self, parent: &NodeRef, name: &CStr) -> bool {
        let first = match &self.residence {
            Residence::Lower { at, .. } | Residence::Upper { at, .. } => Some(at),
            _ => None,
        };
        let further = self.rare.as_ref().map_or(&[][..], |rare| &rare.names);
        first.into_iter().chain(further).any(|at| is_at(at, parent, name))
    }

    /// True if the last known name was removed, or there never was one.
    pub fn is_removed(&self) -> bool {
        matches!(self.residence, Residence::Hidden { .. } | Residence::Orphan { .. } | Residence::Left { .. })
    }

    /// True if the file, or a directory's topmost part, is in the upper.
    pub fn is_upper(&self) -> bool {
        matches!(self.residence, Residence::Upper { .. } | Residence::Orphan { .. } | Residence::Root { upper: true })
    }

    /// Name and layer of a node that has no upper part.
    pub fn lower(&self) -> Option<(&Dentry, LayerId)> {
        match &self.residence {
            Residence::Lower { at, layer } | Residence::Hidden { at, layer } => Some((at, *layer)),
            _ => None,
        }
    }

    /// The upper file or directory that is held by descriptor because it has no known name.
    pub fn orphan(&self) -> Option<&UpperDir> {
        if let Residence::Orphan { held, .. } = &self.residence { Some(held) } else { None }
    }

    /// The file or directory of a layer that is held because the mount no longer shows it.
    pub fn left(&self) -> Option<(&LayerFile, LayerId)> {
        if let Residence::Left { held, layer } = &self.residence { Some((held, *layer)) } else { None }
    }

    /// The layer that has the file's attributes; `None` for the root and for a node that has left the table.
    pub fn layer(&self) -> Option<LayerId> {
        match &self.residence {
            Residence::Lower { layer, .. }
            | Residence::Hidden { layer, .. }
            | Residence::Upper { layer, .. }
            | Residence::Orphan { layer, .. }
            | Residence::Left { layer, .. } => Some(*layer),
            Residence::Root { .. } | Residence::Gone => None,
        }
    }

    /// The layer that has the file's content.
    pub fn content_layer(&self) -> Option<LayerId> {
        self.content().map(|content| content.layer).or_else(|| self.layer())
    }

    /// First name and layer of a node in a former upper that has become a lower layer.
    pub(super) fn outdated(&self) -> Option<(&Dentry, LayerId)> {
        match &self.residence {
            Residence::Upper { at, layer } if at.0.current_upper() != Some(*layer) => Some((at, *layer)),
            _ => None,
        }
    }

    /// True if the content is in the upper too.
    pub fn has_upper_content(&self) -> bool {
        self.is_upper() && self.content().is_none()
    }

    /// Where the content is if only the attributes were copied up (`metacopy`).
    pub fn content(&self) -> Option<&ContentRef> {
        self.rare.as_ref()?.content.as_deref()
    }

    /// The index entry that all names of a lower hard link share.
    pub fn index(&self) -> Option<&Indexed> {
        self.rare.as_ref()?.index.as_deref()
    }

    /// Link count of an upper file all of whose names are known.
    pub fn known_nlink(&self) -> Option<u32> {
        let is_known = self.rare.as_ref().is_some_and(|rare| rare.all_names) && self.is_upper();
        is_known.then(|| u32::try_from(self.names().count()).unwrap_or(u32::MAX))
    }

    /// The upper file by which the table finds the node.
    pub(super) fn upper_file(&self) -> Option<FileId> {
        self.rare.as_ref()?.upper_file
    }

    // -------------------------------------------------------------------------------------------------- transitions

    /// Returns the file that was set before.
    pub(super) fn set_upper_file(&mut self, id: FileId) -> Option<FileId> {
        self.rare_mut().upper_file.replace(id)
    }

    /// Adds a name. If the file had none, this is its first name.
    pub(super) fn add_name(&mut self, parent: &NodeRef, name: &Name) {
        if self.is_named(parent, name) {
            return;
        }
        let at = (parent.clone(), name.clone());
        match &mut self.residence {
            Residence::Lower { .. } | Residence::Upper { .. } => self.rare_mut().names.push(at),
            Residence::Orphan { layer, .. } => self.residence = Residence::Upper { layer: *layer, at },
            // A whited-out file, the root and a node that has left the table get no names.
            Residence::Root { .. } | Residence::Hidden { .. } | Residence::Left { .. } | Residence::Gone => {}
        }
    }

    /// Removes a name of an upper file or directory. `held` is the file; it is kept if this was the last known name.
    pub(super) fn remove_name(&mut self, parent: &NodeRef, name: &CStr, held: UpperDir) {
        self.change_rare(|rare| rare.names.retain(|at| !is_at(at, parent, name)));
        let Residence::Upper { at, layer } = &self.residence else { return };
        let layer = *layer;
        if is_at(at, parent, name) {
            let next = self.change_rare(|rare| (!rare.names.is_empty()).then(|| rare.names.remove(0)));
            self.residence = match next.flatten() {
                Some(at) => Residence::Upper { at, layer },
                None => Residence::Orphan { held, layer },
            };
        }
    }

    /// Notes that `name` in `parent`, the name of a node without an upper part, was whited out.
    pub(super) fn hide(&mut self, parent: &NodeRef, name: &CStr) {
        self.change_rare(|rare| rare.names.retain(|at| !is_at(at, parent, name)));
        if !self.is_named(parent, name) {
            return;
        }
        let next = self.change_rare(|rare| (!rare.names.is_empty()).then(|| rare.names.remove(0))).flatten();
        self.residence = match std::mem::replace(&mut self.residence, Residence::Gone) {
            Residence::Lower { at, layer } => match next {
                Some(at) => Residence::Lower { at, layer },
                None => Residence::Hidden { at, layer },
            },
            other => other,
        };
    }

    /// Replaces one name by another in one step: the node always has a name.
    pub(super) fn replace_name(&mut self, from: (&NodeRef, &CStr), to: (&NodeRef, &Name)) {
        let further = self.rare.as_deref_mut().map_or(&mut [][..], |rare| &mut rare.names);
        let first = match &mut self.residence {
            Residence::Upper { at, .. } | Residence::Lower { at, .. } => Some(at),
            _ => None,
        };
        if let Some(at) = first.into_iter().chain(further).find(|at| is_at(at, from.0, from.1)) {
            *at = (to.0.clone(), to.1.clone());
        }
    }

    /// Notes that the copy of a lower file or directory has taken its name in the upper. `content` is set if the content
    /// stays where it is.
    pub(super) fn publish(&mut self, upper: LayerId, content: Option<ContentRef>) {
        self.residence = match std::mem::replace(&mut self.residence, Residence::Gone) {
            Residence::Lower { at, .. } => Residence::Upper { at, layer: upper },
            other => other,
        };
        self.replace_content(content);
    }

    /// Notes that the copy of a whited-out lower file or directory is in the upper, without a name.
    pub(super) fn publish_nameless(&mut self, held: UpperDir, upper: LayerId, content: Option<ContentRef>) {
        if matches!(self.residence, Residence::Hidden { .. }) {
            self.residence = Residence::Orphan { held, layer: upper };
        }
        self.replace_content(content);
    }

    /// Notes that `layer`, the upper that has the file, has become a lower layer.
    pub(super) fn become_lower(&mut self, layer: LayerId) {
        self.residence = match std::mem::replace(&mut self.residence, Residence::Gone) {
            Residence::Upper { at, layer: of } if of == layer => Residence::Lower { at, layer },
            other => other,
        };
    }

    /// Notes that the file, or a directory's topmost part, is in the lower layer `layer` now, under the same names.
    pub(super) fn rebase(&mut self, layer: LayerId) {
        self.residence = match std::mem::replace(&mut self.residence, Residence::Gone) {
            Residence::Lower { at, .. } | Residence::Upper { at, .. } => Residence::Lower { at, layer },
            other => other,
        };
    }

    /// Notes that the topmost part of a directory is in the lower layer `layer` now. A no-op for a directory with an
    /// upper part.
    pub(super) fn move_in_lowers(&mut self, layer: LayerId) {
        if let Residence::Lower { layer: of, .. } = &mut self.residence {
            *of = layer;
        }
    }

    /// Takes one of its names from a lower file that keeps others.
    pub(super) fn lose_name(&mut self, parent: &NodeRef, name: &CStr) {
        self.change_rare(|rare| rare.names.retain(|at| !is_at(at, parent, name)));
        if !self.is_named(parent, name) {
            return;
        }
        let next = self.change_rare(|rare| (!rare.names.is_empty()).then(|| rare.names.remove(0))).flatten();
        if let (Residence::Lower { at, .. }, Some(next)) = (&mut self.residence, next) {
            *at = next;
        }
    }

    /// Notes that the mount no longer shows the file or directory. Returns the names that it had, and the upper file by
    /// which the table finds it.
    pub(super) fn abandon(&mut self, remains: Remains) -> (SmallVec<[Dentry; 1]>, Option<FileId>) {
        let upper_file = self.change_rare(|rare| rare.upper_file.take()).flatten();
        let residence = match (remains, self.layer()) {
            (Remains::Upper(held), Some(layer)) => Residence::Orphan { held, layer },
            (Remains::Layer(held), Some(layer)) => Residence::Left { held, layer },
            (Remains::Nothing, _) | (_, None) => Residence::Gone,
        };
        let names = self.bury();
        self.residence = residence;
        (names, upper_file)
    }

    /// Notes that the copy of a node that was left in a layer is in the upper, without a name.
    pub(super) fn publish_left(&mut self, held: UpperDir, upper: LayerId) {
        if matches!(self.residence, Residence::Left { .. }) {
            self.residence = Residence::Orphan { held, layer: upper };
        }
    }

    /// Notes that the content is in the upper too (`None`), or in another lower file.
    pub(super) fn replace_content(&mut self, content: Option<ContentRef>) {
        match content {
            Some(content) => self.rare_mut().content = Some(Box::new(content)),
            None => drop(self.change_rare(|rare| rare.content.take())),
        }
    }

    /// Changes the mount's link count of the indexed file by `difference`. Returns the new count; `None` if the file has
    /// no entry.
    pub(super) fn count_link(&mut self, difference: i32) -> Option<u32> {
        let index = self.rare.as_deref_mut()?.index.as_deref_mut()?;
        index.nlink = index.nlink.saturating_add_signed(difference);
        Some(index.nlink)
    }

    /// Removes the index entry.
    pub(super) fn leave_index(&mut self) -> Option<Box<Indexed>> {
        self.change_rare(|rare| rare.index.take()).flatten()
    }

    /// Takes the node out of the table; returns its names.
    pub(super) fn bury(&mut self) -> SmallVec<[Dentry; 1]> {
        let further = self.change_rare(|rare| std::mem::take(&mut rare.names)).unwrap_or_default();
        let first = match std::mem::replace(&mut self.residence, Residence::Gone) {
            Residence::Lower { at, .. } | Residence::Hidden { at, .. } | Residence::Upper { at, .. } => Some(at),
            Residence::Root { .. } | Residence::Orphan { .. } | Residence::Left { .. } | Residence::Gone => None,
        };
        first.into_iter().chain(further).collect()
    }

    // -------------------------------------------------------------------------------------------------- open

    /// How the file is open, if it is open.
    pub fn open(&self) -> Option<&OpenState> {
        self.rare.as_ref()?.open.as_deref()
    }

    /// How the file is open, for opening or closing it.
    pub fn open_mut(&mut self) -> &mut OpenState {
        self.rare_mut().open.get_or_insert_default()
    }

    /// Notes that all names of the file are known.
    pub fn note_all_names(&mut self) {
        self.rare_mut().all_names = true;
    }

    /// Notes that the file, with the same inode, has moved from the layer `from` to `to`, and so have its open handles.
    pub(super) fn carry(&mut self, from: LayerId, to: LayerId) {
        let mut open = self.rare.as_mut().and_then(|rare| rare.open.as_deref_mut());
        while let Some(state) = open {
            state.carry(from, to);
            open = state.former.as_deref_mut();
        }
    }

    pub(super) fn take_open(&mut self) -> Option<Box<OpenState>> {
        self.rare_mut().open.take()
    }

    /// Removes a closed handle. Returns the registration if no handle uses it any more.
    pub fn close(&mut self, handle: &Arc<OpenFile>) -> Option<u32> {
        self.change_rare(|rare| {
            let open = rare.open.as_mut()?;
            let unused = open.close(handle);
            rare.open.take_if(|open| open.is_unused());
            unused
        })?
    }
}

fn is_at(at: &Dentry, parent: &NodeRef, name: &CStr) -> bool {
    NodeRef::ptr_eq(&at.0, parent) && *at.1 == *name
}

impl Rare {
    fn is_empty(&self) -> bool {
        let Self { names, upper_file, content, index, open, all_names } = self;
        let refers = upper_file.is_some() || content.is_some() || index.is_some() || open.is_some();
        names.is_empty() && !refers && !all_names
    }
}
