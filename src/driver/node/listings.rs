//! The merged listings that directories keep, and the budget for all of them.
//!
//! Positions in a listing depend on names alone, so a listing can be dropped at any time, also while somebody reads the
//! directory: the next request makes it anew and goes on where the last one ended.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::driver::node::dir::{Dir, DirState, Lowers};
use crate::driver::node::sync::{AtomicUsize, Mutex, Ordering};
use crate::driver::node::{Name, Names, NamesRead, NamesWrite, Node, NodeId, NodeTable};
use crate::union::layer::{FileId, FileType};
use crate::union::merge::listing::Moved;
use crate::union::merge::{Listing, Source};

/// Memory that all listings of a mount may take, in bytes. Half a million names take about as much.
pub const BUDGET: usize = 24 << 20;

/// Lookups without a listing after which it is worth making one: a directory of several layers, and of one.
const PROBES_MERGED: u32 = 1;
const PROBES_SINGLE: u32 = 16;

/// Changes that a listing may lack while a reader holds it; with more, a new listing is made.
const MOST_BEHIND: usize = 1024;

/// The listings of one directory.
#[derive(Debug, Default)]
pub(super) struct Listings {
    /// Goes up whenever the names in the directory change.
    version: u64,
    /// The version at which a name last came in.
    grown: u64,
    /// Lookups done without a listing.
    probes: u32,
    /// Names that are listed elsewhere than at their first position, for the next listing of what `readdir` reads. Kept
    /// when listings are dropped: positions must not change while the directory is read.
    moved: Moved,
    /// Of the lower parts.
    lower: Option<Arc<Listing>>,
    /// When the layers were last listed for `lower` and `merged`.
    made: Option<Instant>,
    /// Of everything.
    merged: Option<MergedListing>,
    /// One of them was used since the budget last looked.
    used: bool,
    /// The budget's queue has the directory.
    queued: bool,
    /// The directory has other lower parts than the listings say. They only count as memory then.
    outdated: bool,
}

impl Listings {
    /// The directory has got another lower part.
    pub(super) fn outdate(&mut self) {
        self.outdated = self.lower.is_some() || self.merged.is_some();
        self.probes = 0;
    }

    /// The listing of the lower parts.
    fn lower(&self) -> Option<&Arc<Listing>> {
        self.lower.as_ref().filter(|_| !self.outdated)
    }

    /// True if the listings are not older than `most`; without it, any age will do.
    fn are_recent(&self, most: Option<Duration>) -> bool {
        most.is_none_or(|most| self.made.is_some_and(|made| made.elapsed() < most))
    }

    fn memory(&self) -> usize {
        let lower = self.lower.as_ref().map_or(0, |listing| listing.memory());
        lower + self.merged.as_ref().map_or(0, |merged| merged.listing.memory())
    }

    /// The names have changed: by `change`, or in a way that only a new listing shows.
    fn note_change(&mut self, grows: bool, change: Option<Change>) {
        let before = self.version;
        self.version += 1;
        if grows {
            self.grown = self.version;
        }
        let Some(merged) = &mut self.merged else { return };
        if merged.version == before
            && let Some(change) = change
            && merged.behind.len() < MOST_BEHIND
        {
            merged.behind.push(change);
            merged.version = self.version;
            if Arc::get_mut(&mut merged.listing).is_some() {
                self.catch_up();
            }
        }
    }

    /// Makes the changes that the listing of everything lacks. A reader that holds the listing keeps it as it was: the changes
    /// are then made to a copy.
    fn catch_up(&mut self) {
        let Some(merged) = &mut self.merged else { return };
        if merged.behind.is_empty() {
            return;
        }
        let listing = Arc::make_mut(&mut merged.listing);
        let made = merged.behind.drain(..).all(|change| match change {
            Change::Removed(name) => listing.remove(&name),
            Change::Added(name, NewEntry { id, kind }) => listing.add(&name, id, kind, Source::Upper),
        });
        // Names that had to give way keep their positions in the next listing.
        self.moved = listing.moved();
        if !made {
            self.merged = None;
        }
    }
}

