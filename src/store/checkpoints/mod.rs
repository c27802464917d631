//! Checkpoint layers: writable directories of containers that were put aside as layers for containers of this store.
//!
//! ```text
//! ROOT/checkpoints/ID/          a layer; its id is in the mark on `layer` (see [`crate::marks::chain`])
//!   layer/                      the directory to mount
//!   layer.inventory             what is in it; may be missing
//!   size                        bytes of its files, if they have been counted
//! containers/NAME/checkpoints/  names: symbolic links to `../../../checkpoints/ID`
//! ```
//!
//! Only the marks say which layers a container has: the mark on its upper names the layer below, and so on. A name, and the
//! place of a layer, are made before the upper is exchanged with the empty directory at that place. That exchange is the
//! step that makes a checkpoint. Before it, the directory at `ID/layer` has another id, so the name has no effect.
//!
//! # Locks
//!
//! Each process that reads or extends a chain holds a shared lock on the directory `checkpoints` until a container's mark refers
//! to the layers or the layers are open. Removing layers needs the exclusive lock. The process that tidies holds the file
//! `checkpoints/lock`; for its long work it needs only the shared lock. Order: `lock`, then the directory, then the locks of
//! single containers.

mod merge;
mod survey;

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::image::files::{make_dir, open_dir};
use crate::image::time::Timestamp;
use crate::image::{ImageError, IoContext, Result};
use crate::marks::chain::{Chain, ChainId};
use crate::store::{Store, StoreLock, replace_file, retry_interrupted};
use crate::union::layer::chain::{chain_namespace, read_chain};

pub(crate) use merge::{MergeError, merge};
pub(crate) use survey::{Dependent, Survey};

/// No chain has as many layers; a longer one is circular.
const LONGEST_CHAIN: usize = 100_000;

/// A layer made from a writable directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointLayer {
    /// Its id.
    pub id: ChainId,
    /// The layer that must be directly below it.
    pub below: Option<ChainId>,
    /// `ROOT/checkpoints/ID`.
    entry: PathBuf,
}

impl CheckpointLayer {
    /// The directory to mount.
    pub fn dir(&self) -> PathBuf {
        self.entry.join("layer")
    }

    /// Opens the directory to mount.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn open(&self) -> Result<OwnedFd> {
        open_dir(&self.dir())
    }

    /// Total size of its files in bytes. Computed once, then stored beside it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn size(&self) -> Result<u64> {
        let known = self.entry.join("size");
        if let Some(size) = fs::read_to_string(&known).ok().and_then(|text| text.trim().parse().ok()) {
            return Ok(size);
        }
        let size = bytes_in(&self.dir())?;
        // In a read-only store, it is computed each time.
        if let Err(error) = replace_file(&self.entry, &known, format!("{size}\n").as_bytes()) {
            tracing::debug!("{error}");
        }
        Ok(size)
    }
}

/// Total size of the regular files in a directory in bytes; hard links count once.
pub(crate) fn bytes_in(dir: &Path) -> Result<u64> {
    let mut counted = std::collections::HashSet::new();
    let (mut bytes, mut pending) = (0, vec![dir.to_owned()]);
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).at(&dir)? {
            let entry = entry.at(&dir)?;
            let metadata = match entry.metadata() {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                metadata => metadata.at(entry.path())?,
            };
            if metadata.is_dir() {
                pending.push(entry.path());
            } else if metadata.is_file() && (metadata.nlink() == 1 || counted.insert(metadata.ino())) {
                bytes += metadata.len();
            }
        }
    }
    Ok(bytes)
}

/// A container's name for a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The name.
    pub name: String,
    /// The layer.
    pub id: ChainId,
    /// When it was made.
    pub created: Timestamp,
}

/// The names in `containers/NAME/checkpoints`, including those that have no effect yet, the oldest first.
///
/// # Errors
/// When the directory cannot be read.
pub fn names_in(container: &Path) -> Result<Vec<Named>> {
    let dir = container.join("checkpoints");
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.at(&dir)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.at(&dir)?;
        let (Ok(name), Ok(target)) = (entry.file_name().into_string(), fs::read_link(entry.path())) else { continue };
        let id = target.file_name().and_then(|id| id.to_str()?.parse().ok());
        let metadata = fs::symlink_metadata(entry.path()).at(entry.path())?;
        let Some(id) = id else { continue };
        let nanoseconds = u32::try_from(metadata.mtime_nsec()).unwrap_or(0);
        let created = Timestamp { seconds: metadata.mtime(), nanoseconds };
        found.push(Named { name, id, created });
    }
    found.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
    Ok(found)
}

