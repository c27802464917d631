//! The inode table.

use std::ffi::CStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use parking_lot::{Mutex, MutexGuard};

use super::{Name, Node, NodeId};

/// All nodes that the kernel knows, by number; and those with several names in the upper, by inode.
#[derive(Debug)]
pub struct NodeTable {
    nodes: DashMap<u64, Arc<Node>>,
    /// Nodes whose upper file has several names, by the inode number of that file.
    links: DashMap<u64, Arc<Node>>,
    /// Nodes of files with an index entry, by its name.
    indexed: DashMap<Name, Arc<Node>>,
    /// For nodes that got another number: the new one, and the one before.
    former: DashMap<u64, u64>,
    /// Held while a name of a file with several is given its node: two threads that find two names must end with one.
    multiple: Mutex<()>,
    next: AtomicU64,
}

impl NodeTable {
    /// A table with only the root in it.
    pub fn new(root: Arc<Node>) -> Self {
        let table = Self {
            nodes: DashMap::new(),
            links: DashMap::new(),
            indexed: DashMap::new(),
            former: DashMap::new(),
            multiple: Mutex::new(()),
            next: AtomicU64::new(NodeId::ROOT.0 + 1),
        };
        // The kernel never forgets the root.
        root.acquire();
        table.nodes.insert(root.id().0, root);
        table
    }

    /// A number that no node has had.
    pub fn next_id(&self) -> NodeId {
        NodeId(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// The node of number `id`.
    pub fn get(&self, id: NodeId) -> Option<Arc<Node>> {
        self.nodes.get(&id.0).map(|node| node.clone())
    }

    /// Gives `node` a new number, so that the kernel makes another inode of it. The old number leads to it as before, and
    /// the lookups of both are counted as one: an answer that is on its way may name either.
    pub fn renumber(&self, node: &Arc<Node>) {
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
        self.nodes.is_empty()
    }

    /// The known child `name` of `parent`, with one more lookup counted.
    pub fn child(&self, parent: &Node, name: &CStr) -> Option<Arc<Node>> {
        let state = parent.dir()?.state.lock();
        state.children.get(name).filter(|node| node.acquire()).cloned()
    }

    /// The known child `name` of `parent`, without counting a lookup.
    pub fn peek_child(&self, parent: &Node, name: &CStr) -> Option<Arc<Node>> {
        parent.dir()?.state.lock().children.get(name).cloned()
    }

    /// Makes `node` the child `name` of `parent` with one lookup counted, unless another thread was faster: then
    /// that one's node is given back.
    pub fn adopt(&self, parent: &Arc<Node>, name: &Name, node: Arc<Node>) -> Arc<Node> {
        let Some(dir) = parent.dir() else { return node };
        let mut state = dir.state.lock();
        if let Some(existing) = state.children.get(&**name)
            && existing.acquire()
        {
            return existing.clone();
        }
        node.acquire();
        self.nodes.insert(node.id().0, node.clone());
        state.children.insert(name.clone(), node.clone());
        node
    }

    /// Makes the already known `node` (with one more lookup counted by the caller) also the child `name` of
    /// `parent`.
    pub fn add_name(&self, parent: &Arc<Node>, name: &Name, node: &Arc<Node>) {
        let Some(dir) = parent.dir() else { return };
        {
            let mut place = node.place.lock();
            place.removed = false;
            if !place.names.iter().any(|(p, n)| Arc::ptr_eq(p, parent) && n == name) {
                place.names.push((parent.clone(), name.clone()));
            }
        }
        dir.state.lock().children.insert(name.clone(), node.clone());
    }

    /// Takes the name `name` in `parent` away from `node`, whose real file was there.
    pub fn remove_name(&self, parent: &Arc<Node>, name: &CStr, node: &Arc<Node>) {
        self.detach(parent, name, node);
        let mut place = node.place.lock();
        place.names.retain(|(p, n)| !(Arc::ptr_eq(p, parent) && **n == *name));
        place.removed = place.names.is_empty();
    }

    /// Notes that `node`, which only a lower layer has, was whited out.
    pub fn hide(&self, parent: &Arc<Node>, name: &CStr, node: &Arc<Node>) {
        self.detach(parent, name, node);
        node.place.lock().removed = true;
    }

    fn detach(&self, parent: &Arc<Node>, name: &CStr, node: &Arc<Node>) {
        let Some(dir) = parent.dir() else { return };
        let mut state = dir.state.lock();
        if state.children.get(name).is_some_and(|known| Arc::ptr_eq(known, node)) {
            state.children.remove(name);
        }
    }

    /// Makes `node` a nameless member of the table (`O_TMPFILE`), with one lookup counted.
    pub fn adopt_nameless(&self, node: &Arc<Node>) {
        node.acquire();
        self.nodes.insert(node.id().0, node.clone());
    }

    /// Held from looking for the node of a file with several names until it can be found.
    pub fn multiple(&self) -> MutexGuard<'_, ()> {
        self.multiple.lock()
    }

    /// The node of the upper file `ino`, if it has several names and one of them is known; with one more lookup
    /// counted.
    pub fn by_upper_ino(&self, ino: u64) -> Option<Arc<Node>> {
        let node = self.links.get(&ino).map(|node| node.clone())?;
        node.acquire().then_some(node)
    }

    /// Lets other names of the upper file `ino` find `node`.
    pub fn share(&self, ino: u64, node: &Arc<Node>) {
        node.shared.store(ino, Ordering::Release);
        self.links.insert(ino, node.clone());
    }

    /// The node of the index entry `name`, if one of its names is known; with one more lookup counted.
    pub fn by_index(&self, name: &CStr) -> Option<Arc<Node>> {
        let node = self.indexed.get(name).map(|node| node.clone())?;
        node.acquire().then_some(node)
    }

    /// Lets other names of the index entry `name` find `node`.
    pub fn share_index(&self, name: &Name, node: &Arc<Node>) {
        self.indexed.insert(name.clone(), node.clone());
    }

    /// The kernel drops `count` lookups of `id`. Gives back the nodes that left the table by it.
    pub fn forget(&self, id: NodeId, count: u64) -> Vec<Arc<Node>> {
        let mut gone = Vec::new();
        let Some(node) = self.get(id) else { return gone };
        if node.release(count) != 0 {
            return gone;
        }
        // A directory stays while children of it are known, so its last child takes it along.
        let mut candidates = vec![node];
        while let Some(node) = candidates.pop() {
            if self.drop_unused(&node, &mut candidates) {
                gone.push(node);
            }
        }
        gone
    }

    /// Removes `node` if nothing uses it; its parents, which may be unused as well now, become candidates.
    fn drop_unused(&self, node: &Arc<Node>, candidates: &mut Vec<Arc<Node>>) -> bool {
        if let Some(dir) = node.dir()
            && !dir.state.lock().children.is_empty()
        {
            return false;
        }
        if !node.bury() {
            return false;
        }
        for (parent, name) in std::mem::take(&mut node.place.lock().names) {
            self.detach(&parent, &name, node);
            candidates.push(parent);
        }
        let ino = node.shared.load(Ordering::Acquire);
        if ino != 0 {
            self.links.remove_if(&ino, |_, known| Arc::ptr_eq(known, node));
        }
        if let Some(file) = node.file()
            && let Some(index) = file.state.lock().index.take()
        {
            self.indexed.remove_if(&index.name, |_, known| Arc::ptr_eq(known, node));
        }
        let id = node.id().0;
        self.nodes.remove(&id);
        if let Some((_, before)) = self.former.remove(&id) {
            self.nodes.remove(&before);
        }
        true
    }
}
