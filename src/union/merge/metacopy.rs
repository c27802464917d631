//! Metacopy files: the attributes are in one layer and the content in another below it (kernel:
//! `Documentation/filesystems/overlayfs.rst`, "Metadata only copy up", "Data-only lower layers").

use std::ffi::CStr;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

use crate::marks::Redirect;
use crate::union::layer::{Dir, FileType, LayerDir, LayerId, Marks};
use crate::union::merge::redirect::{c_name, follow, redirect_of, with_last};
use crate::union::merge::{MergedDir, listing};

/// Layer and path of a file that holds content.
pub(super) type Data = (LayerId, Arc<CStr>);

/// Finds the content of the upper's metacopy file `name`.
///
/// # Errors
/// `PERM` without `metacopy=on`; `IO` if no content is found.
pub(super) fn below_upper(dir: &MergedDir<'_>, upper: &Dir, name: &CStr, marks: &Marks) -> Result<Data, Errno> {
    if !dir.metacopy {
        tracing::error!("{:?} has only attributes; metacopy=on is needed to read it", upper.shown_path(name));
        return Err(Errno::PERM);
    }
    let found = match redirect_of(dir, marks, name)? {
        None => by_name(dir, name, 0)?,
        Some(Redirect::Relative(other)) => by_name(dir, &c_name(&other)?, 0)?,
        Some(Redirect::Absolute(path)) => by_path(dir, path, dir.stack.ids())?,
    };
    found.ok_or_else(|| missing(&upper.shown_path(name)))
}

/// Finds the content of `name` in the lower part `index` of `dir`, if that is a metacopy file.
///
/// # Errors
/// `IO` if no content is found.
pub(super) fn of_lower(
    dir: &MergedDir<'_>,
    parent: &LayerDir<'_>,
    name: &CStr,
    index: usize,
) -> Result<Option<Data>, Errno> {
    let Some(part) = dir.lowers.get(index) else { return Ok(None) };
    let is_lowest = dir.stack.is_lowest(part.layer) && !dir.stack.has_data_only();
    if !dir.metacopy || is_lowest {
        return Ok(None);
    }
    let marks = parent.marks(name)?;
    if !marks.metacopy {
        return Ok(None);
    }
    let found = match redirect_of(dir, &marks, name)? {
        None => by_name(dir, name, index + 1)?,
        Some(Redirect::Relative(other)) => by_name(dir, &c_name(&other)?, index + 1)?,
        Some(Redirect::Absolute(path)) => by_path(dir, path, dir.stack.below(part.layer))?,
    };
    found.map(Some).ok_or_else(|| missing(&parent.shown_path(name)))
}

fn missing(place: &Path) -> Errno {
    tracing::error!("{place:?}: the layer with its content is missing");
    Errno::IO
}

fn by_name(dir: &MergedDir<'_>, name: &CStr, start: usize) -> Result<Option<Data>, Errno> {
    for (index, part) in dir.lowers.iter().enumerate().skip(start) {
        let parent = (dir.open_lower)(index)?;
        let Some(stat) = parent.stat(name)? else { continue };
        let whiteout = listing::is_whiteout(&parent, name, &stat, part.xattr_whiteouts)?;
        if whiteout || stat.file_type() != FileType::Regular {
            return Ok(None);
        }
        return match of_lower(dir, &parent, name, index)? {
            Some(deeper) => Ok(Some(deeper)),
            None => Ok(Some((part.layer, part.child_path(name)))),
        };
    }
    Ok(None)
}

fn by_path(dir: &MergedDir<'_>, path: Vec<u8>, layers: impl Iterator<Item = LayerId>) -> Result<Option<Data>, Errno> {
    let mut path = path;
    for layer in layers {
        let step = follow(dir, layer, &path)?;
        path = step.path;
        if let Some(end) = step.end {
            if end.stat.file_type() != FileType::Regular {
                return Ok(None);
            }
            let marks = end.parent.marks(&end.name)?;
            if !marks.metacopy {
                return Ok(Some((layer, end.path)));
            }
            match redirect_of(dir, &marks, &end.name)? {
                None => {}
                Some(Redirect::Relative(other)) => path = with_last(&path, &other),
                Some(Redirect::Absolute(moved)) => {
                    // This leads out of the opaque directories on the path.
                    path = moved;
                    continue;
                }
            }
        }
        if step.stop {
            return Ok(None);
        }
    }
    let c_path = c_name(&path)?;
    for (number, layer) in dir.stack.data_only() {
        if layer.stat_file(&c_path)?.is_some_and(|stat| stat.file_type() == FileType::Regular) {
            return Ok(Some((number, Arc::from(c_path))));
        }
    }
    // The attributes can still be read; opening the file fails (kernel: `ovl_maybe_lookup_lowerdata`).
    Ok(dir.stack.data_only().next().map(|(number, _)| (number, Arc::from(c_path))))
}
