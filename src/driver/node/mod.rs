//! Inode table, dentries, lookup counts and open handles. No I/O.
//!
//! # Identity
//!
//! A [`Node`] is what the kernel knows under one [`NodeId`] (under two, where [`NodeTable::renumber`] was needed); ids
//! are never reused. A name of a lower hard link is a
//! node of its own until `index=on` says otherwise (kernel: `ovl_get_inode` does the same); names of an upper hard
//! link share one, found through [`NodeTable::by_upper_file`].
//!
//! # Lock order
//!
//! From first to last; a thread that holds one may only take those after it:
//!
//! 1. [`Node::copy_up`] of a node, then of its parent, and so on upwards,
//! 2. [`Dir::names`] of one directory, or of two in the order of their node ids (renames across directories hold
//!    `Overlay::rename` before),
//! 3. [`Node::links`] of one file,
//! 4. [`NodeTable::multiple`],
//! 5. the leaf locks, each for a few instructions and never over a system call: [`Node::state`], [`Dir::state`], the
//!    shards of the tables.
//!
//! Descriptors of directories are fetched before a lock of the second kind is taken, because fetching may take that
//! lock of the parent.

pub mod handle;
mod name;
mod pattern;
pub mod state;
pub mod table;

use std::collections::HashMap;
use std::ffi::CStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard, RwLock};

pub use crate::union::layer::Timestamp;
use crate::union::layer::{FileType, LowerRef};
use crate::union::merge::Listing;
use crate::union::merge::listing::Moved;
pub use handle::{FileHandle, HandleTable};
pub use name::Name;
pub use pattern::{ReadPattern, Reading};
pub use state::{DataRef, Indexed, OpenState, Real, State};
pub use table::NodeTable;

/// Number by which the kernel names an inode of this mount. Never reused, never shown to users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The mount's root (`FUSE_ROOT_ID`).
    pub const ROOT: Self = Self(1);
}

/// A node that somebody uses. Without the count of weak references that the standard library's has: a mount may know
/// millions of nodes, and each byte of one counts.
pub type NodeRef = triomphe::Arc<Node>;

/// Set in [`Node::lookups`] of a node that has left the table.
const DEAD: u64 = 1 << 63;

const UNKNOWN: u8 = 0;
const BARE: u8 = 1;
const ATTRIBUTED: u8 = 2;

/// One inode of the mount. 80 bytes: what few of them have is elsewhere, in boxes.
#[derive(Debug)]
pub struct Node {
    /// Its number: that under which the kernel is told of it. See [`NodeTable::renumber`].
    id: AtomicU64,
    /// `st_ino`; only the copy-up of a lower hard link, which breaks it, changes the number.
    ino: AtomicU64,
    /// How many lookups the kernel has not yet forgotten, or [`DEAD`].
    lookups: AtomicU64,
    /// Where it is found; of a file, where its content is and how it is open. Leaf lock.
    pub state: Mutex<State>,
    /// What only directories have.
    dir: Option<Box<Dir>>,
    /// Its type.
    pub file_type: FileType,
    /// Held while the node is copied up; what was copied stays so.
    pub copy_up: Mutex<()>,
    /// Of a file with an index entry: held while its number of names changes together with the mark that says it, and
    /// while it is reached through the entry. May be held over I/O.
    links: Mutex<()>,
    /// What is known of its extended attributes: [`UNKNOWN`], [`BARE`], or [`ATTRIBUTED`], which it stays.
    attributes: AtomicU8,
}

/// A directory.
#[derive(Debug)]
pub struct Dir {
    /// Its lower parts, topmost first; never changes.
    pub lowers: Box<[LowerRef]>,
    /// Held for reading to use the names in the directory, for writing to change them. May be held over I/O.
    pub names: RwLock<()>,
    /// Leaf lock.
    pub state: Mutex<DirState>,
}

/// What changes of a directory.
#[derive(Debug, Default)]
pub struct DirState {
    /// Its upper part, if it has one.
    pub upper: Option<UpperPart>,
    /// Nodes of the names in it that the kernel knows.
    pub children: HashMap<Name, NodeRef>,
    /// Goes up whenever the names in it change.
    pub version: u64,
    /// The version at which a name last came in.
    pub grown: u64,
    /// Lookups done without a listing.
    pub probes: u32,
    /// Names that are listed elsewhere than at their first position, for the next listing of what `readdir` reads.
    pub moved: Moved,
    /// Merged listing of the lower parts.
    pub lower_listing: Option<Arc<Listing>>,
    /// Merged listing of everything, and the version that it shows. One that only lacks removals still serves those
    /// who are in the middle of it.
    pub listing: Option<(u64, Arc<Listing>)>,
}

/// The upper part of a directory.
#[derive(Clone, Debug, Default)]
pub struct UpperPart {
    /// It holds files with an origin mark.
    pub impure: bool,
    /// Its entries may be xattr whiteouts.
    pub xattr_whiteouts: bool,
    /// Nothing below shows through.
    pub opaque: bool,
    /// Its redirect, as on disk.
    pub redirect: Option<Arc<[u8]>>,
    /// What new entries inherit; `None`: not known.
    pub inheritance: Option<Inheritance>,
}

