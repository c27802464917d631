//! Checkpoints of containers: named states of their files, for going back and for making further containers.
//!
//! A checkpoint moves the container's upper aside as a layer ([`crate::store::checkpoints`]) and gives the container an empty
//! one. Nothing is copied. If the container is mounted, its driver does that between two requests; otherwise this module does it.

mod apart;
mod exclusive;
mod fork;
mod freeze;
mod pivot;
mod rollback;
mod running;
mod stack;
mod tidy;

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, symlinkat};
use rustix::io::Errno;

use super::Container;
use crate::image::files::{make_dir, remove_tree, sync_dir};
use crate::image::time::Timestamp;
use crate::image::{ImageError, IoContext, Result, nearest};
use crate::marks::chain::{Chain, ChainId};
use crate::store::Store;
use crate::store::checkpoints::{CheckpointLayer, mark_of, name_target, names_in};
use crate::union::layer::chain::{chain_namespace, new_id, write_chain};

pub use apart::list_apart;
pub use rollback::Abandoned;
pub use running::{of_mount, share};
pub use stack::OpenStack;
pub use tidy::tidy;

/// A checkpoint of a container.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Its name.
    pub name: String,
    /// Time of creation.
    pub created: Timestamp,
    /// The container's changes at that time, on top of the layer below.
    pub layer: CheckpointLayer,
}

/// Splits `CONTAINER@CHECKPOINT`. No container name contains an `@`.
pub fn split_name(text: &str) -> (&str, Option<&str>) {
    text.split_once('@').map_or((text, None), |(container, checkpoint)| (container, Some(checkpoint)))
}

/// A checkpoint's name follows the same rules as a container's.
fn check_checkpoint_name(name: &str) -> Result<&str> {
    super::check_name(name)
        .map_err(|_| ImageError::malformed(name, "a checkpoint's name is up to 64 letters, digits, '_', '.' and '-'"))
}