/// The listing of everything in a directory.
#[derive(Debug)]
struct MergedListing {
    /// The version that `listing` shows once the changes `behind` are made. A listing that only lacks removals still serves
    /// readers that are in the middle of it.
    version: u64,
    listing: Arc<Listing>,
    /// Changes that came while a reader held the listing, oldest first.
    behind: Vec<Change>,
}

/// A change of the names that a listing can follow.
#[derive(Debug)]
enum Change {
    Removed(Name),
    Added(Name, NewEntry),
}

/// Counts the memory of all listings, and drops those that were not used for the longest time (second chance).
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    /// Bytes in use.
    used: AtomicUsize,
    /// Directories with a listing, in the order of the hand; some may have left the table. Leaf lock.
    queue: Mutex<VecDeque<NodeId>>,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, used: AtomicUsize::new(0), queue: Mutex::new(VecDeque::new()) }
    }

    fn settle(&self, before: usize, after: usize) {
        if after >= before {
            self.used.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.used.fetch_sub(before - after, Ordering::Relaxed);
        }
    }
}

/// What a lookup in a directory needs to know of it.
#[derive(Debug)]
pub struct Surroundings {
    /// The lower parts.
    pub lowers: Lowers,
    /// Their merged listing, if there is one.
    pub listing: Option<Arc<Listing>>,
    /// There is none, and this lookup makes it worth while to make one.
    pub wants_listing: bool,
    /// The upper part holds files with an origin mark.
    pub impure: bool,
}

impl Dir {
    /// What a lookup needs to know. Counts it, if there is no listing. A listing older than `most_age` is left out.
    pub fn surroundings(&self, most_age: Option<Duration>) -> Surroundings {
        let DirState { lowers, listings, upper, .. } = &mut *self.state.lock();
        let recent = listings.are_recent(most_age);
        let listing = listings.lower().cloned().filter(|listing| recent && !listing.is_broken());
        let mut wants_listing = false;
        if listing.is_some() {
            listings.used = true;
        } else {
            listings.probes = listings.probes.saturating_add(1);
            let enough = if lowers.len() > 1 { PROBES_MERGED } else { PROBES_SINGLE };
            wants_listing = !lowers.is_empty() && listings.probes > enough && most_age.is_none();
        }
        Surroundings { lowers: lowers.clone(), listing, wants_listing, impure: upper.impure }
    }

    /// The merged listing of the lower parts, if it is kept and can be used.
    pub fn lower_listing(&self) -> Option<Arc<Listing>> {
        let listings = &mut self.state.lock().listings;
        let listing = listings.lower().cloned().filter(|listing| !listing.is_broken())?;
        listings.used = true;
        Some(listing)
    }

    /// Names that the directory's last listing had elsewhere than at their first position.
    pub fn moved_names(&self) -> Moved {
        self.state.lock().listings.moved.clone()
    }
}

/// A new entry of the upper.
#[derive(Clone, Copy, Debug)]
pub struct NewEntry {
    /// The file; `None`: its number is looked up when the entry is listed.
    pub id: Option<FileId>,
    /// `DT_*`.
    pub kind: u8,
}

impl NewEntry {
    /// That of a known node; `None` if its type does not say how it is listed.
    pub(super) fn of(node: &Node) -> Option<Self> {
        let kind = match node.file_type {
            FileType::Regular => libc::DT_REG,
            FileType::Directory => libc::DT_DIR,
            FileType::Symlink => libc::DT_LNK,
            FileType::Special => return None,
        };
        Some(Self { id: None, kind })
    }
}

