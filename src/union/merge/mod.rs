//! The rules of the union: which file a name means in the layers (kernel: `ovl_lookup`), and what a merged
//! directory lists. Reads layers, and keeps no state.

pub mod listing;
mod metacopy;
mod redirect;
#[cfg(test)]
mod tests;

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::io::Errno;

pub use listing::{Listing, Source};
use redirect::{c_name, follow, redirect_of, with_last};

use crate::marks::{AUFS_OPAQUE, AUFS_PREFIX, AufsName, Opaque, Redirect, decode_aufs_name};
use crate::union::layer::{Dir, FileType, LayerDir, LayerId, LayerStack, LowerRef, Marks, Stat};

/// A directory for lookups.
pub struct MergedDir<'a> {
    /// All layers.
    pub stack: &'a LayerStack,
    /// Its upper part.
    pub upper: Option<&'a Dir>,
    /// Its lower parts, topmost first.
    pub lowers: &'a [LowerRef],
    /// Opens the lower part with this index.
    pub open_lower: &'a dyn Fn(usize) -> Result<LayerDir<'a>, Errno>,
    /// The merged listing of the lower parts, if it was made.
    pub listing: Option<&'a Listing>,
    /// Entries of the upper may be xattr whiteouts (opaque mark `x`). In a directory without that mark, a file with the
    /// whiteout mark is an ordinary one. (The kernel is inconsistent there: it lists the file but does not find it.)
    pub upper_xattr_whiteouts: bool,
    /// Entries of the upper may have marks: the directory holds copied-up files (`impure`), or this is not known.
    pub upper_may_have_marks: bool,
    /// Redirects are followed (`redirect_dir` is not `nofollow`).
    pub follow_redirects: bool,
    /// Files may have their content in a lower layer (`metacopy=on`).
    pub metacopy: bool,
}

/// The meaning of a name.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "lives for one lookup, on the stack; a box would cost each an allocation"
)]
pub enum Resolution {
    /// Nothing, in any layer.
    Absent,
    /// Deleted by a whiteout in the upper.
    WhiteoutInUpper,
    /// A file or directory.
    Found(Found),
}

/// A file or directory, possibly with several parts.
#[derive(Debug)]
pub struct Found {
    /// Attributes of its topmost part.
    pub stat: Stat,
    /// Place of the topmost part.
    pub source: Source,
    /// Marks of the upper part; the default without one.
    pub marks: Marks,
    /// Lower parts of a directory, topmost first.
    pub lowers: Vec<LowerRef>,
    /// True if the upper part is a directory that hides the lower layers.
    pub closed: bool,
    /// For a metacopy file: layer and path of its content.
    pub data: Option<(LayerId, std::sync::Arc<CStr>)>,
}

impl Found {
    /// A file or directory with one part.
    pub fn single(stat: Stat, source: Source) -> Self {
        Self { stat, source, marks: Marks::default(), lowers: Vec::new(), closed: false, data: None }
    }
}

/// True for names that mean deletions in some layers (`.wh.…`), unless [`acts_by_name`] is false for the entry.
pub fn is_mark_name(name: &CStr) -> bool {
    decode_aufs_name(OsStr::from_bytes(name.to_bytes())) != AufsName::Plain
}

/// True if the entry `name` of `dir`, which has the attributes `stat`, is a mark because of its name. A file that a user made
/// under such a name has a mark that says so. If a user deletes such a file, its whiteout device has the name, and does not
/// act by it.
///
/// # Errors
/// Those of `listxattr(2)` and `getxattr(2)`.
pub fn acts_by_name(dir: &LayerDir<'_>, name: &CStr, stat: &Stat) -> Result<bool, Errno> {
    Ok(is_mark_name(name) && !stat.is_whiteout_device() && !dir.marks(name)?.plain)
}

