//! Layers: [`Layer`] only reads; [`UpperLayer`] alone can write, with [`WorkDir`] to stage in; [`LayerStack`] is
//! all of a mount.

mod capabilities;
pub mod chain;
mod index_dir;
mod layer_dir;
mod marks;
mod nesting;
mod numbers;
mod order;
mod origin;
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
pub use layer_dir::{LayerDir, ListedDir};
pub use marks::{Marks, classify};
use numbers::FileSystems;
pub use origin::OriginResolver;
pub use upper::{UpperDir, UpperLayer, WhiteoutForm};
pub use whiteouts::{Cleared, Move, Place};
pub use work::{Staged, WorkDir};

use crate::config::{OverlayConfig, Xino};
pub use crate::confined::{Device, Dir, FileId, FileType, RawEntry, Stat, TimeTo, Times, Timestamp};
use crate::inventory::{DirNumber, Inventory};
pub use crate::marks::Protection;
use nesting::Traps;

/// Why a stack of layers cannot be mounted: one line naming the layer.
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
    #[cfg(all(test, feature = "shuttle"))]
    pub(crate) const LOWEST: Self = Self(0);

    /// As a number, for keys.
    pub fn number(self) -> u32 {
        self.0
    }
}

/// A read-only layer.
#[derive(Debug)]
pub struct Layer {
    root: Dir,
    path: PathBuf,
    fs: FsId,
    /// Device and mount of the root.
    device: Device,
    mount: u64,
    /// What the layer holds, where that is known and to be used.
    inventory: Option<Arc<Inventory>>,
}

/// A directory of a lower layer, by its place.
#[derive(Clone, Debug)]
pub struct LowerRef {
    /// Which layer.
    pub layer: LayerId,
    /// Its entries may be xattr whiteouts (opaque mark `x`).
    pub xattr_whiteouts: bool,
    /// Its number in the layer's inventory, if it is known to be there.
    pub number: Option<DirNumber>,
    /// Path below the layer's root, without a leading slash; empty for the root.
    pub path: Arc<CStr>,
}

impl LowerRef {
    /// The root of layer `layer`.
    pub fn root(layer: LayerId, xattr_whiteouts: bool, number: Option<DirNumber>) -> Self {
        Self { layer, xattr_whiteouts, number, path: Arc::from(c"") }
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
    // Neither part holds a NUL, so the conversion cannot fail; an empty path would only be found missing.
    Arc::from(CString::new(path).unwrap_or_default())
}

impl Layer {
    fn open(path: &Path) -> Result<Self, OpenError> {
        let root = Dir::open_root(path)
            .map_err(|errno| OpenError(format!("lower layer {}: {}", path.display(), describe(errno))))?;
        let stat = root.stat_self();
        let stat = stat.map_err(|e| OpenError(format!("lower layer {}: {}", path.display(), describe(e))))?;
        let (device, mount) = (stat.device, stat.mount);
        Ok(Self { root, path: path.to_owned(), fs: 0, device, mount, inventory: None })
    }

    fn of_root(root: Dir) -> Result<Self, Errno> {
        let stat = root.stat_self()?;
        Ok(Self { path: root.place(c""), root, fs: 0, device: stat.device, mount: stat.mount, inventory: None })
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

    /// Attributes of the file `path` below the layer's root; `None` if there is none. No step follows a symlink; a
    /// path through one names nothing.
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

    /// The directory that holds `path`, and the last component.
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

/// An error as people read it, without Rust's "(os error N)".
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
    /// The visible layers, then those that only hold data.
    lowers: Vec<Layer>,
    /// How many of them are visible.
    visible: usize,
    upper: Option<UpperLayer>,
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
        // Layer numbers are 16 bits wide, and the last ones are taken.
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
            let mut layer = Layer::open(path)?;
            layer.fs = filesystems.add_root(layer.device);
            // An inventory says what the layer was when it was written.
            if !config.no_inventory && config.timeout.is_none() {
                layer.find_inventory();
            }
            lowers.push(layer);
        }
        Ok(Self { lowers, visible: config.lowers.len(), upper, filesystems, traps })
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
        Ok(Self { visible: lowers.len(), lowers, upper: None, filesystems, traps: Traps::default() })
    }

    /// The read-only layers, topmost first.
    pub fn lowers(&self) -> &[Layer] {
        self.lowers.get(..self.visible).unwrap_or_default()
    }

    /// The layers that only hold data, with their ids.
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
        let count = self.lowers.len();
        self.lowers.iter().enumerate().map(move |(at, layer)| (Self::id_at(count, at), layer))
    }

    /// Id of the layer at position `at` of `count`, counted from the top.
    fn id_at(count: usize, at: usize) -> LayerId {
        LayerId(u32::try_from(count - 1 - at).unwrap_or(u32::MAX))
    }

    /// Position of a layer, counted from the top; past the end for an id that no layer has.
    fn position(&self, layer: LayerId) -> usize {
        let from_below = usize::try_from(layer.0).unwrap_or(usize::MAX).saturating_add(1);
        self.lowers.len().checked_sub(from_below).unwrap_or(usize::MAX)
    }

    /// True if there are layers that only hold data.
    pub fn has_data_only(&self) -> bool {
        self.visible < self.lowers.len()
    }

    /// The layer `id`.
    ///
    /// # Errors
    /// `IO`: there is no such layer, which means a reference from another mount.
    pub fn lower(&self, id: LayerId) -> Result<&Layer, Errno> {
        self.lowers.get(self.position(id)).ok_or(Errno::IO)
    }

    /// The writable layer.
    pub fn upper(&self) -> Option<&UpperLayer> {
        self.upper.as_ref()
    }

    /// True if `layer` has the upper or the work directory somewhere below its root.
    pub fn holds_traps(&self, layer: LayerId) -> bool {
        self.traps.are_in(self.position(layer))
    }

    /// True for the upper and the work directory, which are not to be reached through a lower layer.
    pub fn is_trap(&self, id: FileId) -> bool {
        self.traps.forbid(id)
    }

    /// Leaves POSIX ACLs out, whatever the upper's file system can do.
    pub fn disable_acls(&mut self) {
        if let Some(upper) = &mut self.upper {
            upper.disable_acls();
        }
    }

    fn upper_mut(&mut self) -> Option<&mut UpperLayer> {
        self.upper.as_mut()
    }

    /// Inode number that the mount shows for a file of a layer, whose attributes are `stat`.
    pub fn shown_ino(&self, stat: &Stat) -> u64 {
        self.filesystems.shown(stat.id())
    }

    /// As [`Self::shown_ino`], for a file known by a listing.
    pub fn shown_ino_of(&self, id: FileId) -> u64 {
        self.filesystems.shown(id)
    }
}
