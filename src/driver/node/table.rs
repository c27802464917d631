//! The inode table.

use std::ffi::CStr;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use dashmap::DashMap;
use quick_cache::sync::Cache;

use crate::driver::node::listings::{BUDGET, Budget};
use crate::driver::node::numbered::Numbered;
use crate::driver::node::rank::{Rank, Ranked};
use crate::driver::node::sync::{AtomicU64, Mutex, MutexGuard, Ordering};
use crate::driver::node::{Name, Names, Node, NodeId, NodeRef, UpperId};
use crate::union::layer::{Dir as LayerDir, FileId, LayerId, UpperDir};

/// All nodes that the kernel knows, by number; and those with several upper names, by inode.
#[derive(Debug)]
pub struct NodeTable {
    nodes: Numbered,
    /// Nodes whose upper file has several names, by that file.
    pub(super) links: DashMap<FileId, NodeRef>,
    /// Nodes of files with an index entry, by its name.
    pub(super) indexed: DashMap<Name, NodeRef>,
    /// For nodes that got a new number: new number to former number.
    former: DashMap<u64, u64>,
    /// Held while a name of a file with several names gets its node: two threads that find two names must end up with one node.
    multiple: Mutex<()>,
    next: AtomicU64,
    descriptors: Descriptors,
    pub(super) budget: Budget,
}

/// Holds [`NodeTable::multiple`].
#[derive(Debug)]
pub struct MultipleGuard<'t> {
    _held: MutexGuard<'t, ()>,
    _rank: Ranked,
}

/// The number of a node, and the number of one of its layers.
type Key = (u64, u32);

/// Cached descriptors of nodes, in limited number.
#[derive(Debug)]
pub struct Descriptors {
    /// Open lower directories: node, number of the layer.
    pub lower_dirs: Cache<Key, LayerDir>,
    /// Open upper directories: node, id of the upper.
    pub upper_dirs: Cache<Key, UpperDir>,
    /// Lower files that were read lately: node, number of the layer. Programs open the same files again and again.
    pub lower_files: Cache<Key, Arc<OwnedFd>>,
}

impl Descriptors {
    /// Room for twice `capacity` directories and half as many files.
    pub fn new(capacity: usize) -> Self {
        Self::with_files(capacity, capacity / 2)
    }

    /// Room for twice `directories` directories and for `files` files.
    pub fn with_files(directories: usize, files: usize) -> Self {
        Self {
            lower_dirs: Cache::new(directories),
            upper_dirs: Cache::new(directories),
            lower_files: Cache::new(files),
        }
    }

    /// Closes all descriptors that are not in use. Later calls open them again.
    pub fn clear(&self) {
        self.lower_dirs.clear();
        self.upper_dirs.clear();
        self.lower_files.clear();
    }

    /// Closes the descriptors of a node that has left the table; `layer` is where it was.
    fn close(&self, node: &Node, layer: Option<LayerId>) {
        let id = node.id().0;
        let Some(dir) = node.dir() else {
            if let Some(layer) = layer {
                self.lower_files.remove(&(id, layer.number()));
            }
            return;
        };
        for layer in dir.lowers().iter().map(|part| part.layer).chain(layer) {
            self.lower_dirs.remove(&(id, layer.number()));
            self.upper_dirs.remove(&(id, layer.number()));
        }
    }
}

/// A node with one lookup counted. Dropping it takes the count back, unless the kernel was told of it.
#[derive(Debug)]
#[must_use]
pub struct LookupRef<'t> {
    table: &'t NodeTable,
    node: NodeRef,
    handed_over: bool,
}

impl LookupRef<'_> {
    /// Passes the lookup on to the kernel, which forgets it in its own time.
    pub fn hand_over(mut self) {
        self.handed_over = true;
    }
}

impl Deref for LookupRef<'_> {
    type Target = NodeRef;

    fn deref(&self) -> &NodeRef {
        &self.node
    }
}

impl Drop for LookupRef<'_> {
    fn drop(&mut self) {
        if !self.handed_over {
            self.table.release(&self.node, 1);
        }
    }
}

