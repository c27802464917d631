//! Lower layers on idmapped mounts whose ids are mapped a second time by `uidmapping=`.
//!
//! Storage of podman 4.3 does both: it makes idmapped mounts of the layers, and passes the same mapping to the mount program. The
//! files below are reached through another mount of the same file system then.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::config::OverlayConfig;
use crate::config::ids::shown;
use crate::confined::{Stat, mountinfo};

/// The same directory as the layer `path`, on a mount without mapped ids, if the layer's mount maps its owner and group as
/// the options do.
pub(super) fn unmapped(config: &OverlayConfig, path: &Path) -> Option<PathBuf> {
    if config.uid_mapping.is_empty() && config.gid_mapping.is_empty() {
        return None;
    }
    let layer = open(path)?;
    let mapped = Stat::of(layer.as_fd(), c"").ok()?;
    let table = fs::read(mountinfo::OWN).ok()?;
    let mount = mountinfo::parse(&table).find(|mount| mount.id == mapped.mount).filter(is_idmapped)?;
    let inside = mount.root.join(path.canonicalize().ok()?.strip_prefix(&mount.point).ok()?);
    let others = mountinfo::parse(&table).filter(|other| other.device == mount.device && !is_idmapped(other));
    let found =
        others.filter_map(|other| Some(other.point.join(inside.strip_prefix(&other.root).ok()?))).find(|other| {
            let stat = open(other).and_then(|dir| Stat::of(dir.as_fd(), c"").ok());
            stat.is_some_and(|stat| {
                let owner = (shown(&config.uid_mapping, stat.uid), shown(&config.gid_mapping, stat.gid));
                stat.id() == mapped.id() && owner == (mapped.uid, mapped.gid)
            })
        });
    if found.is_none() {
        tracing::warn!("lower layer {}: its mount maps ids, and the options map them again", path.display());
    }
    found
}

fn is_idmapped(mount: &mountinfo::MountEntry) -> bool {
    mount.flags.split(|&byte| byte == b',').any(|flag| flag == b"idmapped")
}

fn open(path: &Path) -> Option<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()
}
