//! Layers. [`Layer`] only reads. [`UpperLayer`] alone can write, and stages changes in [`WorkDir`].
//! [`LayerStack`] has all layers of a mount.

mod capabilities;
pub mod chain;
mod idmapped;
mod index_dir;
mod inventories;
mod layer_dir;
mod marks;
pub(crate) mod moving;
mod nesting;
mod numbers;
mod order;
mod origin;
mod permissions;
mod pivot;
mod switch;
pub(crate) mod taken;
mod upper;
mod whiteouts;
mod work;

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

pub use capabilities::Capabilities;
pub(crate) use inventories::make_inventory;
pub use layer_dir::{LayerDir, ListedDir};
pub use marks::{Marks, classify};
use numbers::FileSystems;
pub use origin::OriginResolver;
pub use permissions::{override_key, read_override};
pub use pivot::{Below, ChangeError, Successor};
pub use switch::{MergedLowers, NextLowers, Past};
pub use upper::{UpperDir, UpperLayer, UpperWhiteouts};
pub use whiteouts::{Cleared, Move, Place};
pub use work::{Staged, WorkDir};

pub use crate::config::XattrPermissions;
use crate::config::{Inventories, OverlayConfig, Xino};
pub use crate::confined::{Device, Dir, FileId, FileType, RawEntry, Stat, TimeTo, Times, Timestamp};
use crate::inventory::{DirNumber, Inventory};
pub use crate::marks::Protection;
use crate::marks::chain::Chain;
use nesting::Traps;

/// Why a stack of layers cannot be mounted: one line that names the layer.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct OpenError(pub String);

/// Number of a file system among those of a stack.
pub type FsId = u16;

/// Names a read-only layer of a mount. An id never changes and is never given to another layer. The lowest layer has the
/// lowest id, so a layer that is put on top gets one that is higher than all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerId(u32);

impl LayerId {
    /// The lowest layer of any stack.
    pub(crate) const LOWEST: Self = Self(0);

    /// The layer of number `number`.
    pub(crate) const fn of_number(number: u32) -> Self {
        Self(number)
    }

    /// The id for a layer above this one.
    #[must_use]
    fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// As a number, for keys.
    pub fn number(self) -> u32 {
        self.0
    }
}

/// A read-only layer.
#[derive(Debug)]
pub struct Layer {
    id: LayerId,
    root: Dir,
    path: PathBuf,
    fs: FsId,
    /// Device and mount of the root.
    device: Device,
    mount: u64,
    /// What the layer holds, where that is known and to be used.
    inventory: Option<Arc<Inventory>>,
    /// It has the upper or the work directory somewhere below its root.
    holds_traps: bool,
    /// Its chain mark.
    chain: Option<Chain>,
    /// It was the upper of this mount.
    was_upper: bool,
    /// So it was, and no other mount uses it: its files may be replaced by copies.
    is_own: bool,
}

/// A directory of a lower layer, by its place.
#[derive(Clone, Debug)]
pub struct LowerRef {
    /// Which layer.
    pub layer: LayerId,
    /// Its entries may be xattr whiteouts (opaque mark `x`).
    pub xattr_whiteouts: bool,
    /// Of a checkpoint layer: it holds files that were copied up, whose numbers are not their own.
    pub impure: bool,
    /// Its number in the layer's inventory, if it is known to be there.
    pub number: Option<DirNumber>,
    /// Path below the layer's root, without a leading slash; empty for the root.
    pub path: Arc<CStr>,
}

impl LowerRef {
    /// The root of layer `layer`.
    pub fn root(layer: LayerId, xattr_whiteouts: bool, number: Option<DirNumber>) -> Self {
        Self { layer, xattr_whiteouts, impure: false, number, path: Arc::from(c"") }
    }

    /// Path of the entry `name` of this directory.
    pub fn child_path(&self, name: &CStr) -> Arc<CStr> {
        join(&self.path, name)
    }
}