impl NodeTable {
    /// A table with only the root in it, and room for descriptors.
    pub fn new(root: NodeRef, descriptors: Descriptors) -> Self {
        let table = Self {
            nodes: Numbered::default(),
            links: DashMap::new(),
            indexed: DashMap::new(),
            former: DashMap::new(),
            multiple: Mutex::new(()),
            next: AtomicU64::new(NodeId::ROOT.0 + 1),
            descriptors,
            budget: Budget::new(BUDGET),
        };
        // The kernel never forgets the root.
        root.acquire();
        table.nodes.insert(root.id().0, root);
        table
    }

    /// Makes the upper the lower layer `layer`, and a directory with the id `upper` the upper. No other thread is in the table.
    pub fn begin_upper(&self, layer: LayerId, current: &UpperId, upper: LayerId) {
        current.set(upper);
        if let Some(root) = self.get(NodeId::ROOT)
            && let Some(dir) = root.dir()
        {
            // Every layer has a root, even if nothing in it was changed.
            dir.become_lower(layer, Arc::from(c""));
        }
    }

    /// The cached descriptors.
    pub fn descriptors(&self) -> &Descriptors {
        &self.descriptors
    }

    /// A new number.
    pub fn next_id(&self) -> NodeId {
        NodeId(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// The node of number `id`.
    pub fn get(&self, id: NodeId) -> Option<NodeRef> {
        self.nodes.get(id.0)
    }

    /// Gives `node` a new number, so that the kernel makes another inode for it. The old number still leads to it, and
    /// lookups under both are counted together, because an answer that is under way may name either.
    pub fn renumber(&self, node: &NodeRef) {
        let (before, id) = (node.id(), self.next_id());
        self.nodes.insert(id.0, node.clone());
        self.former.insert(id.0, before.0);
        node.id.store(id.0, Ordering::Release);
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.len().saturating_sub(self.former.len())
    }

    /// True if there is no node; never the case, because there is a root.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Counts one more lookup of `node`; `None` if it has left the table.
    pub fn count(&self, node: &NodeRef) -> Option<LookupRef<'_>> {
        node.acquire().then(|| self.counted(node.clone()))
    }

    /// A node whose lookup has been counted.
    fn counted(&self, node: NodeRef) -> LookupRef<'_> {
        LookupRef { table: self, node, handed_over: false }
    }

