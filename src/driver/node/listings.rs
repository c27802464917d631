//! The merged listings that directories keep, and the memory budget for all of them.
//!
//! Positions in a listing depend on names alone. So a listing can be dropped at any time, even while a process reads
//! the directory: the next request rebuilds it and continues at the same position.

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

/// Memory that all listings of a mount may take, in bytes. Enough for about half a million names.
pub const BUDGET: usize = 24 << 20;

/// After this many lookups without a listing, making one pays: for a directory in several layers, and in a single layer.
const PROBES_MERGED: u32 = 1;
const PROBES_SINGLE: u32 = 16;

/// Changes that a listing may lag behind while a reader holds it; beyond that, a new listing is made.
const MOST_BEHIND: usize = 1024;

/// The listings of one directory.
#[derive(Debug, Default)]
pub(super) struct Listings {
    /// Incremented whenever the names in the directory change.
    version: u64,
    /// The version at which a name was last added.
    grown: u64,
    /// Lookups made without a listing.
    probes: u32,
    /// Names that are not listed at their first position, for the next listing made by `readdir`. Kept when listings
    /// are dropped: positions must not change while the directory is read.
    moved: Moved,
    /// The listing of the lower parts.
    lower: Option<Arc<Listing>>,
    /// When the layers were last listed for `lower` and `merged`.
    made: Option<Instant>,
    /// The listing of everything.
    merged: Option<MergedListing>,
    /// True if one of them was used since the budget's hand last passed.
    used: bool,
    /// True if the directory is in the budget's queue.
    queued: bool,
    /// True if the directory's lower parts are no longer those of the listings. Such listings only count as memory.
    outdated: bool,
}

impl Listings {
    /// Notes that the directory has another lower part.
    pub(super) fn outdate(&mut self) {
        self.outdated = self.lower.is_some() || self.merged.is_some();
        self.probes = 0;
    }

    /// The listing of the lower parts.
    fn lower(&self) -> Option<&Arc<Listing>> {
        self.lower.as_ref().filter(|_| !self.outdated)
    }

    /// True if the listings are no older than `most`, or if `most` is `None`.
    fn are_recent(&self, most: Option<Duration>) -> bool {
        most.is_none_or(|most| self.made.is_some_and(|made| made.elapsed() < most))
    }

    fn memory(&self) -> usize {
        let lower = self.lower.as_ref().map_or(0, |listing| listing.memory());
        lower + self.merged.as_ref().map_or(0, |merged| merged.listing.memory())
    }

    /// Notes that the names have changed, either by `change` or in a way that needs a new listing.
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

    /// Applies the outstanding changes to the listing of everything. A reader that holds the listing keeps it unchanged; the
    /// changes are then made to a copy.
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
        // Names that were moved to another position keep it in the next listing.
        self.moved = listing.moved();
        if !made {
            self.merged = None;
        }
    }
}

/// The listing of everything in a directory.
#[derive(Debug)]
struct MergedListing {
    /// The version that `listing` shows once the changes in `behind` are applied. A listing that lacks only removals can
    /// still serve readers in the middle of it.
    version: u64,
    listing: Arc<Listing>,
    /// Changes that came while a reader held the listing, oldest first.
    behind: Vec<Change>,
}

/// A change of the names that can be applied to a listing.
#[derive(Debug)]
enum Change {
    Removed(Name),
    Added(Name, NewEntry),
}

/// Counts the memory of all listings, and drops those unused for the longest time (second chance).
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    /// Bytes in use.
    used: AtomicUsize,
    /// Directories with a listing, in clock order; some may have left the table. Leaf lock.
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

/// What a lookup in a directory needs to know about the directory.
#[derive(Debug)]
pub struct Surroundings {
    /// The lower parts.
    pub lowers: Lowers,
    /// Their merged listing, if there is one.
    pub listing: Option<Arc<Listing>>,
    /// True if there is no listing, and making one pays now.
    pub wants_listing: bool,
    /// True if the upper part holds files with an origin mark.
    pub impure: bool,
}

impl Dir {
    /// Returns what a lookup needs to know. Counts the lookup if there is no listing. Leaves out a listing that is older
    /// than `most_age`.
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

