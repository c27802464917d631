//! What only directories have.

use std::collections::HashMap;
use std::ffi::CStr;
use std::sync::Arc;
// Not from `sync`: they change while no other thread is in the table, or are read under the lock of a state, where the tests'
// scheduler must not switch.
use std::sync::atomic::{AtomicU32, Ordering};

use crate::driver::node::listings::Listings;
use crate::driver::node::sync::{Mutex, RwLock};
use crate::driver::node::told::Told;
use crate::driver::node::{Name, NodeRef};
use crate::union::layer::{LayerId, LowerRef};

/// A directory.
#[derive(Debug)]
pub struct Dir {
    /// Held for reading to use the names in the directory, for writing to change them. May be held over I/O.
    pub(super) names: RwLock<()>,
    /// Leaf lock.
    pub(super) state: Mutex<DirState>,
    /// The id that the upper has now.
    pub(super) upper: UpperId,
    /// The upper's id when the directory was last found up to date.
    pub(super) seen: AtomicU32,
    /// Who was told its attributes.
    told: Told,
}

/// The id of the upper, shared by all directories of a mount. It changes when the upper becomes a lower layer and another
/// directory becomes the upper.
#[derive(Clone, Debug)]
pub struct UpperId(Arc<AtomicU32>);

impl UpperId {
    /// An upper with the id `id`.
    pub fn new(id: LayerId) -> Self {
        Self(Arc::new(AtomicU32::new(id.number())))
    }

    /// The id that the upper has now.
    pub fn get(&self) -> LayerId {
        LayerId::of_number(self.0.load(Ordering::Acquire))
    }

    /// Notes that another directory, with the id `id`, is the upper now. The caller holds the gate for writing.
    pub fn set(&self, id: LayerId) {
        self.0.store(id.number(), Ordering::Release);
    }
}

/// The parts of a directory that change.
#[derive(Debug, Default)]
pub(super) struct DirState {
    /// Its lower parts, topmost first.
    pub(super) lowers: Lowers,
    /// What is known of its upper part; the default if it has none.
    pub(super) upper: UpperMarks,
    /// The nodes of those names in it that the kernel knows.
    pub(super) children: HashMap<Name, NodeRef>,
    /// Its listings.
    pub(super) listings: Listings,
}

/// The lower parts of a directory at one moment, topmost first. Each is in another layer.
#[derive(Clone, Debug, Default)]
pub struct Lowers(Arc<[LowerRef]>);

impl Lowers {
    /// The part in `layer`.
    pub fn of_layer(&self, layer: LayerId) -> Option<&LowerRef> {
        // The parts are sorted: a layer further down has a lower id.
        self.0.binary_search_by(|part| layer.cmp(&part.layer)).ok().and_then(|at| self.0.get(at))
    }
}

impl std::ops::Deref for Lowers {
    type Target = [LowerRef];

    fn deref(&self) -> &[LowerRef] {
        &self.0
    }
}

impl From<Vec<LowerRef>> for Lowers {
    fn from(parts: Vec<LowerRef>) -> Self {
        Self(parts.into())
    }
}

/// What is known of the upper part of a directory, from its attributes on disk.
#[derive(Clone, Debug, Default)]
pub struct UpperMarks {
    /// It holds files with an origin mark.
    pub impure: bool,
    /// Its entries may be xattr whiteouts.
    pub xattr_whiteouts: bool,
    /// Nothing of the lower layers shows through.
    pub opaque: bool,
    /// Its redirect, as on disk.
    pub redirect: Option<Arc<[u8]>>,
    /// What new entries inherit; `None` if not known.
    pub inheritance: Option<Inheritance>,
}

/// What new entries of a directory inherit from it.
#[derive(Clone, Debug, Default)]
pub struct Inheritance {
    /// The group, if the directory has the set-group-id bit.
    pub group: Option<u32>,
    /// The default ACL, as `system.posix_acl_default` holds it.
    pub default_acl: Option<Arc<[u8]>>,
}

impl Dir {
    /// A directory none of whose names the kernel knows yet.
    pub fn new(lowers: Lowers, upper: UpperMarks, upper_id: &UpperId) -> Self {
        let state = DirState { lowers, upper, ..DirState::default() };
        let seen = AtomicU32::new(upper_id.get().number());
        Self { names: RwLock::new(()), state: Mutex::new(state), upper: upper_id.clone(), seen, told: Told::default() }
    }

    /// The clients that were told its attributes.
    pub fn told(&self) -> &Told {
        &self.told
    }

    /// The shared id of the upper, for a directory that enters the table.
    pub fn upper_id(&self) -> &UpperId {
        &self.upper
    }

    /// True if the upper has not changed since the directory was last found up to date.
    pub(super) fn is_up_to_date(&self) -> bool {
        self.seen.load(Ordering::Acquire) == self.upper.get().number()
    }

    /// Notes that the directory is up to date.
    pub(super) fn note_up_to_date(&self) {
        self.seen.store(self.upper.get().number(), Ordering::Release);
    }

    /// Turns the upper part into the topmost lower part, in the layer `layer` under `path`. A no-op if this was done before.
    pub(super) fn become_lower(&self, layer: LayerId, path: Arc<CStr>) {
        let state = &mut *self.state.lock();
        if state.lowers.of_layer(layer).is_some() {
            return;
        }
        let UpperMarks { xattr_whiteouts, opaque, impure, .. } = std::mem::take(&mut state.upper);
        let mut parts = vec![LowerRef { layer, xattr_whiteouts, impure, number: None, path }];
        if !opaque {
            parts.extend_from_slice(&state.lowers);
        }
        state.lowers = parts.into();
        state.listings.outdate();
    }

    /// Its lower parts.
    pub fn lowers(&self) -> Lowers {
        self.state.lock().lowers.clone()
    }

    /// True if it has a lower part.
    pub fn has_lowers(&self) -> bool {
        !self.state.lock().lowers.is_empty()
    }

    /// Reads what is known of the upper part.
    pub fn upper_part<R>(&self, read: impl FnOnce(&UpperMarks) -> R) -> R {
        read(&self.state.lock().upper)
    }

    /// Changes what is known of the upper part, after the change was made on disk.
    pub fn note_upper_part<R>(&self, note: impl FnOnce(&mut UpperMarks) -> R) -> R {
        note(&mut self.state.lock().upper)
    }

    /// The names that the kernel knows in it, with their nodes.
    pub fn children(&self) -> Vec<(Name, NodeRef)> {
        self.state.lock().children.iter().map(|(name, node)| (name.clone(), node.clone())).collect()
    }

    /// The inode number of the known child `name`, without counting a lookup; `None` if the kernel does not know the name.
    pub fn child_ino(&self, name: &CStr) -> Option<u64> {
        self.state.lock().children.get(name).map(|node| node.ino())
    }

    /// True if the kernel knows a node called `name` in it.
    pub fn has_child(&self, name: &CStr) -> bool {
        self.state.lock().children.contains_key(name)
    }
}