/// `parent/name`, or `name` if the parent is the root.
pub fn join(parent: &CStr, name: &CStr) -> Arc<CStr> {
    if parent.is_empty() {
        return Arc::from(name);
    }
    let mut path = Vec::with_capacity(parent.count_bytes() + name.count_bytes() + 2);
    path.extend_from_slice(parent.to_bytes());
    path.push(b'/');
    path.extend_from_slice(name.to_bytes());
    // Neither part holds a NUL, so the conversion cannot fail.
    Arc::from(CString::new(path).unwrap_or_default())
}

impl Layer {
    fn open(path: &Path) -> Result<Self, OpenError> {
        let root = Dir::open_root(path)
            .map_err(|errno| OpenError(format!("lower layer {}: {}", path.display(), describe(errno))))?;
        let stat = root.stat_self();
        let stat = stat.map_err(|e| OpenError(format!("lower layer {}: {}", path.display(), describe(e))))?;
        Ok(Self::new(root, path.to_owned(), &stat))
    }

    fn of_root(root: Dir) -> Result<Self, Errno> {
        let stat = root.stat_self()?;
        let path = root.shown_path(c"");
        Ok(Self::new(root, path, &stat))
    }

    fn new(root: Dir, path: PathBuf, stat: &Stat) -> Self {
        Self {
            id: LayerId::LOWEST,
            root,
            path,
            fs: 0,
            device: stat.device,
            mount: stat.mount,
            inventory: None,
            holds_traps: false,
            chain: None,
            was_upper: false,
            is_own: false,
        }
    }

    /// Its id.
    pub fn id(&self) -> LayerId {
        self.id
    }

    /// Opens the directory `path` below the layer's root. No step follows a symlink or leaves the layer.
    ///
    /// # Errors
    /// `NOENT`, `NOTDIR`, `LOOP` if there is no such directory; others of `openat2(2)`.
    pub fn open_dir(&self, path: &CStr) -> Result<Dir, Errno> {
        if path.is_empty() {
            return Ok(self.root.clone());
        }
        self.root.open_beneath(path)
    }

    /// Attributes of the file `path` below the layer's root; `None` if there is no such file. No step follows a
    /// symlink; a path through a symlink finds nothing.
    ///
    /// # Errors
    /// Those of `openat2(2)` and `statx(2)`.
    pub fn stat_file(&self, path: &CStr) -> Result<Option<Stat>, Errno> {
        match self.parent_of(path) {
            Ok((parent, name)) => parent.stat(&name),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Opens the regular file `path` below the layer's root for reading. No step follows a symlink.
    ///
    /// # Errors
    /// Those of `openat2(2)`.
    pub fn open_file(&self, path: &CStr) -> Result<OwnedFd, Errno> {
        let (parent, name) = self.parent_of(path)?;
        parent.open_file(&name)
    }

    /// The directory of `path`, and the last component.
    fn parent_of(&self, path: &CStr) -> Result<(Dir, CString), Errno> {
        let bytes = path.to_bytes();
        let (above, name) = match bytes.iter().rposition(|&b| b == b'/') {
            Some(slash) => bytes.split_at_checked(slash).ok_or(Errno::INVAL)?,
            None => (&[][..], bytes),
        };
        let name = name.strip_prefix(b"/").unwrap_or(name);
        let above = CString::new(above).map_err(|_| Errno::INVAL)?;
        Ok((self.open_dir(&above)?, CString::new(name).map_err(|_| Errno::INVAL)?))
    }

    /// Where the layer is, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its chain mark.
    pub fn chain(&self) -> Option<Chain> {
        self.chain
    }

    /// True if it was the upper of this mount.
    pub(crate) fn was_upper(&self) -> bool {
        self.was_upper
    }

    /// True if it was the upper of this mount, and no other mount uses it.
    pub(crate) fn is_own(&self) -> bool {
        self.is_own
    }

    /// Its file system.
    pub fn fs(&self) -> FsId {
        self.fs
    }

    /// Its root.
    pub fn root(&self) -> &Dir {
        &self.root
    }
}

fn open_root(path: &Path, what: &str) -> Result<Dir, OpenError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => Ok(Dir::new(fd)),
        Err(errno) => Err(OpenError(format!("{what} {}: {}", path.display(), describe(errno)))),
    }
}

