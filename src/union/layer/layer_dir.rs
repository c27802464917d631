//! A directory of one layer for lookups: held by descriptor, or known from the layer's inventory.

use std::ffi::{CStr, OsStr};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::io::Errno;

use crate::inventory::{DirNumber, Directory, Inventory, Record, Tick, Unusable};
use crate::union::layer::{Device, Dir, Layer, LowerRef, Marks, RawEntry, Stat, Timestamp};

/// A directory of a layer, for lookups.
#[derive(Debug)]
pub enum LayerDir<'a> {
    /// Held by descriptor.
    Held(Dir),
    /// Known from the layer's inventory. The layer is asked for anything that the inventory does not say.
    Listed(ListedDir<'a>),
}

/// A directory that a layer's inventory describes.
#[derive(Debug)]
pub struct ListedDir<'a> {
    layer: &'a Layer,
    inventory: &'a Arc<Inventory>,
    number: DirNumber,
    directory: Directory<'a>,
    path: &'a CStr,
}

impl LayerDir<'_> {
    /// The directory itself.
    ///
    /// # Errors
    /// Those of `openat2(2)`.
    pub fn open(&self) -> Result<Dir, Errno> {
        match self {
            Self::Held(dir) => Ok(dir.clone()),
            Self::Listed(listed) => listed.layer.open_dir(listed.path),
        }
    }

    /// The path of `name`, for a message.
    pub fn shown_path(&self, name: &CStr) -> PathBuf {
        match self {
            Self::Held(dir) => dir.shown_path(name),
            Self::Listed(listed) => {
                let dir = listed.layer.path().join(OsStr::from_bytes(listed.path.to_bytes()));
                dir.join(OsStr::from_bytes(name.to_bytes()))
            }
        }
    }

    /// Attributes of `name`, or of the directory if that is empty; `None` if there is no such name.
    ///
    /// # Errors
    /// Those of `statx(2)`.
    pub fn stat(&self, name: &CStr) -> Result<Option<Stat>, Errno> {
        match self {
            Self::Held(dir) => dir.stat(name),
            Self::Listed(listed) => match listed.known(name) {
                Known::Absent => Ok(None),
                Known::As(record) => Ok(Some(listed.stat_of(&record))),
                Known::Not => self.open()?.stat(name),
            },
        }
    }

    /// The file system that the directory is on.
    ///
    /// # Errors
    /// Those of `statx(2)`.
    pub fn device(&self) -> Result<Device, Errno> {
        match self {
            Self::Held(dir) => Ok(dir.stat_self()?.device),
            Self::Listed(listed) => Ok(listed.layer.device),
        }
    }

    /// True if a subdirectory may be a subvolume, whose root has another inode number and device than its entry says.
    ///
    /// # Errors
    /// Those of `fstatfs(2)`.
    pub fn may_hold_subvolumes(&self) -> Result<bool, Errno> {
        /// `BTRFS_SUPER_MAGIC` of `linux/magic.h`.
        const BTRFS: u32 = 0x9123_683e;
        match self {
            Self::Held(dir) => Ok(rustix::fs::fstatfs(dir)?.f_type as u32 == BTRFS),
            // The inventory either has the roots' own numbers or has none.
            Self::Listed(_) => Ok(false),
        }
    }

    /// The marks of `name`.
    ///
    /// # Errors
    /// Those of `listxattr(2)` and `getxattr(2)`.
    pub fn marks(&self, name: &CStr) -> Result<Marks, Errno> {
        match self {
            Self::Listed(listed) if listed.has_none(name, Record::has_no_marks) => Ok(Marks::default()),
            _ => self.open()?.marks(name),
        }
    }

    /// True if `name`, or the directory if that is empty, is known to have no extended attributes.
    pub fn has_no_xattrs(&self, name: &CStr) -> bool {
        matches!(self, Self::Listed(listed) if listed.has_none(name, Record::has_no_xattrs))
    }

    /// Calls `visit` for every entry.
    ///
    /// # Errors
    /// Those of `getdents64(2)`, and what `visit` returns.
    pub fn list(&self, mut visit: impl FnMut(RawEntry<'_>) -> Result<(), Errno>) -> Result<(), Errno> {
        match self {
            Self::Held(dir) => dir.list(visit),
            Self::Listed(listed) => {
                for entry in listed.directory.iter() {
                    let ino = if entry.record.must_ask() { 0 } else { entry.record.ino };
                    visit(RawEntry { name: entry.name, kind: entry.record.kind(), ino })?;
                }
                // The listing may be incomplete; the next one reads the layer.
                if listed.inventory.is_broken() { Err(Errno::IO) } else { Ok(()) }
            }
        }
    }

    /// The number of the subdirectory `name` in the layer's inventory.
    pub fn number_of(&self, name: &CStr) -> Option<DirNumber> {
        match self {
            Self::Held(_) => None,
            Self::Listed(listed) => listed.directory.find(name)?.record.directory(),
        }
    }

    /// The inventory and its number of the directory, if the directory holds only names that are shown.
    pub fn shown_by_inventory(&self) -> Option<(Arc<Inventory>, DirNumber)> {
        match self {
            Self::Listed(listed) if listed.directory.is_plain() => Some((listed.inventory.clone(), listed.number)),
            _ => None,
        }
    }

    /// Compares what is known of `name` with `opened`, the attributes of the opened file.
    ///
    /// # Errors
    /// `STALE` if the file was changed in its layer. Looking it up again gives its true attributes.
    pub fn confirm(&self, name: &CStr, opened: &Stat) -> Result<(), Errno> {
        let Self::Listed(listed) = self else { return Ok(()) };
        let Known::As(record) = listed.known(name) else { return Ok(()) };
        let known = listed.stat_of(&record);
        let seen = |s: &Stat| (s.device, s.ino, s.size, s.mtime, s.ctime);
        if seen(&known) == seen(opened) {
            return Ok(());
        }
        tracing::warn!("{:?}: changed in its layer", self.shown_path(name));
        listed.inventory.disbelieve(listed.number, &Unusable::Stale);
        Err(Errno::STALE)
    }
}

