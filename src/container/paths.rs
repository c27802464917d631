//! Paths as a container sees them: within its root file system, with symbolic links resolved there and volumes on top.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, fstat, openat, readlinkat};
use rustix::io::{Errno, Result};

use crate::confined;

/// As many symbolic links as the kernel follows (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// A container's file tree before it runs.
pub(super) struct ContainerView<'a> {
    root: BorrowedFd<'a>,
    /// For each volume: its destination with links resolved, and the host's file or directory.
    volumes: Vec<(PathBuf, PathBuf)>,
}

/// The result of following a path.
pub(super) enum Place {
    /// An existing file or directory, opened with O_PATH, and its path without links.
    There(OwnedFd, PathBuf),
    /// Nothing is there. The path without links, as far as it can be resolved.
    Missing(PathBuf),
    /// A path in the kernel's file systems, which are not mounted yet.
    Kernel,
}

impl<'a> ContainerView<'a> {
    /// The tree at `root` with these volumes (source, destination).
    ///
    /// # Errors
    /// When a destination cannot be resolved.
    pub(super) fn new<'v>(root: BorrowedFd<'a>, volumes: impl Iterator<Item = (&'v Path, &'v Path)>) -> Result<Self> {
        let mut view = Self { root, volumes: Vec::new() };
        for (source, destination) in volumes {
            let at = match view.resolve(destination)? {
                Place::There(_, path) | Place::Missing(path) => path,
                Place::Kernel => destination.to_owned(),
            };
            view.volumes.push((at, source.to_owned()));
        }
        Ok(view)
    }

    /// Follows an absolute path and its symbolic links.
    ///
    /// # Errors
    /// `ENOTDIR`, `ELOOP`, `EACCES`, …
    pub(super) fn resolve(&self, path: &Path) -> Result<Place> {
        let mut todo: VecDeque<OsString> = steps(path);
        let mut at = PathBuf::from("/");
        let mut links = 0;
        while let Some(step) = todo.pop_front() {
            if step == ".." {
                at.pop();
                continue;
            }
            let next = at.join(&step);
            if is_kernels(&next) {
                return Ok(Place::Kernel);
            }
            let found = match self.open(&next) {
                Ok(found) => found,
                Err(Errno::NOENT) => {
                    todo.push_front(step);
                    let missing = lexically(at, todo);
                    return Ok(if is_kernels(&missing) { Place::Kernel } else { Place::Missing(missing) });
                }
                Err(error) => return Err(error),
            };
            let kind = FileType::from_raw_mode(fstat(&found)?.st_mode);
            if kind == FileType::Symlink {
                links += 1;
                if links > MOST_LINKS {
                    return Err(Errno::LOOP);
                }
                let target = OsString::from_vec(readlinkat(&found, "", Vec::new())?.into_bytes());
                if Path::new(&target).is_absolute() {
                    at = PathBuf::from("/");
                }
                steps(Path::new(&target)).into_iter().rev().for_each(|step| todo.push_front(step));
                continue;
            }
            if kind != FileType::Directory && !todo.is_empty() {
                return Err(Errno::NOTDIR);
            }
            at = next;
        }
        Ok(Place::There(self.open(&at)?, at))
    }

    /// Opens a path without links, through the volume that contains it.
    fn open(&self, path: &Path) -> Result<OwnedFd> {
        // No component is a link: those before the last one were resolved, and the last one is not followed.
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let below = |(at, source): &(PathBuf, PathBuf)| Some((path.strip_prefix(at).ok()?.to_owned(), source.clone()));
        // The last match: later mounts hide earlier ones.
        if let Some((rest, source)) = self.volumes.iter().rev().find_map(below) {
            let source = openat(rustix::fs::CWD, &source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            return match rest.as_os_str().is_empty() {
                true => Ok(source),
                false => confined::in_root(source.as_fd(), rest.as_os_str().as_bytes(), flags),
            };
        }
        confined::in_root(self.root, path.as_os_str().as_bytes(), flags)
    }
}

/// Opens a file for reading that was opened with O_PATH.
pub(super) fn reopen(file: &OwnedFd) -> std::io::Result<File> {
    use std::os::fd::AsRawFd;
    File::open(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()))
}

/// Resolves `.`, `..` and repeated slashes of an absolute path, without looking at files.
pub(super) fn clean(path: &Path) -> PathBuf {
    lexically(PathBuf::from("/"), steps(path))
}

fn lexically(mut at: PathBuf, steps: VecDeque<OsString>) -> PathBuf {
    for step in steps {
        match step == ".." {
            true => drop(at.pop()),
            false => at.push(step),
        }
    }
    at
}

fn steps(path: &Path) -> VecDeque<OsString> {
    let step = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsStr::new("..").to_owned()),
        _ => None,
    };
    path.components().filter_map(step).collect()
}

/// True below the mountpoints of the kernel's file systems.
pub(super) fn is_kernels(path: &Path) -> bool {
    ["/dev", "/proc", "/sys"].iter().any(|top| path != Path::new(top) && path.starts_with(top))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_within_and_lead_into_volumes() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (root, volume) = (dir.path().join("root"), dir.path().join("volume"));
        for path in ["root/bin", "root/data", "volume/bin"] {
            std::fs::create_dir_all(dir.path().join(path)).expect("mkdir");
        }
        std::fs::write(volume.join("bin/tool"), "").expect("write");
        let link = |at: &str, to: &str| std::os::unix::fs::symlink(to, root.join(at)).expect("symlink");
        link("bin/tool", "/data/bin/tool");
        link("up", "../../../../data");
        link("loop", "loop");
        link("resolv", "../run/x/resolv.conf");
        link("device", "/dev/null");
        std::fs::write(root.join("file"), "").expect("write");
        let fd = File::open(&root).expect("open");
        let view = ContainerView::new(fd.as_fd(), [(volume.as_path(), Path::new("/up"))].into_iter()).expect("view");
        let table = [
            ("/bin/tool", "there /data/bin/tool"),
            ("/up/bin/../bin/tool", "there /data/bin/tool"),
            ("/", "there /"),
            ("/bin/nothing", "missing /bin/nothing"),
            ("/resolv", "missing /run/x/resolv.conf"),
            ("/device", "kernel"),
            ("/proc/self/exe", "kernel"),
            ("/loop", "LOOP"),
            ("/file/x", "NOTDIR"),
        ];
        for (path, expected) in table {
            let found = match view.resolve(Path::new(path)) {
                Ok(Place::There(_, at)) => format!("there {}", at.display()),
                Ok(Place::Missing(at)) => format!("missing {}", at.display()),
                Ok(Place::Kernel) => "kernel".to_owned(),
                Err(Errno::LOOP) => "LOOP".to_owned(),
                Err(Errno::NOTDIR) => "NOTDIR".to_owned(),
                Err(error) => error.to_string(),
            };
            assert_eq!(found, expected, "{path}");
        }
    }

    #[test]
    fn cleaned() {
        for (path, expected) in [("/a//b/./c/..", "/a/b"), ("/..", "/"), ("//", "/"), ("/a/../..", "/"), ("a", "/a")] {
            assert_eq!(clean(Path::new(path)), Path::new(expected), "{path}");
        }
    }
}
