//! Inode table, dentries, lookup counts and open handles. No I/O.
//!
//! # Identity
//!
//! A [`Node`] is what the kernel knows under one [`NodeId`], or under two after [`NodeTable::renumber`]; ids are never
//! reused. Each name of a lower hard link is a node of its own, unless `index=on` is set (kernel: `ovl_get_inode` does
//! the same). Names of an upper hard link share one node, found through [`NodeTable::by_upper_file`].
//!
//! # States
//!
//! One value says where a node's file is ([`Residence`]). Only the transitions of [`NodeTable`] change it
//! (`unlink`, `hide`, `rename`, `exchange`, `link`, `publish`, ...).
//!
//! # Lock order
//!
//! From first to last: a thread that holds one may only take later ones. The types of `guards` enforce this inside a function:
//! taking a lock borrows the function's [`Turn`], or the guard of the earlier lock. Debug builds check it over whole threads.
//!
//! Before all of them come `Changes::one` (one change of the stack of layers at a time, held over I/O) and then the gate
//! (`Overlay::union`): every verb holds it for reading, and a change of the stack for writing.
//!
//! 1. [`CopyUpGuard`] of a file: it is copied up. Held over I/O.
//! 2. [`CopyUpGuard`] of a directory. Held over I/O. A thread holds one at a time: directories are copied up from the root down,
//!    and each lock is released before the next is taken. That of a file stays held if the file's inode moves up with all its
//!    names.
//! 3. [`RenameGuard`]: a directory moves, or a file moves to another directory, or no directory may move while the names of a file
//!    are searched for. Held over I/O.
//! 4. [`NamesRead`], [`NamesWrite`]: the names of one directory, or of several in the order of their node ids ([`NamesPair`],
//!    [`NamesMany`]). Held over I/O.
//! 5. [`LinksGuard`]: how many names an indexed file has. Held over I/O.
//! 6. [`NodeTable::multiple`]: a name of a file with several gets its node.
//! 7. `WorkDir::whiteout` (`union/layer/work`): the whiteout that all others are links to. Held over I/O.
//! 8. What is counted for one file of an upper with a limit (`driver/quota`). Held over a `statx(2)` of the file.
//! 9. The leaf locks, each taken with no other leaf held: the state of a node, of a directory ([`Dir`]), `OpenFile::real` (also
//!    taken under the state of its node), the queue of [`listings`], the shards of the tables and of [`Descriptors`],
//!    `ReadAhead::state`, the tables of accounts of `driver/quota`, the file systems met in `union/layer/numbers`,
//!    `Changes::pauses`. None is held over a system call, with one exception: the state of a file is held while its backing file
//!    is registered with the kernel (an ioctl that does not block), because two opens must agree on one registration.
//!
//! Fetch descriptors of directories before taking a lock of the fourth kind: fetching may take that lock of the parent.

mod dir;
mod guards;
pub mod handle;
pub mod listings;
mod name;
mod numbered;
mod open;
mod paths;
mod pattern;
mod rank;
mod rebase;
mod settle;
pub mod state;
pub mod sync;
pub mod table;
#[cfg(all(test, feature = "shuttle"))]
mod tests;
mod told;
mod transitions;

use std::ffi::CStr;

pub use crate::union::layer::Timestamp;
use crate::union::layer::{FileType, Protection};
pub use dir::{Dir, Inheritance, Lowers, UpperId, UpperMarks};
pub use guards::{
    CopyUpGuard, LinksGuard, Names, NamesMany, NamesPair, NamesRead, NamesWrite, RenameGuard, RenameLock, Turn,
};
pub use handle::{HandleTable, OpenFile};
pub use listings::{NewEntry, Surroundings};
pub use name::Name;
pub use open::OpenState;
pub use paths::path_in_lowers;
pub use pattern::{ReadPattern, Reading};
pub use rebase::{Parts, Remains};
pub use state::{ContentRef, Dentry, Indexed, Residence, State};
use sync::{AtomicBool, AtomicU8, AtomicU64, Mutex, MutexGuard, Ordering};
pub use table::{Descriptors, LookupRef, NodeTable};
pub use told::Told;
pub use transitions::{Published, Replaced};

/// The number under which the kernel knows an inode of this mount. Never reused, and never shown to users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The mount's root (`FUSE_ROOT_ID`).
    pub const ROOT: Self = Self(1);
}