    /// The merged listing of the lower parts, if there is a usable one.
    pub fn lower_listing(&self) -> Option<Arc<Listing>> {
        let listings = &mut self.state.lock().listings;
        let listing = listings.lower().cloned().filter(|listing| !listing.is_broken())?;
        listings.used = true;
        Some(listing)
    }

    /// Names that the directory's last listing did not have at their first position.
    pub fn moved_names(&self) -> Moved {
        self.state.lock().listings.moved.clone()
    }
}

/// A new entry of the upper.
#[derive(Clone, Copy, Debug)]
pub struct NewEntry {
    /// The file; `None` if its number is looked up when the entry is listed.
    pub id: Option<FileId>,
    /// `DT_*`.
    pub kind: u8,
}

impl NewEntry {
    /// The entry of a known node; `None` if its type does not tell how it is listed.
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
    /// The merged listing of everything, if a usable one is kept. If `in_progress`, the reader continues at a position,
    /// and a listing that still has removed names is good enough; otherwise it reads from the start.
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

    /// Notes that a name was added. If `entry` is given, the listing is updated; otherwise it is rebuilt at the next read.
    pub fn note_addition(&self, names: &NamesWrite<'_>, name: &CStr, entry: Option<NewEntry>) {
        self.note_change(names, true, entry.map(|entry| Change::Added(Name::from(name), entry)));
    }

    /// Notes that a name was removed.
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

    /// Keeps the merged listing of everything in a directory. The names have not changed since it was begun.
    pub fn keep_merged_listing(&self, names: &NamesRead<'_>, listing: Arc<Listing>) {
        self.change_listings(names.parent(), |listings| {
            listings.moved = listing.moved();
            listings.merged = Some(MergedListing { version: listings.version, listing, behind: Vec::new() });
        });
    }

    /// Drops the listings of a directory that are older than `most_age`: a lower layer may have changed since. A directory that is
    /// only in the upper changes through the mount alone, so its listing stays.
    pub fn drop_outdated_listings(&self, node: &Node, most_age: Duration) {
        let Some(dir) = node.dir() else { return };
        let DirState { lowers, listings, .. } = &mut *dir.state.lock();
        if !lowers.is_empty() && !listings.are_recent(Some(most_age)) {
            let before = listings.memory();
            (listings.lower, listings.merged) = (None, None);
            self.budget.settle(before, 0);
        }
    }

    /// Drops the listing of the lower parts, if there is only one part.
    pub fn drop_single_listing(&self, node: &Node) {
        let Some(dir) = node.dir() else { return };
        let state = &mut *dir.state.lock();
        if state.lowers.len() == 1 {
            let before = state.listings.memory();
            state.listings.lower = None;
            self.budget.settle(before, state.listings.memory());
        }
    }

    /// Drops the listing of everything, because it shows outdated facts about a file.
    pub(super) fn drop_merged_listing(&self, dir: &Dir) {
        let listings = &mut dir.state.lock().listings;
        let before = listings.memory();
        listings.merged = None;
        self.budget.settle(before, listings.memory());
    }

    /// Called when the directory leaves the table.
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
                // A listing kept for a directory that has left the table would never be dropped.
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

