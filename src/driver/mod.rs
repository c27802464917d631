//! The union file system itself, with one file for each group of verbs. It takes the locks (order:
//! [`crate::driver::node`]) and knows nothing of FUSE.

mod acl;
pub mod checkpoint;
pub mod client;
mod copy_up;
mod former_links;
mod hard_links;
pub(crate) mod interrupt;
mod inventories;
mod locate;
pub mod node;
mod overlay;
mod owner;
mod passthrough;
mod permissions;
mod protection;
mod quota;
mod readahead;
pub mod types;
mod verbs;

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};

use rustix::thread::CapabilitySet;

use crate::config::{OverlayConfig, Passthrough, RedirectDir};
use crate::confined::Copier;
use crate::driver::node::{
    Descriptors, HandleTable, Node, NodeRef, NodeTable, RenameLock, Residence, State, UpperId, UpperMarks,
};
use crate::marks::{Mark, Opaque, Protection};
use crate::sys::namespace::has_everywhere;
pub use crate::union::layer::OpenError;
use crate::union::layer::{LayerStack, OriginResolver, UpperDir, UpperLayer};
use crate::union::merge::{has_opaque_entry, is_mark_name, root_parts};
pub use overlay::Overlay;
use permissions::Permissions;
use types::{Errno, Kernel, KernelRef, NodeId, Result};

/// A mounted union: the layers, the inode table and the open handles. Verbs reach it through [`Overlay`] and hold its
/// gate, so the stack of layers does not change during a verb.
struct Union {
    config: OverlayConfig,
    stack: LayerStack,
    /// The id of the upper, shared by all directories.
    upper_id: UpperId,
    origins: OriginResolver,
    copier: Copier,
    nodes: NodeTable,
    handles: HandleTable,
    /// Held while a directory moves, or a file moves to another directory.
    rename: RenameLock,
    kernel: OnceLock<Attached>,
    /// The kernel knows all that the last change of the lower layers changed (`checkpoint/switch`).
    has_told: AtomicBool,
    /// Number of nodes that have left the table.
    forgotten: AtomicU64,
    /// Where owner and mode are kept, if not in the inode.
    permissions: Option<Permissions>,
    /// The driver's own user and group: the first owner of every file it makes.
    own_ids: (u32, u32),
    /// True if the driver may open every file for reading.
    privileged: bool,
    /// Tells whether it is worth finding out that a file has no extended attributes at all.
    bare: verbs::xattr::Bare,
    read_ahead: Arc<readahead::ReadAhead>,
    former_links: former_links::FormerLinks,
    inventories: inventories::Maker,
    /// What the upper holds, if that is limited.
    usage: Option<quota::Usage>,
}

/// The kernel's side of the mount.
struct Attached {
    kernel: KernelRef,
    passthrough: bool,
}

