//! A snapshotter for containerd: image layers and the writable directories above them, mounted by stratafs.
//!
//! containerd keeps the file systems of images and containers as *snapshots*, and can delegate that to another process:
//! a *proxy plugin* of type `snapshot`, which serves the gRPC service `containerd.services.snapshots.v1.Snapshots` on a
//! Unix socket. A snapshot is *active* (it can be changed), *committed* (a layer, which never changes again) or a *view*
//! (its parent, read-only). This process mounts nothing itself. It tells containerd which mounts show a snapshot. These
//! have the type `fuse3.stratafs`: containerd runs `mount.fuse3(8)`, which runs `stratafs`.
//!
//! - `metadata`: the snapshots, in one database. Its transactions decide what has happened.
//! - `directories`: the directories of the snapshots. Directories without a record in the database are garbage and are deleted.
//! - `mounts`: the mounts of a snapshot.
//! - `service`, `server`, `wire`: gRPC. They do not touch files.
//!
//! # The order of steps, for a crash at any moment
//!
//! Preparing a snapshot first makes its directory, then the record. Removing one first deletes the record, then the
//! directory. Directories and records are made within one write transaction, of which there is only one at a time. So
//! unknown directories that [`Snapshotter::cleanup`] finds within its own transaction are not about to be recorded. A
//! commit only changes the record; before that, everything that was written reaches the disk.

mod directories;
mod error;
mod filter;
mod inventories;
mod metadata;
mod mounts;
mod removals;
mod server;
mod service;
mod snapshot;
mod usage;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use directories::Directories;
use error::At;
use filter::Filters;
use inventories::Inventories;
use metadata::Metadata;
use mounts::Mounting;
use removals::Removals;

pub use error::{Result, SnapshotError};
pub use mounts::{GID_MAPPING, Mount, UID_MAPPING};
pub use server::{Server, default_address};
pub use snapshot::{Kind, Labels, Moment, Snapshot, Usage};

/// Longest wait for the end of a mount whose snapshot is to be committed or removed.
const MOUNT_PATIENCE: Duration = Duration::from_secs(2);

/// Longest wait for the layers' inventories before a snapshot is mounted.
const INVENTORY_PATIENCE: Duration = Duration::from_secs(20);

/// How to keep snapshots.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory that holds everything.
    pub root: PathBuf,
    /// If true, everything reaches the disk before a commit is acknowledged.
    pub sync: bool,
}

impl Options {
    /// The default directory: `/var/lib/stratafs-snapshotter` for root, otherwise below `$XDG_DATA_HOME`.
    /// `None` if neither that nor `HOME` is set.
    pub fn default_root() -> Option<PathBuf> {
        const NAME: &str = "stratafs-snapshotter";
        if rustix::process::geteuid().is_root() {
            return Some(Path::new("/var/lib").join(NAME));
        }
        let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/share"));
        data.or_else(home).map(|data| data.join(NAME))
    }
}

/// The snapshots below one directory. Calls may come from several threads at the same time.
pub struct Snapshotter {
    inventories: Inventories,
    removals: Removals,
    directories: Arc<Directories>,
    metadata: Metadata,
    /// Snapshots that are prepared from now on get this number or a higher one.
    next_id: AtomicU64,
    unpack_directly: bool,
    sync: bool,
}

impl Snapshotter {
    /// Takes over the directory `options.root`, makes it if it does not exist, and repairs what a crash has left.
    ///
    /// # Errors
    /// `Invalid` if the directory is not a snapshotter's, in use, or on a file system that cannot hold an upper.
    pub fn open(options: &Options) -> Result<Self> {
        let directories = Arc::new(Directories::open(&options.root)?);
        let probed = directories.probe()?;
        let metadata = Metadata::open(&directories.database())?;
        let next_id = directories.unused_id()?;
        let snapshotter = Self {
            inventories: Inventories::start(Arc::clone(&directories)).at(&options.root)?,
            removals: Removals::start(Arc::clone(&directories)).at(&options.root)?,
            directories,
            metadata,
            next_id: AtomicU64::new(next_id),
            // containerd itself never makes device whiteouts in a user namespace.
            unpack_directly: probed.overlay_marks && is_initial_user_namespace(),
            sync: options.sync,
        };
        snapshotter.recover()?;
        Ok(snapshotter)
    }

