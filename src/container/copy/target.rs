//! Where files are copied to.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::root::{Root, Wanted};
use super::source::Node;
use crate::confined::FileType;
use crate::image::layer::path::split;
use crate::image::{ImageError, IoContext, Result};

/// The number of links that the kernel follows (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// What is at a target.
#[derive(Debug)]
pub(super) enum Spot {
    /// A directory, which is held.
    Directory,
    /// Something else, with this name in the held directory.
    File(Vec<u8>),
    /// Nothing; a file may be made under this name in the held directory. `is_dir` is true if the user's path ends in
    /// `/`.
    Missing { name: Vec<u8>, is_dir: bool },
}

/// Where files are copied to. The links in the user's path were followed; from here on, files are reached through the
/// held directory.
#[derive(Debug)]
pub struct Target<'r> {
    root: &'r Root,
    dir: OwnedFd,
    /// A path of the held directory.
    path: Vec<u8>,
    spot: Spot,
    shown: PathBuf,
}

impl<'r> Target<'r> {
    /// What `path` names; a link at its end is followed.
    ///
    /// # Errors
    /// If its parent directory does not exist.
    pub fn find(root: &'r Root, path: &Path) -> Result<Self> {
        let wanted = Wanted::new(root, path)?;
        let shown = root.shown(wanted.bytes());
        let directory = |path: &[u8]| root.open(path, OFlags::PATH | OFlags::DIRECTORY);
        let mut path = wanted.bytes().to_vec();
        for _ in 0..MOST_LINKS {
            let (parent, name) = match split(&path) {
                Some((parent, name)) if !matches!(name, b"" | b"." | b"..") => (parent.to_vec(), name.to_vec()),
                // The root, or a link to a directory.
                _ => {
                    let dir = directory(&path).at(&shown)?;
                    return Ok(Self { root, dir, path, spot: Spot::Directory, shown });
                }
            };
            let parent = if parent.is_empty() { b"/".to_vec() } else { parent };
            let dir = directory(&parent).at(&shown)?;
            let target = |dir: OwnedFd, path: Vec<u8>, spot: Spot| Self { root, dir, path, spot, shown: shown.clone() };
            let node = match Node::open(dir.as_fd(), &name) {
                Err(Errno::NOENT) => {
                    return Ok(target(dir, parent, Spot::Missing { name, is_dir: wanted.is_dir }));
                }
                node => node.at(&shown)?,
            };
            match node.stat.file_type() {
                FileType::Directory => return Ok(target(directory(&path).at(&shown)?, path, Spot::Directory)),
                FileType::Symlink => {
                    let link = node.link().at(&shown)?;
                    // Not cleaned: `..` in a link starts from where the link is.
                    path = if link.starts_with(b"/") { link } else { [&parent, &b"/"[..], &link].concat() };
                }
                _ if wanted.is_dir => return Err(Errno::NOTDIR).at(&shown),
                _ => return Ok(target(dir, parent, Spot::File(name))),
            }
        }
        Err(Errno::LOOP).at(&shown)
    }

    pub(super) fn root(&self) -> &'r Root {
        self.root
    }

    pub(super) fn spot(&self) -> &Spot {
        &self.spot
    }

    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// A path of the held directory.
    pub(super) fn path(&self) -> &[u8] {
        &self.path
    }

    /// The target's name in messages.
    pub(super) fn shown(&self) -> String {
        self.shown.display().to_string()
    }

    /// The name in messages of `path` below the held directory.
    pub(super) fn shown_below(&self, path: &[u8]) -> PathBuf {
        let below = if path.is_empty() { self.path.clone() } else { [&self.path, &b"/"[..], path].concat() };
        self.root.shown(below.strip_prefix(b"/").filter(|rest| rest.starts_with(b"/")).unwrap_or(&below))
    }

    /// Fails unless it is a directory.
    pub(super) fn check_directory(&self) -> Result<()> {
        match self.spot {
            Spot::Directory => Ok(()),
            Spot::File(_) => Err(ImageError::refused(self.shown(), "is not a directory")),
            Spot::Missing { .. } => Err(ImageError::refused(self.shown(), "no such directory")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::Mode;

    use super::*;

    /// The tree `root` of a container beside a file that is not in it.
    fn tree() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir_in("/tmp").expect("a directory");
        let at = |path: &str| dir.path().join("root").join(path);
        fs::create_dir_all(at("a/b")).expect("made");
        fs::create_dir_all(at("etc")).expect("made");
        fs::write(at("etc/passwd"), "inside").expect("written");
        fs::write(dir.path().join("outside"), "outside").expect("written");
        for (name, to) in [
            ("absolute", "/etc"),
            ("up", "../../../../../etc/passwd"),
            ("a/sibling", "../etc"),
            ("dangling", "/nowhere/file"),
            ("new", "etc/new"),
            ("loop", "loop"),
            ("root", "/"),
            ("magic", "/proc/self/root/etc"),
        ] {
            symlink(to, at(name)).expect("linked");
        }
        let fd = rustix::fs::open(at(""), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).expect("opened");
        (dir, Root::of_container("c", fd, Vec::new()))
    }

    /// Each path leads to something in the tree, or to nothing.
    #[test]
    fn links_are_followed_within_the_root() {
        let (dir, root) = tree();
        let top = dir.path().join("root");
        for (path, expected) in [
            ("/", "dir "),
            ("a", "dir a"),
            ("/a/b/", "dir a/b"),
            ("absolute", "dir etc"),
            ("/absolute/passwd", "file passwd in etc"),
            ("up", "file passwd in etc"),
            ("a/sibling/passwd", "file passwd in etc"),
            ("../../outside", "missing outside in "),
            ("new", "missing new in etc"),
            ("a/x", "missing x in a"),
            ("a/x/", "missing x/ in a"),
            ("root", "dir "),
            ("dangling", "No such file or directory (os error 2)"),
            ("a/x/y", "No such file or directory (os error 2)"),
            ("etc/passwd/", "Not a directory (os error 20)"),
            ("etc/passwd/x", "Not a directory (os error 20)"),
            ("loop", "Too many levels of symbolic links (os error 40)"),
            ("magic", "No such file or directory (os error 2)"),
        ] {
            let found = match Target::find(&root, Path::new(path)) {
                Ok(target) => {
                    let held = fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&target.dir)));
                    let held = held.expect("a path");
                    let held = held.strip_prefix(&top).expect("below the root").display();
                    let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
                    match target.spot() {
                        Spot::Directory => format!("dir {held}"),
                        Spot::File(name) => format!("file {} in {held}", text(name)),
                        Spot::Missing { name, is_dir } => {
                            format!("missing {}{} in {held}", text(name), if *is_dir { "/" } else { "" })
                        }
                    }
                }
                Err(ImageError::Io { source, .. }) => source.to_string(),
                Err(error) => panic!("{path}: {error}"),
            };
            assert_eq!(found, expected, "{path}");
        }
    }
}
