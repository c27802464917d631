//! Long work in a background process.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use crate::image::Result;
use crate::image::files::{open_dir, remove_tree};
use crate::inventory;
use crate::store::checkpoints::CheckpointLayer;
use crate::sys::fork::fork_apart;

use super::Abandoned;

impl Abandoned {
    /// Removes it in a background process, or at once if none can be started.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn remove_apart(self) -> Result<()> {
        let begun = open_dir(self.path()).map(|dir| fork_apart(dir, remove_dir));
        match begun {
            Ok(Ok(())) => Ok(()),
            _ => self.remove(),
        }
    }
}

/// Makes the inventory of a new layer in a background process, so that the next mount finds names in it faster. Best
/// effort: the layer works without.
pub fn list_apart(layer: &CheckpointLayer) {
    match layer.open().map(|dir| fork_apart(dir, list_dir)) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("no inventory: {error}"),
        Err(error) => tracing::debug!("no inventory: {error}"),
    }
}

/// Where an open directory is.
fn path_of(dir: &OwnedFd) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd())).ok()
}

fn remove_dir(dir: OwnedFd) -> ! {
    let removed = path_of(&dir).is_some_and(|path| remove_tree(&path).is_ok());
    std::process::exit(i32::from(!removed))
}

fn list_dir(dir: OwnedFd) -> ! {
    // Everything else has priority.
    let gentle = rustix::process::nice(19).is_ok();
    let listed = path_of(&dir).is_some_and(|path| inventory::write(&path).is_ok());
    std::process::exit(i32::from(!(gentle && listed)))
}
