//! Inode table, dentries, lookup counts and open handles. No I/O.
//!
//! # Identity
//!
//! A [`Node`] is what the kernel knows under one [`NodeId`] (under two, where [`NodeTable::renumber`] was needed); ids
//! are never reused. A name of a lower hard link is a
//! node of its own until `index=on` says otherwise (kernel: `ovl_get_inode` does the same); names of an upper hard
//! link share one, found through [`NodeTable::by_upper_ino`].
//!
//! # Lock order
//!
//! From first to last; a thread that holds one may only take those after it:
//!
//! 1. [`Node::copy_up`] of a node, then of its parent, and so on upwards,
//! 2. [`Dir::names`] of one directory, or of two in the order of their node ids (renames across directories hold
//!    `Overlay::rename` before),
//! 3. [`File::links`] of one file,
//! 4. [`NodeTable::multiple`],
//! 5. the leaf locks, each for a few instructions and never over a system call: [`Node::place`], [`Dir::state`],
//!    [`File::state`], the shards of the tables.
//!
//! Descriptors of directories are fetched before a lock of the second kind is taken, because fetching may take that
//! lock of the parent.

pub mod handle;
pub mod table;

use std::collections::HashMap;
use std::ffi::CStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;

pub use crate::layer::Timestamp;
use crate::layer::{FileType, LowerRef, UpperDir};
use crate::merge::Listing;
pub use handle::{FileHandle, HandleTable};
pub use table::NodeTable;

/// Number by which the kernel names an inode of this mount. Never reused, never shown to users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The mount's root (`FUSE_ROOT_ID`).
    pub const ROOT: Self = Self(1);
}

/// A name, as kept in the table.
pub type Name = Arc<CStr>;

/// Set in [`Node::lookups`] of a node that has left the table.
const DEAD: u64 = 1 << 63;

const UNKNOWN: u8 = 0;
const BARE: u8 = 1;
const ATTRIBUTED: u8 = 2;

/// One inode of the mount.
#[derive(Debug)]
pub struct Node {
    /// Its number: that under which the kernel is told of it. See [`NodeTable::renumber`].
    id: AtomicU64,
    /// `st_ino`; only the copy-up of a lower hard link, which breaks it, changes the number.
    ino: AtomicU64,
    /// Its type.
    pub file_type: FileType,
    /// How many lookups the kernel has not yet forgotten, or [`DEAD`].
    lookups: AtomicU64,
    /// Where the node is found. Leaf lock.
    pub place: Mutex<Place>,
    /// Held while the node is copied up; what was copied stays so.
    pub copy_up: Mutex<()>,
    /// Inode number in the upper under which [`NodeTable::by_upper_ino`] finds the node; 0: it does not.
    pub shared: AtomicU64,
    /// What is known of its extended attributes: [`UNKNOWN`], [`BARE`], or [`ATTRIBUTED`], which it stays.
    attributes: AtomicU8,
    /// What only directories or only files have.
    pub body: Body,
}

/// Names of a node.
#[derive(Debug, Default)]
pub struct Place {
    /// Directory and name, for each name that is known. Empty for the root and for what was removed from the upper;
    /// a removed lower file keeps its name, under which its layer still has it.
    pub names: SmallVec<[(Arc<Node>, Name); 1]>,
    /// The node's last name was removed.
    pub removed: bool,
    /// The real upper file, held because it has no name (any more).
    pub orphan: Option<UpperDir>,
}