impl Union {
    /// Opens and checks the layers, empties the work directory, and probes what the upper can do.
    ///
    /// Threads that call the verbs must have a umask of 0 (see `umask(2)`): the kernel sends every caller's umask.
    ///
    /// # Errors
    /// One line naming the layer and what is wrong with it.
    pub(crate) fn open(config: OverlayConfig) -> std::result::Result<Self, OpenError> {
        let mut config = config;
        let mut stack = LayerStack::open(&config)?;
        let origins = OriginResolver::new(stack.lowers());
        if config.index {
            config.index = stack.prepare_index(&origins)?;
        }
        let unreadable = |errno| OpenError(format!("cannot read the layers' roots: {errno}"));
        let permissions = Permissions::of(&config, &stack).map_err(unreadable)?;
        if let Some(permissions) = &permissions {
            permissions.probe(&stack)?;
            config.no_acl = true;
            stack.disable_acls();
        }
        let upper_id = UpperId::new(stack.upper_id());
        let root = open_root(&stack, &upper_id).map_err(unreadable)?;
        let writable = stack.upper().filter(|upper| !upper.is_read_only());
        let usage = config.size.zip(writable).map(|(size, upper)| quota::Usage::of(upper, size));
        let usage =
            usage.transpose().map_err(|errno| OpenError(format!("size=: cannot read the upperdir: {errno}")))?;
        // Directories get half of the descriptors, files that were open an eighth, open files the rest.
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1024);
        let capacity = usize::try_from(limit / 4).unwrap_or(1024).min(16_384);
        // The kernel reads these files by itself, so the driver's descriptors only make a later open cheaper.
        let files = if config.passthrough == Passthrough::All { (capacity / 2).min(256) } else { capacity / 2 };
        Ok(Self {
            origins,
            copier: Copier::new(interrupt::check),
            nodes: NodeTable::new(NodeRef::new(root), Descriptors::with_files(capacity, files)),
            handles: HandleTable::default(),
            rename: RenameLock::default(),
            kernel: OnceLock::new(),
            has_told: AtomicBool::new(true),
            forgotten: AtomicU64::new(0),
            permissions,
            own_ids: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
            privileged: has_everywhere(CapabilitySet::DAC_READ_SEARCH),
            bare: verbs::xattr::Bare::new(),
            read_ahead: Arc::default(),
            former_links: former_links::FormerLinks::default(),
            inventories: inventories::Maker::default(),
            usage,
            config,
            stack,
            upper_id,
        })
    }

    /// Connects to the kernel. Called once, when INIT has been answered and before the first request.
    pub(crate) fn attach(&self, kernel: KernelRef, passthrough: bool) {
        let passthrough = passthrough && self.config.passthrough != Passthrough::Off;
        if self.kernel.set(Attached { kernel, passthrough }).is_err() {
            tracing::error!("attached twice; the first one counts");
        }
        self.inventories.start(self.stack.without_inventory(&self.config));
    }

    /// True when POSIX ACLs are kept and shown.
    pub(crate) fn has_acls(&self) -> bool {
        self.stack.upper().map_or(!self.config.no_acl, UpperLayer::has_acls)
    }

    /// True if the mount is read-only.
    pub(crate) fn is_read_only(&self) -> bool {
        self.stack.upper().is_none_or(UpperLayer::is_read_only)
    }

    /// Memory of the listings that are kept, in bytes.
    pub(crate) fn listing_memory(&self) -> usize {
        self.nodes.listing_memory()
    }

    /// Number of nodes that the kernel knows, and of open handles.
    pub(crate) fn population(&self) -> (usize, usize) {
        (self.nodes.len(), self.handles.len())
    }

    /// Closes cached descriptors. Called when the process or the system has run out of descriptors.
    pub(crate) fn free_descriptors(&self) {
        tracing::debug!("out of descriptors: those that are kept for later are closed");
        self.nodes.descriptors().clear();
        // Without privilege it is not certain that they can be opened again: their permissions may have changed.
        if self.privileged {
            self.handles.close_descriptors();
        }
    }

    /// What to flush to get everything onto the disk; `None` for a mount that never flushes.
    ///
    /// # Errors
    /// Errors of `openat(2)`.
    fn to_sync(&self) -> Result<Option<OwnedFd>> {
        match self.stack.upper() {
            Some(upper) if self.flushes() => upper.root().open_self().map(Some),
            _ => Ok(None),
        }
    }

    /// Notes that the mount is gone; its requests may still be running. A new mount of the same upper then
    /// waits for [`Self::close`] and the end of the process.
    pub(crate) fn announce_end(&self) {
        self.read_ahead.end();
        self.inventories.end();
        if let Some(upper) = self.stack.upper() {
            upper.announce_end();
        }
    }

    /// Called after the last request: closes what is open and empties the work directory.
    pub(crate) fn close(&self) {
        self.announce_end();
        self.handles.clear();
        if let Some(upper) = self.stack.upper()
            && let Err(errno) = upper.close()
        {
            tracing::warn!("work directory not left empty: {errno}");
        }
    }

    /// The writable layer.
    fn upper(&self) -> Result<&UpperLayer> {
        self.stack.upper().filter(|upper| !upper.is_read_only()).ok_or(Errno::ROFS)
    }

    fn node(&self, id: NodeId) -> Result<NodeRef> {
        self.nodes.get(id).ok_or(Errno::STALE)
    }

    /// The node and directory of `id`, in which names are looked up or changed.
    fn dir_node(&self, id: NodeId) -> Result<NodeRef> {
        let node = self.any_dir_node(id)?;
        if node.is_abandoned() { Err(self.gone()) } else { Ok(node) }
    }

    /// As [`Self::dir_node`], also a directory that the mount does not show any more.
    fn any_dir_node(&self, id: NodeId) -> Result<NodeRef> {
        let node = self.node(id)?;
        if node.dir().is_some() { Ok(node) } else { Err(Errno::NOTDIR) }
    }

    /// Checks a name that is about to be created. Refuses a mark's name (`.wh.…`) if the upper cannot record that the file is
    /// an ordinary one.
    fn creatable_name(&self, name: &OsStr) -> Result<CString> {
        let name = checked_name(name)?;
        if is_mark_name(&name) && !self.upper()?.keeps_marks() { Err(Errno::PERM) } else { Ok(name) }
    }

    /// Called before the file or directory `name` in `dir` gets the new or further name `target`. If that is a mark's name,
    /// records that the file is an ordinary one.
    fn mark_plain(&self, dir: &UpperDir, name: &CStr, target: &CStr) -> Result<()> {
        if is_mark_name(target) { dir.set_xattr(name, &self.upper()?.mark_key(Mark::Plain), b"y", 0) } else { Ok(()) }
    }

    fn kernel(&self) -> Option<&dyn Kernel> {
        self.kernel.get().map(|attached| &*attached.kernel)
    }

    fn follows_redirects(&self) -> bool {
        self.config.redirect_dir != RedirectDir::NoFollow
    }
}

