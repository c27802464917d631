//! The database of snapshots and their parents.
//!
//! Every change is one transaction of redb, which is on the disk when it returns; after a crash, the database is in
//! the state before or after it. After an error of the disk, redb refuses to work until it is opened again. This
//! module does that, so a disk that was full for a moment does not end the service.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::RwLock;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, Table, TableDefinition};

use super::error::{At, is_full};
use super::{Kind, Result, Snapshot, SnapshotError};

/// Name of a snapshot -> its record as JSON.
const SNAPSHOTS: TableDefinition<&str, &[u8]> = TableDefinition::new("snapshots");
/// Number of a snapshot, number of a child.
const CHILDREN: TableDefinition<(u64, u64), ()> = TableDefinition::new("children");
/// `next`: the number of the next snapshot.
const NUMBERS: TableDefinition<&str, u64> = TableDefinition::new("numbers");

/// Memory for the database's pages. A snapshot takes about half a KiB.
const CACHE: usize = 8 << 20;

/// Largest name and record, in bytes. A listing's message, of at most 4 MiB, must have room for it.
const LARGEST: usize = 1 << 20;

/// The database.
pub(super) struct Metadata {
    path: PathBuf,
    /// `None` if it could not be opened again after an error.
    database: RwLock<Option<Database>>,
}

/// The tables within a transaction that may change them.
pub(super) struct Change<'t> {
    path: &'t Path,
    snapshots: Table<'t, &'static str, &'static [u8]>,
    children: Table<'t, (u64, u64), ()>,
    numbers: Table<'t, &'static str, u64>,
}

/// Why a transaction failed.
enum Failure {
    /// The caller's error.
    Refused(SnapshotError),
    /// The database's error.
    Broken(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Broken(error.into())
    }
}

impl Metadata {
    /// Opens the database at `path`; makes it if it does not exist. It is made under another name and published by a
    /// rename, because redb does not open an incomplete database.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let failed = |error: DatabaseError| broken(path, &error.into());
        if !path.exists() {
            let stage = path.with_extension("new");
            match fs::remove_file(&stage) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).at(&stage),
                _ => {}
            }
            drop(open_database(&stage).map_err(failed)?);
            fs::rename(&stage, path).at(path)?;
            let dir = path.parent().unwrap_or(path);
            fs::File::open(dir).and_then(|dir| dir.sync_all()).at(dir)?;
        }
        let database = open_database(path).map_err(failed)?;
        let metadata = Self { path: path.to_owned(), database: RwLock::new(Some(database)) };
        // Makes the tables, so that readers find them.
        metadata.change(|_| Ok(()))?;
        Ok(metadata)
    }

    /// The snapshot `name`.
    pub(super) fn get(&self, name: &str) -> Result<Snapshot> {
        self.read(|snapshots| lookup(&self.path, snapshots, name))?
            .ok_or_else(|| SnapshotError::NotFound(name.to_owned()))
    }

    /// The snapshot `name`, and the numbers of those below it, topmost first.
    pub(super) fn get_with_lowers(&self, name: &str) -> Result<(Snapshot, Vec<u64>)> {
        let found = self.read(|snapshots| {
            let Some(snapshot) = lookup(&self.path, snapshots, name)? else { return Ok(None) };
            let lowers = chain(&self.path, snapshots, &snapshot.parent)?;
            Ok(Some((snapshot, lowers)))
        })?;
        found.ok_or_else(|| SnapshotError::NotFound(name.to_owned()))
    }

    /// All snapshots that `wanted` accepts, by name.
    pub(super) fn list(&self, wanted: impl Fn(&Snapshot) -> bool) -> Result<Vec<Snapshot>> {
        self.read(|snapshots| {
            let mut found = Vec::new();
            for entry in snapshots.iter()? {
                let (name, record) = entry?;
                let snapshot = decode(&self.path, name.value(), record.value())?;
                if wanted(&snapshot) {
                    found.push(snapshot);
                }
            }
            Ok(found)
        })
    }

    /// Calls `change` in one transaction, which is rolled back if it fails.
    ///
    /// # Errors
    /// The error of `change`. After an error of the database itself, the change may or may not have happened.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Change<'_>) -> Result<T>) -> Result<T> {
        self.with(|database| {
            let transaction = database.begin_write()?;
            let outcome = {
                let mut tables = Change {
                    path: &self.path,
                    snapshots: transaction.open_table(SNAPSHOTS)?,
                    children: transaction.open_table(CHILDREN)?,
                    numbers: transaction.open_table(NUMBERS)?,
                };
                change(&mut tables)
            };
            match outcome {
                Ok(outcome) => {
                    transaction.commit()?;
                    Ok(outcome)
                }
                Err(refusal) => {
                    transaction.abort()?;
                    Err(Failure::Refused(refusal))
                }
            }
        })
    }

    fn read<T>(
        &self,
        read: impl FnOnce(&redb::ReadOnlyTable<&'static str, &'static [u8]>) -> Result<T, Failure>,
    ) -> Result<T> {
        self.with(|database| read(&database.begin_read()?.open_table(SNAPSHOTS)?))
    }

    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, Failure>) -> Result<T> {
        let outcome = match &*self.database.read() {
            Some(database) => work(database),
            None => Err(StorageError::DatabaseClosed.into()),
        };
        outcome.map_err(|failure| match failure {
            Failure::Refused(refusal) => refusal,
            Failure::Broken(error) => {
                let told = broken(&self.path, &error);
                self.reopen();
                told
            }
        })
    }

    /// Opens the database again. If that fails too, the next call tries again.
    fn reopen(&self) {
        let mut database = self.database.write();
        drop(database.take());
        match open_database(&self.path) {
            Ok(again) => *database = Some(again),
            Err(error) => tracing::error!("{}", broken(&self.path, &error.into())),
        }
    }
}

