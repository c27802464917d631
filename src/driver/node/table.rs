//! The inode table.

use std::ffi::CStr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use dashmap::DashMap;
use parking_lot::{Mutex, MutexGuard};

use crate::driver::node::{Name, Node, NodeId, NodeRef};
use crate::union::layer::FileId;

/// All nodes that the kernel knows, by number; and those with several names in the upper, by inode.
#[derive(Debug)]
pub struct NodeTable {
    nodes: Numbered,
    /// Nodes whose upper file has several names, by that file.
    links: DashMap<FileId, NodeRef>,
    /// Nodes of files with an index entry, by its name.
    indexed: DashMap<Name, NodeRef>,
    /// For nodes that got another number: the new one, and the one before.
    former: DashMap<u64, u64>,
    /// Held while a name of a file with several is given its node: two threads that find two names must end with one.
    multiple: Mutex<()>,
    next: AtomicU64,
}

impl NodeTable {
    /// A table with only the root in it.
    pub fn new(root: NodeRef) -> Self {
        let table = Self {
            nodes: Numbered::default(),
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

    /// The known child `name` of `parent`, with one more lookup counted.
    pub fn child(&self, parent: &Node, name: &CStr) -> Option<NodeRef> {
        let state = parent.dir()?.state.lock();
        state.children.get(name).filter(|node| node.acquire()).cloned()
    }

    /// The known child `name` of `parent`, without counting a lookup.
    pub fn peek_child(&self, parent: &Node, name: &CStr) -> Option<NodeRef> {
        parent.dir()?.state.lock().children.get(name).cloned()
    }

    /// Makes `node` the child `name` of `parent` with one lookup counted, unless another thread was faster: then
    /// that one's node is given back.
    pub fn adopt(&self, parent: &NodeRef, name: &Name, node: NodeRef) -> NodeRef {
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
    pub fn add_name(&self, parent: &NodeRef, name: &Name, node: &NodeRef) {
        let Some(dir) = parent.dir() else { return };
        node.state.lock().add_name(parent, name);
        dir.state.lock().children.insert(name.clone(), node.clone());
    }

    /// Takes the name `name` in `parent` away from `node`, whose real file was there.
    pub fn remove_name(&self, parent: &NodeRef, name: &CStr, node: &NodeRef) {
        self.detach(parent, name, node);
        node.state.lock().remove_name(parent, name);
    }

    /// Notes that `node`, which only a lower layer has, was whited out.
    pub fn hide(&self, parent: &NodeRef, name: &CStr, node: &NodeRef) {
        self.detach(parent, name, node);
        node.state.lock().removed = true;
    }

    fn detach(&self, parent: &NodeRef, name: &CStr, node: &NodeRef) {
        let Some(dir) = parent.dir() else { return };
        let mut state = dir.state.lock();
        if state.children.get(name).is_some_and(|known| NodeRef::ptr_eq(known, node)) {
            state.children.remove(name);
        }
    }

    /// Makes `node` a nameless member of the table (`O_TMPFILE`), with one lookup counted.
    pub fn adopt_nameless(&self, node: &NodeRef) {
        node.acquire();
        self.nodes.insert(node.id().0, node.clone());
    }

    /// Held from looking for the node of a file with several names until it can be found.
    pub fn multiple(&self) -> MutexGuard<'_, ()> {
        self.multiple.lock()
    }

    /// The node of the upper file `id`, if it has several names and one of them is known; with one more lookup
    /// counted.
    pub fn by_upper_file(&self, id: FileId) -> Option<NodeRef> {
        let node = self.links.get(&id).map(|node| node.clone())?;
        node.acquire().then_some(node)
    }

    /// Lets other names of the upper file `id` find `node`.
    pub fn share(&self, id: FileId, node: &NodeRef) {
        node.state.lock().set_upper_file(id);
        self.links.insert(id, node.clone());
    }

    /// The node of the index entry `name`, if one of its names is known; with one more lookup counted.
    pub fn by_index(&self, name: &CStr) -> Option<NodeRef> {
        let node = self.indexed.get(name).map(|node| node.clone())?;
        node.acquire().then_some(node)
    }

    /// Lets other names of the index entry `name` find `node`.
    pub fn share_index(&self, name: &Name, node: &NodeRef) {
        self.indexed.insert(name.clone(), node.clone());
    }

    /// The kernel drops `count` lookups of `id`. Gives back the nodes that left the table by it.
    pub fn forget(&self, id: NodeId, count: u64) -> Vec<NodeRef> {
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
    fn drop_unused(&self, node: &NodeRef, candidates: &mut Vec<NodeRef>) -> bool {
        if let Some(dir) = node.dir()
            && !dir.state.lock().children.is_empty()
        {
            return false;
        }
        if !node.bury() {
            return false;
        }
        let (names, upper_file, index) = {
            let mut state = node.state.lock();
            (state.take_names(), state.upper_file(), state.take_index())
        };
        for (parent, name) in names {
            self.detach(&parent, &name, node);
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
}

/// How many numbers share a page.
const PAGE: u64 = 16;

/// Nodes by number. Numbers are given out one after the other, so that those in use lie close together: a page of them
/// takes a third of what as many entries of a hash table do.
#[derive(Debug, Default)]
struct Numbered {
    pages: DashMap<u64, Box<Page>>,
    /// Numbers in use.
    count: AtomicUsize,
}

type Page = [Option<NodeRef>; PAGE as usize];

/// Page and place in it of a number.
fn place(id: u64) -> (u64, usize) {
    (id / PAGE, (id % PAGE) as usize)
}

impl Numbered {
    fn get(&self, id: u64) -> Option<NodeRef> {
        let (page, at) = place(id);
        self.pages.get(&page)?.get(at)?.clone()
    }

    fn insert(&self, id: u64, node: NodeRef) {
        let (page, at) = place(id);
        let mut page = self.pages.entry(page).or_default();
        if let Some(slot) = page.get_mut(at)
            && slot.replace(node).is_none()
        {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn remove(&self, id: u64) {
        let (number, at) = place(id);
        let Some(mut page) = self.pages.get_mut(&number) else { return };
        if page.get_mut(at).and_then(Option::take).is_some() {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        let is_empty = |page: &Page| page.iter().all(Option::is_none);
        let emptied = is_empty(&page);
        drop(page);
        if emptied {
            self.pages.remove_if(&number, |_, page| is_empty(page));
        }
    }

    fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}
