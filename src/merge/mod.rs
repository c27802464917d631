//! The union's rules: which file a name means, given the layers (kernel: `ovl_lookup`), and what a merged
//! directory lists. Reads layers; keeps nothing.

pub mod listing;

use std::ffi::{CStr, CString};

use rustix::io::Errno;

pub use listing::{Listing, Source};

use crate::layer::{Dir, LayerStack, LowerRef, Marks, Stat};
use crate::whiteout::{self, AUFS_OPAQUE, AUFS_PREFIX, Opaque, Redirect};

/// A directory to look names up in.
pub struct MergedDir<'a> {
    /// All layers.
    pub stack: &'a LayerStack,
    /// Its upper part.
    pub upper: Option<&'a Dir>,
    /// Its lower parts, topmost first.
    pub lowers: &'a [LowerRef],
    /// Opens the lower part of an index.
    pub open_lower: &'a dyn Fn(usize) -> Result<Dir, Errno>,
    /// The merged listing of the lower parts, where it has been read already.
    pub listing: Option<&'a Listing>,
    /// Entries of the upper may have marks: it holds copied-up files (`impure`), or that is not known.
    pub upper_may_have_marks: bool,
    /// Redirects are followed (`redirect_dir` is not `nofollow`).
    pub follow_redirects: bool,
}

/// What a name means.
#[derive(Debug)]
pub enum Resolution {
    /// Nothing, in any layer.
    Absent,
    /// Deleted: there is a whiteout in the upper.
    WhiteoutInUpper,
    /// A file or directory.
    Found(Found),
}

/// A file or directory, possibly of several parts.
#[derive(Debug)]
pub struct Found {
    /// Attributes of its topmost part.
    pub stat: Stat,
    /// Where the topmost part is.
    pub source: Source,
    /// Marks of the upper part; default where there is none.
    pub marks: Marks,
    /// Lower parts of a directory, topmost first.
    pub lowers: Vec<LowerRef>,
}

/// Resolves `name`.
///
/// # Errors
/// Those of the layers; `IO` for a damaged mark.
pub fn resolve(dir: &MergedDir<'_>, name: &CStr) -> Result<Resolution, Errno> {
    let Some(upper) = dir.upper else { return resolve_lower(dir, name) };
    match upper.stat(name)? {
        None => {
            let below = resolve_lower(dir, name)?;
            if matches!(below, Resolution::Found(_)) && named_whiteout(upper, name)? {
                return Ok(Resolution::WhiteoutInUpper);
            }
            Ok(below)
        }
        Some(stat) if stat.is_dir() => {
            let marks = upper.marks(name)?;
            let lowers = if marks.opaque() == Opaque::Yes || has_name(upper, name)? {
                Vec::new()
            } else {
                lower_parts_below_upper(dir, name, &marks)?
            };
            Ok(Resolution::Found(Found { stat, source: Source::Upper, marks, lowers }))
        }
        Some(stat) => {
            if stat.is_whiteout_device() {
                return Ok(Resolution::WhiteoutInUpper);
            }
            let marks = if dir.upper_may_have_marks || stat.may_be_xattr_whiteout() {
                upper.marks(name)?
            } else {
                Marks::default()
            };
            if marks.whiteout && stat.may_be_xattr_whiteout() {
                return Ok(Resolution::WhiteoutInUpper);
            }
            Ok(Resolution::Found(Found { stat, source: Source::Upper, marks, lowers: Vec::new() }))
        }
    }
}

/// True if the upper directory `name` is opaque by an entry in it (`.wh..wh..opq`).
fn has_name(upper: &Dir, name: &CStr) -> Result<bool, Errno> {
    let mut path = name.to_bytes().to_vec();
    path.push(b'/');
    path.extend_from_slice(AUFS_OPAQUE);
    // A name with a NUL cannot come from a `CStr`.
    Ok(upper.stat(&CString::new(path).map_err(|_| Errno::INVAL)?)?.is_some())
}

/// True if `dir` deletes `name` by a name of its own: `.wh.NAME`, or `.wh..wh..opq` for all of them.
fn named_whiteout(dir: &Dir, name: &CStr) -> Result<bool, Errno> {
    let mut whiteout = AUFS_PREFIX.to_vec();
    whiteout.extend_from_slice(name.to_bytes());
    let whiteout = CString::new(whiteout).map_err(|_| Errno::INVAL)?;
    let exists = |name: &CStr| match dir.stat(name) {
        // `.wh.` in front of a name of over 251 bytes: there can be no such file.
        Err(Errno::NAMETOOLONG) => Ok(false),
        found => found.map(|f| f.is_some()),
    };
    let opaque = CString::new(AUFS_OPAQUE).map_err(|_| Errno::INVAL)?;
    Ok(exists(&whiteout)? || exists(&opaque)?)
}