/// What an inventory says about a name.
enum Known {
    /// There is no such name.
    Absent,
    /// The name has this record.
    As(Record),
    /// The layer must be asked.
    Not,
}

impl<'a> ListedDir<'a> {
    fn known(&self, name: &CStr) -> Known {
        let known = self.written(name);
        if self.inventory.is_broken() { Known::Not } else { known }
    }

    /// What the inventory file says.
    fn written(&self, name: &CStr) -> Known {
        if name.is_empty() {
            return Known::As(*self.directory.own());
        }
        let Some(entry) = self.directory.find(name) else { return Known::Absent };
        if entry.record.must_ask() {
            return Known::Not;
        }
        if entry.record.kind() != libc::DT_DIR {
            return Known::As(entry.record);
        }
        // A change in a directory changes its attributes, and its parent does not notice.
        let path = crate::union::layer::join(self.path, name);
        let below = entry.record.directory().and_then(|number| self.layer.believed(number, &path));
        below.map_or(Known::Not, |directory| Known::As(*directory.own()))
    }

    fn has_none(&self, name: &CStr, of_them: impl Fn(&Record) -> bool) -> bool {
        self.inventory.knows_xattrs() && matches!(self.known(name), Known::As(record) if of_them(&record))
    }

    fn stat_of(&self, record: &Record) -> Stat {
        let rdev = if record.kind() == libc::DT_DIR { (0, 0) } else { record.special.into() };
        Stat {
            ino: record.ino,
            device: self.layer.device,
            mode: u32::from(record.mode),
            nlink: record.nlink,
            uid: record.uid,
            gid: record.gid,
            rdev,
            size: record.size,
            blocks: u64::from(record.blocks),
            blksize: record.blksize(),
            atime: timestamp(record.atime),
            mtime: timestamp(record.mtime),
            ctime: timestamp(record.ctime),
            btime: record.has_btime().then(|| timestamp(record.btime)),
            mount: self.layer.mount,
            immutable: false,
            append_only: false,
        }
    }
}

fn timestamp(tick: Tick) -> Timestamp {
    const SECOND: i64 = 1_000_000_000;
    Timestamp { sec: tick.div_euclid(SECOND), nsec: u32::try_from(tick.rem_euclid(SECOND)).unwrap_or_default() }
}

impl Layer {
    /// Uses the layer's inventory, if there is a valid one.
    pub(super) fn find_inventory(&mut self) {
        match Inventory::open(self.root.as_fd(), self.root.root_path()) {
            Ok(inventory) => self.inventory = Some(Arc::new(inventory)),
            Err(Unusable::Absent) => {}
            // A user's store is read both inside the namespace of its containers and outside.
            Err(why @ Unusable::Namespace) => {
                tracing::debug!("{}: its inventory is not used: {why}", self.path.display())
            }
            Err(why) => tracing::warn!("{}: its inventory is not used: {why}", self.path.display()),
        }
    }

    /// The layer's inventory, if one is used.
    pub fn inventory(&self) -> Option<&Arc<Inventory>> {
        self.inventory.as_ref()
    }

    fn believed(&self, number: DirNumber, path: &CStr) -> Option<Directory<'_>> {
        self.inventory.as_ref()?.directory(number, self.root.as_fd(), path)
    }

    /// The directory `part` of this layer according to its inventory, if the inventory has it.
    pub fn listed_dir<'a>(&'a self, part: &'a LowerRef) -> Option<LayerDir<'a>> {
        let (inventory, number) = (self.inventory.as_ref()?, part.number?);
        let directory = self.believed(number, &part.path)?;
        Some(LayerDir::Listed(ListedDir { layer: self, inventory, number, directory, path: &part.path }))
    }

    /// Number of the layer's root in its inventory.
    pub(crate) fn root_number(&self) -> Option<DirNumber> {
        self.inventory.as_ref().map(|_| DirNumber::ROOT)
    }
}
