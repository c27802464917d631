//! Containers whose record is unusable: they can be named, set aside and removed, but not used.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};

use super::bundle::RunOptions;
use super::mount::mounts_below;
use super::naming::check_name;
use super::{Container, Driver, Record, State};
use crate::image::digest::Digest;
use crate::image::files::remove_tree;
use crate::image::{ImageError, IoContext, Result, spec};
use crate::store::Store;

/// A container that was damaged.
#[derive(Debug)]
pub struct Damaged {
    /// Its name.
    pub name: String,
    /// What is wrong with it.
    pub reason: ImageError,
}

impl Container {
    /// The container of this name without its damaged record: enough to kill its processes and to remove it.
    ///
    /// # Errors
    /// When there is none.
    pub fn without_record(store: &Store, name: &str) -> Result<Self> {
        let dir = store.containers().join(check_name(name)?);
        if !is_there(&dir) {
            return Err(ImageError::NoSuchContainer { name: name.to_owned(), near: None });
        }
        let unknown = Digest::from_bytes([0; 32]);
        let state: State = fs::read(dir.join("state.json"))
            .ok()
            .and_then(|bytes| spec::parse("state.json", &bytes).ok())
            .unwrap_or_default();
        let record = Record {
            id: state.id,
            image: unknown,
            image_name: String::new(),
            layers: Vec::new(),
            blobs: Vec::new(),
            created: String::new(),
            driver: Driver::default(),
            read_only: false,
            mountpoint: dir.join("merged"),
            command: Vec::new(),
            remove_at_exit: false,
            rootless: false,
            stubs: Vec::new(),
            options: RunOptions::default(),
            runtime: None,
        };
        Ok(Self { name: name.to_owned(), dir, record })
    }

    /// Removes everything in the container's place. A mount there is unmounted first, even if it is in use.
    ///
    /// # Errors
    /// When it cannot be unmounted or removed.
    pub fn remove_damaged(self, store: &Store) -> Result<()> {
        for mountpoint in mounts_below(&self.dir)? {
            unmount(&mountpoint, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).at(&mountpoint)?;
        }
        discard(store, &self.dir)
    }
}

/// True if there is anything at `path`.
pub(super) fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Removes a container's directory so that its name is free at once.
pub(super) fn discard(store: &Store, dir: &Path) -> Result<()> {
    // A writer that holds the store alone empties `tmp`, which must not happen while this one works.
    let _lock = store.lock_shared()?;
    let tmp = store.root().join("tmp");
    let doomed = tempfile::Builder::new().prefix("removed-").tempdir_in(&tmp).at(&tmp)?;
    let inside: PathBuf = doomed.path().join("container");
    fs::rename(dir, &inside).at(dir)?;
    remove_tree(&inside)
}
