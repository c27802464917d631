//! The directory with images, layers and containers.
//!
//! ```text
//! ROOT/                  mode 0700; a valid OCI image layout
//!   oci-layout           fixed text
//!   index.json           the images and their names; replaced whole, under a lock on ROOT itself
//!   blobs/sha256/HEX     configs and manifests; layers' blobs only if they were to be kept
//!   layers/HEX/          a layer: by its diff id, or by its chain id if it depends on what lies below
//!     diff/              the directory to mount
//!     diff.inventory     what is in it (see [`crate::inventory`]); may be missing
//!     recipe             how to re-assemble the layer's tar, bit for bit
//!     layer.json         a [`LayerRecord`]
//!   containers/NAME/     a container; an OCI runtime bundle
//!   checkpoints/ID/      a layer that a container's upper became (see [`checkpoints`])
//!   lost/                what a repair has set aside: containers with a damaged record, an old index; for people to look at
//!   tmp/                 what is not yet published; emptied by the next writer that is alone
//!   lock                 held shared by writers, exclusively by removers; before taking it, lock `layers/`
//! ```
//!
//! A manifest in the store names each layer by its uncompressed tar, whose digest is the diff id. Such a blob
//! is not in `blobs/` (the image layout permits that: "may be missing referenced blobs"), but can be made
//! from `layers/` at any time. So each config has exactly one manifest here, whichever archive it came from.
//!
//! Everything is published by a rename after its bytes have reached the disk, `index.json` last. So a crash at
//! any time leaves the store as it was before, and garbage in `tmp/`.

pub mod anatomy;
mod annotations;
pub mod checkpoints;
pub mod create;
mod gc;
mod image_index;
mod images;
mod layers;
pub mod load;
pub mod save;
mod together;
pub mod trace;
mod transaction;
mod verify;

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::image::digest::Digest;
use crate::image::files::{make_dir, read_limited, remove_tree, sync_dir};
use crate::image::spec::{self};
use crate::image::{ImageError, IoContext, Result};

pub use annotations::blob_mark;
pub use gc::Freed;
pub use images::short_id;
pub use images::{Image, Removed};
pub use layers::{LayerRecord, StoredLayer};
pub use together::{LayerEvent, NewLayer, Slot, rounds};
pub(crate) use transaction::open_topmost_first;
pub use transaction::{AddedLayer, Transaction};
pub use verify::{Damage, Repaired, Untrusted, Verification};

/// Exclusive-lock back-off: starts at `PATIENCE` and doubles up to `MOST_PATIENCE`.
const PATIENCE: Duration = Duration::from_secs(1);
const MOST_PATIENCE: Duration = Duration::from_secs(64);
/// Interval at which the lock is tried.
const POLL: Duration = Duration::from_millis(5);

/// An opened store.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// Holds the store's lock until dropped.
#[derive(Debug)]
pub struct StoreLock {
    file: File,
}

impl StoreLock {
    /// Upgrades a shared lock if it is the only one. If that fails, the lock is lost.
    fn is_alone(&self) -> bool {
        flock(&self.file, FlockOperation::NonBlockingLockExclusive).is_ok()
    }
}

/// All that a store's directory may have in it.
const ENTRIES: [&str; 11] = [
    "blobs",
    "layers",
    "containers",
    "checkpoints",
    "volumes",
    "lost",
    "run",
    "tmp",
    "lock",
    "index.json",
    "oci-layout",
];

impl Store {
    /// Opens the store at `root`; makes it if it does not exist.
    ///
    /// # Errors
    /// When the directory cannot be made, or is neither a store nor empty.
    pub fn open(root: &Path) -> Result<Self> {
        let store = Self { root: std::path::absolute(root).at(root)? };
        if !store.is_complete() {
            store.create()?;
        }
        // Canonical, because mount tables show paths without symbolic links.
        Ok(Self { root: fs::canonicalize(root).at(root)? })
    }

