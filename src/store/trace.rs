//! The layer that a path comes from, and what the layers below have there.

use std::ffi::CString;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};
use std::sync::Arc;

use rustix::io::Errno;

use crate::image::digest::Digest;
use crate::image::{ImageError, IoContext, Result};
use crate::store::StoredLayer;
use crate::union::layer::LowerRef;
use crate::union::merge::Resolution;
use crate::union::view::{Entry, UpperPart, View};

/// What a layer has at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Anything but a directory.
    File,
    /// A directory through which the layers below show.
    Directory,
    /// A directory that hides the layers below.
    OpaqueDirectory,
    /// A whiteout, which deletes the path in the layers below.
    Whiteout,
    /// The layer does not have the path, but one of its parents hides everything below: it is deleted,
    /// replaced or opaque.
    HiddenByParent,
}

impl What {
    /// True if the path exists because of it.
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

/// A layer and what it has at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traced {
    /// The layer.
    pub diff_id: Digest,
    /// What it has there.
    pub what: What,
    /// True if a layer above hides it.
    pub hidden: bool,
}

/// Follows `path` down the layers, which are given the lowest first; layers that do not concern it are left out.
/// Symbolic links are not followed. The topmost layer comes first.
///
/// The union decides what is visible ([`View`]). Anything else that a layer has at the path is reported as hidden.
///
/// # Errors
/// When the path is not plain, or a layer cannot be read.
pub fn trace(layers: &[StoredLayer], path: &Path) -> Result<Vec<Traced>> {
    let mut names = Vec::new();
    for component in path.components() {
        let malformed = |why: &str| ImageError::malformed(path.display().to_string(), why);
        match component {
            Component::Normal(name) => {
                names.push(CString::new(name.as_bytes()).map_err(|_| malformed("it has a NUL in it"))?);
            }
            Component::RootDir | Component::CurDir => {}
            _ => return Err(malformed("`..` cannot be part of it")),
        }
    }
    let roots: Vec<OwnedFd> = layers.iter().rev().map(StoredLayer::open_diff).collect::<Result<_>>()?;
    let fds: Vec<_> = roots.iter().map(AsFd::as_fd).collect();
    let failed = |errno: Errno| ImageError::malformed(path.display().to_string(), errno.to_string());
    let view = View::new(&fds, true).map_err(failed)?;
    let shown = shown(&view, &names).map_err(failed)?;
    let mut traced = Vec::new();
    let mut hidden = false;
    for ((layer, root), id) in layers.iter().rev().zip(&roots).zip(view.stack().ids()) {
        let part = shown.iter().find(|part| part.layer == id);
        // A redirect leads to another path.
        let own: Vec<CString> = match part {
            Some(part) => components(&part.path).map_err(failed)?,
            None => names.clone(),
        };
        let own_root = root.try_clone().at(layer.diff())?;
        let looked = match look(own_root, &own) {
            // The union found an answer without this layer, so the damaged mark does not matter.
            Err(Errno::IO) if part.is_none() => None,
            looked => looked.map_err(failed)?,
        };
        if let Some(what) = looked {
            let hidden_here = part.is_none() && (hidden || what.is_there());
            traced.push(Traced { diff_id: layer.record.diff_id, what, hidden: hidden_here });
            hidden |= what.hides_below();
        }
    }
    Ok(traced)
}

fn components(path: &std::ffi::CStr) -> std::result::Result<Vec<CString>, Errno> {
    let names = path.to_bytes().split(|&byte| byte == b'/').filter(|name| !name.is_empty());
    names.map(|name| CString::new(name).map_err(|_| Errno::INVAL)).collect()
}

/// The visible parts at the path; empty if there is nothing.
fn shown(view: &View, names: &[CString]) -> std::result::Result<Vec<LowerRef>, Errno> {
    let mut parts = view.root()?;
    for (at, name) in names.iter().enumerate() {
        match view.lookup(&parts, name)? {
            Some(Entry::Directory(found)) => parts = found,
            Some(Entry::Other(file)) if at + 1 == names.len() => {
                let path: Arc<std::ffi::CStr> = file.path;
                return Ok(vec![LowerRef {
                    layer: file.layer,
                    xattr_whiteouts: false,
                    impure: false,
                    number: None,
                    path,
                }]);
            }
            Some(Entry::Other(_)) | None => return Ok(Vec::new()),
        }
    }
    Ok(parts)
}

/// What the layer itself has at a path, seen as an upper layer over nothing: a whiteout remains a whiteout.
fn look(root: OwnedFd, names: &[CString]) -> std::result::Result<Option<What>, Errno> {
    let nothing = View::new(&[], false)?;
    let mut dir = UpperPart::root(root)?;
    let mut hides = dir.is_opaque();
    let Some((last, parents)) = names.split_last() else {
        return Ok(Some(if hides { What::OpaqueDirectory } else { What::Directory }));
    };
    for name in parents {
        match has(&nothing, &dir, name)? {
            Has::Nothing => return Ok(hides.then_some(What::HiddenByParent)),
            Has::Directory(below) => {
                hides |= below.is_opaque();
                dir = below;
            }
            Has::File | Has::Whiteout => return Ok(Some(What::HiddenByParent)),
        }
    }
    Ok(match has(&nothing, &dir, last)? {
        Has::Nothing => hides.then_some(What::HiddenByParent),
        Has::Directory(found) if hides || found.is_opaque() => Some(What::OpaqueDirectory),
        Has::Directory(_) => Some(What::Directory),
        Has::File => Some(What::File),
        Has::Whiteout => Some(What::Whiteout),
    })
}

/// What a directory has under a name.
enum Has {
    Nothing,
    File,
    Whiteout,
    Directory(UpperPart),
}

fn has(nothing: &View, dir: &UpperPart, name: &CString) -> std::result::Result<Has, Errno> {
    match nothing.resolve(Some(dir), &[], name) {
        Ok(Resolution::Found(found)) if found.stat.is_dir() => Ok(Has::Directory(dir.child(name, &found)?)),
        Ok(Resolution::Found(_)) => Ok(Has::File),
        Ok(Resolution::WhiteoutInUpper) => Ok(Has::Whiteout),
        Ok(Resolution::Absent) if dir.deletes_by_name(name)? => Ok(Has::Whiteout),
        Ok(Resolution::Absent) | Err(Errno::NAMETOOLONG) => Ok(Has::Nothing),
        // Its content is in another layer.
        Err(Errno::IO) if dir.dir().marks(name).is_ok_and(|marks| marks.metacopy) => Ok(Has::File),
        Err(errno) => Err(errno),
    }
}
