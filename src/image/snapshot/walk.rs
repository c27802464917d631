//! The changes in an upper directory, in the order of a layer tar: each directory before its entries, names sorted
//! by bytes. Only the upper is walked. A redirect means that a lower directory was renamed: then everything that
//! moved with it counts as changed.

use std::collections::{BTreeMap, HashSet};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, OFlags, Stat};

use crate::confined;
use crate::image::layer::attributes::{Attributes, FileKind, OverrideKey};
use crate::image::layer::error::{AtPath, LayerError, Result};
use crate::image::layer::lower_view::{LowerDir, LowerEntry, LowerFile, LowerView, c_name, unknown};
use crate::image::layer::path::join;
use crate::union::layer::LayerId;
use crate::union::merge::{self, Resolution};
use crate::union::view::UpperPart;

/// One change.
pub(crate) enum Visited<'c> {
    /// A directory, possibly the root.
    Directory {
        attributes: &'c Attributes,
        /// It needs a mark that hides the lower directory.
        opaque: bool,
        /// The lower directory with its name, if that is hidden.
        hides: Option<&'c LowerDir>,
    },
    /// Anything else.
    File(&'c Changed<'c>),
    /// A deletion.
    Whiteout,
}

/// A changed file.
pub(crate) struct Changed<'c> {
    pub(crate) kind: FileKind,
    pub(crate) attributes: Attributes,
    pub(crate) stat: Stat,
    place: Place<'c>,
    view: &'c LowerView,
}

/// The place of a changed file.
enum Place<'c> {
    /// In the upper directory; for a metacopy, the content is at `content`.
    Upper { dir: BorrowedFd<'c>, name: &'c [u8], path: &'c [u8], content: Option<&'c (LayerId, Arc<CStr>)> },
    /// In a lower layer, because a directory above it was renamed in the upper.
    Lower { dir: BorrowedFd<'c>, name: &'c [u8], file: &'c LowerFile },
}

impl Changed<'_> {
    /// Opens a regular file's contents.
    pub(crate) fn open(&self) -> Result<OwnedFd> {
        match &self.place {
            Place::Upper { path, content: Some((layer, content)), .. } => {
                self.view.union().open_content(*layer, content).at(path)
            }
            Place::Upper { dir, name, path, content: None } => {
                confined::beneath(*dir, name, OFlags::RDONLY | OFlags::NONBLOCK).at(path)
            }
            Place::Lower { file, .. } => self.view.open_contents(file),
        }
    }

    /// A symbolic link's target.
    pub(crate) fn link(&self) -> rustix::io::Result<Vec<u8>> {
        let (dir, name) = match &self.place {
            Place::Upper { dir, name, .. } | Place::Lower { dir, name, .. } => (dir, name),
        };
        Ok(rustix::fs::readlinkat(dir, *name, Vec::new())?.into_bytes())
    }
}

/// Receives the changes.
pub(crate) trait Visit {
    /// One change, at `path`.
    fn visit(&mut self, path: &[u8], change: &Visited<'_>) -> Result<()>;
}

/// A directory that is yet to be visited.
struct Pending {
    /// Path in the merged tree.
    path: Vec<u8>,
    /// Its part and path in the upper directory; `None` below a redirect, where only lower layers have entries.
    upper: Option<(UpperPart, Vec<u8>)>,
    /// The lower directory that it merges with.
    lower: Option<LowerDir>,
    /// The lower directory with its name, if it does not merge with that.
    hidden: Option<LowerDir>,
    opaque: bool,
    /// True if lower entries count as changes too.
    whole: bool,
}

/// An entry of a directory.
enum Item {
    Upper,
    Lower(LowerEntry),
    Whiteout,
}

/// Paths of an upper that exist but do not count as changes: empty files and directories that were made as
/// mountpoints. They count as changes if they have content.
#[derive(Clone, Debug, Default)]
pub struct Omitted(HashSet<Vec<u8>>);

impl Omitted {
    /// Makes it from absolute paths.
    pub fn new<'p>(paths: impl IntoIterator<Item = &'p Path>) -> Self {
        let bare = |path: &Path| path.as_os_str().as_bytes().strip_prefix(b"/").map(<[u8]>::to_vec);
        Self(paths.into_iter().filter_map(bare).collect())
    }

    /// True if the entry of the upper must be left out, with everything in it.
    fn has(&self, upper: BorrowedFd<'_>, path: &[u8]) -> bool {
        if !self.0.contains(path) {
            return false;
        }
        let Ok(stat) = confined::beneath(upper, path, OFlags::PATH | OFlags::NOFOLLOW).and_then(rustix::fs::fstat)
        else {
            return false;
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => stat.st_size == 0,
            FileType::Directory => self.holds_all(upper, path),
            _ => false,
        }
    }