/// Resolves `name` in the lower parts of `dir` only.
///
/// # Errors
/// Those of the layers; `IO` for a damaged mark.
pub fn resolve_lower(dir: &MergedDir<'_>, name: &CStr) -> Result<Resolution, Errno> {
    if dir.lowers.is_empty() {
        return Ok(Resolution::Absent);
    }
    let mut walk = Walk { dir, stat: None, parts: Vec::new() };
    let hit = match dir.listing {
        Some(listing) => walk.by_listing(listing, name)?,
        None => walk.by_probing(name, 0)?,
    };
    Ok(match (hit, walk.stat) {
        (Some(found), _) => Resolution::Found(found),
        (None, Some((stat, source))) => Resolution::Found(Found {
            stat,
            source: Source::Lower(source),
            marks: Marks::default(),
            lowers: walk.parts,
        }),
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

fn lower_parts_below_upper(dir: &MergedDir<'_>, name: &CStr, marks: &Marks) -> Result<Vec<LowerRef>, Errno> {
    let mut walk = Walk { dir, stat: None, parts: Vec::new() };
    match walk.redirect_of(marks, name)? {
        None => match dir.listing {
            Some(listing) => drop(walk.by_listing(listing, name)?),
            None => drop(walk.by_probing(name, 0)?),
        },
        Some(Redirect::Relative(other)) => drop(walk.by_probing(&c_name(&other)?, 0)?),
        Some(Redirect::Absolute(path)) => walk.by_path(path, 0)?,
    }
    Ok(walk.parts)
}

fn c_name(name: &[u8]) -> Result<CString, Errno> {
    CString::new(name).map_err(|_| Errno::IO)
}

/// One walk down the layers, collecting the parts of a directory.
struct Walk<'a> {
    dir: &'a MergedDir<'a>,
    /// Attributes of the topmost part and the index of its parent's lower part.
    stat: Option<(Stat, u16)>,
    parts: Vec<LowerRef>,
}

/// Whether to look further down.
enum Next {
    /// Under the same name.
    Below,
    /// Under another name in the same directory.
    Renamed(CString),
    /// Under a path from the root of the layers.
    Moved(Vec<u8>),
    /// Not at all.
    Stop,
}

impl Walk<'_> {
    /// The redirect that applies, or `None`.
    fn redirect_of(&self, marks: &Marks, name: &CStr) -> Result<Option<Redirect>, Errno> {
        let Some(value) = marks.redirect.as_deref() else { return Ok(None) };
        if !self.dir.follow_redirects {
            tracing::warn!("{name:?}: redirect not followed (redirect_dir=nofollow)");
            return Err(Errno::PERM);
        }
        whiteout::decode_redirect(value).map(Some).map_err(|malformed| {
            tracing::error!("{name:?}: {malformed}: {:?}", String::from_utf8_lossy(value));
            Errno::IO
        })
    }

    /// Takes the directory `name` of layer `layer` as the next part.
    fn take(&mut self, parent: &Dir, name: &CStr, layer: u16, path: std::sync::Arc<CStr>) -> Result<Next, Errno> {
        let mut part = LowerRef { layer, xattr_whiteouts: false, path };
        // Nothing is below the last layer, so its marks mean nothing (kernel: `d->last`).
        if usize::from(layer) + 1 == self.dir.stack.lowers().len() {
            self.parts.push(part);
            return Ok(Next::Stop);
        }
        let marks = parent.marks(name)?;
        let opaque = marks.opaque();
        part.xattr_whiteouts = opaque == Opaque::XattrWhiteouts;
        self.parts.push(part);
        if opaque == Opaque::Yes {
            return Ok(Next::Stop);
        }
        Ok(match self.redirect_of(&marks, name)? {
            None => Next::Below,
            Some(Redirect::Relative(other)) => Next::Renamed(c_name(&other)?),
            Some(Redirect::Absolute(path)) => Next::Moved(path),
        })
    }

    /// Uses the merged listing: only the layers that have the name are visited.
    fn by_listing(&mut self, listing: &Listing, name: &CStr) -> Result<Option<Found>, Errno> {
        for &index in listing.lower_parts(name) {
            let Some(part) = self.dir.lowers.get(usize::from(index)) else { continue };
            let parent = (self.dir.open_lower)(usize::from(index))?;
            if self.stat.is_none() {
                let Some(stat) = parent.stat(name)? else {
                    tracing::error!(
                        "{name:?} vanished from {}: a lower layer changed while mounted",
                        self.layer_path(part)
                    );
                    return Err(Errno::IO);
                };
                if !stat.is_dir() {
                    return Ok(Some(Found {
                        stat,
                        source: Source::Lower(index),
                        marks: Marks::default(),
                        lowers: Vec::new(),
                    }));
                }
                self.stat = Some((stat, index));
            }
            match self.take(&parent, name, part.layer, part.child_path(name))? {
                Next::Below => {}
                Next::Stop => break,
                Next::Renamed(other) => return self.by_probing(&other, usize::from(index) + 1),
                Next::Moved(path) => {
                    self.by_path(path, usize::from(part.layer) + 1)?;
                    break;
                }
            }
        }
        Ok(None)
    }

    fn layer_path(&self, part: &LowerRef) -> String {
        self.dir.stack.lower(part.layer).map(|l| l.path().display().to_string()).unwrap_or_default()
    }

    /// Asks the parent's lower parts from index `start` on, one after the other.
    fn by_probing(&mut self, name: &CStr, start: usize) -> Result<Option<Found>, Errno> {
        let mut name = name.to_owned();
        let mut above: Vec<Dir> = Vec::new();
        for (index, part) in self.dir.lowers.iter().enumerate().skip(start) {
            let parent = (self.dir.open_lower)(index)?;
            let Some(stat) = parent.stat(&name)? else {
                above.push(parent);
                continue;
            };
            // Layers above may delete the name by a name; asked only now that there is something to delete.
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
                let file = Found { stat, source: Source::Lower(source), marks: Marks::default(), lowers: Vec::new() };
                return Ok(self.stat.is_none().then_some(file));
            }
            if self.stat.is_none() {
                self.stat = Some((stat, source));
            }
            match self.take(&parent, &name, part.layer, part.child_path(&name))? {
                // `.wh.NAME` or `.wh..wh..opq` beside the directory itself close it as well.
                Next::Below if index + 1 < self.dir.lowers.len() && named_whiteout(&parent, &name)? => break,
                Next::Below => {}
                Next::Stop => break,
                Next::Renamed(other) => name = other,
                Next::Moved(path) => {
                    self.by_path(path, usize::from(part.layer) + 1)?;
                    break;
                }
            }
        }
        Ok(None)
    }

    /// Follows `path` from the root of every layer from `first` on (kernel: `ovl_lookup_layer`).
    fn by_path(&mut self, path: Vec<u8>, first: usize) -> Result<(), Errno> {
        let mut path = path;
        for layer in first..self.dir.stack.lowers().len() {
            let number = u16::try_from(layer).map_err(|_| Errno::OVERFLOW)?;
            let mut dir = self.dir.stack.lower(number)?.root().clone();
            let mut real: std::sync::Arc<CStr> = std::sync::Arc::from(c"");
            let components: Vec<CString> = path.split(|&b| b == b'/').map(c_name).collect::<Result<_, _>>()?;
            let mut stop = false;
            let mut next_path = None;
            let mut missing = false;
            for (at, name) in components.iter().enumerate() {
                let last = at + 1 == components.len();
                let Some(stat) = dir.stat(name)? else {
                    missing = true;
                    break;
                };
                if !stat.is_dir() {
                    // A whiteout or a file in the way ends the search in all layers.
                    return Ok(());
                }
                real = crate::layer::join(&real, name);
                if last {
                    if self.stat.is_none() {
                        self.stat = Some((stat, 0));
                    }
                    match self.take(&dir, name, number, real.clone())? {
                        Next::Below => {}
                        Next::Stop => stop = true,
                        Next::Renamed(other) => next_path = Some(replace_component(&components, at, other.to_bytes())),
                        Next::Moved(moved) => next_path = Some(moved),
                    }
                    break;
                }
                if layer + 1 < self.dir.stack.lowers().len() {
                    let marks = dir.marks(name)?;
                    stop |= marks.opaque() == Opaque::Yes;
                    match self.redirect_of(&marks, name)? {
                        None => {}
                        Some(Redirect::Relative(other)) => {
                            next_path = Some(replace_component(&components, at, &other));
                        }
                        Some(Redirect::Absolute(moved)) => {
                            let rest = components.get(at + 1..).unwrap_or_default();
                            let rest = rest.iter().map(|c| c.to_bytes());
                            next_path =
                                Some(std::iter::once(moved.as_slice()).chain(rest).collect::<Vec<_>>().join(&b'/'));
                        }
                    }
                }
                dir = dir.open_dir(name)?;
            }
            if stop {
                return Ok(());
            }
            if let Some(next) = next_path {
                path = next;
            }
            // A missing component says nothing of the layers below.
            tracing::trace!(layer, missing, "redirect");
        }
        Ok(())
    }
}

fn replace_component(components: &[CString], at: usize, other: &[u8]) -> Vec<u8> {
    let parts = components.iter().enumerate().map(|(i, c)| if i == at { other } else { c.to_bytes() });
    parts.collect::<Vec<_>>().join(&b'/')
}