/// What new entries of a directory inherit from it.
#[derive(Clone, Debug, Default)]
pub struct Inheritance {
    /// The group, if the directory has its set-group-id bit set.
    pub group: Option<u32>,
    /// The default ACL, as `system.posix_acl_default` holds it.
    pub default_acl: Option<Arc<[u8]>>,
}

impl Node {
    /// A node that nobody has looked up. `dir`: what it has if it is a directory.
    pub fn new(id: NodeId, ino: u64, file_type: FileType, state: State, dir: Option<Box<Dir>>) -> Self {
        Self {
            id: AtomicU64::new(id.0),
            ino: AtomicU64::new(ino),
            lookups: AtomicU64::new(0),
            state: Mutex::new(state),
            dir,
            file_type,
            copy_up: Mutex::new(()),
            links: Mutex::new(()),
            attributes: AtomicU8::new(UNKNOWN),
        }
    }

    /// Its number.
    pub fn id(&self) -> NodeId {
        NodeId(self.id.load(Ordering::Acquire))
    }

    /// `st_ino`.
    pub fn ino(&self) -> u64 {
        self.ino.load(Ordering::Relaxed)
    }

    /// Changes `st_ino`.
    pub fn set_ino(&self, ino: u64) {
        self.ino.store(ino, Ordering::Relaxed);
    }

    /// True if the file is known to have no extended attributes but our marks.
    pub fn is_bare(&self) -> bool {
        self.attributes.load(Ordering::Acquire) == BARE
    }

    /// Notes that none was found. To no effect if somebody has begun to set one meanwhile.
    pub fn note_bare(&self) {
        let noted = self.attributes.compare_exchange(UNKNOWN, BARE, Ordering::AcqRel, Ordering::Acquire);
        debug_assert!(noted != Err(UNKNOWN), "a strong exchange");
    }

    /// To be called before an extended attribute is set.
    pub fn note_attributed(&self) {
        self.attributes.store(ATTRIBUTED, Ordering::Release);
    }

    /// The directory part, if it is one.
    pub fn dir(&self) -> Option<&Dir> {
        self.dir.as_deref()
    }

    /// The state, if it is not a directory.
    pub fn file_state(&self) -> Option<MutexGuard<'_, State>> {
        if self.dir.is_none() { Some(self.state.lock()) } else { None }
    }

    /// Holds the number of names, if it is not a directory.
    pub fn hold_links(&self) -> Option<MutexGuard<'_, ()>> {
        if self.dir.is_none() { Some(self.links.lock()) } else { None }
    }

    /// Counts one more lookup; `false` if the node has left the table and must not be used.
    pub fn acquire(&self) -> bool {
        let one_more = |n: u64| (n & DEAD == 0).then_some(n + 1);
        self.lookups.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).is_ok()
    }

    /// Takes back `count` lookups; how many are left.
    fn release(&self, count: u64) -> u64 {
        let less = |n: u64| (n & DEAD == 0).then_some(n.saturating_sub(count));
        match self.lookups.fetch_update(Ordering::AcqRel, Ordering::Acquire, less) {
            Ok(before) => before.saturating_sub(count),
            Err(_) => u64::MAX,
        }
    }

    /// Marks an unused node dead; `false` if it is in use.
    fn bury(&self) -> bool {
        self.lookups.compare_exchange(0, DEAD, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// True if the node has an upper part.
    pub fn has_upper(&self) -> bool {
        match &self.dir {
            Some(dir) => dir.state.lock().upper.is_some(),
            None => self.state.lock().real == Real::Upper,
        }
    }

    /// True if the node's content is in the upper as well.
    pub fn has_upper_content(&self) -> bool {
        match &self.dir {
            Some(dir) => dir.state.lock().upper.is_some(),
            None => self.state.lock().has_upper_content(),
        }
    }

    /// One directory and name of the node; `None` for the root and for what was removed from the upper.
    pub fn name(&self) -> Option<(NodeRef, Name)> {
        self.state.lock().first_name().cloned()
    }

    /// True if `name` in `parent` is one of the node's names.
    pub fn is_named(&self, parent: &NodeRef, name: &CStr) -> bool {
        self.state.lock().is_named(parent, name)
    }

    /// True if its last name was removed.
    pub fn is_removed(&self) -> bool {
        self.state.lock().removed
    }
}

impl DirState {
    /// Notes that a name came in.
    pub fn note_addition(&mut self) {
        self.version += 1;
        self.grown = self.version;
    }

    /// Notes that a name went.
    pub fn note_removal(&mut self) {
        self.version += 1;
    }

    /// The listing to continue reading from.
    pub fn listing_in_progress(&self) -> Option<Arc<Listing>> {
        self.listing.as_ref().filter(|(version, _)| *version >= self.grown).map(|(_, listing)| listing.clone())
    }

    /// The listing to start reading from.
    pub fn listing_now(&self) -> Option<Arc<Listing>> {
        self.listing.as_ref().filter(|(version, _)| *version == self.version).map(|(_, listing)| listing.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a mount takes for a million names is mostly this.
    #[test]
    fn a_node_is_small() {
        assert_eq!(size_of::<Node>(), 80);
    }
}