/// An error's text without Rust's "(os error N)".
pub(crate) fn describe(errno: Errno) -> String {
    match errno {
        Errno::NOENT => "no such directory".to_owned(),
        Errno::NOTDIR => "not a directory".to_owned(),
        Errno::ACCESS => "permission denied".to_owned(),
        errno => {
            let text = std::io::Error::from(errno).to_string();
            text.split(" (os error").next().unwrap_or_default().to_owned()
        }
    }
}

/// All layers of a mount.
#[derive(Debug)]
pub struct LayerStack {
    /// The visible layers, then the layers for data only. Ids decrease from the first to the last.
    lowers: Vec<Layer>,
    /// Number of visible layers.
    visible: usize,
    upper: Option<UpperLayer>,
    /// The id that the upper keeps when it becomes a lower layer: higher than all others.
    upper_id: LayerId,
    /// Incremented at each change of the stack.
    generation: u64,
    filesystems: FileSystems,
    traps: Traps,
}

impl LayerStack {
    /// Opens and checks all layers of a mount.
    ///
    /// # Errors
    /// One line naming the layer and what is wrong with it.
    pub fn open(config: &OverlayConfig) -> Result<Self, OpenError> {
        if config.lowers.is_empty() && config.upper.is_none() {
            return Err(OpenError("no layers: give lowerdir=, or upperdir= and workdir=".to_owned()));
        }
        // Layer numbers have 16 bits, and the last ones are taken.
        if config.lowers.len() > 60_000 {
            return Err(OpenError(format!("too many lower layers: {}", config.lowers.len())));
        }
        let traps = Traps::of(config)?;
        let mut filesystems = FileSystems::new(config.xino);
        let upper = match (&config.upper, &config.work) {
            (None, None) => None,
            (None, Some(work)) => return Err(OpenError(format!("workdir {} without upperdir", work.display()))),
            (Some(upper), None) if !config.read_only => {
                return Err(OpenError(format!("upperdir {} without workdir", upper.display())));
            }
            (Some(upper), work) => Some(UpperLayer::open(config, upper, work.as_deref())?),
        };
        if let Some(upper) = &upper {
            let stat = upper.root().stat_self().map_err(|e| OpenError(format!("upper layer: {}", describe(e))))?;
            filesystems.add_root(stat.device);
        }
        let mut lowers = Vec::with_capacity(config.lowers.len());
        for path in config.lowers.iter().chain(&config.data_only) {
            let mut layer = Layer::open(&idmapped::unmapped(config, path).unwrap_or_else(|| path.clone()))?;
            layer.fs = filesystems.add_root(layer.device);
            layer.holds_traps = traps.are_in(lowers.len());
            layer.find_chain()?;
            // An inventory describes the layer as it was when the inventory was written.
            if config.inventory != Inventories::Off && config.timeout.is_none() {
                layer.find_inventory();
            }
            lowers.push(layer);
        }
        let stack = Self::numbered_anew(lowers, config.lowers.len(), upper, filesystems, traps);
        stack.check_chain()?;
        Ok(stack)
    }

    /// A stack whose layers get new ids.
    fn numbered_anew(
        mut lowers: Vec<Layer>,
        visible: usize,
        upper: Option<UpperLayer>,
        filesystems: FileSystems,
        traps: Traps,
    ) -> Self {
        let mut upper_id = LayerId::LOWEST;
        for layer in lowers.iter_mut().rev() {
            layer.id = upper_id;
            upper_id = upper_id.next();
        }
        Self { lowers, visible, upper, upper_id, generation: 0, filesystems, traps }
    }