    /// Opens the store at `root` for commands that only read. A missing store counts as an empty one, and is not made.
    ///
    /// # Errors
    /// When the directory is neither a store nor empty.
    pub fn open_for_reading(root: &Path) -> Result<Self> {
        let store = Self { root: std::path::absolute(root).at(root)? };
        match store.is_complete() || !store.is_nothing() {
            true => Self::open(root),
            false => Ok(store),
        }
    }

    /// True if there is no store: the directory is missing or empty.
    pub fn is_nothing(&self) -> bool {
        match fs::read_dir(&self.root) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) => error.kind() == ErrorKind::NotFound,
        }
    }

    /// The default place of the store: `/var/lib/strata` for root, otherwise `$XDG_DATA_HOME/strata`.
    ///
    /// # Errors
    /// When neither `XDG_DATA_HOME` nor `HOME` is set.
    pub fn default_root() -> Result<PathBuf> {
        if rustix::process::geteuid().is_root() {
            return Ok(PathBuf::from("/var/lib/strata"));
        }
        let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/share"));
        data.or_else(home)
            .map(|data| data.join("strata"))
            .ok_or_else(|| ImageError::refused("store", "neither XDG_DATA_HOME nor HOME is set; give --root"))
    }

    /// Several processes may do this at the same time.
    fn create(&self) -> Result<()> {
        if let Some(parent) = self.root.parent() {
            fs::create_dir_all(parent).at(parent)?;
        }
        make_dir(&self.root, 0o700)?;
        let _lock = self.lock_index()?;
        self.refuse_foreign_directory()?;
        fs::set_permissions(&self.root, fs::Permissions::from_mode(0o700)).at(&self.root)?;
        for dir in ["blobs", "blobs/sha256", "layers", "containers", "tmp"] {
            make_dir(&self.root.join(dir), 0o700)?;
        }
        let index = spec::serialize("index.json", &spec::Index::new(vec![]))?;
        for (name, text) in [("lock", &b""[..]), ("index.json", &index), ("oci-layout", spec::OCI_LAYOUT.as_bytes())] {
            // A store without an index but with everything else has lost it; with a new, empty index, all images
            // would be removed.
            let is_lost = name == "index.json" && self.root.join("oci-layout").exists();
            if !is_lost && !self.root.join(name).exists() {
                self.replace(name, text)?;
            }
        }
        Ok(())
    }

    /// Fails unless all entries of the directory belong to a store, complete or not.
    fn refuse_foreign_directory(&self) -> Result<()> {
        for entry in fs::read_dir(&self.root).at(&self.root)? {
            let name = entry.at(&self.root)?.file_name();
            if !ENTRIES.iter().any(|own| name == *own) {
                return Err(ImageError::refused(self.root.display().to_string(), "is not empty and not a store"));
            }
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        ["oci-layout", "layers", "blobs/sha256", "containers", "tmp", "lock"]
            .iter()
            .all(|name| self.root.join(name).exists())
    }

    /// The store's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of containers.
    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    fn layers_dir(&self) -> PathBuf {
        self.root.join("layers")
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Takes a shared lock: it excludes removers but not other writers.
    ///
    /// # Errors
    /// When the lock cannot be taken.
    pub fn lock_shared(&self) -> Result<StoreLock> {
        let _turn = self.lock_turn()?;
        self.lock(FlockOperation::LockShared)
    }

    /// Takes the lock exclusively. Waits for active writers. Meanwhile, new writers wait for their turn: with
    /// overlapping shared locks, the kernel would never grant an exclusive one.
    ///
    /// New writers do not wait for ever, because an active writer may depend on one of them (`strata save | strata load`).
    fn lock_exclusive(&self) -> Result<StoreLock> {
        let mut patience = PATIENCE;
        loop {
            let turn = self.lock_turn()?;
            let until = Instant::now() + patience;
            while Instant::now() < until {
                match self.lock(FlockOperation::NonBlockingLockExclusive) {
                    Err(ImageError::Io { source, .. }) if source.kind() == ErrorKind::WouldBlock => {
                        std::thread::sleep(POLL);
                    }
                    other => return other,
                }
            }
            drop(turn);
            patience = MOST_PATIENCE.min(2 * patience);
            std::thread::sleep(10 * POLL);
        }
    }

    /// Must be taken before the store's lock. Writers hold it for a moment, a remover while it waits.
    fn lock_turn(&self) -> Result<StoreLock> {
        let path = self.layers_dir();
        let file = File::open(&path).at(&path)?;
        retry_interrupted(|| flock(&file, FlockOperation::LockExclusive)).at(&path)?;
        Ok(StoreLock { file })
    }

    fn lock(&self, operation: FlockOperation) -> Result<StoreLock> {
        let path = self.root.join("lock");
        let file = File::open(&path).at(&path)?;
        retry_interrupted(|| flock(&file, operation)).at(&path)?;
        Ok(StoreLock { file })
    }

    /// Serialises changes of `index.json`.
    fn lock_index(&self) -> Result<StoreLock> {
        let file = File::open(&self.root).at(&self.root)?;
        retry_interrupted(|| flock(&file, FlockOperation::LockExclusive)).at(&self.root)?;
        Ok(StoreLock { file })
    }

    /// Empties `tmp/` if no other writer is active.
    fn sweep_tmp(&self) -> Result<()> {
        match self.lock(FlockOperation::NonBlockingLockExclusive) {
            Ok(_alone) => {
                for entry in fs::read_dir(self.tmp()).at(self.tmp())? {
                    remove_tree(&entry.at(self.tmp())?.path())?;
                }
                Ok(())
            }
            Err(ImageError::Io { source, .. }) if source.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The bytes of a blob of at most `DOCUMENT_LIMIT` bytes, verified against its digest.
    ///
    /// # Errors
    /// When it is missing, too large or damaged.
    pub fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        let path = self.blob_path(digest);
        let bytes = read_limited(&mut File::open(&path).at(&path)?, &path.display().to_string())?;
        let found = Digest::of(&bytes);
        if found != *digest {
            let (expected, found) = (digest.to_string(), found.to_string());
            return Err(ImageError::Mismatch { subject: path.display().to_string(), expected, found });
        }
        Ok(bytes)
    }

    /// The path of a kept blob, if it exists.
    pub(crate) fn kept_blob(&self, digest: &Digest) -> Option<PathBuf> {
        Some(self.blob_path(digest)).filter(|path| path.exists())
    }

    /// Replaces a file of the root directory, durably.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.root.join(name);
        replace_file(&self.tmp(), &path, bytes)
    }
}

/// Writes a file in `stage`, on the same file system, and renames it to its place, durably.
///
/// # Errors
/// When a step fails; the old file is then unchanged.
pub(crate) fn replace_file(stage: &Path, path: &Path, bytes: &[u8]) -> Result<()> {
    StagedFile::new(stage, bytes)?.publish(path)
}

/// A file whose bytes are on the disk, but which does not have its name yet. It is removed when dropped.
struct StagedFile(tempfile::NamedTempFile);

impl StagedFile {
    fn new(stage: &Path, bytes: &[u8]) -> Result<Self> {
        let mut file = tempfile::NamedTempFile::new_in(stage).at(stage)?;
        file.write_all(bytes).at(file.path())?;
        file.as_file().sync_all().at(file.path())?;
        Ok(Self(file))
    }

    /// Renames it to `path`, durably.
    fn publish(self, path: &Path) -> Result<()> {
        self.0.persist(path).map_err(|error| error.error).at(path)?;
        path.parent().map_or(Ok(()), sync_dir)
    }
}

/// Repeats a call that was interrupted by a signal.
pub(crate) fn retry_interrupted<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            result => return result,
        }
    }
}
