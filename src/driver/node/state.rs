//! What changes of a node under its leaf lock.

use std::ffi::CStr;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::driver::node::{FileHandle, Name, NodeRef};
use crate::union::layer::{FileId, LayerId, UpperDir};

/// Where a node is found; of a file, where its content is and how it is open.
#[derive(Debug)]
pub struct State {
    /// The first of its names: directory and name. None for the root and for what was removed from the upper; a removed
    /// lower file keeps its name, under which its layer still has it.
    name: Option<(NodeRef, Name)>,
    rare: Option<Box<Rare>>,
    /// Of a file: where its content and attributes are.
    pub real: Real,
    /// The node's last name was removed.
    pub removed: bool,
    /// The kernel was told to go straight to the backing file once: pages that it cached before may be old.
    pub bypassed: bool,
    /// Of a lower file: it was opened once, and was what is known of it.
    pub confirmed: bool,
}

/// What few nodes have, or only for a while.
#[derive(Debug, Default)]
struct Rare {
    /// Names after the first.
    names: Vec<(NodeRef, Name)>,
    /// The real upper file, held because it has no name (any more).
    orphan: Option<UpperDir>,
    /// The upper file under which [`crate::driver::node::NodeTable::by_upper_file`] finds the node, if it does.
    upper_file: Option<FileId>,
    /// Where the content is while only the attributes were copied up (`metacopy`).
    data: Option<Box<DataRef>>,
    /// For a lower hard link on a mount with an index: the entry that all its names share.
    index: Option<Box<Indexed>>,
    /// Present while the file is open.
    open: Option<Box<OpenState>>,
}

/// A regular file in a lower layer that holds the content of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataRef {
    /// Which layer.
    pub layer: LayerId,
    /// Path below the layer's root.
    pub path: Arc<CStr>,
}

/// What the index knows of a file with several names in a lower layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Indexed {
    /// Name in the index directory.
    pub name: Name,
    /// `st_nlink` of the mount.
    pub nlink: u32,
    /// Number of names in the lower layer.
    pub lower_nlink: u32,
    /// When the entry was found, it had its attributes only.
    pub metacopy: bool,
}

/// Where a file's content and attributes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Real {
    /// In the parent's lower part of this index, under the node's name.
    Lower(u16),
    /// In the upper, under the node's names.
    Upper,
}

/// How a file is open.
#[derive(Debug, Default)]
pub struct OpenState {
    /// Handles that use the kernel's page cache.
    pub cached: u32,
    /// Handles that go straight to the backing file.
    pub passthrough: u32,
    /// Of the latter, those that can be mapped for writing.
    pub mappable: u32,
    /// The registration that they share.
    pub backing: Option<u32>,
    /// It is of the upper's file.
    pub backing_is_upper: bool,
    /// The open files, for requests that name no handle.
    pub handles: SmallVec<[Arc<FileHandle>; 1]>,
    /// How it is open under the number that it had before.
    pub former: Option<Box<OpenState>>,
}

impl State {
    /// That of a node that nobody has open, called `name`. `real` means nothing for a directory.
    pub fn new(name: Option<(NodeRef, Name)>, real: Real) -> Self {
        Self { name, rare: None, real, removed: false, bypassed: false, confirmed: false }
    }

    fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// Changes what is rare, and lets go of the memory if nothing is left.
    fn change_rare<R>(&mut self, change: impl FnOnce(&mut Rare) -> R) -> Option<R> {
        let rare = self.rare.as_deref_mut()?;
        let changed = change(rare);
        if rare.is_empty() {
            self.rare = None;
        }
        Some(changed)
    }

    // -------------------------------------------------------------------------------------------------- names

    /// One directory and name.
    pub fn first_name(&self) -> Option<&(NodeRef, Name)> {
        self.name.as_ref()
    }

    fn further_names(&self) -> &[(NodeRef, Name)] {
        self.rare.as_ref().map_or(&[], |rare| &rare.names)
    }

    /// True if more than one name is known.
    pub fn has_several_names(&self) -> bool {
        !self.further_names().is_empty()
    }

    /// True if `name` in `parent` is one of the names.
    pub fn is_named(&self, parent: &NodeRef, name: &CStr) -> bool {
        self.name.iter().chain(self.further_names()).any(|(p, n)| NodeRef::ptr_eq(p, parent) && **n == *name)
    }

    /// Notes a name.
    pub(super) fn add_name(&mut self, parent: &NodeRef, name: &Name) {
        self.removed = false;
        if self.is_named(parent, name) {
            return;
        }
        let name = (parent.clone(), name.clone());
        if self.name.is_none() {
            self.name = Some(name);
        } else {
            self.rare_mut().names.push(name);
        }
    }

    /// Notes that a name is gone.
    pub(super) fn remove_name(&mut self, parent: &NodeRef, name: &CStr) {
        let is_it = |(p, n): &(NodeRef, Name)| NodeRef::ptr_eq(p, parent) && **n == *name;
        self.change_rare(|rare| rare.names.retain(|known| !is_it(known)));
        if self.name.as_ref().is_some_and(is_it) {
            let next = self.change_rare(|rare| (!rare.names.is_empty()).then(|| rare.names.remove(0)));
            self.name = next.flatten();
        }
        self.removed = self.name.is_none();
    }