impl NodeTable {
    /// The merged listing of everything, to read from the start (`in_progress` is false) or to read on in: for that, one
    /// that still has names that were removed is good enough.
    pub fn merged_listing(&self, names: &NamesRead<'_>, in_progress: bool) -> Option<Arc<Listing>> {
        let listings = &mut names.parent().dir()?.state.lock().listings;
        let oldest = if in_progress { listings.grown } else { listings.version };
        if listings.outdated || listings.merged.as_ref()?.version < oldest {
            return None;
        }
        let before = listings.memory();
        listings.catch_up();
        self.budget.settle(before, listings.memory());
        listings.used = true;
        listings.merged.as_ref().map(|merged| merged.listing.clone())
    }

    /// Takes note that a name came in. `entry`: what it is, where that is known; then the listing is changed, else made anew
    /// when it is next read.
    pub fn note_addition(&self, names: &NamesWrite<'_>, name: &CStr, entry: Option<NewEntry>) {
        self.note_change(names, true, entry.map(|entry| Change::Added(Name::from(name), entry)));
    }

    /// Takes note that a name went.
    pub(super) fn note_removal(&self, names: &NamesWrite<'_>, name: &CStr) {
        self.note_change(names, false, Some(Change::Removed(Name::from(name))));
    }

    fn note_change(&self, names: &NamesWrite<'_>, grows: bool, change: Option<Change>) {
        let listings = &mut names.dir().state.lock().listings;
        let before = listings.memory();
        listings.note_change(grows, change);
        self.budget.settle(before, listings.memory());
    }

    /// Keeps the merged listing of a directory's lower parts.
    pub fn keep_lower_listing(&self, node: &Node, listing: Arc<Listing>) {
        let is_all = !node.has_upper();
        self.change_listings(node, |listings| {
            if is_all {
                listings.moved = listing.moved();
            }
            listings.lower = Some(listing);
            listings.made = Some(Instant::now());
        });
    }

    /// Keeps the merged listing of everything in a directory. Its names did not change since it was begun.
    pub fn keep_merged_listing(&self, names: &NamesRead<'_>, listing: Arc<Listing>) {
        self.change_listings(names.parent(), |listings| {
            listings.moved = listing.moved();
            listings.merged = Some(MergedListing { version: listings.version, listing, behind: Vec::new() });
        });
    }

    /// Lets go of the listings of a directory that are older than `most_age`: a lower layer may have changed since.
    pub fn drop_outdated_listings(&self, node: &Node, most_age: Duration) {
        let Some(dir) = node.dir() else { return };
        let listings = &mut dir.state.lock().listings;
        if !listings.are_recent(Some(most_age)) {
            let before = listings.memory();
            (listings.lower, listings.merged) = (None, None);
            self.budget.settle(before, 0);
        }
    }

    /// Lets go of the listing of the lower parts, if there is only one.
    pub fn drop_single_listing(&self, node: &Node) {
        let Some(dir) = node.dir() else { return };
        let state = &mut *dir.state.lock();
        if state.lowers.len() == 1 {
            let before = state.listings.memory();
            state.listings.lower = None;
            self.budget.settle(before, state.listings.memory());
        }
    }

    /// Lets go of the listing of everything: what it says of a file is wrong now.
    pub(super) fn drop_merged_listing(&self, dir: &Dir) {
        let listings = &mut dir.state.lock().listings;
        let before = listings.memory();
        listings.merged = None;
        self.budget.settle(before, listings.memory());
    }

    /// The directory leaves the table.
    pub(super) fn forget_listings(&self, state: &mut DirState) {
        let before = state.listings.memory();
        (state.listings.lower, state.listings.merged) = (None, None);
        self.budget.settle(before, 0);
    }

    /// Memory of all listings, in bytes.
    pub fn listing_memory(&self) -> usize {
        self.budget.used.load(Ordering::Relaxed)
    }