impl Change<'_> {
    /// The snapshot `name`.
    pub(super) fn get(&self, name: &str) -> Result<Option<Snapshot>> {
        self.told(lookup(self.path, &self.snapshots, name))
    }

    /// The committed snapshot `name`: its number and those of the snapshots below it, topmost first.
    pub(super) fn parent(&self, name: &str) -> Result<Vec<u64>> {
        let Some(parent) = self.get(name)? else { return Err(SnapshotError::NotFound(name.to_owned())) };
        if parent.kind != Kind::Committed {
            return Err(SnapshotError::invalid(format!("parent {name}"), "is not a committed snapshot"));
        }
        self.told(chain(self.path, &self.snapshots, name))
    }

    /// A number that was never used, at least `floor`.
    pub(super) fn next_id(&mut self, floor: u64) -> Result<u64> {
        let id = self.numbers.get("next").map(|found| found.map_or(1, |found| found.value()));
        let id = self.told(id.map_err(Failure::from))?.max(floor);
        let kept = self.numbers.insert("next", id + 1).map(drop);
        self.told(kept.map_err(Failure::from))?;
        Ok(id)
    }

    /// Adds a snapshot above the one with the number `parent`, or replaces the one with the same name. A label with an
    /// empty value is dropped, as in containerd's own store.
    ///
    /// # Errors
    /// `Invalid` if it is too large for a message.
    pub(super) fn put(&mut self, snapshot: &mut Snapshot, parent: Option<u64>) -> Result<()> {
        snapshot.labels.retain(|_, value| !value.is_empty());
        let record = serde_json::to_vec(snapshot)
            .map_err(|error| SnapshotError::invalid(format!("snapshot {}", snapshot.name), error.to_string()))?;
        if snapshot.name.len() + record.len() > LARGEST {
            let reason = "its name and labels take more than 1 MiB";
            return Err(SnapshotError::invalid(format!("snapshot {}", snapshot.name), reason));
        }
        let kept = self.snapshots.insert(snapshot.name.as_str(), record.as_slice()).map(drop);
        self.told(kept.map_err(Failure::from))?;
        if let Some(parent) = parent {
            let kept = self.children.insert((parent, snapshot.id), ()).map(drop);
            self.told(kept.map_err(Failure::from))?;
        }
        Ok(())
    }

    /// Removes the name of a snapshot; the snapshot below still lists its number.
    pub(super) fn forget_name(&mut self, name: &str) -> Result<()> {
        let removed = self.snapshots.remove(name).map(drop);
        self.told(removed.map_err(Failure::from))
    }

    /// Removes a snapshot.
    pub(super) fn remove(&mut self, snapshot: &Snapshot) -> Result<()> {
        if let Some(parent) = self.get(&snapshot.parent)? {
            let removed = self.children.remove((parent.id, snapshot.id)).map(drop);
            self.told(removed.map_err(Failure::from))?;
        }
        self.forget_name(&snapshot.name)
    }

    /// True if the snapshot with the number `id` is a parent.
    pub(super) fn has_children(&self, id: u64) -> Result<bool> {
        let first = self.children.range((id, 0)..=(id, u64::MAX)).map(|mut range| range.next().is_some());
        self.told(first.map_err(Failure::from))
    }

    /// The numbers of all snapshots.
    pub(super) fn ids(&self) -> Result<std::collections::BTreeSet<u64>> {
        let all = || {
            let mut ids = std::collections::BTreeSet::new();
            for entry in self.snapshots.iter()? {
                let (name, record) = entry?;
                ids.insert(decode(self.path, name.value(), record.value())?.id);
            }
            Ok(ids)
        };
        self.told(all())
    }

    fn told<T>(&self, outcome: Result<T, Failure>) -> Result<T> {
        outcome.map_err(|failure| match failure {
            Failure::Refused(refusal) => refusal,
            Failure::Broken(error) => broken(self.path, &error),
        })
    }
}