/// A reference to a node. It has no count of weak references, unlike the standard library's `Arc`: a mount may
/// have millions of nodes, so each byte of one counts.
pub type NodeRef = triomphe::Arc<Node>;

/// Set in [`Node::lookups`] of a node that has left the table.
const DEAD: u64 = 1 << 63;

const UNKNOWN: u8 = 0;
const BARE: u8 = 1;
const ATTRIBUTED: u8 = 2;

const IMMUTABLE: u8 = 1;
const APPEND_ONLY: u8 = 2;

const PROGRAM: u8 = 4;
const NO_PROGRAM: u8 = 8;

const ABANDONED: u8 = 16;
const UNCOUNTED: u8 = 32;

/// One inode of the mount. 80 bytes: rare parts are boxed elsewhere.
#[derive(Debug)]
pub struct Node {
    /// The number under which the kernel is told of it. See [`NodeTable::renumber`].
    id: AtomicU64,
    /// `st_ino`. Only the copy-up of a lower hard link, which breaks it, changes this.
    ino: AtomicU64,
    /// Number of lookups that the kernel has not yet forgotten, or [`DEAD`].
    lookups: AtomicU64,
    /// Where the node is; for a file also where its content is and how it is open. Leaf lock.
    state: Mutex<State>,
    /// Present for directories only.
    dir: Option<Box<Dir>>,
    /// Its type.
    pub file_type: FileType,
    /// See [`CopyUpGuard`]. A copy-up is never undone.
    copy_up: Mutex<()>,
    /// See [`LinksGuard`].
    links: Mutex<()>,
    /// What is known of its extended attributes: [`UNKNOWN`], [`BARE`], or [`ATTRIBUTED`], which is final.
    attributes: AtomicU8,
    /// True if the kernel was once told to use the backing file directly: pages it cached before may be outdated. Changes
    /// under the lock of the state.
    bypassed: AtomicBool,
    /// For a lower file: it was opened once and matched what is known of it.
    confirmed: AtomicBool,
    /// Flags that forbid changes: [`IMMUTABLE`], [`APPEND_ONLY`]. For a lower file that was opened: [`PROGRAM`],
    /// [`NO_PROGRAM`], or both. [`ABANDONED`] if the mount does not show it any more. [`UNCOUNTED`] if it was removed from an upper
    /// with a limit.
    traits: AtomicU8,
}

impl Node {
    /// A node without lookups. `dir` is present if it is a directory.
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
            bypassed: AtomicBool::new(false),
            confirmed: AtomicBool::new(false),
            traits: AtomicU8::new(0),
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
    fn set_ino(&self, ino: u64) {
        self.ino.store(ino, Ordering::Relaxed);
    }

    /// True if the file is known to have no extended attributes except our marks.
    pub fn is_bare(&self) -> bool {
        self.attributes.load(Ordering::Acquire) == BARE
    }

    /// Notes that the file has no extended attributes. A no-op if setting one has begun in the meantime.
    pub fn note_bare(&self) {
        let noted = self.attributes.compare_exchange(UNKNOWN, BARE, Ordering::AcqRel, Ordering::Acquire);
        debug_assert!(noted != Err(UNKNOWN), "a strong exchange");
    }

    /// Must be called before an extended attribute is set.
    pub fn note_attributed(&self) {
        self.attributes.store(ATTRIBUTED, Ordering::Release);
    }

    /// Nothing is known of its extended attributes: others may have taken their place.
    fn forget_attributes(&self) {
        self.attributes.store(UNKNOWN, Ordering::Release);
    }

    /// True if the mount has been given other layers, and does not show it any more.
    pub fn is_abandoned(&self) -> bool {
        self.traits.load(Ordering::Relaxed) & ABANDONED != 0
    }

    /// Notes that.
    fn note_abandoned(&self) {
        self.traits.fetch_or(ABANDONED, Ordering::Relaxed);
    }

    /// Returns which changes are forbidden.
    pub fn protection(&self) -> Protection {
        let bits = self.traits.load(Ordering::Relaxed);
        Protection { immutable: bits & IMMUTABLE != 0, append_only: bits & APPEND_ONLY != 0 }
    }

    /// Sets which changes are forbidden. A copy-up keeps it.
    pub fn protect(&self, protection: Protection) {
        let immutable = if protection.immutable { IMMUTABLE } else { 0 };
        let append_only = if protection.append_only { APPEND_ONLY } else { 0 };
        self.traits.fetch_or(immutable | append_only, Ordering::Relaxed);
        self.traits.fetch_and(!((IMMUTABLE | APPEND_ONLY) ^ (immutable | append_only)), Ordering::Relaxed);
    }