/// The part of a node that depends on its type.
#[derive(Debug)]
pub enum Body {
    /// A directory.
    Dir(Box<Dir>),
    /// Anything else.
    File(File),
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
    pub children: HashMap<Name, Arc<Node>>,
    /// Goes up whenever the names in it change.
    pub version: u64,
    /// The version at which a name last came in.
    pub grown: u64,
    /// Lookups done without a listing.
    pub probes: u32,
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

/// A file that is not a directory.
#[derive(Debug)]
pub struct File {
    /// For a file with an index entry: held while its number of names changes together with the mark that says it,
    /// and while it is reached through the entry. May be held over I/O.
    pub links: Mutex<()>,
    /// Leaf lock.
    pub state: Mutex<FileState>,
}

impl File {
    /// A file in this state.
    pub fn new(state: FileState) -> Self {
        Self { links: Mutex::new(()), state: Mutex::new(state) }
    }
}

/// What changes of a file.
#[derive(Debug)]
pub struct FileState {
    /// Where its content and attributes are.
    pub real: Real,
    /// Where the content is while only the attributes were copied up (`metacopy`).
    pub data: Option<Box<DataRef>>,
    /// For a lower hard link on a mount with an index: the entry that all its names share.
    pub index: Option<Box<Indexed>>,
    /// Present while the file is open.
    pub open: Option<Box<OpenState>>,
    /// The kernel was told to go straight to the backing file once: pages that it cached before may be old.
    pub bypassed: bool,
}

/// A regular file in a lower layer that holds the content of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataRef {
    /// Which layer: index into [`crate::layer::LayerStack::lowers`].
    pub layer: u16,
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

impl Node {
    /// A node that the kernel has looked up `lookups` times.
    pub fn new(id: NodeId, ino: u64, file_type: FileType, place: Place, body: Body) -> Self {
        Self {
            id: AtomicU64::new(id.0),
            ino: AtomicU64::new(ino),
            file_type,
            lookups: AtomicU64::new(0),
            place: Mutex::new(place),
            copy_up: Mutex::new(()),
            shared: AtomicU64::new(0),
            attributes: AtomicU8::new(UNKNOWN),
            body,
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
        match &self.body {
            Body::Dir(dir) => Some(dir),
            Body::File(_) => None,
        }
    }

    /// The file part, if it is not a directory.
    pub fn file(&self) -> Option<&File> {
        match &self.body {
            Body::Dir(_) => None,
            Body::File(file) => Some(file),
        }
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
        match &self.body {
            Body::Dir(dir) => dir.state.lock().upper.is_some(),
            Body::File(file) => file.state.lock().real == Real::Upper,
        }
    }

    /// True if the node's content is in the upper as well.
    pub fn has_upper_content(&self) -> bool {
        match &self.body {
            Body::Dir(_) => self.has_upper(),
            Body::File(file) => file.state.lock().has_upper_content(),
        }
    }

    /// One directory and name of the node; `None` for the root and for what was removed from the upper.
    pub fn name(&self) -> Option<(Arc<Node>, Name)> {
        self.place.lock().names.first().cloned()
    }

    /// True if `name` in `parent` is one of the node's names.
    pub fn is_named(&self, parent: &Arc<Node>, name: &CStr) -> bool {
        self.place.lock().names.iter().any(|(p, n)| Arc::ptr_eq(p, parent) && **n == *name)
    }
}

impl FileState {
    /// A file that nobody has open.
    pub fn new(real: Real) -> Self {
        Self { real, data: None, index: None, open: None, bypassed: false }
    }

    /// True if the content is in the upper, too.
    pub fn has_upper_content(&self) -> bool {
        self.real == Real::Upper && self.data.is_none()
    }

    /// True if the kernel's inode can serve no further open: the file is in the upper, and readers make the kernel read
    /// it from a lower layer.
    pub fn must_part(&self) -> bool {
        let lower_backing = |open: &OpenState| open.passthrough > 0 && !open.backing_is_upper;
        self.has_upper_content() && self.open.as_deref().is_some_and(lower_backing)
    }

    /// Counts the open handles as those of another inode of the kernel's.
    pub fn part_from_readers(&mut self) {
        let former = self.open.take();
        self.open = Some(Box::new(OpenState { former, ..OpenState::default() }));
        self.bypassed = false;
    }
}

impl OpenState {
    /// Takes out a handle that was closed. Gives back the registration when no handle uses it any more.
    pub fn close(&mut self, handle: &Arc<FileHandle>) -> Option<u32> {
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
    pub fn is_unused(&self) -> bool {
        self.handles.is_empty() && self.former.is_none()
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