    /// Takes all names out.
    pub(super) fn take_names(&mut self) -> SmallVec<[(NodeRef, Name); 1]> {
        let first = self.name.take();
        let further = self.change_rare(|rare| std::mem::take(&mut rare.names)).unwrap_or_default();
        first.into_iter().chain(further).collect()
    }

    /// The real upper file, if it is held because it has no name (any more).
    pub fn orphan(&self) -> Option<&UpperDir> {
        self.rare.as_ref()?.orphan.as_ref()
    }

    /// Holds the real upper file, or no longer.
    pub fn set_orphan(&mut self, held: Option<UpperDir>) {
        if held.is_some() {
            self.rare_mut().orphan = held;
        } else {
            self.change_rare(|rare| rare.orphan = None);
        }
    }

    /// The upper file under which the table finds the node.
    pub(super) fn upper_file(&self) -> Option<FileId> {
        self.rare.as_ref()?.upper_file
    }

    pub(super) fn set_upper_file(&mut self, id: FileId) {
        self.rare_mut().upper_file = Some(id);
    }

    // -------------------------------------------------------------------------------------------------- content

    /// True if the content is in the upper, too.
    pub fn has_upper_content(&self) -> bool {
        self.real == Real::Upper && self.data().is_none()
    }

    /// Where the content is while only the attributes were copied up (`metacopy`).
    pub fn data(&self) -> Option<&DataRef> {
        self.rare.as_ref()?.data.as_deref()
    }

    /// Changes it.
    pub fn set_data(&mut self, data: Option<DataRef>) {
        if let Some(data) = data {
            self.rare_mut().data = Some(Box::new(data));
        } else {
            self.change_rare(|rare| rare.data = None);
        }
    }

    /// The index entry that all names of a lower hard link share.
    pub fn index(&self) -> Option<&Indexed> {
        self.rare.as_ref()?.index.as_deref()
    }

    /// The same, to change it.
    pub fn index_mut(&mut self) -> Option<&mut Indexed> {
        self.rare.as_mut()?.index.as_deref_mut()
    }

    /// Gives it the entry.
    pub fn set_index(&mut self, entry: Indexed) {
        self.rare_mut().index = Some(Box::new(entry));
    }

    /// Takes the entry away.
    pub fn take_index(&mut self) -> Option<Box<Indexed>> {
        self.change_rare(|rare| rare.index.take())?
    }

    // -------------------------------------------------------------------------------------------------- open

    /// How the file is open, if it is.
    pub fn open(&self) -> Option<&OpenState> {
        self.rare.as_ref()?.open.as_deref()
    }

    /// True if it is a program that is being executed.
    pub fn is_executed(&self) -> bool {
        self.open().is_some_and(|open| open.handles.iter().any(|handle| handle.executing))
    }

    /// The same, to open or close it.
    pub fn open_mut(&mut self) -> &mut OpenState {
        self.rare_mut().open.get_or_insert_default()
    }

    /// Takes out a handle that was closed. Gives back the registration when no handle uses it any more.
    pub fn close(&mut self, handle: &Arc<FileHandle>) -> Option<u32> {
        self.change_rare(|rare| {
            let open = rare.open.as_mut()?;
            let unused = open.close(handle);
            rare.open.take_if(|open| open.is_unused());
            unused
        })?
    }

    /// True if the kernel's inode can serve no further open: the file is in the upper, and readers make the kernel read
    /// it from a lower layer.
    pub fn must_part(&self) -> bool {
        let lower_backing = |open: &OpenState| open.passthrough > 0 && !open.backing_is_upper;
        self.has_upper_content() && self.open().is_some_and(lower_backing)
    }

    /// Counts the open handles as those of another inode of the kernel's.
    pub fn part_from_readers(&mut self) {
        let open = &mut self.rare_mut().open;
        *open = Some(Box::new(OpenState { former: open.take(), ..OpenState::default() }));
        self.bypassed = false;
    }
}

impl Rare {
    fn is_empty(&self) -> bool {
        let Self { names, orphan, upper_file, data, index, open } = self;
        names.is_empty()
            && orphan.is_none()
            && upper_file.is_none()
            && data.is_none()
            && index.is_none()
            && open.is_none()
    }
}

impl OpenState {
    fn close(&mut self, handle: &Arc<FileHandle>) -> Option<u32> {
        let before = self.handles.len();
        self.handles.retain(|other| !Arc::ptr_eq(other, handle));
        if self.handles.len() == before {
            let former = self.former.as_mut()?;
            let unused = former.close(handle);
            self.former.take_if(|former| former.is_unused());
            return unused;
        }
        if !handle.passthrough {
            self.cached = self.cached.saturating_sub(1);
            return None;
        }
        self.passthrough = self.passthrough.saturating_sub(1);
        self.mappable = self.mappable.saturating_sub(u32::from(handle.mappable));
        if self.passthrough == 0 { self.backing.take() } else { None }
    }

    /// True if no handle is open.
    fn is_unused(&self) -> bool {
        self.handles.is_empty() && self.former.is_none()
    }
}