/// Resolves `name`.
///
/// # Errors
/// Those of the layers; `IO` for a damaged mark.
pub fn resolve(dir: &MergedDir<'_>, name: &CStr) -> Result<Resolution, Errno> {
    let Some(upper) = dir.upper else { return resolve_lower(dir, name) };
    match upper.stat(name)? {
        Some(stat) if is_mark_name(name) && acts_by_name(&LayerDir::Held(upper.clone()), name, &stat)? => {
            resolve_lower(dir, name)
        }
        None => {
            let below = resolve_lower(dir, name)?;
            if matches!(below, Resolution::Found(_)) && named_whiteout(&LayerDir::Held(upper.clone()), name)? {
                return Ok(Resolution::WhiteoutInUpper);
            }
            Ok(below)
        }
        Some(stat) if stat.is_dir() => {
            let marks = upper.marks(name)?;
            let is_opaque = marks.opaque() == Opaque::Yes || has_opaque_entry(upper, name)?;
            let mut lowers = if is_opaque { Vec::new() } else { lower_parts_below_upper(dir, upper, name, &marks)? };
            // `.wh.NAME` beside the directory closes it, as in a lower layer. A redirect, however, says that the directory
            // came from elsewhere.
            let mut closed = is_opaque;
            if !lowers.is_empty() && marks.redirect.is_none() && is_deleted_by_name(upper, name)? {
                lowers = Vec::new();
                closed = true;
            }
            Ok(Resolution::Found(Found { marks, lowers, closed, ..Found::single(stat, Source::Upper) }))
        }
        Some(stat) => {
            if stat.is_whiteout_device() {
                return Ok(Resolution::WhiteoutInUpper);
            }
            let may_be_whiteout = dir.upper_xattr_whiteouts && stat.file_type() == FileType::Regular;
            let marks = if dir.upper_may_have_marks || may_be_whiteout { upper.marks(name)? } else { Marks::default() };
            if marks.whiteout && may_be_whiteout {
                if stat.may_be_xattr_whiteout() {
                    return Ok(Resolution::WhiteoutInUpper);
                }
                tell_of_content(upper.shown_path(name));
            }
            let data = if marks.metacopy { Some(metacopy::below_upper(dir, upper, name, &marks)?) } else { None };
            Ok(Resolution::Found(Found { marks, data, ..Found::single(stat, Source::Upper) }))
        }
    }
}

/// Parts of the root directory, topmost first.
///
/// # Errors
/// Those of reading the marks of the layers' roots.
pub fn root_parts(stack: &LayerStack) -> Result<Vec<LowerRef>, Errno> {
    let mut parts = Vec::new();
    for (id, layer) in stack.ids().zip(stack.lowers()) {
        let marks = layer.root().marks(c"")?;
        let opaque = marks.opaque();
        let part = LowerRef::root(id, opaque == Opaque::XattrWhiteouts, layer.root_number());
        parts.push(LowerRef { impure: marks.impure && layer.chain().is_some(), ..part });
        if opaque == Opaque::Yes || has_opaque_entry(layer.root(), c"")? {
            break;
        }
    }
    Ok(parts)
}

/// Logs a whiteout by attribute that has content: it should be empty, so it is damaged, and the content may be a user's.
fn tell_of_content(place: PathBuf) {
    tracing::warn!("{place:?}: a whiteout with content: shown as the file that it is");
}

/// Logs a redirect that leads to no directory: it is damaged, or layers are missing.
fn tell_of_lost_way(place: PathBuf) {
    tracing::warn!("{place:?}: its redirect leads to no directory of the layers below");
}

/// True if the directory `name` in `upper`, or `upper` itself if `name` is empty, is opaque because of an
/// entry in it (`.wh..wh..opq`).
pub(crate) fn has_opaque_entry(upper: &Dir, name: &CStr) -> Result<bool, Errno> {
    let mut path = name.to_bytes().to_vec();
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(AUFS_OPAQUE);
    // A `CStr` holds no NUL, so this cannot fail.
    let entry = CString::new(path).map_err(|_| Errno::INVAL)?;
    Ok(match upper.stat(&entry)? {
        Some(stat) => !stat.is_whiteout_device() && !upper.marks(&entry)?.plain,
        None => false,
    })
}

