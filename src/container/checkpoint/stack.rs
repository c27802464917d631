//! The directories of a container, opened for reading.

use std::os::fd::OwnedFd;

use super::super::{ChangeLock, Container};
use crate::image::Result;
use crate::image::snapshot::XattrPermissions;
use crate::store::checkpoints::CheckpointLayer;
use crate::store::{Store, StoreLock, open_topmost_first};

/// The directories of a container, now or at a checkpoint. As long as this exists, none of them is merged, removed or unmounted.
#[derive(Debug)]
pub struct OpenStack {
    /// The changed part: the upper and checkpoint layers, the topmost first.
    pub changed: Vec<OwnedFd>,
    /// The checkpoint layers among these.
    pub layers: Vec<CheckpointLayer>,
    /// The layers of its image, the topmost first.
    pub image: Vec<OwnedFd>,
    /// Where all of them store owner, mode and type of files.
    pub permissions: XattrPermissions,
    _chains: Option<StoreLock>,
    _change: Option<ChangeLock>,
}

impl OpenStack {
    /// All directories, the topmost first.
    pub fn all(&self) -> impl Iterator<Item = &OwnedFd> {
        self.changed.iter().chain(&self.image)
    }
}

impl Container {
    /// Opens its directories, or those of a checkpoint. First has the kernel write back its changes.
    ///
    /// # Errors
    /// When a layer is missing, or there is no such checkpoint.
    pub fn open_stack(&self, store: &Store, checkpoint: Option<&str>) -> Result<OpenStack> {
        let chains = store.lock_chains_if_any()?;
        let (mut changed, mut change) = (Vec::new(), None);
        let chain = match checkpoint {
            Some(name) => store.chain(Some(self.find_checkpoint(store, name)?.layer.id))?,
            None => {
                change = Some(self.lock_for_reading()?);
                self.sync()?;
                if !self.record.read_only {
                    changed.push(self.open_upper()?);
                }
                self.chain(store)?
            }
        };
        for layer in &chain {
            changed.push(CheckpointLayer::open(layer)?);
        }
        let image = open_topmost_first(&self.layers(store)?)?;
        let permissions = self.record.permissions();
        Ok(OpenStack { changed, layers: chain, image, permissions, _chains: chains, _change: change })
    }
}