    /// True if the file is known to be a program or a shared library.
    pub fn is_program(&self) -> bool {
        self.traits.load(Ordering::Relaxed) & PROGRAM != 0
    }

    /// True if it is known whether the file is a program.
    pub fn is_classified(&self) -> bool {
        self.traits.load(Ordering::Relaxed) & (PROGRAM | NO_PROGRAM) != 0
    }

    /// Notes whether the file is a program. A program stays one.
    pub fn classify(&self, program: bool) {
        self.traits.fetch_or(if program { PROGRAM } else { NO_PROGRAM }, Ordering::Relaxed);
    }

    /// True if what it holds counts no more for the limit of the upper.
    pub fn is_uncounted(&self) -> bool {
        self.traits.load(Ordering::Relaxed) & UNCOUNTED != 0
    }

    /// Notes that; `false` if it was so before.
    pub fn note_uncounted(&self) -> bool {
        self.traits.fetch_or(UNCOUNTED, Ordering::AcqRel) & UNCOUNTED == 0
    }

    /// Notes that it counts; `false` if it was so before.
    pub fn note_counted(&self) -> bool {
        self.traits.fetch_and(!UNCOUNTED, Ordering::AcqRel) & UNCOUNTED != 0
    }

    /// The directory part, if the node is a directory. Up to date (`settle`). Takes leaf locks, so the caller holds none.
    pub fn dir(&self) -> Option<&Dir> {
        let dir = self.dir.as_deref()?;
        if !dir.is_up_to_date() {
            self.settle();
        }
        Some(dir)
    }

    /// Locks the state and returns it. It is a leaf lock. Up to date (`settle`).
    pub fn state(&self) -> MutexGuard<'_, State> {
        let state = self.state.lock();
        if state.outdated().is_none() {
            return state;
        }
        drop(state);
        self.settle();
        self.state.lock()
    }

    /// Like `state`, for anything but a directory.
    pub fn file_state(&self) -> Option<MutexGuard<'_, State>> {
        if self.dir.is_none() { Some(self.state()) } else { None }
    }

    /// True if the kernel was once told to use the backing file directly.
    pub fn is_bypassed(&self) -> bool {
        self.bypassed.load(Ordering::Relaxed)
    }

    /// Notes it, or that the kernel's cache is empty again. The caller holds the state.
    pub fn set_bypassed(&self, _state: &mut State, bypassed: bool) {
        self.bypassed.store(bypassed, Ordering::Relaxed);
    }

    /// True if a lower file was opened once and matched what is known of it.
    pub fn is_confirmed(&self) -> bool {
        self.confirmed.load(Ordering::Relaxed)
    }

    /// Notes that it did.
    pub fn confirm(&self) {
        self.confirmed.store(true, Ordering::Relaxed);
    }

    /// Counts one more lookup; `false` if the node has left the table and must not be used.
    fn acquire(&self) -> bool {
        let one_more = |n: u64| (n & DEAD == 0).then_some(n + 1);
        self.lookups.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).is_ok()
    }

    /// Takes back `count` lookups; returns how many are left.
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

    /// True if the node has left the table.
    fn is_buried(&self) -> bool {
        self.lookups.load(Ordering::Acquire) & DEAD != 0
    }

    /// True if the node has an upper part.
    pub fn has_upper(&self) -> bool {
        self.state().is_upper()
    }

    /// True if the node's content is in the upper too.
    pub fn has_upper_content(&self) -> bool {
        self.state().has_upper_content()
    }

    /// One directory and name of the node; `None` for the root and for a file removed from the upper.
    pub fn name(&self) -> Option<(NodeRef, Name)> {
        self.state().first_name().cloned()
    }

    /// True if `name` in `parent` is one of the node's names.
    pub fn is_named(&self, parent: &NodeRef, name: &CStr) -> bool {
        self.state().is_named(parent, name)
    }

    /// True if its last name was removed.
    pub fn is_removed(&self) -> bool {
        self.state().is_removed()
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;

    /// Nodes are most of the memory that a mount with a million names takes.
    #[test]
    fn a_node_is_small() {
        assert_eq!(size_of::<Node>(), 80);
    }
}
