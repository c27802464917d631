//! Back to a checkpoint.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;

use super::super::Container;
use super::{Checkpoint, check_checkpoint_name, pivot};
use crate::image::files::remove_tree;
use crate::image::{ImageError, IoContext, Result};
use crate::marks::chain::Chain;
use crate::store::checkpoints::CheckpointLayer;
use crate::store::{Store, open_topmost_first};
use crate::union::layer::chain::new_id;
use crate::union::view::{Entry, View};

/// The abandoned state after a rollback that keeps nothing. It is still on the disk.
#[derive(Debug)]
#[must_use]
pub struct Abandoned(PathBuf);

impl Abandoned {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Removes it; the time depends on the number of files.
    ///
    /// # Errors
    /// When a file cannot be removed. The next command that writes to the store removes the rest.
    pub fn remove(self) -> Result<()> {
        remove_tree(&self.0)
    }
}

impl Container {
    /// Makes the container's files those of a checkpoint again. The present files are kept under the name `keep`, or abandoned.
    ///
    /// # Errors
    /// When there is no such checkpoint, `keep` is taken or malformed, something else uses the upper, or the disk is full.
    /// Nothing has changed on an error.
    pub fn rollback(&self, store: &Store, name: &str, keep: Option<&str>) -> Result<Option<Abandoned>> {
        keep.map_or(Ok(""), check_checkpoint_name)?;
        // A writer that holds the store alone empties `tmp`, which must not happen while this one works.
        let _store = store.lock_shared()?;
        let _chains = store.lock_chains()?;
        let _change = self.lock_change()?;
        let target = self.find_checkpoint(store, name)?;
        let mut running = self.running()?;
        let mark = self.own_mark(store)?;
        let next = Chain { id: new_id().at(self.upper())?, below: Some(target.layer.id) };
        if running.is_some() {
            self.check_mount_points(store, &target)?;
        }
        // The mount leaves an upper behind in any case: files that are open for writing are in it.
        let stage = match keep.is_none() || running.is_some() {
            true => {
                let tmp = store.root().join("tmp");
                Some(tempfile::Builder::new().prefix("abandoned-").tempdir_in(&tmp).at(&tmp)?)
            }
            false => None,
        };
        let kept = keep.map(|_| self.reserve(store, mark.id, keep)).transpose()?;
        let abandoned = stage.as_ref().map(|stage| stage.path().join("upper"));
        let done = match (&mut running, &abandoned, &kept) {
            (Some(mount), Some(place), kept) => self.ask_to_switch(store, mount, place, &next, kept.as_deref()),
            (_, Some(place), _) | (_, None, Some(place)) => pivot::exchange(self, &target.layer.dir(), place, &next),
            (_, None, None) => Ok(()),
        };
        match keep {
            Some(_) => drop(self.settle(store, mark.id, keep, done)?),
            None => done?,
        }
        Ok(stage.map(|stage| Abandoned(stage.keep())))
    }

    /// Refuses a checkpoint that lacks a path on which the running container has a mount: the mount would be lost.
    fn check_mount_points(&self, store: &Store, target: &Checkpoint) -> Result<()> {
        if self.record.stubs.is_empty() {
            return Ok(());
        }
        let mut layers =
            store.chain(Some(target.layer.id))?.iter().map(CheckpointLayer::open).collect::<Result<Vec<_>>>()?;
        layers.extend(open_topmost_first(&self.layers(store)?)?);
        let layers: Vec<_> = layers.iter().map(AsFd::as_fd).collect();
        let view = View::new(&layers, false).at(target.layer.dir())?;
        for stub in &self.record.stubs {
            if !has(&view, stub).at(target.layer.dir())? {
                let reason =
                    format!("has no {}, where the running container has a mount; stop it first", stub.display());
                return Err(ImageError::refused(format!("{}@{}", self.name, target.name), reason));
            }
        }
        Ok(())
    }
}

/// True if there is something at `path`.
fn has(view: &View, path: &Path) -> std::result::Result<bool, Errno> {
    let mut parts = view.root()?;
    for component in path.components().filter(|component| matches!(component, Component::Normal(_))) {
        let name = CString::new(component.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
        match view.lookup(&parts, &name)? {
            Some(Entry::Directory(found)) => parts = found,
            Some(Entry::Other(_)) => return Ok(true),
            None => return Ok(false),
        }
    }
    Ok(true)
}
