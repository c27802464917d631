//! The inode table.

use std::ffi::CStr;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use dashmap::DashMap;
use quick_cache::sync::Cache;

use crate::driver::node::listings::{BUDGET, Budget};
use crate::driver::node::numbered::Numbered;
use crate::driver::node::sync::{AtomicU64, Mutex, MutexGuard, Ordering};
use crate::driver::node::{Name, Names, Node, NodeId, NodeRef, UpperId};
use crate::union::layer::{Dir as LayerDir, FileId, LayerId, UpperDir};

/// All nodes that the kernel knows, by number; and those with several names in the upper, by inode.
#[derive(Debug)]
pub struct NodeTable {
    nodes: Numbered,
    /// Nodes whose upper file has several names, by that file.
    links: DashMap<FileId, NodeRef>,
    /// Nodes of files with an index entry, by its name.
    pub(super) indexed: DashMap<Name, NodeRef>,
    /// For nodes that got another number: the new one, and the one before.
    former: DashMap<u64, u64>,
    /// Held while a name of a file with several is given its node: two threads that find two names must end with one.
    multiple: Mutex<()>,
    next: AtomicU64,
    descriptors: Descriptors,
    pub(super) budget: Budget,
}

/// The number of a node, and of one of its layers.
type Key = (u64, u32);

/// Descriptors that are kept for nodes, as many as there is room for.
#[derive(Debug)]
pub struct Descriptors {
    /// Open lower directories: node, number of the layer.
    pub lower_dirs: Cache<Key, LayerDir>,
    /// Open upper directories: node, id of the upper.
    pub upper_dirs: Cache<Key, UpperDir>,
    /// Lower files that were read lately: node, number of the layer. Programs open the same ones again and again.
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

    /// Closes all that nobody uses just now. What is needed again is opened again.
    pub fn clear(&self) {
        self.lower_dirs.clear();
        self.upper_dirs.clear();
        self.lower_files.clear();
    }

    /// Closes what is kept for a node that has left the table; `layer` had it.
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

/// A node with one lookup counted. The count is taken back when it is dropped, unless the kernel was told of it.
#[derive(Debug)]
#[must_use]
pub struct LookupRef<'t> {
    table: &'t NodeTable,
    node: NodeRef,
    handed_over: bool,
}

impl LookupRef<'_> {
    /// From now on the lookup is the kernel's, which forgets it by itself.
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

    /// The upper has become the lower layer `layer`, and a directory of id `upper` the upper. Nobody else is in the table.
    pub fn begin_upper(&self, layer: LayerId, current: &UpperId, upper: LayerId) {
        current.set(upper);
        if let Some(root) = self.get(NodeId::ROOT)
            && let Some(dir) = root.dir()
        {
            // Every layer has a root, also one in which the root was not touched.
            dir.become_lower(layer, Arc::from(c""));
        }
    }

    /// The descriptors that are kept.
    pub fn descriptors(&self) -> &Descriptors {
        &self.descriptors
    }

    /// A number that no node has had.
    pub fn next_id(&self) -> NodeId {
        NodeId(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// The node of number `id`.
    pub fn get(&self, id: NodeId) -> Option<NodeRef> {
        self.nodes.get(id.0)
    }

    /// Gives `node` a new number, so that the kernel makes another inode of it. The old number leads to it as before, and
    /// the lookups of both are counted as one: an answer that is on its way may name either.
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

    /// True if there is none; never so, for there is a root.
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

    /// Makes `node` the child `name` of the directory whose names are held, unless another thread was faster: then that
    /// one's node is given back.
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

    /// Makes the known `node` also the child `name` of the directory whose names are held.
    pub fn add_name(&self, names: &impl Names, name: &Name, node: &LookupRef<'_>) {
        let parent = names.parent();
        let Some(dir) = parent.dir() else { return };
        node.state.lock().add_name(parent, name);
        dir.state.lock().children.insert(name.clone(), NodeRef::clone(node));
    }

    /// Makes `node` a nameless member of the table (`O_TMPFILE`).
    pub fn adopt_nameless(&self, node: NodeRef) -> LookupRef<'_> {
        node.acquire();
        self.nodes.insert(node.id().0, node.clone());
        self.counted(node)
    }

    /// Held from looking for the node of a file with several names until it can be found. The caller holds the names of
    /// the directory, and no leaf lock.
    pub fn multiple(&self, _names: &impl Names) -> MutexGuard<'_, ()> {
        self.multiple.lock()
    }

    /// The node of the upper file `id`, if it has several names and one of them is known.
    pub fn by_upper_file(&self, id: FileId) -> Option<LookupRef<'_>> {
        let node = self.links.get(&id).map(|node| node.clone())?;
        self.count(&node)
    }

    /// Lets other names of the upper file `id` find `node`.
    pub fn share(&self, id: FileId, node: &NodeRef) {
        node.state.lock().set_upper_file(id);
        self.links.insert(id, node.clone());
    }

    /// The node of the index entry `name`, if one of its names is known.
    pub fn by_index(&self, name: &CStr) -> Option<LookupRef<'_>> {
        let node = self.indexed.get(name).map(|node| node.clone())?;
        self.count(&node)
    }

    /// Lets other names of the index entry `name` find `node`.
    pub fn share_index(&self, name: &Name, node: &NodeRef) {
        self.indexed.insert(name.clone(), node.clone());
    }

    /// The kernel drops `count` lookups of `id`. How many nodes left the table by it.
    pub fn forget(&self, id: NodeId, count: u64) -> usize {
        self.get(id).map_or(0, |node| self.release(&node, count))
    }

    /// Takes `count` lookups back. How many nodes left the table by it.
    fn release(&self, node: &NodeRef, count: u64) -> usize {
        if node.release(count) != 0 {
            return 0;
        }
        let mut gone = 0;
        // A directory stays while children of it are known, so its last child takes it along.
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

    /// Removes `node` if nothing uses it; its parents, which may be unused as well now, become candidates.
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

    /// Takes the child `name` out of `parent`, if that is `node`.
    pub(super) fn detach(parent: &NodeRef, name: &CStr, node: &NodeRef) {
        let Some(dir) = parent.dir() else { return };
        let mut state = dir.state.lock();
        if state.children.get(name).is_some_and(|known| NodeRef::ptr_eq(known, node)) {
            state.children.remove(name);
        }
    }
}
