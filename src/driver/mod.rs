//! The union file system itself, one file per group of verbs. Takes the locks (order: [`crate::driver::node`]); knows
//! nothing of FUSE.

mod acl;
pub mod checkpoint;
mod copy_up;
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
mod readahead;
pub mod types;
mod verbs;

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

use rustix::thread::CapabilitySet;

use crate::config::{OverlayConfig, Passthrough, RedirectDir};
use crate::confined::Copier;
use crate::driver::node::{
    Descriptors, HandleTable, Node, NodeRef, NodeTable, RenameLock, Residence, State, UpperId, UpperPart,
};
use crate::marks::{Mark, Opaque, Protection};
use crate::sys::namespace::has_everywhere;
pub use crate::union::layer::OpenError;
use crate::union::layer::{LayerStack, OriginResolver, UpperDir, UpperLayer};
use crate::union::merge::{has_opaque_entry, is_mark_name, root_parts};
pub use overlay::Overlay;
use permissions::Permissions;
use types::{Errno, Kernel, KernelRef, NodeId, Result};

/// A mounted union: the layers, the inode table and the open handles. Verbs reach it through [`Overlay`], whose gate they
/// hold, so that the stack of layers stays what it is for the length of a verb.
struct Union {
    config: OverlayConfig,
    stack: LayerStack,
    /// The id of the upper, as all directories know it.
    upper_id: UpperId,
    origins: OriginResolver,
    copier: Copier,
    nodes: NodeTable,
    handles: HandleTable,
    /// Held while a directory moves, or a file moves to another directory.
    rename: RenameLock,
    kernel: OnceLock<Attached>,
    /// How many nodes have left the table.
    forgotten: AtomicU64,
    /// Where owner and mode are kept, if not in the inode.
    permissions: Option<Permissions>,
    /// The driver's own user and group, who own what it makes at first.
    own_ids: (u32, u32),
    /// The driver may open every file for reading.
    privileged: bool,
    /// Whether it pays to find out that a file has no extended attributes at all.
    bare: verbs::xattr::Bare,
    read_ahead: Arc<readahead::ReadAhead>,
    inventories: inventories::Maker,
}

/// The kernel's side of the mount.
struct Attached {
    kernel: KernelRef,
    passthrough: bool,
}

impl Union {
    /// Opens and checks the layers, empties the work directory, finds out what the upper can do.
    ///
    /// Threads that call the verbs must have a umask of 0 (see `umask(2)`): the kernel sends every caller's umask.
    ///
    /// # Errors
    /// One line naming the layer and what is wrong with it.
    pub fn open(config: OverlayConfig) -> std::result::Result<Self, OpenError> {
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
        // Half of the descriptors for directories, an eighth for files that were open, the rest for those that are.
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1024);
        let capacity = usize::try_from(limit / 4).unwrap_or(1024).min(16_384);
        // The kernel reads these files by itself; the driver's descriptors only save a later open.
        let files = if config.passthrough == Passthrough::All { (capacity / 2).min(256) } else { capacity / 2 };
        Ok(Self {
            origins,
            copier: Copier::new(interrupt::check),
            nodes: NodeTable::new(NodeRef::new(root), Descriptors::with_files(capacity, files)),
            handles: HandleTable::default(),
            rename: RenameLock::default(),
            kernel: OnceLock::new(),
            forgotten: AtomicU64::new(0),
            permissions,
            own_ids: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
            privileged: has_everywhere(CapabilitySet::DAC_READ_SEARCH),
            bare: verbs::xattr::Bare::new(),
            read_ahead: Arc::default(),
            inventories: inventories::Maker::default(),
            config,
            stack,
            upper_id,
        })
    }

    /// Connects to the kernel. Called once, when INIT has been answered and before the first request.
    pub fn attach(&self, kernel: KernelRef, passthrough: bool) {
        let passthrough = passthrough && self.config.passthrough != Passthrough::Off;
        if self.kernel.set(Attached { kernel, passthrough }).is_err() {
            tracing::error!("attached twice; the first one counts");
        }
        self.inventories.start(self.stack.without_inventory(&self.config));
    }

    /// True when POSIX ACLs are kept and shown.
    pub fn has_acls(&self) -> bool {
        self.stack.upper().map_or(!self.config.no_acl, UpperLayer::has_acls)
    }

    /// True when nothing can be changed.
    pub fn is_read_only(&self) -> bool {
        self.stack.upper().is_none_or(UpperLayer::is_read_only)
    }

    /// Memory of the listings that are kept, in bytes.
    pub fn listing_memory(&self) -> usize {
        self.nodes.listing_memory()
    }

    /// Number of nodes that the kernel knows, and of open handles.
    pub fn population(&self) -> (usize, usize) {
        (self.nodes.len(), self.handles.len())
    }

    /// Closes the descriptors that are kept for later: the process or the system has no more of them.
    pub fn free_descriptors(&self) {
        tracing::debug!("out of descriptors: those that are kept for later are closed");
        self.nodes.descriptors().clear();
    }

    /// What to flush in order to have everything on the disk; `None` for a mount that flushes nothing.
    ///
    /// # Errors
    /// Those of `openat(2)`.
    fn to_sync(&self) -> Result<Option<OwnedFd>> {
        match self.stack.upper() {
            Some(upper) if self.flushes() => upper.root().open_self().map(Some),
            _ => Ok(None),
        }
    }

    /// The mount is gone; requests of it may still be worked on. Who mounts the same upper now waits for [`Self::close`] and
    /// the end of the process.
    pub fn announce_end(&self) {
        self.read_ahead.end();
        self.inventories.end();
        if let Some(upper) = self.stack.upper() {
            upper.announce_end();
        }
    }

    /// After the last request: closes what is open and leaves the work directory empty.
    pub fn close(&self) {
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

    /// The node and directory of `id`.
    fn dir_node(&self, id: NodeId) -> Result<NodeRef> {
        let node = self.node(id)?;
        if node.dir().is_some() { Ok(node) } else { Err(Errno::NOTDIR) }
    }

    /// Checks a name that is about to be created. The name of a mark (`.wh.…`) is refused where the upper cannot say that the
    /// file is an ordinary one.
    fn creatable_name(&self, name: &OsStr) -> Result<CString> {
        let name = checked_name(name)?;
        if is_mark_name(&name) && !self.upper()?.keeps_marks() { Err(Errno::PERM) } else { Ok(name) }
    }

    /// Before the file or directory `name` in `dir` gets the further or new name `target`: if that is a mark's name, notes on the
    /// file that it is none.
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
        None => UpperPart::default(),
        Some(upper) => {
            let marks = upper.root().marks(c"")?;
            protection = upper.root().stat_self()?.protection().with(marks.protection);
            opaque_above = marks.opaque() == Opaque::Yes || has_opaque_entry(upper.root().as_dir(), c"")?;
            UpperPart {
                impure: marks.impure,
                xattr_whiteouts: marks.opaque() == Opaque::XattrWhiteouts,
                opaque: opaque_above,
                ..UpperPart::default()
            }
        }
    };
    let lowers = if opaque_above { Vec::new() } else { root_parts(stack)? };
    // That of the image, which checkpoint layers come to lie above; without one, of the lowest checkpoint.
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