/// The target of a container's name for a layer.
pub fn name_target(id: ChainId) -> PathBuf {
    PathBuf::from(format!("../../../checkpoints/{id}"))
}

/// The mark of a directory, in the name space that this process uses.
///
/// # Errors
/// When it cannot be read, or is damaged.
pub(crate) fn mark_of(dir: BorrowedFd<'_>, path: &Path) -> Result<Option<Chain>> {
    let damaged = |errno| match errno {
        rustix::io::Errno::IO => ImageError::refused(path.display().to_string(), "its chain mark is damaged"),
        errno => ImageError::Io { path: path.to_owned(), source: errno.into() },
    };
    chain_namespace(dir).and_then(|namespace| read_chain(dir, namespace)).map_err(damaged)
}

impl Store {
    /// `ROOT/checkpoints`.
    pub(crate) fn checkpoints(&self) -> PathBuf {
        self.root().join("checkpoints")
    }

    /// True if there is, or was, a checkpoint in this store.
    pub fn has_checkpoints(&self) -> bool {
        fs::symlink_metadata(self.checkpoints()).is_ok()
    }

    /// The place of the layer with this id, whether or not it exists.
    pub(crate) fn checkpoint_entry(&self, id: ChainId) -> PathBuf {
        self.checkpoints().join(id.to_string())
    }

    /// Keeps layers of chains from being removed.
    ///
    /// # Errors
    /// When the lock cannot be taken.
    pub fn lock_chains(&self) -> Result<StoreLock> {
        self.lock_checkpoints(FlockOperation::LockShared)
    }

    /// Like [`lock_chains`](Self::lock_chains); `None` if the store has no checkpoints, and then makes nothing for them.
    ///
    /// # Errors
    /// When the lock cannot be taken.
    pub fn lock_chains_if_any(&self) -> Result<Option<StoreLock>> {
        match fs::symlink_metadata(self.checkpoints()) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            _ => self.lock_chains().map(Some),
        }
    }

    /// Keeps all other processes away from all chains.
    pub(crate) fn lock_chains_alone(&self) -> Result<StoreLock> {
        self.lock_checkpoints(FlockOperation::LockExclusive)
    }

    /// As [`lock_chains_alone`](Self::lock_chains_alone); `None` if the lock is not free.
    pub(crate) fn try_lock_chains_alone(&self) -> Result<Option<StoreLock>> {
        match self.lock_checkpoints(FlockOperation::NonBlockingLockExclusive) {
            Err(ImageError::Io { source, .. }) if source.kind() == ErrorKind::WouldBlock => Ok(None),
            locked => locked.map(Some),
        }
    }

    fn lock_checkpoints(&self, operation: FlockOperation) -> Result<StoreLock> {
        let dir = self.checkpoints();
        let file = match File::open(&dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                make_dir(&dir, 0o700)?;
                File::open(&dir)
            }
            file => file,
        };
        let file = file.at(&dir)?;
        retry_interrupted(|| flock(&file, operation)).at(&dir)?;
        Ok(StoreLock { file })
    }

    /// Takes the lock for tidying, which one process at a time holds; `None` if it is not free.
    pub(crate) fn lock_tidying(&self) -> Result<Option<StoreLock>> {
        let path = self.checkpoints().join("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path).at(&path)?;
        match retry_interrupted(|| flock(&file, FlockOperation::NonBlockingLockExclusive)) {
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            locked => locked.at(&path).map(|()| Some(StoreLock { file })),
        }
    }

    /// The layer with this id; `None` if there is none, or if it was never finished.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn checkpoint_layer(&self, id: ChainId) -> Result<Option<CheckpointLayer>> {
        let entry = self.checkpoint_entry(id);
        let path = entry.join("layer");
        let dir = match open_dir(&path) {
            Err(ImageError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => return Ok(None),
            dir => dir?,
        };
        let mark = mark_of(dir.as_fd(), &path)?;
        Ok(mark.filter(|mark| mark.id == id).map(|mark| CheckpointLayer { id, below: mark.below, entry }))
    }

    /// The layers from `top` down, the topmost first.
    ///
    /// # Errors
    /// When a layer is missing.
    pub fn chain(&self, top: Option<ChainId>) -> Result<Vec<CheckpointLayer>> {
        let mut layers = Vec::new();
        let mut next = top;
        while let Some(id) = next {
            let refused = |reason: &str| ImageError::refused(format!("checkpoint layer {id}"), reason);
            let layer = self.checkpoint_layer(id)?.ok_or_else(|| refused("is not in this store"))?;
            next = layer.below;
            layers.push(layer);
            if layers.len() > LONGEST_CHAIN {
                return Err(refused("its chain never ends"));
            }
        }
        Ok(layers)
    }
}