    /// True if everything in the directory must be left out.
    fn holds_all(&self, upper: BorrowedFd<'_>, path: &[u8]) -> bool {
        let Ok(mut entries) = confined::open_dir(upper, path).and_then(rustix::fs::Dir::read_from) else {
            return false;
        };
        entries.all(|entry| {
            entry.is_ok_and(|entry| {
                let name = entry.file_name().to_bytes();
                name == b"." || name == b".." || self.has(upper, &join(path, name))
            })
        })
    }
}

struct Walk<'a> {
    upper: BorrowedFd<'a>,
    view: LowerView,
    omitted: &'a Omitted,
}

/// A directory and its remaining entries, the first one last.
struct Level {
    dir: Pending,
    items: Vec<(Vec<u8>, Item)>,
}

/// Visits all changes that `upper` holds against `lowers`, topmost first. Owner, mode and type are stored in `key`, if not in
/// the inodes.
pub(crate) fn walk(
    upper: BorrowedFd<'_>,
    lowers: &[BorrowedFd<'_>],
    omitted: &Omitted,
    key: Option<OverrideKey>,
    visitor: &mut dyn Visit,
) -> Result<()> {
    // Anything mounted in the upper is not part of it.
    let upper = confined::without_mounts(upper).at(b"")?;
    let upper = upper.as_fd();
    let walk = Walk { upper, view: LowerView::new(lowers, key)?, omitted };
    let lower = if lowers.is_empty() { None } else { Some(walk.view.root()?) };
    let part = UpperPart::root(
        upper
            .try_clone_to_owned()
            .map_err(|error| LayerError::Io { place: "the upper directory".into(), source: error })?,
    )
    .at(b"")?;
    let (opaque, hidden, lower) = if part.is_opaque() { (true, lower, None) } else { (false, None, lower) };
    let root = Pending { path: Vec::new(), upper: Some((part, Vec::new())), lower, hidden, opaque, whole: false };
    walk.from(root, visitor)
}

/// Visits the merged tree of `layers`, topmost first.
pub(crate) fn walk_whole(layers: &[BorrowedFd<'_>], key: Option<OverrideKey>, visitor: &mut dyn Visit) -> Result<()> {
    let Some(&top) = layers.first() else { return Ok(()) };
    let omitted = Omitted::default();
    let walk = Walk { upper: top, view: LowerView::new(layers, key)?, omitted: &omitted };
    let lower = Some(walk.view.root()?);
    walk.from(Pending { path: Vec::new(), upper: None, lower, hidden: None, opaque: false, whole: true }, visitor)
}

impl Walk<'_> {
    fn from(&self, root: Pending, visitor: &mut dyn Visit) -> Result<()> {
        let mut levels = vec![self.enter(root, visitor)?];
        while let Some(level) = levels.last_mut() {
            match level.items.pop() {
                None => {
                    levels.pop();
                }
                Some((name, item)) => {
                    if let Some(below) = self.visit_item(&level.dir, &name, item, visitor)? {
                        levels.push(self.enter(below, visitor)?);
                    }
                }
            }
        }
        Ok(())
    }

    /// Visits the directory itself and lists it.
    fn enter(&self, dir: Pending, visitor: &mut dyn Visit) -> Result<Level> {
        let mut items = BTreeMap::new();
        let attributes = match &dir.upper {
            Some((part, path)) => {
                let fd = confined::open_dir(self.upper, path).at(path)?;
                let stat = rustix::fs::fstat(&fd).at(path)?;
                list_upper(part, path, &mut items)?;
                self.view.shown(fd.as_fd(), b".", &stat).at(path)?.1
            }
            None => self.lower_attributes(dir.lower.as_ref(), &dir.path)?,
        };
        if let (true, Some(lower)) = (dir.whole, &dir.lower) {
            for name in self.view.names(lower)? {
                if let Some(found) = self.view.lookup(lower, &name)? {
                    items.entry(name).or_insert(Item::Lower(found));
                }
            }
            // A directory that is written in full needs no whiteouts.
            items.retain(|_, item| !matches!(item, Item::Whiteout));
        }
        let change = Visited::Directory { attributes: &attributes, opaque: dir.opaque, hides: dir.hidden.as_ref() };
        visitor.visit(&dir.path, &change)?;
        Ok(Level { dir, items: items.into_iter().rev().collect() })
    }

    fn lower_attributes(&self, dir: Option<&LowerDir>, path: &[u8]) -> Result<Attributes> {
        let part =
            dir.and_then(|dir| dir.parts.first()).ok_or_else(|| LayerError::entry(path, "no such lower directory"))?;
        Ok(self.view.shown_part(part, path)?.1)
    }

    /// Visits one entry; returns it if it is a directory.
    fn visit_item(&self, dir: &Pending, name: &[u8], item: Item, visitor: &mut dyn Visit) -> Result<Option<Pending>> {
        let path = join(&dir.path, name);
        match item {
            Item::Whiteout => visitor.visit(&path, &Visited::Whiteout).map(|()| None),
            Item::Lower(LowerEntry::Directory(lower)) => {
                Ok(Some(Pending { path, upper: None, lower: Some(lower), hidden: None, opaque: false, whole: true }))
            }
            Item::Lower(LowerEntry::Other(file)) => {
                let (fd, lower_name) = self.view.open_parent(&file.part)?;
                let (kind, attributes) = self.view.shown(fd.as_fd(), lower_name, &file.stat).at(&path)?;
                let place = Place::Lower { dir: fd.as_fd(), name: lower_name, file: &file };
                let changed = Changed { kind, attributes, stat: file.stat, place, view: &self.view };
                visitor.visit(&path, &Visited::File(&changed)).map(|()| None)
            }
            Item::Upper if self.omitted.has(self.upper, &path) => Ok(None),
            Item::Upper => self.visit_upper(dir, name, path, visitor),
        }
    }

    /// Visits an entry of the upper directory; returns it if it is a directory.
    fn visit_upper(
        &self,
        dir: &Pending,
        name: &[u8],
        path: Vec<u8>,
        visitor: &mut dyn Visit,
    ) -> Result<Option<Pending>> {
        let (part, parent) = dir.upper.as_ref().ok_or_else(|| LayerError::entry(&path, "no such upper directory"))?;
        let lowers = dir.lower.as_ref().map_or(&[][..], |lower| &lower.parts);
        let c_name = c_name(name)?;
        let resolved = self.view.union().resolve(Some(part), lowers, &c_name);
        let Resolution::Found(found) = resolved.map_err(|errno| unknown(&path, errno))? else {
            return Err(LayerError::entry(&path, "it vanished while it was read"));
        };
        if found.stat.is_dir() {
            return self.upper_directory(dir, name, path, found).map(Some);
        }
        let fd = confined::open_dir(self.upper, parent).at(parent)?;
        let stat = rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW).at(&path)?;
        let (kind, attributes) = self.view.shown(fd.as_fd(), name, &stat).at(&path)?;
        let place = Place::Upper { dir: fd.as_fd(), name, path: &path, content: found.data.as_ref() };
        let changed = Changed { kind, attributes, stat, place, view: &self.view };
        visitor.visit(&path, &Visited::File(&changed)).map(|()| None)
    }

    fn upper_directory(&self, dir: &Pending, name: &[u8], path: Vec<u8>, found: merge::Found) -> Result<Pending> {
        let directory = |lower: &LowerDir| match self.view.lookup(lower, name) {
            Ok(Some(LowerEntry::Directory(lower))) => Ok(Some(lower)),
            // With a damaged mark, the hidden entries are unknown and none are reported.
            Ok(Some(LowerEntry::Other(_)) | None) | Err(LayerError::Entry { .. }) => Ok(None),
            Err(error) => Err(error),
        };
        let (part, parent) = dir.upper.as_ref().ok_or_else(|| LayerError::entry(&path, "no such upper directory"))?;
        let upper = (part.child(&c_name(name)?, &found).at(&path)?, join(parent, name));
        let moved = found.marks.redirect.is_some();
        // The directory that it replaces.
        let hidden = match (&dir.hidden, &dir.lower) {
            (Some(hidden), _) => directory(hidden)?,
            (None, Some(lower)) if moved || found.closed => directory(lower)?,
            (None, _) => None,
        };
        // If everything is written in full anyway, the mark is superfluous.
        let opaque = (moved || found.closed) && !dir.whole;
        let lower = (!found.lowers.is_empty()).then_some(LowerDir { parts: found.lowers });
        Ok(Pending { path, upper: Some(upper), lower, hidden, opaque, whole: moved || dir.whole })
    }
}

/// The entries of an upper directory; whiteouts have the names that they delete.
fn list_upper(part: &UpperPart, path: &[u8], items: &mut BTreeMap<Vec<u8>, Item>) -> Result<()> {
    for entry in part.entries().map_err(|errno| unknown(path, errno))? {
        let name = entry.name.to_bytes();
        // In an opaque directory, whiteouts have no effect.
        if !entry.whiteout {
            items.insert(name.to_vec(), Item::Upper);
        } else if !part.is_opaque() {
            items.insert(name.to_vec(), Item::Whiteout);
        }
    }
    Ok(())
}