/// True if an entry of `dir` deletes `name`: `.wh.NAME`, or `.wh..wh..opq` for all names.
fn named_whiteout(dir: &LayerDir<'_>, name: &CStr) -> Result<bool, Errno> {
    let opaque = CString::new(AUFS_OPAQUE).map_err(|_| Errno::INVAL)?;
    Ok(deletes_by_name(dir, name)? || is_there_and_acts(dir, &opaque)?)
}

/// True if the upper directory `dir` holds `.wh.NAME`.
///
/// # Errors
/// Those of `statx(2)`.
pub fn is_deleted_by_name(dir: &Dir, name: &CStr) -> Result<bool, Errno> {
    deletes_by_name(&LayerDir::Held(dir.clone()), name)
}

fn is_there_and_acts(dir: &LayerDir<'_>, name: &CStr) -> Result<bool, Errno> {
    dir.stat(name)?.map_or(Ok(false), |stat| acts_by_name(dir, name, &stat))
}

fn deletes_by_name(dir: &LayerDir<'_>, name: &CStr) -> Result<bool, Errno> {
    // `.wh..wh.NAME` is no whiteout of `.wh.NAME`.
    if is_mark_name(name) {
        return Ok(false);
    }
    let whiteout = CString::new([AUFS_PREFIX, name.to_bytes()].concat()).map_err(|_| Errno::INVAL)?;
    match is_there_and_acts(dir, &whiteout) {
        // For a name of more than 251 bytes, there can be no file with `.wh.` in front.
        Err(Errno::NAMETOOLONG) => Ok(false),
        found => found,
    }
}

/// Resolves `name` in the lower parts of `dir` only.
///
/// # Errors
/// Those of the layers; `IO` for a damaged mark.
pub fn resolve_lower(dir: &MergedDir<'_>, name: &CStr) -> Result<Resolution, Errno> {
    if dir.lowers.is_empty() {
        return Ok(Resolution::Absent);
    }
    let mut walk = Walk { dir, stat: None, parts: Vec::new(), redirected: None };
    let hit = match dir.listing {
        Some(listing) => walk.by_listing(listing, name)?,
        None => walk.by_probing(name, 0)?,
    };
    walk.tell_if_lost();
    Ok(match (hit, walk.stat) {
        (Some(found), _) => Resolution::Found(found),
        (None, Some((stat, source))) => {
            Resolution::Found(Found { lowers: walk.parts, ..Found::single(stat, Source::Lower(source)) })
        }
        (None, None) => Resolution::Absent,
    })
}

/// True if `name` exists below the upper, so that its removal must leave a whiteout.
///
/// # Errors
/// Those of the layers.
pub fn exists_in_lower(dir: &MergedDir<'_>, name: &CStr) -> Result<bool, Errno> {
    match dir.listing {
        Some(listing) => Ok(listing.get(name).is_some()),
        None => Ok(matches!(resolve_lower(dir, name)?, Resolution::Found(_))),
    }
}

fn lower_parts_below_upper(
    dir: &MergedDir<'_>,
    upper: &Dir,
    name: &CStr,
    marks: &Marks,
) -> Result<Vec<LowerRef>, Errno> {
    let mut walk = Walk { dir, stat: None, parts: Vec::new(), redirected: None };
    match redirect_of(dir, marks, name)? {
        None => match dir.listing {
            Some(listing) => drop(walk.by_listing(listing, name)?),
            None => drop(walk.by_probing(name, 0)?),
        },
        Some(Redirect::Relative(other)) => drop(walk.by_probing(&c_name(&other)?, 0)?),
        Some(Redirect::Absolute(path)) => walk.by_path(path, dir.stack.ids())?,
    }
    if walk.parts.is_empty() && marks.redirect.is_some() {
        tell_of_lost_way(upper.shown_path(name));
    }
    walk.tell_if_lost();
    Ok(walk.parts)
}

