//! Which directories of a mount lie inside others.
//!
//! As in the kernel (`ovl_check_overlapping_layers`), a lower layer must not lie inside the upper or the work directory:
//! every change there would change a read-only layer. The reverse is allowed since Linux 5.13: an upper on the root file
//! system may lie below the lower layer `/`. It cannot be reached through the lower layer: looking up the upper or the
//! work directory there fails with ELOOP (kernel: `ovl_lookup_trap_inode`).

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use crate::config::OverlayConfig;
use crate::confined::{Device, mountinfo};
use crate::union::layer::{Dir, FileId, OpenError, describe, open_root};

/// Directories that a walk through the lower layers must not enter.
#[derive(Debug, Default)]
pub(super) struct Traps {
    /// The upper and the work directory.
    forbidden: Vec<FileId>,
    /// For each lower layer, topmost first: true if one of them is inside it.
    enclosing: Vec<bool>,
}

impl Traps {
    /// Checks how the directories of a mount lie inside each other.
    ///
    /// Two directories overlap in a forbidden way.
    /// Two overlap that must not.
    pub(super) fn of(config: &OverlayConfig) -> Result<Self, OpenError> {
        let Some(upper) = &config.upper else { return Ok(Self::default()) };
        let mounts = fs::read(mountinfo::OWN).unwrap_or_default();
        let place = |what: &str, path: &Path| -> Result<(FileId, Place), OpenError> {
            let dir = open_root(path, what)?;
            let stat = dir.stat_self().map_err(|e| OpenError(format!("{what} {}: {}", path.display(), describe(e))))?;
            Ok((stat.id(), Place::of(&dir, stat.mount, path, &mounts)))
        };
        let (upper_id, upper_place) = place("upperdir", upper)?;
        let mut writable = vec![("upperdir", upper, upper_id, upper_place)];
        if let Some(work) = &config.work {
            let (id, work_place) = place("workdir", work)?;
            let [(.., upper_place)] = writable.as_slice() else { return Ok(Self::default()) };
            if upper_place.is_inside(&work_place) || work_place.is_inside(upper_place) {
                return Err(OpenError(format!(
                    "workdir {} and upperdir {} must be separate directories, neither inside the other",
                    work.display(),
                    upper.display()
                )));
            }
            writable.push(("workdir", work, id, work_place));
        }
        let mut enclosing = Vec::with_capacity(config.lowers.len());
        for lower in config.lowers.iter().chain(&config.data_only) {
            let (_, lower_place) = place("lower layer", lower)?;
            if let Some((what, dir, ..)) = writable.iter().find(|(.., outer)| lower_place.is_inside(outer)) {
                let (lower, dir) = (lower.display(), dir.display());
                return Err(OpenError(format!("lower layer {lower} is inside {what} {dir}, or the same directory")));
            }
            enclosing.push(writable.iter().any(|(.., inner)| inner.is_inside(&lower_place)));
        }
        Ok(Self { forbidden: writable.into_iter().map(|(_, _, id, _)| id).collect(), enclosing })
    }

    /// True if the layer at position `at` holds a directory that must not be entered.
    pub(super) fn are_in(&self, at: usize) -> bool {
        self.enclosing.get(at).is_some_and(|&encloses| encloses)
    }

    /// Another directory, `id`, has replaced the upper.
    pub(super) fn replace_upper(&mut self, id: FileId) {
        if let Some(upper) = self.forbidden.first_mut() {
            *upper = id;
        }
    }

    /// True if `id` must not be entered.
    pub(super) fn forbid(&self, id: FileId) -> bool {
        self.forbidden.contains(&id)
    }
}

/// The place of a directory in its file system, wherever that is mounted.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    /// Its file system; `None` if the mount is not shown.
    filesystem: Option<Device>,
    path: PathBuf,
}

impl Place {
    fn of(dir: &Dir, mount: u64, given: &Path, mounts: &[u8]) -> Self {
        use std::os::fd::AsFd;
        let path = fs::read_link(format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd()))
            .unwrap_or_else(|_| given.canonicalize().unwrap_or_else(|_| given.to_owned()));
        let shown = mountinfo::parse(mounts).find(|shown| shown.id == mount).and_then(|shown| {
            let below = path.strip_prefix(&shown.point).ok()?;
            Some(Self { filesystem: Some(shown.device), path: shown.root.join(below) })
        });
        shown.unwrap_or(Self { filesystem: None, path })
    }

    /// True if this directory is `outer` or inside it.
    fn is_inside(&self, outer: &Self) -> bool {
        self.filesystem == outer.filesystem && self.path.starts_with(&outer.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(filesystem: Device, path: &str) -> Place {
        Place { filesystem: Some(filesystem), path: path.into() }
    }

    #[test]
    fn inside_is_by_file_system_and_components() {
        let outer = place((0, 1), "/a/b");
        for (inner, expected) in [
            (place((0, 1), "/a/b"), true),
            (place((0, 1), "/a/b/c"), true),
            (place((0, 1), "/a/bc"), false),
            (place((0, 1), "/a"), false),
            (place((0, 2), "/a/b/c"), false),
        ] {
            assert_eq!(inner.is_inside(&outer), expected, "{inner:?}");
        }
    }

    /// A bind mount of a directory has the place of that directory.
    #[test]
    fn a_place_is_where_the_mount_leads() {
        let dir = tempfile::tempdir().expect("a directory");
        let opened = open_root(dir.path(), "test").expect("it opens");
        let path =
            fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsFd::as_fd(&opened).as_raw_fd())).expect("a path");
        let line = format!("7 1 0:9 /root\\040of/it {} rw - ext4 x rw\n", path.parent().expect("a parent").display());
        let expected = Path::new("/root of/it").join(path.file_name().expect("a name"));
        let place = Place::of(&opened, 7, dir.path(), line.as_bytes());
        assert_eq!((place.filesystem, place.path), (Some((0, 9)), expected));
        assert_eq!(Place::of(&opened, 8, dir.path(), line.as_bytes()).filesystem, None);
    }
}