fn open_database(path: &Path) -> Result<Database, DatabaseError> {
    Database::builder().set_cache_size(CACHE).create(path)
}

fn lookup(
    path: &Path,
    snapshots: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &str,
) -> Result<Option<Snapshot>, Failure> {
    let Some(record) = snapshots.get(name)? else { return Ok(None) };
    decode(path, name, record.value()).map(Some)
}

/// The numbers of the snapshot `name` and of all below it, topmost first.
fn chain(
    path: &Path,
    snapshots: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &str,
) -> Result<Vec<u64>, Failure> {
    let mut ids = Vec::new();
    let mut next = name.to_owned();
    while !next.is_empty() {
        let Some(snapshot) = lookup(path, snapshots, &next)? else {
            return Err(Failure::Refused(SnapshotError::NotFound(next)));
        };
        if ids.contains(&snapshot.id) {
            return Err(Failure::Refused(damaged(path, &next, "is its own parent")));
        }
        ids.push(snapshot.id);
        next = snapshot.parent;
    }
    Ok(ids)
}

fn decode(path: &Path, name: &str, record: &[u8]) -> Result<Snapshot, Failure> {
    match serde_json::from_slice(record) {
        Ok(snapshot) => Ok(Snapshot { name: name.to_owned(), ..snapshot }),
        Err(error) => Err(Failure::Refused(damaged(path, name, &error.to_string()))),
    }
}

fn damaged(path: &Path, name: &str, why: &str) -> SnapshotError {
    SnapshotError::Metadata { path: path.to_owned(), reason: format!("record of snapshot {name}: {why}"), full: false }
}

fn broken(path: &Path, error: &redb::Error) -> SnapshotError {
    let full = matches!(error, redb::Error::Io(error) if is_full(error));
    SnapshotError::Metadata { path: path.to_owned(), reason: reason(error), full }
}

fn reason(error: &redb::Error) -> String {
    match error {
        redb::Error::DatabaseAlreadyOpen => "is used by another process".to_owned(),
        redb::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            "is not a database of snapshots".to_owned()
        }
        redb::Error::Io(error) => error.to_string().split(" (os error").next().unwrap_or_default().to_owned(),
        error => error.to_string(),
    }
}
