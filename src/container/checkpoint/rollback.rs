//! Back to a checkpoint.

use std::path::{Path, PathBuf};

use super::super::Container;
use super::{check_checkpoint_name, pivot};
use crate::image::files::remove_tree;
use crate::image::{IoContext, Result};
use crate::marks::chain::Chain;
use crate::store::Store;
use crate::union::layer::chain::new_id;

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
        let (place, stage) = match keep {
            Some(_) => (self.reserve(store, mark.id, keep)?, None),
            None => {
                let tmp = store.root().join("tmp");
                let stage = tempfile::Builder::new().prefix("abandoned-").tempdir_in(&tmp).at(&tmp)?;
                (stage.path().join("upper"), Some(stage))
            }
        };
        let done = match &mut running {
            Some(mount) => self.ask_to_switch(store, mount, &place, &next),
            None => pivot::exchange(self, &target.layer.dir(), &place, &next),
        };
        match stage {
            None => self.settle(store, mark.id, keep, done).map(|_| None),
            Some(stage) => done.map(|()| Some(Abandoned(stage.keep()))),
        }
    }
}