    fn change_listings(&self, node: &Node, change: impl FnOnce(&mut Listings)) {
        let Some(dir) = node.dir() else { return };
        let newly = {
            let listings = &mut dir.state.lock().listings;
            if node.is_buried() {
                // What is kept now would not be let go of any more.
                return;
            }
            let before = listings.memory();
            if std::mem::take(&mut listings.outdated) {
                (listings.lower, listings.merged) = (None, None);
            }
            change(listings);
            self.budget.settle(before, listings.memory());
            listings.used = true;
            !std::mem::replace(&mut listings.queued, true)
        };
        if newly {
            let mut queue = self.budget.queue.lock();
            if queue.len() > 1024 && queue.len() > 2 * self.len() {
                queue.retain(|&id| self.get(id).is_some());
            }
            queue.push_back(node.id());
        }
        if self.listing_memory() > self.budget.limit {
            self.drop_old_listings(node.id());
        }
    }

    /// Goes round the queue once: drops listings that were not used since the last time, until the rest is within the
    /// budget. `kept` has just got one.
    fn drop_old_listings(&self, kept: NodeId) {
        let turns = self.budget.queue.lock().len();
        for _ in 0..turns {
            if self.listing_memory() <= self.budget.limit {
                return;
            }
            let Some(id) = self.budget.queue.lock().pop_front() else { return };
            // It may have left the table.
            let Some(node) = self.get(id) else { continue };
            let Some(dir) = node.dir() else { continue };
            let stays = {
                let listings = &mut dir.state.lock().listings;
                let stays = std::mem::replace(&mut listings.used, false) || id == kept;
                if !stays {
                    let before = listings.memory();
                    (listings.lower, listings.merged, listings.queued) = (None, None, false);
                    self.budget.settle(before, 0);
                }
                stays
            };
            if stays {
                self.budget.queue.lock().push_back(id);
            }
        }
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;
    use crate::config::OverlayConfig;
    use crate::driver::node::{Descriptors, NamesPair, NodeRef, Residence, State, UpperId, UpperPart};
    use crate::union::layer::{LayerDir, LayerId, LayerStack, UpperDir};

    fn directory(id: NodeId, residence: Residence) -> NodeRef {
        let dir = Some(Box::new(Dir::new(Lowers::default(), UpperPart::default(), &UpperId::new(LayerId::LOWEST))));
        NodeRef::new(Node::new(id, 1, FileType::Directory, State::new(residence), dir))
    }

    /// A listing of a thousand names.
    fn listing() -> Listing {
        let directory = tempfile::tempdir().expect("a directory");
        for n in 0..1000 {
            std::fs::write(directory.path().join(format!("file-{n}")), "").expect("a file");
        }
        let config = OverlayConfig { lowers: vec![directory.path().to_owned()], ..OverlayConfig::default() };
        let stack = LayerStack::open(&config).expect("a stack");
        let id = stack.ids().next().expect("a layer");
        let root = stack.lower(id).expect("a layer").root().clone();
        let part = crate::union::layer::LowerRef::root(id, false, None);
        Listing::of_lowers(&[(&part, LayerDir::Held(root))], &Moved::default()).expect("a listing")
    }

    fn table(limit: usize) -> (NodeTable, NodeRef) {
        let root = directory(NodeId::ROOT, Residence::Root { upper: true });
        let mut table = NodeTable::new(root.clone(), Descriptors::new(64));
        table.budget = Budget::new(limit);
        (table, root)
    }

    fn add(table: &NodeTable, root: &NodeRef, n: usize) -> NodeRef {
        let name = std::ffi::CString::new(format!("dir-{n}")).expect("no NUL");
        let name = Name::from(name.as_c_str());
        let node =
            directory(table.next_id(), Residence::Upper { at: (root.clone(), name.clone()), layer: LayerId::LOWEST });
        let lookup = table.adopt(&NamesRead::lock(root).expect("a directory"), &name, node);
        let node = NodeRef::clone(&lookup);
        lookup.hand_over();
        node
    }

    fn keep(table: &NodeTable, node: &NodeRef, listing: Listing) {
        table.keep_merged_listing(&NamesRead::lock(node).expect("a directory"), Arc::new(listing));
    }

    fn has_listing(table: &NodeTable, node: &NodeRef) -> bool {
        table.merged_listing(&NamesRead::lock(node).expect("a directory"), true).is_some()
    }

    #[test]
    fn all_listings_stay_within_the_budget_and_those_in_use_stay() {
        let listing = listing();
        let one = listing.memory();
        assert!(one > 10_000, "{one}");
        let (table, root) = table(10 * one);
        let used = add(&table, &root, 0);
        keep(&table, &used, listing.clone());
        for n in 1..200 {
            let node = add(&table, &root, n);
            keep(&table, &node, listing.clone());
            assert!(has_listing(&table, &used), "read all the time, dropped after {n}");
            assert!(has_listing(&table, &node), "just made");
            assert!(table.listing_memory() <= 11 * one, "{} of {one} each after {n}", table.listing_memory());
        }
        for n in 0..200 {
            let name = std::ffi::CString::new(format!("dir-{n}")).expect("no NUL");
            let id = table.child(&root, &name).expect("known").id();
            table.forget(id, 1);
        }
        assert_eq!((table.len(), table.listing_memory()), (1, 0));
    }

    #[test]
    fn a_listing_follows_removals_and_additions() {
        let (table, root) = table(BUDGET);
        let node = add(&table, &root, 0);
        keep(&table, &node, listing());
        let made = add_file(&table, &node, c"file-7");
        {
            let names = NamesWrite::lock(&node).expect("a directory");
            table.unlink(&names, c"file-7", &made, UpperDir::stand_in());
        }
        let current = || table.merged_listing(&NamesRead::lock(&node).expect("a directory"), false);
        let seen = |name: &CStr| current().expect("still shows it").get(name).is_some();
        assert!(!seen(c"file-7") && seen(c"file-8"));
        let id = listing().iter().next().and_then(|listed| listed.id);
        let add = |name: &CStr| {
            let names = NamesWrite::lock(&node).expect("a directory");
            table.note_addition(&names, name, Some(NewEntry { id, kind: 8 }));
        };
        add(c"new");
        assert!(seen(c"new") && !seen(c"file-7"));
        // One that is being read stays as it is; the next reader gets one that shows all changes.
        let reading = current().expect("kept");
        let other = add_file(&table, &node, c"file-8");
        table.unlink(&NamesWrite::lock(&node).expect("a directory"), c"file-8", &other, UpperDir::stand_in());
        add(c"newer");
        assert!(reading.get(c"file-8").is_some() && reading.get(c"newer").is_none());
        assert!(!seen(c"file-8") && seen(c"newer"));
        assert_eq!(table.listing_memory(), current().expect("kept").memory());
        // A name whose kind is not known needs a new listing.
        table.note_addition(&NamesWrite::lock(&node).expect("a directory"), c"special", None);
        assert!(current().is_none());
    }

    #[test]
    fn a_listing_follows_renames_and_links() {
        let (table, root) = table(BUDGET);
        let node = add(&table, &root, 0);
        keep(&table, &node, listing());
        let moved = add_file(&table, &node, c"file-1");
        let name = |text: &CStr| Name::from(text);
        {
            let names = NamesPair::within(&node).expect("a directory");
            table.rename(&names, &moved, &name(c"file-1"), &name(c"taken"), None);
        }
        let found = table.child(&node, c"taken").expect("known");
        table.link(&NamesWrite::lock(&node).expect("a directory"), &name(c"linked"), &found);
        let listing = table.merged_listing(&NamesRead::lock(&node).expect("a directory"), false).expect("kept");
        assert_eq!([c"file-1", c"taken", c"linked"].map(|name| listing.get(name).is_some()), [false, true, true]);
    }

    fn add_file(table: &NodeTable, parent: &NodeRef, name: &CStr) -> NodeRef {
        let at = (parent.clone(), Name::from(name));
        let state = State::new(Residence::Upper { at, layer: LayerId::LOWEST });
        let node = NodeRef::new(Node::new(table.next_id(), 2, FileType::Regular, state, None));
        let lookup = table.adopt(&NamesRead::lock(parent).expect("a directory"), &Name::from(name), node);
        let node = NodeRef::clone(&lookup);
        lookup.hand_over();
        node
    }
}