    /// Makes the files and the records agree.
    fn recover(&self) -> Result<()> {
        for snapshot in self.metadata.list(|_| true)? {
            let Snapshot { name, id, kind, .. } = &snapshot;
            if *kind == Kind::Committed {
                self.inventories.begin(*id);
            }
            if self.directories.are_there(*id, if *kind == Kind::Committed { Kind::View } else { *kind }) {
                continue;
            }
            if *kind == Kind::Committed {
                tracing::error!("snapshot {name}: its directory {} is missing", self.directories.upper(*id).display());
                continue;
            }
            tracing::warn!("snapshot {name}: its directory is missing, and made again, empty");
            let (_, lowers) = self.metadata.get_with_lowers(name)?;
            self.directories.restore(*id, *kind, lowers.first().copied())?;
        }
        self.bury_unknown()?;
        self.removals.begin();
        Ok(())
    }

    /// Makes a changeable snapshot above `parent` (empty: none), or a view of it; returns the mounts that show it.
    ///
    /// # Errors
    /// `NotFound` if there is no such parent. `Invalid` if the parent is not committed, or a label is malformed.
    /// `Exists` if `key` is taken.
    pub fn prepare(&self, kind: Kind, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>> {
        must_be_named(key, "key")?;
        if kind == Kind::Committed {
            return Err(SnapshotError::invalid(format!("snapshot {key}"), "cannot be prepared as committed"));
        }
        mounts::id_options(&labels)?;
        let mut made = None;
        let prepared = self.metadata.change(|tables| {
            let lowers = if parent.is_empty() { Vec::new() } else { tables.parent(parent)? };
            if tables.get(key)?.is_some() {
                return Err(SnapshotError::Exists(key.to_owned()));
            }
            let id = tables.next_id(self.next_id.load(Ordering::Acquire))?;
            self.next_id.store(id + 1, Ordering::Release);
            self.directories.make(id, kind, lowers.first().copied())?;
            made = Some(id);
            let now = Moment::now();
            let (name, parent) = (key.to_owned(), parent.to_owned());
            let mut snapshot =
                Snapshot { name, id, kind, parent, created: now, updated: now, labels, usage: Usage::default() };
            tables.put(&mut snapshot, lowers.first().copied())?;
            Ok((snapshot, lowers))
        });
        match (prepared, made) {
            (Ok((snapshot, lowers)), _) => self.mounts_of(&snapshot, &lowers),
            (Err(error), None) => Err(error),
            (Err(error), Some(id)) => {
                self.settle(key, id);
                Err(error)
            }
        }
    }

    /// Called after a failed transaction: moves the directory of a snapshot away, unless the snapshot was recorded nevertheless.
    fn settle(&self, key: &str, id: u64) {
        match self.metadata.get(key) {
            Ok(snapshot) if snapshot.id == id => {}
            Ok(_) | Err(SnapshotError::NotFound(_)) => self.directories.bury(id),
            Err(error) => tracing::warn!("the directory of snapshot {key} stays until the next cleanup: {error}"),
        }
    }

    /// The mounts that show a snapshot that is not committed.
    ///
    /// # Errors
    /// `NotFound`; `Refused` if it is committed.
    pub fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let (snapshot, lowers) = self.metadata.get_with_lowers(key)?;
        self.mounts_of(&snapshot, &lowers)
    }

    fn mounts_of(&self, snapshot: &Snapshot, lowers: &[u64]) -> Result<Vec<Mount>> {
        let mounting = Mounting { directories: &self.directories, unpack_directly: self.unpack_directly };
        let mounts = mounting.of(snapshot, lowers)?;
        if mounts.iter().any(|mount| mount.kind == "fuse3.stratafs") && !mounts::is_for_unpacking(snapshot) {
            self.inventories.wait(lowers, INVENTORY_PATIENCE);
        }
        Ok(mounts)
    }

    /// Turns the active snapshot `key` into a layer called `name`, with exactly these labels.
    ///
    /// # Errors
    /// `NotFound`; `Exists` if `name` is taken; `Refused` if it is not active, or is mounted; `Invalid` if `parent` is
    /// given and is not its parent.
    pub fn commit(&self, name: &str, key: &str, parent: &str, labels: Labels) -> Result<()> {
        must_be_named(name, "name")?;
        let snapshot = self.metadata.get(key)?;
        if snapshot.kind != Kind::Active {
            return Err(SnapshotError::refused(key, "is not active"));
        }
        if !parent.is_empty() && parent != snapshot.parent {
            return Err(SnapshotError::invalid(
                format!("snapshot {key}"),
                format!("cannot be given the parent {parent}"),
            ));
        }
        if !self.directories.wait_until_free(snapshot.id, MOUNT_PATIENCE)? {
            return Err(SnapshotError::refused(key, "is mounted"));
        }
        let usage = usage::of_tree(&self.directories.upper(snapshot.id))?;
        if self.sync {
            self.directories.sync(snapshot.id)?;
        }
        self.metadata.change(|tables| {
            if tables.get(name)?.is_some() {
                return Err(SnapshotError::Exists(name.to_owned()));
            }
            if tables.get(key)?.is_none_or(|found| found.id != snapshot.id) {
                return Err(SnapshotError::NotFound(key.to_owned()));
            }
            let now = Moment::now();
            let name = name.to_owned();
            let kind = Kind::Committed;
            tables.forget_name(key)?;
            tables
                .put(&mut Snapshot { name, kind, created: now, updated: now, labels, usage, ..snapshot.clone() }, None)
        })?;
        self.inventories.begin(snapshot.id);
        Ok(())
    }

