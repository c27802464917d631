//! Which layer a path comes from, and what the layers below have there.

use std::ffi::OsStr;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, FileType, OFlags, fgetxattr, statat};
use rustix::io::Errno;

use crate::confined;
use crate::image::digest::Digest;
use crate::image::{ImageError, IoContext, Result};
use crate::marks::{Mark, Namespace, Opaque, decode_opaque};
use crate::store::Layer;

/// What a layer has at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A file of any kind but a directory.
    File,
    /// A directory; those of the layers below show through.
    Directory,
    /// A directory that hides what is below.
    OpaqueDirectory,
    /// The mark that deletes what is below.
    Whiteout,
    /// Nothing at the path itself, but a parent hides what is below: it is deleted, replaced or opaque.
    HiddenByParent,
}

impl What {
    /// True if the path exists by it.
    pub fn is_there(self) -> bool {
        matches!(self, Self::File | Self::Directory | Self::OpaqueDirectory)
    }

    fn hides_below(self) -> bool {
        self != Self::Directory
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Directory => "directory",
            Self::OpaqueDirectory => "opaque directory",
            Self::Whiteout => "whiteout",
            Self::HiddenByParent => "hidden by a parent",
        })
    }
}

/// One layer's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The layer.
    pub diff_id: Digest,
    /// What it has there.
    pub what: What,
    /// A layer above hides it.
    pub hidden: bool,
}

/// Follows `path` down the layers, which are given the lowest first; layers that have nothing to say are left out.
/// Symbolic links are not followed. The topmost layer comes first.
///
/// # Errors
/// When the path is not plain, or a layer cannot be read.
pub fn trace(layers: &[Layer], path: &Path) -> Result<Vec<Step>> {
    let mut names: Vec<&OsStr> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::RootDir | Component::CurDir => {}
            _ => return Err(ImageError::malformed(path.display().to_string(), "`..` cannot be part of it")),
        }
    }
    let mut steps = Vec::new();
    let mut hidden = false;
    for layer in layers.iter().rev() {
        if let Some(what) = look(layer, &names)? {
            steps.push(Step { diff_id: layer.record.diff_id, what, hidden });
            hidden |= what.hides_below();
        }
    }
    Ok(steps)
}

fn look(layer: &Layer, names: &[&OsStr]) -> Result<Option<What>> {
    let mut dir = layer.open_diff()?;
    let Some((last, parents)) = names.split_last() else { return Ok(Some(What::Directory)) };
    let mut opaque_parent = false;
    for name in parents {
        match kind(&dir, name).at(layer.diff())? {
            None => return Ok(opaque_parent.then_some(What::HiddenByParent)),
            Some(What::Directory) => {}
            Some(What::OpaqueDirectory) => opaque_parent = true,
            Some(_) => return Ok(Some(What::HiddenByParent)),
        }
        dir = open(&dir, name).at(layer.diff())?;
    }
    let found = kind(&dir, last).at(layer.diff())?;
    Ok(match found {
        Some(What::Directory) if opaque_parent => Some(What::OpaqueDirectory),
        None => opaque_parent.then_some(What::HiddenByParent),
        found => found,
    })
}

fn kind(dir: &OwnedFd, name: &OsStr) -> rustix::io::Result<Option<What>> {
    let stat = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(Some(match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice if stat.st_rdev == 0 => What::Whiteout,
        FileType::Directory if is_opaque(&open(dir, name)?)? => What::OpaqueDirectory,
        FileType::Directory => What::Directory,
        FileType::RegularFile if stat.st_size == 0 && is_marked(dir, name)? => What::Whiteout,
        _ => What::File,
    }))
}

fn open(dir: &OwnedFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    confined::open_dir(dir.as_fd(), name.as_bytes())
}

fn is_opaque(dir: &OwnedFd) -> rustix::io::Result<bool> {
    for namespace in Namespace::ALL {
        if attribute(dir, namespace.xattr(Mark::Opaque))?.is_some_and(|value| decode_opaque(&value) == Opaque::Yes) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// An empty file that is a whiteout by its attribute.
fn is_marked(dir: &OwnedFd, name: &OsStr) -> rustix::io::Result<bool> {
    let file = confined::beneath(dir.as_fd(), name.as_bytes(), OFlags::RDONLY | OFlags::NONBLOCK)?;
    for namespace in Namespace::ALL {
        if attribute(&file, namespace.xattr(Mark::Whiteout))?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn attribute(file: &OwnedFd, name: &str) -> rustix::io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; 256];
    match fgetxattr(file, name, &mut value) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE) => Ok(None),
        Err(error) => Err(error),
    }
}