/// One walk down the layers that collects the parts of a directory.
struct Walk<'w, 'a> {
    dir: &'w MergedDir<'a>,
    /// Attributes of the topmost part and the index of its parent's lower part.
    stat: Option<(Stat, u16)>,
    parts: Vec<LowerRef>,
    /// Number of parts up to the last one with a redirect.
    redirected: Option<usize>,
}

/// Where to look further down.
enum Next {
    /// Under the same name.
    Below,
    /// Under another name in the same directory.
    Renamed(CString),
    /// Under a path from the root of the layers.
    Moved(Vec<u8>),
    /// Nowhere: the search ends.
    Stop,
}

impl Walk<'_, '_> {
    /// A file found in the lower part `index` of the directory.
    fn file(&self, parent: &LayerDir<'_>, name: &CStr, stat: Stat, index: u16) -> Result<Found, Errno> {
        let is_regular = stat.file_type() == FileType::Regular;
        let data = if is_regular { metacopy::of_lower(self.dir, parent, name, usize::from(index))? } else { None };
        Ok(Found { data, ..Found::single(stat, Source::Lower(index)) })
    }

    /// Adds the directory `name` of layer `layer` as the next part. Fails with `LOOP` if it is the upper or the work directory.
    fn take(
        &mut self,
        parent: &LayerDir<'_>,
        name: &CStr,
        layer: LayerId,
        path: std::sync::Arc<CStr>,
    ) -> Result<Next, Errno> {
        if self.dir.stack.holds_traps(layer) && parent.stat(name)?.is_some_and(|stat| self.dir.stack.is_trap(stat.id()))
        {
            return Err(Errno::LOOP);
        }
        let mut part = LowerRef { layer, xattr_whiteouts: false, impure: false, number: parent.number_of(name), path };
        // The marks of the last layer have no effect, because nothing is below it (kernel: `d->last`).
        if self.dir.stack.is_lowest(layer) {
            self.parts.push(part);
            return Ok(Next::Stop);
        }
        let marks = parent.marks(name)?;
        let opaque = marks.opaque();
        part.xattr_whiteouts = opaque == Opaque::XattrWhiteouts;
        part.impure = marks.impure && self.dir.stack.lower(layer)?.chain().is_some();
        self.parts.push(part);
        if opaque == Opaque::Yes {
            return Ok(Next::Stop);
        }
        let redirect = redirect_of(self.dir, &marks, name)?;
        self.redirected = redirect.is_some().then_some(self.parts.len());
        Ok(match redirect {
            None => Next::Below,
            Some(Redirect::Relative(other)) => Next::Renamed(c_name(&other)?),
            Some(Redirect::Absolute(path)) => Next::Moved(path),
        })
    }

    /// Logs a redirect that led nowhere.
    fn tell_if_lost(&self) {
        if self.redirected == Some(self.parts.len())
            && let Some(part) = self.parts.last()
            && let Ok(layer) = self.dir.stack.lower(part.layer)
        {
            tell_of_lost_way(layer.path().join(OsStr::from_bytes(part.path.to_bytes())));
        }
    }

    /// Uses the merged listing, so that only layers with the name are visited.
    fn by_listing(&mut self, listing: &Listing, name: &CStr) -> Result<Option<Found>, Errno> {
        for &index in listing.lower_parts(name) {
            let Some(part) = self.dir.lowers.get(usize::from(index)) else { continue };
            let parent = (self.dir.open_lower)(usize::from(index))?;
            if self.stat.is_none() {
                let Some(stat) = parent.stat(name)? else {
                    tracing::error!("{:?} vanished: a lower layer changed while mounted", parent.shown_path(name));
                    return Err(Errno::IO);
                };
                if !stat.is_dir() {
                    return self.file(&parent, name, stat, index).map(Some);
                }
                self.stat = Some((stat, index));
            }
            match self.take(&parent, name, part.layer, self.path_below(part, name))? {
                Next::Below => {}
                Next::Stop => break,
                Next::Renamed(other) => return self.by_probing(&other, usize::from(index) + 1),
                Next::Moved(path) => {
                    self.by_path(path, self.dir.stack.below(part.layer))?;
                    break;
                }
            }
        }
        Ok(None)
    }

