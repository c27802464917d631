//! Named volumes: directories of the store that containers share. They outlive the containers.
//!
//! ```text
//! volumes/NAME/      volume.json    a [`NamedVolume`]'s creation time and labels
//!                    _data/         what is mounted
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use rustix::fs::{CWD, FlockOperation, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::Container;
use super::locks::{ChangeLock, lock_existing};
use super::naming::check_name;
use crate::image::files::{make_dir, remove_tree, sync_dir};
use crate::image::time::Timestamp;
use crate::image::{ImageError, IoContext, Result, spec};
use crate::store::Store;

/// `volume.json`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    created: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// A named volume.
#[derive(Clone, Debug)]
pub struct NamedVolume {
    /// Its name.
    pub name: String,
    /// Time of creation, in RFC 3339.
    pub created: String,
    /// The user's labels.
    pub labels: BTreeMap<String, String>,
    /// The directory that is mounted.
    pub mountpoint: PathBuf,
}

fn dir_of(store: &Store, name: &str) -> Result<PathBuf> {
    check_name(name).map_err(|_| {
        ImageError::malformed(
            name,
            "no name of a volume (letters, digits, '_', '.', '-'); a directory begins with / or ./",
        )
    })?;
    Ok(store.root().join("volumes").join(name))
}

impl NamedVolume {
    /// The volume with this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(store: &Store, name: &str) -> Result<Self> {
        Self::find(store, name)?.ok_or_else(|| ImageError::refused(name, "no such volume"))
    }

    fn find(store: &Store, name: &str) -> Result<Option<Self>> {
        let dir = dir_of(store, name)?;
        let path = dir.join("volume.json");
        match fs::read(&path) {
            Ok(bytes) => {
                let record: Record = spec::parse(&path.display().to_string(), &bytes)?;
                let Record { created, labels } = record;
                Ok(Some(Self { name: name.to_owned(), created, labels, mountpoint: dir.join("_data") }))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).at(path),
        }
    }

    /// Makes a volume; if one with this name exists, returns it.
    ///
    /// # Errors
    /// When the name is malformed or the directory cannot be made.
    pub fn create(store: &Store, name: &str, labels: &BTreeMap<String, String>) -> Result<Self> {
        let dir = dir_of(store, name)?;
        let _lock = store.lock_shared()?;
        let (parent, tmp) = (store.root().join("volumes"), store.root().join("tmp"));
        make_dir(&parent, 0o700)?;
        let stage = tempfile::Builder::new().prefix("volume-").tempdir_in(&tmp).at(&tmp)?;
        make_dir(&stage.path().join("_data"), 0o755)?;
        let record = Record { created: Timestamp::now().to_string(), labels: labels.clone() };
        let path = stage.path().join("volume.json");
        fs::write(&path, spec::serialize("volume.json", &record)?).at(&path)?;
        sync_dir(stage.path())?;
        loop {
            match renameat_with(CWD, stage.path(), CWD, &dir, RenameFlags::NOREPLACE) {
                Ok(()) => {
                    drop(stage.keep());
                    sync_dir(&parent)?;
                    return Self::open(store, name);
                }
                Err(Errno::EXIST) => {
                    if let Some(volume) = Self::find(store, name)? {
                        return Ok(volume);
                    }
                    // It was removed meanwhile.
                }
                Err(error) => return Err(error).at(&dir),
            }
        }
    }

    /// As [`create`](Self::create), and keeps the volume from being removed until a container that uses it exists.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn hold(store: &Store, name: &str) -> Result<(Self, ChangeLock)> {
        loop {
            let volume = Self::create(store, name, &BTreeMap::new())?;
            if let Some(lock) = lock_existing(&dir_of(store, name)?, FlockOperation::LockShared)? {
                return Ok((volume, lock));
            }
        }
    }

    /// Makes a volume with a generated name.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_unnamed(store: &Store) -> Result<Self> {
        Self::create(store, &super::naming::new_id()?, &BTreeMap::new())
    }

    /// All volumes, by name.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(store: &Store) -> Result<Vec<Self>> {
        let parent = store.root().join("volumes");
        let entries = match fs::read_dir(&parent) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.at(&parent)?,
        };
        let mut volumes = Vec::new();
        for entry in entries {
            let Ok(name) = entry.at(&parent)?.file_name().into_string() else { continue };
            volumes.extend(Self::open(store, &name));
        }
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    /// Names of the containers that it is mounted in.
    ///
    /// # Errors
    /// When the containers cannot be listed.
    pub fn users(&self, store: &Store) -> Result<Vec<String>> {
        let uses = |container: &Container| {
            let mut volumes = container.record.options.volumes.iter();
            volumes.any(|volume| volume.volume.as_ref() == Some(&self.name))
        };
        Ok(Container::list(store)?.containers.iter().filter(|one| uses(one)).map(|one| one.name().to_owned()).collect())
    }

    /// Removes it with everything in it.
    ///
    /// # Errors
    /// When a container uses it.
    pub fn remove(self, store: &Store) -> Result<()> {
        let (dir, tmp) = (dir_of(store, &self.name)?, store.root().join("tmp"));
        // A container that is being made holds it.
        let _held = lock_existing(&dir, FlockOperation::LockExclusive)?
            .ok_or_else(|| ImageError::refused(&self.name, "no such volume"))?;
        if let Some(user) = self.users(store)?.first() {
            return Err(ImageError::refused(self.name, format!("container {user} uses it; remove that first")));
        }
        let _lock = store.lock_shared()?;
        let doomed = tempfile::Builder::new().prefix("removed-").tempdir_in(&tmp).at(&tmp)?;
        let inside = doomed.path().join("volume");
        fs::rename(&dir, &inside).at(&dir)?;
        remove_tree(&inside)
    }
}
