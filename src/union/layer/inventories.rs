//! Selects layers that get an inventory while they are mounted, for the next mount.
//!
//! If a file is changed in place, the inventory does not show it until the file is opened. So without being asked, the
//! driver makes inventories only for layers that no program changes: those in the store of a container engine.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::config::{Inventories, OverlayConfig};
use crate::inventory::{self, Inventory};
use crate::union::layer::LayerStack;

impl LayerStack {
    /// The layers that get an inventory, lowest first, because most stacks share the lowest.
    pub(crate) fn without_inventory(&self, config: &OverlayConfig) -> Vec<PathBuf> {
        if config.timeout.is_some() || matches!(config.inventory, Inventories::Off | Inventories::Use) {
            return Vec::new();
        }
        let missing = self.lowers().iter().rev().filter(|layer| layer.inventory().is_none());
        let paths = missing.filter_map(|layer| layer.path.canonicalize().ok());
        paths.filter(|path| config.inventory == Inventories::Make || is_of_engine(path)).collect()
    }
}

/// True if `layer` is the directory of a layer in the store of a container engine:
/// - `overlay/ID/diff` of containers/storage (podman, buildah, CRI-O), `overlay2/ID/diff` and `fuse-overlayfs/ID/diff` of
///   Docker: beside it is a file `link` with the layer's short name;
/// - `snapshots/N/fs` of containerd's snapshotters: beside `snapshots` is `metadata.db`.
fn is_of_engine(layer: &Path) -> bool {
    let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).map(str::to_owned).unwrap_or_default();
    let Some(own) = layer.parent() else { return false };
    let Some(all) = own.parent() else { return false };
    let id = name(own);
    match name(layer).as_str() {
        "diff" => {
            let known = ["overlay", "overlay2", "fuse-overlayfs"].contains(&name(all).as_str());
            let is_id = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
            known && is_id && own.join("link").is_file()
        }
        "fs" => {
            let is_id = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit());
            let beside = all.parent().is_some_and(|store| store.join("metadata.db").is_file());
            is_id && name(all) == "snapshots" && beside
        }
        _ => false,
    }
}

/// Makes the inventory of `layer`, unless the layer has one by now or another process is making it. `wanted` is asked
/// between directories, and ends the work if it returns false. Returns true if an inventory was made.
///
/// # Errors
/// The layer cannot be read, or the file cannot be written beside it.
pub(crate) fn make_inventory(layer: &Path, wanted: &dyn Fn() -> bool) -> io::Result<bool> {
    let Some(beside) = layer.parent() else { return Ok(false) };
    let lock = fs::File::open(beside)?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
        Err(errno) => return Err(errno.into()),
    }
    let root = rustix::fs::open(layer, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    if Inventory::open(root.as_fd(), layer).is_ok() {
        return Ok(false);
    }
    Ok(inventory::write_while(layer, wanted)?.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_of_engines_are_known_by_their_place() {
        let top = tempfile::tempdir().expect("in a temporary directory");
        let id = "0123456789abcdef".repeat(4);
        let place = |layer: &str, beside: &str| {
            let layer = top.path().join(layer);
            fs::create_dir_all(&layer).expect("in a temporary directory");
            if !beside.is_empty() {
                fs::write(top.path().join(beside), "").expect("in a temporary directory");
            }
            layer
        };
        let table = [
            (format!("storage/overlay/{id}/diff"), format!("storage/overlay/{id}/link"), true),
            (format!("docker/overlay2/{id}/diff"), format!("docker/overlay2/{id}/link"), true),
            (format!("docker/fuse-overlayfs/{id}/diff"), format!("docker/fuse-overlayfs/{id}/link"), true),
            ("containerd/snapshots/12/fs".to_owned(), "containerd/metadata.db".to_owned(), true),
            (format!("a/overlay/{id}/diff"), String::new(), false),
            (format!("b/other/{id}/diff"), format!("b/other/{id}/link"), false),
            ("c/overlay/mine/diff".to_owned(), "c/overlay/mine/link".to_owned(), false),
            ("d/snapshots/12/fs".to_owned(), String::new(), false),
            ("e/snapshots/old/fs".to_owned(), "e/metadata.db".to_owned(), false),
            ("lower".to_owned(), String::new(), false),
        ];
        for (layer, beside, expected) in table {
            assert_eq!(is_of_engine(&place(&layer, &beside)), expected, "{layer}");
        }
    }

    #[test]
    fn work_that_nobody_wants_leaves_nothing() {
        let top = tempfile::tempdir().expect("in a temporary directory");
        let layer = top.path().join("layer");
        fs::create_dir_all(layer.join("a/b")).expect("in a temporary directory");
        assert!(!make_inventory(&layer, &|| false).expect("in a temporary directory"));
        assert_eq!(fs::read_dir(top.path()).expect("in a temporary directory").count(), 1);
        assert!(make_inventory(&layer, &|| true).expect("in a temporary directory"));
        assert_eq!(fs::read_dir(top.path()).expect("in a temporary directory").count(), 2);
        assert!(!make_inventory(&layer, &|| true).expect("in a temporary directory"), "it has one");
        fs::create_dir(layer.join("c")).expect("in a temporary directory");
        assert!(make_inventory(&layer, &|| true).expect("in a temporary directory"), "the layer has changed");
    }
}