    /// The path of the entry `name` of `part`. It is mostly the same as in the layer above; then both share one string.
    fn path_below(&self, part: &LowerRef, name: &CStr) -> std::sync::Arc<CStr> {
        let same = |above: &&LowerRef| {
            let (above, parent) = (above.path.to_bytes(), part.path.to_bytes());
            let rest = above.strip_prefix(parent);
            let rest = if parent.is_empty() { rest } else { rest.and_then(|rest| rest.strip_prefix(b"/")) };
            rest == Some(name.to_bytes())
        };
        self.parts.last().filter(same).map_or_else(|| part.child_path(name), |above| above.path.clone())
    }

    /// Asks the parent's lower parts one after the other, from index `start` on.
    fn by_probing(&mut self, name: &CStr, start: usize) -> Result<Option<Found>, Errno> {
        let mut name = name.to_owned();
        let mut above: Vec<LayerDir<'_>> = Vec::new();
        for (index, part) in self.dir.lowers.iter().enumerate().skip(start) {
            let parent = (self.dir.open_lower)(index)?;
            let stat = match parent.stat(&name)? {
                Some(stat) if !acts_by_name(&parent, &name, &stat)? => stat,
                _ => {
                    above.push(parent);
                    continue;
                }
            };
            // Layers above may delete the name by `.wh.NAME`; this is checked only now that there is
            // something to delete.
            for higher in above.drain(..) {
                if named_whiteout(&higher, &name)? {
                    return Ok(None);
                }
            }
            if listing::is_whiteout(&parent, &name, &stat, part.xattr_whiteouts)? {
                return Ok(None);
            }
            let source = u16::try_from(index).map_err(|_| Errno::OVERFLOW)?;
            if !stat.is_dir() {
                return if self.stat.is_none() { self.file(&parent, &name, stat, source).map(Some) } else { Ok(None) };
            }
            if self.stat.is_none() {
                self.stat = Some((stat, source));
            }
            match self.take(&parent, &name, part.layer, self.path_below(part, &name))? {
                // `.wh.NAME` or `.wh..wh..opq` beside the directory itself closes it too.
                Next::Below if index + 1 < self.dir.lowers.len() && named_whiteout(&parent, &name)? => break,
                Next::Below => {}
                Next::Stop => break,
                Next::Renamed(other) => name = other,
                Next::Moved(path) => {
                    self.by_path(path, self.dir.stack.below(part.layer))?;
                    break;
                }
            }
        }
        Ok(None)
    }

    /// Follows `path` from the root of each of `layers`.
    fn by_path(&mut self, path: Vec<u8>, layers: impl Iterator<Item = LayerId>) -> Result<(), Errno> {
        let mut path = path;
        for layer in layers {
            let step = follow(self.dir, layer, &path)?;
            path = step.path;
            if let Some(end) = step.end {
                // If a whiteout or a file has the directory's name, the search ends.
                if !end.stat.is_dir() {
                    return Ok(());
                }
                if self.stat.is_none() {
                    self.stat = Some((end.stat, 0));
                }
                match self.take(&LayerDir::Held(end.parent), &end.name, layer, end.path)? {
                    Next::Below => {}
                    Next::Stop => return Ok(()),
                    Next::Renamed(other) => path = with_last(&path, other.to_bytes()),
                    Next::Moved(moved) => {
                        // This leads out of the opaque directories on the path.
                        path = moved;
                        continue;
                    }
                }
            }
            if step.stop {
                return Ok(());
            }
        }
        Ok(())
    }
}