impl Container {
    /// Its checkpoints, the oldest first.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn checkpoints(&self, store: &Store) -> Result<Vec<Checkpoint>> {
        let mut found = Vec::new();
        for named in names_in(&self.dir)? {
            if let Some(layer) = store.checkpoint_layer(named.id)? {
                found.push(Checkpoint { name: named.name, created: named.created, layer });
            }
        }
        Ok(found)
    }

    /// Its checkpoint of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn find_checkpoint(&self, store: &Store, name: &str) -> Result<Checkpoint> {
        check_checkpoint_name(name)?;
        let mut all = self.checkpoints(store)?;
        if let Some(at) = all.iter().position(|checkpoint| checkpoint.name == name) {
            return Ok(all.swap_remove(at));
        }
        let near = nearest(name, all.iter().map(|checkpoint| checkpoint.name.as_str()));
        let near = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
        Err(ImageError::refused(format!("{}@{name}", self.name), format!("no such checkpoint{near}")))
    }

    /// The checkpoint layers below its upper, the topmost first.
    ///
    /// # Errors
    /// When one is missing.
    pub fn chain(&self, store: &Store) -> Result<Vec<CheckpointLayer>> {
        if self.record.read_only {
            return Ok(Vec::new());
        }
        let upper = self.open_upper()?;
        let mark = mark_of(upper.as_fd(), &self.upper())?;
        store.chain(mark.and_then(|mark| mark.below)).map_err(|error| match error {
            ImageError::Refused { what, reason } => {
                ImageError::refused(&self.name, format!("{what}, which its changes are based on, {reason}"))
            }
            error => error,
        })
    }

    /// Remembers the container's present files under a name.
    ///
    /// # Errors
    /// When the name is taken or malformed, something else uses the upper, or the disk is full. Nothing has changed on an error.
    pub fn create_checkpoint(&self, store: &Store, name: &str) -> Result<Checkpoint> {
        check_checkpoint_name(name)?;
        let _chains = store.lock_chains()?;
        let _change = self.lock_change()?;
        let layer = self.put_aside(store, Some(name))?;
        Ok(Checkpoint { name: name.to_owned(), created: Timestamp::now(), layer })
    }

    /// Removes a checkpoint. The next [`tidy`] removes its layer, unless another layer depends on it.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn remove_checkpoint(&self, store: &Store, name: &str) -> Result<()> {
        let _chains = store.lock_chains()?;
        let _change = self.lock_change()?;
        self.find_checkpoint(store, name)?;
        self.remove_name(name)
    }

    /// True if the container's removal may leave layers that nothing needs.
    pub(super) fn has_layers(&self) -> bool {
        let stands_on_one = || {
            let upper = self.open_upper()?;
            mark_of(upper.as_fd(), &self.upper()).map(|mark| mark.is_some_and(|mark| mark.below.is_some()))
        };
        names_in(&self.dir).is_ok_and(|names| !names.is_empty()) || stands_on_one().unwrap_or(false)
    }

    fn upper(&self) -> PathBuf {
        self.dir.join("upper")
    }

    fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    fn name_path(&self, name: &str) -> PathBuf {
        self.dir.join("checkpoints").join(name)
    }

    fn remove_name(&self, name: &str) -> Result<()> {
        let path = self.name_path(name);
        std::fs::remove_file(&path).at(&path)?;
        sync_dir(&self.dir.join("checkpoints"))
    }

    /// Turns the upper into a layer. The caller holds the locks of the chains and of the container.
    fn put_aside(&self, store: &Store, name: Option<&str>) -> Result<CheckpointLayer> {
        let mut running = self.running()?;
        let mark = self.own_mark(store)?;
        let next = Chain { id: new_id().at(self.upper())?, below: Some(mark.id) };
        let place = self.reserve(store, mark.id, name)?;
        let done = match &mut running {
            Some(mount) => self.ask_for_checkpoint(mount, &place, &next),
            None => pivot::exchange(self, &self.upper(), &place, &next),
        };
        self.settle(store, mark.id, name, done)
    }

    /// Called after the exchange of the upper succeeded or failed: returns the layer, or restores everything
    /// and returns the error.
    fn settle(&self, store: &Store, id: ChainId, name: Option<&str>, done: Result<()>) -> Result<CheckpointLayer> {
        let layer = store.checkpoint_layer(id)?;
        match (done, layer) {
            (Ok(()), Some(layer)) => Ok(layer),
            (Ok(()), None) => {
                Err(ImageError::refused(&self.name, "its driver says that it made a checkpoint, but has not"))
            }
            // The exchange happened, but may not be on the disk.
            (Err(error), Some(_)) => Err(error),
            (Err(error), None) => {
                self.give_up(store, id, name);
                Err(error)
            }
        }
    }

    /// Undoes [`reserve`](Self::reserve).
    fn give_up(&self, store: &Store, id: ChainId, name: Option<&str>) {
        let named = name.map_or(Ok(()), |name| self.remove_name(name));
        if let Err(error) = named.and_then(|()| remove_tree(&store.checkpoint_entry(id))) {
            tracing::debug!("left to gc: {error}");
        }
    }

    /// The mark of the upper; an upper without one gets one.
    fn own_mark(&self, store: &Store) -> Result<Chain> {
        let (upper, path) = (self.open_upper()?, self.upper());
        let mark = match mark_of(upper.as_fd(), &path)? {
            Some(mark) => mark,
            None => {
                let mark = Chain { id: new_id().at(&path)?, below: None };
                let namespace = chain_namespace(upper.as_fd()).at(&path)?;
                write_chain(upper.as_fd(), namespace, &mark).at(&path)?;
                rustix::fs::fsync(&upper).at(&path)?;
                mark
            }
        };
        match store.checkpoint_layer(mark.id)? {
            Some(_) => Err(ImageError::refused(&self.name, "its upper is a copy of a checkpoint layer")),
            None => Ok(mark),
        }
    }

    /// Makes the place of the future layer, and its name. Neither has an effect before the layer is there.
    /// Leftovers of an interrupted checkpoint are removed.
    fn reserve(&self, store: &Store, id: ChainId, name: Option<&str>) -> Result<PathBuf> {
        for stale in names_in(&self.dir)?.into_iter().filter(|named| named.id == id) {
            self.remove_name(&stale.name)?;
        }
        let entry = store.checkpoint_entry(id);
        remove_tree(&entry)?;
        if let Some(name) = name {
            let (dir, path) = (self.dir.join("checkpoints"), self.name_path(name));
            make_dir(&dir, 0o700)?;
            match symlinkat(name_target(id), CWD, &path) {
                Ok(()) => {}
                Err(Errno::EXIST) => {
                    let reason = "there is a checkpoint of that name already";
                    return Err(ImageError::refused(format!("{}@{name}", self.name), reason));
                }
                Err(error) => return Err(error).at(&path),
            }
            sync_dir(&dir)?;
        }
        if let Err(error) = make_dir(&entry, 0o700).and_then(|()| sync_dir(&store.checkpoints())) {
            self.give_up(store, id, name);
            return Err(error);
        }
        Ok(entry.join("layer"))
    }
}

/// Sets the mark of a new container's upper. On a file system without attributes there are no marks, and no checkpoints.
pub(super) fn mark_new_upper(upper: &Path) -> Result<()> {
    let dir = crate::image::files::open_dir(upper)?;
    let chain = Chain { id: new_id().at(upper)?, below: None };
    let marked = chain_namespace(dir.as_fd()).and_then(|namespace| write_chain(dir.as_fd(), namespace, &chain));
    match marked {
        Err(Errno::OPNOTSUPP | Errno::PERM) => Ok(()),
        marked => marked.at(upper),
    }
}

/// True if a file or directory does not exist.
fn is_missing(error: &ImageError) -> bool {
    matches!(error, ImageError::Io { source, .. } if source.kind() == ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(split_name("web"), ("web", None));
        assert_eq!(split_name("web@a@b"), ("web", Some("a@b")));
        for bad in ["", ".", "..", "../x", "a/b", "-x", "a@b", "a:b", "a\n", &"x".repeat(65)] {
            assert!(check_checkpoint_name(bad).is_err(), "{bad}");
        }
        assert!(check_checkpoint_name("before-upgrade_1.2").is_ok());
    }
}