    /// A stack of read-only layers, whose roots are `roots`, topmost first.
    ///
    /// # Errors
    /// Those of `statx(2)`.
    pub fn of_roots(roots: Vec<OwnedFd>, inventories: bool) -> Result<Self, Errno> {
        let mut filesystems = FileSystems::new(Xino::Auto);
        let mut lowers = Vec::with_capacity(roots.len());
        for root in roots {
            let mut layer = Layer::of_root(Dir::root(root))?;
            layer.fs = filesystems.add_root(layer.device);
            if inventories {
                layer.find_inventory();
            }
            lowers.push(layer);
        }
        let visible = lowers.len();
        Ok(Self::numbered_anew(lowers, visible, None, filesystems, Traps::default()))
    }

    /// The read-only layers, topmost first.
    pub fn lowers(&self) -> &[Layer] {
        self.lowers.get(..self.visible).unwrap_or_default()
    }

    /// The layers for data only, with their ids.
    pub fn data_only(&self) -> impl Iterator<Item = (LayerId, &Layer)> {
        self.numbered().skip(self.visible)
    }

    /// Ids of the visible layers, topmost first.
    pub fn ids(&self) -> impl Iterator<Item = LayerId> {
        self.numbered().take(self.visible).map(|(id, _)| id)
    }

    /// Ids of the visible layers below `layer`, topmost first.
    pub fn below(&self, layer: LayerId) -> impl Iterator<Item = LayerId> {
        self.ids().skip(self.position(layer).saturating_add(1))
    }

    /// True if no visible layer is below `layer`.
    pub fn is_lowest(&self, layer: LayerId) -> bool {
        self.position(layer).saturating_add(1) >= self.visible
    }

    /// All layers with their ids, topmost first.
    fn numbered(&self) -> impl Iterator<Item = (LayerId, &Layer)> {
        self.lowers.iter().map(|layer| (layer.id, layer))
    }

    /// Position of a layer, counted from the top; past the end for an id that no layer has.
    fn position(&self, layer: LayerId) -> usize {
        self.lowers.binary_search_by(|known| layer.cmp(&known.id)).unwrap_or(usize::MAX)
    }

    /// The id that the upper keeps when it becomes a lower layer.
    pub fn upper_id(&self) -> LayerId {
        self.upper_id
    }

    /// Incremented at each change of the stack.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// True if there are layers for data only.
    pub fn has_data_only(&self) -> bool {
        self.visible < self.lowers.len()
    }

    /// The layer `id`.
    ///
    /// # Errors
    /// `IO` if there is no such layer: the reference comes from another mount.
    pub fn lower(&self, id: LayerId) -> Result<&Layer, Errno> {
        self.lowers.get(self.position(id)).ok_or(Errno::IO)
    }

    /// The writable layer.
    pub fn upper(&self) -> Option<&UpperLayer> {
        self.upper.as_ref()
    }

    /// True if `layer` has the upper or the work directory somewhere below its root.
    pub fn holds_traps(&self, layer: LayerId) -> bool {
        self.lowers.get(self.position(layer)).is_some_and(|layer| layer.holds_traps)
    }

    /// True for the upper and the work directory, which must not be reached through a lower layer.
    pub fn is_trap(&self, id: FileId) -> bool {
        self.traps.forbid(id)
    }

    /// Switches POSIX ACLs off, whatever the upper's file system supports.
    pub fn disable_acls(&mut self) {
        if let Some(upper) = &mut self.upper {
            upper.disable_acls();
        }
    }

    fn upper_mut(&mut self) -> Option<&mut UpperLayer> {
        self.upper.as_mut()
    }

    /// The inode number that the mount shows for a file of a layer with the attributes `stat`.
    pub fn shown_ino(&self, stat: &Stat) -> u64 {
        self.filesystems.shown(stat.id())
    }

    /// As [`Self::shown_ino`], for a file known from a listing.
    pub fn shown_ino_of(&self, id: FileId) -> u64 {
        self.filesystems.shown(id)
    }
}
