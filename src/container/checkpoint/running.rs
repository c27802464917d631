//! Checkpoints of mounted containers: requests to their drivers.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::super::{Container, Driver};
use super::freeze;
use crate::control::{Client, Request, text};
use crate::image::{ImageError, IoContext, Result};
use crate::marks::chain::{Chain, ChainId};
use crate::store::Store;
use crate::store::checkpoints::CheckpointLayer;
use crate::union::layer::chain::new_id;

/// Paths in the form that requests use.
fn texts(paths: &[PathBuf]) -> Result<Vec<String>> {
    paths.iter().map(|path| text(path).at(path)).collect()
}

impl Container {
    /// The driver of its mount; `None` if it is not mounted.
    ///
    /// # Errors
    /// When it is mounted by something that takes no requests.
    pub(super) fn running(&self) -> Result<Option<Client>> {
        let refused = |reason: &str| Err(ImageError::refused(&self.name, reason));
        if self.record.driver == Driver::Stratafs {
            match Client::connect(&self.work()) {
                Ok(client) => return Ok(Some(client)),
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {}
                Err(error) => return Err(error).at(self.work().join(crate::control::SOCKET)),
            }
        }
        if !(self.is_mounted()? || self.record.rootless && self.holder()?.is_some()) {
            return Ok(None);
        }
        match self.record.driver {
            Driver::Overlay => refused("is mounted by overlayfs, whose layers cannot change; unmount or stop it first"),
            Driver::Stratafs => refused("its driver takes no requests; unmount it first, and mount it again"),
        }
    }

    /// Asks the driver to have the kernel write back this container's changes. False if no driver of the mount takes the request.
    pub(in crate::container) fn write_back(&self) -> Result<bool> {
        if self.record.driver != Driver::Stratafs {
            return Ok(false);
        }
        let Ok(mut mount) = Client::connect(&self.work()) else { return Ok(false) };
        // Drivers of earlier versions do not know the request.
        Ok(mount.ask(&Request::WriteBack).is_ok())
    }

    fn told(&self, error: &std::io::Error) -> ImageError {
        ImageError::refused(&self.name, error.to_string())
    }

    /// Asks the driver to turn its upper into a layer at `place`.
    pub(super) fn ask_for_checkpoint(&self, mount: &mut Client, place: &Path, next: &Chain) -> Result<()> {
        let request = Request::Checkpoint { place: text(place).at(place)?, id: next.id.to_string(), sync: true };
        let state = mount.ask(&Request::State).map_err(|error| self.told(&error))?;
        // Only the contents of files that are open for writing are copied, and only they can change in the meantime.
        let _frozen = (state.writers != Some(0)).then(|| freeze::freeze(self)).flatten();
        mount.ask(&request).map(drop).map_err(|error| self.told(&error))
    }

    /// Asks the driver to use the layer below `next`, with an empty upper. The old upper becomes a layer at `kept`, or goes to
    /// `place`; then `place` holds an upper that is not needed.
    pub(super) fn ask_to_switch(
        &self,
        store: &Store,
        mount: &mut Client,
        place: &Path,
        next: &Chain,
        kept: Option<&Path>,
    ) -> Result<()> {
        let lowers = texts(&self.lower_dirs(store, &store.chain(next.below)?)?)?;
        let keep = match kept {
            Some(kept) => Some((text(kept).at(kept)?, new_id().at(kept)?.to_string())),
            None => None,
        };
        let state = mount.ask(&Request::State).map_err(|error| self.told(&error))?;
        // As for a checkpoint: files that are open for writing are copied into what is kept.
        let _frozen = (kept.is_some() && state.writers != Some(0)).then(|| freeze::freeze(self)).flatten();
        let request = Request::Switch { place: text(place).at(place)?, id: next.id.to_string(), lowers, keep };
        mount.ask(&request).map(drop).map_err(|error| self.told(&error))
    }
}

/// The mounted containers that use one of these layers, each with its driver if that takes requests.
pub(super) fn users_of(store: &Store, layers: &HashSet<ChainId>) -> Result<Vec<(Container, Option<Client>)>> {
    let mut users = Vec::new();
    for container in Container::list(store)?.containers {
        let uses = |layer: &CheckpointLayer| layers.contains(&layer.id);
        if container.record.read_only || !container.chain(store).is_ok_and(|chain| chain.iter().any(uses)) {
            continue;
        }
        match container.running() {
            Ok(None) => {}
            Ok(Some(client)) => users.push((container, Some(client))),
            Err(ImageError::Refused { .. }) => users.push((container, None)),
            Err(error) => return Err(error),
        }
    }
    Ok(users)
}

/// Tells the mounts that use these layers that others will use them too. From then on, no mount may change a file in them, not
/// even by replacing it with a copy.
///
/// # Errors
/// When a mount cannot comply.
pub fn share(store: &Store, layers: &[CheckpointLayer]) -> Result<()> {
    let ids = layers.iter().map(|layer| layer.id).collect();
    let dirs: Vec<PathBuf> = layers.iter().map(CheckpointLayer::dir).collect();
    for (container, client) in users_of(store, &ids)? {
        // A mount that takes no requests has had these layers from its start, and never writes to such layers.
        let Some(mut client) = client else { continue };
        client.ask(&Request::Share { layers: texts(&dirs)? }).map_err(|error| container.told(&error))?;
    }
    Ok(())
}

/// Asks the mounts that have the layer `merged` to use the merged one. A mount that cannot goes on with the layers as they were.
///
/// # Errors
/// Returns an error if the containers cannot be listed.
pub(super) fn use_merged(store: &Store, merged: ChainId) -> Result<()> {
    let _chains = store.lock_chains()?;
    for (container, client) in users_of(store, &HashSet::from([merged]))? {
        let Some(mut client) = client else { continue };
        let _change = container.lock_change()?;
        let lowers = container.chain(store).and_then(|chain| texts(&container.lower_dirs(store, &chain)?));
        let asked = lowers.and_then(|lowers| {
            client.ask(&Request::Merged { lowers }).map(drop).map_err(|error| container.told(&error))
        });
        if let Err(error) = asked {
            tracing::debug!("the layers of a mount stay as they were: {error}");
        }
    }
    Ok(())
}

/// Turns the upper of a mount that belongs to no store into a layer. Returns the mount's new layers, the topmost first.
///
/// # Errors
/// When nothing answers in the work directory, or the driver reports failure.
pub fn of_mount(work: &Path, dir: &Path) -> Result<Vec<PathBuf>> {
    let name = || dir.display().to_string();
    if std::fs::symlink_metadata(dir).is_ok() {
        return Err(ImageError::refused(name(), "exists already; give the name of a new directory"));
    }
    let mut mount = Client::connect(work).at(work.join(crate::control::SOCKET))?;
    let id = new_id().at(dir)?.to_string();
    let told = |error: std::io::Error| ImageError::refused(name(), error.to_string());
    mount.ask(&Request::Checkpoint { place: text(dir).at(dir)?, id, sync: true }).map_err(told)?;
    let state = mount.ask(&Request::State).map_err(told)?;
    Ok(state.lowers.iter().map(|lower| crate::control::path(&lower.path)).collect())
}
