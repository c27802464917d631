//! Makes sure that nothing else uses an upper directory that will be replaced.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::super::Container;
use super::super::locks::DirLock;
use crate::confined::mountinfo;
use crate::image::{ImageError, IoContext, Result};
use crate::store::retry_interrupted;

/// Locks that every stratafs mount holds too.
pub(super) struct Held {
    _locks: Vec<DirLock>,
}

/// Locks the upper and the work directory of a container that is not mounted here.
///
/// # Errors
/// When another mount uses the upper.
pub(super) fn hold(container: &Container) -> Result<Held> {
    let (upper, work) = (container.upper(), container.work());
    let mut locks = Vec::new();
    for dir in [&upper, &work] {
        locks.push(lock(dir)?);
    }
    if let Some(point) = overlay_on(&upper, &container.record.mountpoint)? {
        let reason = format!("is in use by overlayfs, which is mounted at {}; unmount that first", point.display());
        return Err(ImageError::refused(upper.display().to_string(), reason));
    }
    Ok(Held { _locks: locks })
}

/// Takes the lock of a directory.
pub(super) fn lock(dir: &Path) -> Result<DirLock> {
    let file = File::open(dir).at(dir)?;
    match retry_interrupted(|| flock(&file, FlockOperation::NonBlockingLockExclusive)) {
        // If this file system has no locks, no mount has one either.
        Ok(()) | Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(DirLock(Some(file))),
        Err(Errno::WOULDBLOCK) => {
            Err(ImageError::refused(dir.display().to_string(), "is in use by another mount; unmount that first"))
        }
        Err(error) => Err(error).at(dir),
    }
}

/// Where the kernel's overlayfs has mounted this upper, in any mount namespace that this process can inspect. Namespaces
/// that are copies of this one may still have mounts that were unmounted here: a mount at `usual` in another namespace
/// counts as such a copy, which is unused.
fn overlay_on(upper: &Path, usual: &Path) -> Result<Option<PathBuf>> {
    let own = fs::metadata(upper).at(upper)?;
    let here = fs::read_link("/proc/self/ns/mnt").at("/proc/self/ns/mnt")?;
    let mut seen = HashSet::new();
    for entry in fs::read_dir("/proc").at("/proc")? {
        let Ok(entry) = entry else { continue };
        if !entry.file_name().as_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        // Processes that end in the meantime are skipped, and so are those of other users, which cannot be read.
        let Ok(namespace) = fs::read_link(entry.path().join("ns/mnt")) else { continue };
        let is_here = namespace == here;
        if !seen.insert(namespace) {
            continue;
        }
        let Ok(table) = fs::read(entry.path().join("mountinfo")) else { continue };
        let root = entry.path().join("root");
        let is_own = |path: &Path| {
            let inside = root.join(path.strip_prefix("/").unwrap_or(path));
            fs::metadata(inside).is_ok_and(|found| (found.dev(), found.ino()) == (own.dev(), own.ino()))
        };
        let found = mountinfo::parse(&table).find(|mount| {
            mount.kind == b"overlay"
                && (is_here || mount.point != usual)
                && upper_of(&mount.options).is_some_and(|path| path == upper || is_own(&path))
        });
        if let Some(mount) = found {
            return Ok(Some(mount.point));
        }
    }
    Ok(None)
}

/// The upper directory in the options of an overlayfs. The kernel writes a comma in it as three octal digits.
fn upper_of(options: &[u8]) -> Option<PathBuf> {
    let value = options.split(|&byte| byte == b',').find_map(|option| option.strip_prefix(b"upperdir="))?;
    Some(PathBuf::from(mountinfo::unescape(OsStr::from_bytes(value).as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upper_among_options() {
        let table = [
            ("rw,lowerdir=/a:/b,upperdir=/u,workdir=/w", Some("/u")),
            ("rw,lowerdir=/a,upperdir=/with\\040space\\054comma,workdir=/w", Some("/with space,comma")),
            ("ro,lowerdir=/a:/b", None),
        ];
        for (options, expected) in table {
            assert_eq!(upper_of(options.as_bytes()).as_deref(), expected.map(Path::new), "{options}");
        }
    }
}