    /// Removes a snapshot. Its files are deleted in the background; [`Self::cleanup`] waits for this.
    ///
    /// # Errors
    /// `NotFound`; `Refused` if it is a parent, or is mounted.
    pub fn remove(&self, key: &str) -> Result<()> {
        let found = self.metadata.get(key)?;
        if found.kind == Kind::Active
            && self.directories.are_there(found.id, Kind::View)
            && !self.directories.wait_until_free(found.id, MOUNT_PATIENCE)?
        {
            return Err(SnapshotError::refused(key, "is mounted"));
        }
        self.metadata.change(|tables| {
            let snapshot = tables.get(key)?.filter(|snapshot| snapshot.id == found.id);
            let Some(snapshot) = snapshot else { return Err(SnapshotError::NotFound(key.to_owned())) };
            if tables.has_children(snapshot.id)? {
                return Err(SnapshotError::refused(key, "is the parent of another snapshot"));
            }
            tables.remove(&snapshot)
        })?;
        self.directories.bury(found.id);
        self.removals.begin();
        Ok(())
    }

    /// The record of a snapshot.
    ///
    /// # Errors
    /// `NotFound`
    pub fn stat(&self, key: &str) -> Result<Snapshot> {
        self.metadata.get(key)
    }

    /// Changes labels of a snapshot. `fields` are `labels` (all) and `labels.NAME`; without any, all labels are replaced.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for another field, or a malformed label.
    pub fn update(&self, name: &str, labels: &Labels, fields: &[String]) -> Result<Snapshot> {
        self.metadata.change(|tables| {
            let Some(mut snapshot) = tables.get(name)? else { return Err(SnapshotError::NotFound(name.to_owned())) };
            if fields.is_empty() {
                snapshot.labels.clone_from(labels);
            }
            for field in fields {
                match (field.as_str(), field.strip_prefix("labels.")) {
                    ("labels", _) => snapshot.labels.clone_from(labels),
                    (_, Some(label)) => {
                        let value = labels.get(label).cloned().unwrap_or_default();
                        snapshot.labels.insert(label.to_owned(), value);
                    }
                    _ => {
                        let reason = format!("the field {field} cannot be changed");
                        return Err(SnapshotError::invalid(format!("snapshot {name}"), reason));
                    }
                }
            }
            if snapshot.kind != Kind::Committed {
                mounts::id_options(&snapshot.labels)?;
            }
            snapshot.updated = Moment::now();
            tables.put(&mut snapshot, None)?;
            Ok(snapshot)
        })
    }

    /// The snapshots that match one of the filters, sorted by name; all without filters.
    ///
    /// # Errors
    /// `Invalid` for a malformed filter.
    pub fn list(&self, filters: &[String]) -> Result<Vec<Snapshot>> {
        let filters = Filters::parse(filters)?;
        self.metadata.list(|snapshot| filters.accept(snapshot))
    }

    /// The disk space of a snapshot: at its commit, or now.
    ///
    /// # Errors
    /// `NotFound`; errors of reading its directory.
    pub fn usage(&self, key: &str) -> Result<Usage> {
        let snapshot = self.metadata.get(key)?;
        match snapshot.kind {
            Kind::Active => usage::of_tree(&self.directories.upper(snapshot.id)),
            Kind::View | Kind::Committed => Ok(snapshot.usage),
        }
    }

    /// Deletes the files of all snapshots that were removed, and leftovers of crashes.
    ///
    /// # Errors
    /// When a file cannot be deleted; the rest is deleted nevertheless.
    pub fn cleanup(&self) -> Result<()> {
        self.bury_unknown()?;
        self.removals.finish()
    }

    fn bury_unknown(&self) -> Result<()> {
        // Within a transaction, so that no snapshot is being prepared.
        self.metadata.change(|tables| self.directories.bury_unknown(&tables.ids()?))
    }
}

fn must_be_named(name: &str, what: &str) -> Result<()> {
    if name.is_empty() { Err(SnapshotError::invalid("snapshot", format!("the {what} is empty"))) } else { Ok(()) }
}

/// True if ids are the same for the kernel: all are mapped to themselves.
fn is_initial_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}