    /// Makes one round of the queue: drops listings that were not used since the last round, until the rest is within the
    /// budget. The listing of `kept`, which is new, stays.
    fn drop_old_listings(&self, kept: NodeId) {
        let turns = self.budget.queue.lock().len();
        for _ in 0..turns {
            if self.listing_memory() <= self.budget.limit {
                return;
            }
            let Some(id) = self.budget.queue.lock().pop_front() else { return };
            // The directory may have left the table.
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
    use crate::driver::node::{Descriptors, NamesPair, NodeRef, Residence, State, Turn, UpperId, UpperMarks};
    use crate::union::layer::{LayerDir, LayerId, LayerStack, UpperDir};

    fn directory(id: NodeId, residence: Residence) -> NodeRef {
        let dir = Some(Box::new(Dir::new(Lowers::default(), UpperMarks::default(), &UpperId::new(LayerId::LOWEST))));
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
        let lookup = table.adopt(&NamesRead::lock(&mut Turn::begin(), root).expect("a directory"), &name, node);
        let node = NodeRef::clone(&lookup);
        lookup.hand_over();
        node
    }

    fn keep(table: &NodeTable, node: &NodeRef, listing: Listing) {
        table.keep_merged_listing(&NamesRead::lock(&mut Turn::begin(), node).expect("a directory"), Arc::new(listing));
    }

    fn has_listing(table: &NodeTable, node: &NodeRef) -> bool {
        table.merged_listing(&NamesRead::lock(&mut Turn::begin(), node).expect("a directory"), true).is_some()
    }

    /// With `timeout=`, only directories with lower parts are listed anew.
    #[test]
    fn a_directory_of_the_upper_keeps_its_listing() {
        let (table, root) = table(usize::MAX);
        let [upper, merged] = [0, 1].map(|n| add(&table, &root, n));
        let part = crate::union::layer::LowerRef::root(LayerId::LOWEST, false, None);
        table.replace_lowers(&merged, vec![part]);
        for node in [&upper, &merged] {
            keep(&table, node, listing());
            table.drop_outdated_listings(node, Duration::ZERO);
        }
        assert_eq!((has_listing(&table, &upper), has_listing(&table, &merged)), (true, false));
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
            let mut turn = Turn::begin();
            let names = NamesWrite::lock(&mut turn, &node).expect("a directory");
            table.unlink(&names, c"file-7", &made, UpperDir::stand_in());
        }
        let current = || table.merged_listing(&NamesRead::lock(&mut Turn::begin(), &node).expect("a directory"), false);
        let seen = |name: &CStr| current().expect("still shows it").get(name).is_some();
        assert!(!seen(c"file-7") && seen(c"file-8"));
        let id = listing().iter().next().and_then(|listed| listed.id);
        let add = |name: &CStr| {
            let mut turn = Turn::begin();
            let names = NamesWrite::lock(&mut turn, &node).expect("a directory");
            table.note_addition(&names, name, Some(NewEntry { id, kind: 8 }));
        };
        add(c"new");
        assert!(seen(c"new") && !seen(c"file-7"));
        // A listing that is being read does not change; the next reader gets one that shows all changes.
        let reading = current().expect("kept");
        let other = add_file(&table, &node, c"file-8");
        table.unlink(
            &NamesWrite::lock(&mut Turn::begin(), &node).expect("a directory"),
            c"file-8",
            &other,
            UpperDir::stand_in(),
        );
        add(c"newer");
        assert!(reading.get(c"file-8").is_some() && reading.get(c"newer").is_none());
        assert!(!seen(c"file-8") && seen(c"newer"));
        assert_eq!(table.listing_memory(), current().expect("kept").memory());
        // A name of unknown kind needs a new listing.
        table.note_addition(&NamesWrite::lock(&mut Turn::begin(), &node).expect("a directory"), c"special", None);
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
            let mut turn = Turn::begin();
            let names = NamesPair::within(&mut turn, &node).expect("a directory");
            table.rename(&names, &moved, &name(c"file-1"), &name(c"taken"), None);
        }
        let found = table.child(&node, c"taken").expect("known");
        table.link(&NamesWrite::lock(&mut Turn::begin(), &node).expect("a directory"), &name(c"linked"), &found);
        let listing = table
            .merged_listing(&NamesRead::lock(&mut Turn::begin(), &node).expect("a directory"), false)
            .expect("kept");
        assert_eq!([c"file-1", c"taken", c"linked"].map(|name| listing.get(name).is_some()), [false, true, true]);
    }

    fn add_file(table: &NodeTable, parent: &NodeRef, name: &CStr) -> NodeRef {
        let at = (parent.clone(), Name::from(name));
        let state = State::new(Residence::Upper { at, layer: LayerId::LOWEST });
        let node = NodeRef::new(Node::new(table.next_id(), 2, FileType::Regular, state, None));
        let lookup =
            table.adopt(&NamesRead::lock(&mut Turn::begin(), parent).expect("a directory"), &Name::from(name), node);
        let node = NodeRef::clone(&lookup);
        lookup.hand_over();
        node
    }
}
