//! Forks: a new container that begins with the files that another one has, or had.

use std::fs;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::super::{Container, Record, check_name, naming, prepare, write_record};
use super::pivot::mark_root;
use crate::image::files::{open_dir, sync_dir};
use crate::image::time::Timestamp;
use crate::image::{ImageError, IoContext, Result};
use crate::marks::chain::Chain;
use crate::store::Store;
use crate::union::layer::chain::new_id;

impl Container {
    /// Makes the container `name` with the files that this one has at a checkpoint, or now if there is none. Both use the
    /// same layers. The new one is not mounted.
    ///
    /// # Errors
    /// When there is no such checkpoint, or the name is taken or malformed.
    pub fn fork(&self, store: &Store, checkpoint: Option<&str>, name: &str) -> Result<Self> {
        let dir = store.containers().join(check_name(name)?);
        let taken = || ImageError::refused(name, "there is a container of that name already");
        if fs::symlink_metadata(&dir).is_ok() {
            return Err(taken());
        }
        let _store = store.lock_shared()?;
        let _chains = store.lock_chains()?;
        let layer = match checkpoint {
            Some(checkpoint) => self.find_checkpoint(store, checkpoint)?.layer,
            None => {
                let _change = self.lock_change()?;
                self.put_aside(store, None)?
            }
        };
        super::running::share(store, &store.chain(Some(layer.id))?)?;
        let tmp = store.root().join("tmp");
        let stage = tempfile::Builder::new().prefix("container-").tempdir_in(&tmp).at(&tmp)?;
        prepare(stage.path(), None)?;
        let upper = stage.path().join("upper");
        let chain = Chain { id: new_id().at(&upper)?, below: Some(layer.id) };
        mark_root(&layer.open()?, &open_dir(&upper)?, &chain).at(&upper)?;
        let record = Record {
            id: naming::new_id()?,
            created: Timestamp::now().to_string(),
            mountpoint: dir.join("merged"),
            remove_at_exit: false,
            ..self.record.clone()
        };
        write_record(stage.path(), &record)?;
        match renameat_with(CWD, stage.path(), CWD, &dir, RenameFlags::NOREPLACE) {
            Ok(()) => drop(stage.keep()),
            Err(Errno::EXIST) => return Err(taken()),
            Err(error) => return Err(error).at(dir),
        }
        sync_dir(&store.containers())?;
        Ok(Self { name: name.to_owned(), dir, record })
    }
}