    /// The known child `name` of `parent`.
    pub fn child(&self, parent: &Node, name: &CStr) -> Option<LookupRef<'_>> {
        let node = parent.dir()?.state.lock().children.get(name).filter(|node| node.acquire()).cloned()?;
        Some(self.counted(node))
    }

    /// Makes `node` the child `name` of the directory whose names are held. If another thread was faster, returns that
    /// thread's node.
    pub fn adopt(&self, names: &impl Names, name: &Name, node: NodeRef) -> LookupRef<'_> {
        if let Some(dir) = names.parent().dir() {
            let mut state = dir.state.lock();
            if let Some(existing) = state.children.get(&**name)
                && existing.acquire()
            {
                return self.counted(existing.clone());
            }
            node.acquire();
            self.nodes.insert(node.id().0, node.clone());
            state.children.insert(name.clone(), node.clone());
        } else {
            node.acquire();
            self.nodes.insert(node.id().0, node.clone());
        }
        self.counted(node)
    }

    /// Makes the known `node` a further child, `name`, of the directory whose names are held.
    pub fn add_name(&self, names: &impl Names, name: &Name, node: &LookupRef<'_>) {
        let parent = names.parent();
        let Some(dir) = parent.dir() else { return };
        node.state.lock().add_name(parent, name);
        dir.state.lock().children.insert(name.clone(), NodeRef::clone(node));
    }

    /// Adds `node` to the table without a name (`O_TMPFILE`).
    pub fn adopt_nameless(&self, node: NodeRef) -> LookupRef<'_> {
        node.acquire();
        self.nodes.insert(node.id().0, node.clone());
        self.counted(node)
    }

    /// Held from the search for the node of a file with several names until the node is in the table. The caller holds
    /// the names of the directory, and no leaf lock.
    pub fn multiple<'n>(&'n self, _names: &'n impl Names) -> MultipleGuard<'n> {
        let rank = Ranked::first(Rank::Multiple);
        MultipleGuard { _held: self.multiple.lock(), _rank: rank }
    }

    /// The node of the upper file `id`, if the file has several names and one of them is known.
    pub fn by_upper_file(&self, id: FileId) -> Option<LookupRef<'_>> {
        let node = self.links.get(&id).map(|node| node.clone())?;
        self.count(&node)
    }

    /// Lets other names of the upper file `id` find `node`, which may have been another file before.
    pub fn share(&self, id: FileId, node: &NodeRef) {
        let before = node.state.lock().set_upper_file(id);
        if let Some(before) = before.filter(|&before| before != id) {
            self.links.remove_if(&before, |_, known| NodeRef::ptr_eq(known, node));
        }
        self.links.insert(id, node.clone());
    }

    /// The node of the index entry `name`, if one of the file's names is known.
    pub fn by_index(&self, name: &CStr) -> Option<LookupRef<'_>> {
        let node = self.indexed.get(name).map(|node| node.clone())?;
        self.count(&node)
    }

    /// Lets other names of the index entry `name` find `node`.
    pub fn share_index(&self, name: &Name, node: &NodeRef) {
        self.indexed.insert(name.clone(), node.clone());
    }

    /// Called when the kernel drops `count` lookups of `id`. Returns how many nodes left the table.
    pub fn forget(&self, id: NodeId, count: u64) -> usize {
        self.get(id).map_or(0, |node| self.release(&node, count))
    }

    /// Lets a node leave the table that has lost its last child, if the kernel has forgotten it.
    pub(super) fn drop_if_unused(&self, node: &NodeRef) {
        self.release(node, 0);
    }

    /// Takes back `count` lookups. Returns how many nodes left the table.
    fn release(&self, node: &NodeRef, count: u64) -> usize {
        if node.release(count) != 0 {
            return 0;
        }
        let mut gone = 0;
        // A directory stays in the table while it has known children, so the last child takes it along.
        let mut candidates = vec![node.clone()];
        while let Some(node) = candidates.pop() {
            let layer = node.state().layer();
            if self.drop_unused(&node, &mut candidates) {
                self.descriptors.close(&node, layer);
                gone += 1;
            }
        }
        gone
    }

    /// Removes `node` if it is unused; its parents, which may now be unused too, become candidates.
    fn drop_unused(&self, node: &NodeRef, candidates: &mut Vec<NodeRef>) -> bool {
        if let Some(dir) = node.dir()
            && !dir.state.lock().children.is_empty()
        {
            return false;
        }
        if !node.bury() {
            return false;
        }
        if let Some(dir) = node.dir() {
            self.forget_listings(&mut dir.state.lock());
        }
        let (names, upper_file, index) = {
            let mut state = node.state.lock();
            (state.bury(), state.upper_file(), state.leave_index())
        };
        for (parent, name) in names {
            Self::detach(&parent, &name, node);
            candidates.push(parent);
        }
        if let Some(id) = upper_file {
            self.links.remove_if(&id, |_, known| NodeRef::ptr_eq(known, node));
        }
        if let Some(index) = index {
            self.indexed.remove_if(&index.name, |_, known| NodeRef::ptr_eq(known, node));
        }
        let id = node.id().0;
        self.nodes.remove(id);
        if let Some((_, before)) = self.former.remove(&id) {
            self.nodes.remove(before);
        }
        true
    }

    /// Removes the child `name` from `parent`, if it is `node`.
    pub(super) fn detach(parent: &NodeRef, name: &CStr, node: &NodeRef) {
        let Some(dir) = parent.dir() else { return };
        let mut state = dir.state.lock();
        if state.children.get(name).is_some_and(|known| NodeRef::ptr_eq(known, node)) {
            state.children.remove(name);
        }
    }
}