/// Longest name, in bytes, as on every file system below us.
const NAME_MAX: usize = 255;

/// Checks a name that came from outside.
fn checked_name(name: &OsStr) -> Result<CString> {
    let bytes = name.as_bytes();
    match bytes {
        b"" | b"." | b".." => Err(Errno::INVAL),
        _ if bytes.len() > NAME_MAX => Err(Errno::NAMETOOLONG),
        _ if bytes.contains(&b'/') => Err(Errno::INVAL),
        _ => CString::new(bytes).map_err(|_| Errno::INVAL),
    }
}

fn open_root(stack: &LayerStack, upper_id: &UpperId) -> Result<Node> {
    let mut opaque_above = false;
    let mut protection = Protection::NONE;
    let upper = match stack.upper() {
        None => UpperMarks::default(),
        Some(upper) => {
            let marks = upper.root().marks(c"")?;
            protection = upper.root().stat_self()?.protection().with(marks.protection);
            opaque_above = marks.opaque() == Opaque::Yes || has_opaque_entry(upper.root().as_dir(), c"")?;
            UpperMarks {
                impure: marks.impure,
                xattr_whiteouts: marks.opaque() == Opaque::XattrWhiteouts,
                opaque: opaque_above,
                ..UpperMarks::default()
            }
        }
    };
    let lowers = if opaque_above { Vec::new() } else { root_parts(stack)? };
    // The image's id, above which checkpoint layers lie; without an image, that of the lowest checkpoint.
    let below = stack.lowers().iter().find(|layer| layer.chain().is_none()).or(stack.lowers().last());
    let ino = match below.filter(|_| !lowers.is_empty()) {
        Some(layer) => stack.shown_ino(&layer.root().stat_self()?),
        None => match stack.upper() {
            Some(upper) => stack.shown_ino(&upper.root().stat_self()?),
            None => 1,
        },
    };
    let dir = node::Dir::new(lowers.into(), upper, upper_id);
    let own = State::new(Residence::Root { upper: stack.upper().is_some() });
    let node = Node::new(NodeId::ROOT, ino, crate::union::layer::FileType::Directory, own, Some(Box::new(dir)));
    node.protect(protection);
    Ok(node)
}
