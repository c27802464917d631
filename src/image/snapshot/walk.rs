//! The changes that an upper directory holds, in the order of a layer tar: each directory before what is in it,
//! names sorted by bytes. Only the upper is walked; below a redirect, which says that a lower directory was renamed,
//! everything that moved with it counts as changed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Stat};

use crate::confined;
use crate::image::layer::attributes::{self, Attributes, FileKind};
use crate::image::layer::error::{AtPath, LayerError, Result};
use crate::image::layer::lower_view::{Found, LowerDir, LowerFile, LowerView};
use crate::image::layer::marks;
use crate::image::layer::path::{join, split};
use crate::marks::{AUFS_PREFIX, AufsName, decode_aufs_name};

/// One change.
pub(crate) enum Change<'c> {
    /// A directory; the root too.
    Directory {
        attributes: &'c Attributes,
        /// It needs a mark that nothing of the lower directory shows through.
        opaque: bool,
        /// The lower directory of its name, if that does not show through.
        hides: Option<&'c LowerDir>,
    },
    /// Anything else that is there.
    File(&'c Changed<'c>),
    /// Deleted below.
    Whiteout,
}

/// A changed file.
pub(crate) struct Changed<'c> {
    pub(crate) kind: FileKind,
    pub(crate) attributes: Attributes,
    pub(crate) stat: Stat,
    source: Source<'c>,
    view: LowerView<'c>,
}

enum Source<'c> {
    Upper { dir: BorrowedFd<'c>, name: &'c [u8], path: &'c [u8], below: Option<&'c LowerDir> },
    Lower { dir: BorrowedFd<'c>, name: &'c [u8], file: &'c LowerFile },
}

impl Changed<'_> {
    /// Opens a regular file's contents.
    pub(crate) fn open(&self) -> Result<OwnedFd> {
        match &self.source {
            Source::Upper { dir, name, path, below } => self.view.open_contents_at(*dir, name, path, *below, 0),
            Source::Lower { file, .. } => self.view.open_contents(file),
        }
    }

    /// A symbolic link's target.
    pub(crate) fn link(&self) -> rustix::io::Result<Vec<u8>> {
        let (dir, name) = match &self.source {
            Source::Upper { dir, name, .. } | Source::Lower { dir, name, .. } => (dir, name),
        };
        Ok(rustix::fs::readlinkat(dir, *name, Vec::new())?.into_bytes())
    }
}

/// Receives the changes.
pub(crate) trait Visit {
    /// One change, at `path`.
    fn visit(&mut self, path: &[u8], change: &Change<'_>) -> Result<()>;
}

/// A directory that is still to be visited.
struct Pending {
    /// Path in the merged tree.
    path: Vec<u8>,
    /// Path in the upper directory; `None` below a redirect, where only lower layers have it.
    upper: Option<Vec<u8>>,
    /// What it merges with.
    lower: Option<LowerDir>,
    /// The lower directory of its name, when it does not merge with that.
    hidden: Option<LowerDir>,
    opaque: bool,
    /// The lower entries count as changes too.
    whole: bool,
}

/// An entry of a directory.
enum Item {
    Upper(Stat),
    Lower(Found),
    Whiteout,
}

struct Walk<'a> {
    upper: BorrowedFd<'a>,
    view: LowerView<'a>,
}

/// A directory's entries that are left, the first one last, and itself.
struct Level {
    dir: Pending,
    items: Vec<(Vec<u8>, Item)>,
}

/// Visits all changes that `upper` holds against `lowers`, topmost first.
pub(crate) fn walk(upper: BorrowedFd<'_>, lowers: &[BorrowedFd<'_>], visitor: &mut dyn Visit) -> Result<()> {
    let walk = Walk { upper, view: LowerView::new(lowers) };
    let lower = if lowers.is_empty() { None } else { Some(walk.view.root()?) };
    let root = Pending { path: Vec::new(), upper: Some(Vec::new()), lower, hidden: None, opaque: false, whole: false };
    walk.from(root, visitor)
}

/// Visits everything that `layers`, topmost first, show together.
pub(crate) fn walk_whole(layers: &[BorrowedFd<'_>], visitor: &mut dyn Visit) -> Result<()> {
    let Some(&top) = layers.first() else { return Ok(()) };
    let walk = Walk { upper: top, view: LowerView::new(layers) };
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
    fn enter(&self, mut dir: Pending, visitor: &mut dyn Visit) -> Result<Level> {
        let mut items = BTreeMap::new();
        let attributes = match &dir.upper {
            Some(path) => {
                let fd = confined::open_dir(self.upper, path).at(path)?;
                let opaque = marks::hides_lower(fd.as_fd()).at(path)?;
                if opaque {
                    // Where everything is written out anyway, one more mark would say nothing.
                    dir.opaque = !dir.whole || dir.opaque;
                    dir.hidden = dir.hidden.take().or(dir.lower.take());
                    dir.lower = None;
                }
                let stat = rustix::fs::fstat(&fd).at(path)?;
                list_upper(fd.as_fd(), path, opaque, &mut items)?;
                attributes::read(fd.as_fd(), b".", &stat).at(path)?.1
            }
            None => self.lower_attributes(dir.lower.as_ref(), &dir.path)?,
        };
        if let (true, Some(lower)) = (dir.whole, &dir.lower) {
            for name in self.view.names(lower)? {
                if let Some(found) = self.view.lookup(lower, &name)? {
                    items.entry(name).or_insert(Item::Lower(found));
                }
            }
            // What is written out whole merges with nothing.
            items.retain(|_, item| !matches!(item, Item::Whiteout));
        }
        let change = Change::Directory { attributes: &attributes, opaque: dir.opaque, hides: dir.hidden.as_ref() };
        visitor.visit(&dir.path, &change)?;
        Ok(Level { dir, items: items.into_iter().rev().collect() })
    }

    fn lower_attributes(&self, dir: Option<&LowerDir>, path: &[u8]) -> Result<Attributes> {
        let part =
            dir.and_then(|dir| dir.parts.first()).ok_or_else(|| LayerError::entry(path, "no such lower directory"))?;
        let (parent, name) = self.view.open_parent(part)?;
        let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW).at(path)?;
        Ok(attributes::read(parent.as_fd(), name, &stat).at(path)?.1)
    }

    /// Visits one entry; a directory is given back.
    fn visit_item(&self, dir: &Pending, name: &[u8], item: Item, visitor: &mut dyn Visit) -> Result<Option<Pending>> {
        let path = join(&dir.path, name);
        match item {
            Item::Whiteout => visitor.visit(&path, &Change::Whiteout).map(|()| None),
            Item::Lower(Found::Directory(lower)) => {
                Ok(Some(Pending { path, upper: None, lower: Some(lower), hidden: None, opaque: false, whole: true }))
            }
            Item::Lower(Found::Other(file)) => {
                let (fd, lower_name) = self.view.open_parent(&file.part)?;
                let (kind, attributes) = attributes::read(fd.as_fd(), lower_name, &file.stat).at(&path)?;
                let source = Source::Lower { dir: fd.as_fd(), name: lower_name, file: &file };
                let changed = Changed { kind, attributes, stat: file.stat, source, view: self.view };
                visitor.visit(&path, &Change::File(&changed)).map(|()| None)
            }
            Item::Upper(stat) => {
                let upper = join(dir.upper.as_deref().unwrap_or_default(), name);
                let (parent, _) = split(&upper).unwrap_or((b"", name));
                let fd = confined::open_dir(self.upper, parent).at(parent)?;
                if FileKind::of(&stat) == FileKind::Directory {
                    return self.upper_directory(dir, fd.as_fd(), name, path, upper).map(Some);
                }
                let (kind, attributes) = attributes::read(fd.as_fd(), name, &stat).at(&path)?;
                let source = Source::Upper { dir: fd.as_fd(), name, path: &path, below: dir.lower.as_ref() };
                let changed = Changed { kind, attributes, stat, source, view: self.view };
                visitor.visit(&path, &Change::File(&changed)).map(|()| None)
            }
        }
    }

    fn upper_directory(
        &self,
        dir: &Pending,
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: Vec<u8>,
        upper: Vec<u8>,
    ) -> Result<Pending> {
        let directory = |found: Option<Found>| match found {
            Some(Found::Directory(lower)) => Some(lower),
            Some(Found::Other(_)) | None => None,
        };
        let look_up = |lower: &Option<LowerDir>, name: &[u8]| match lower {
            Some(lower) => self.view.lookup(lower, name),
            None => Ok(None),
        };
        let redirect = marks::redirect(parent, name, &path)?;
        let below = match &redirect {
            None => look_up(&dir.lower, name)?,
            Some(redirect) => self.view.below_redirect(redirect, dir.lower.as_ref())?,
        };
        let moved = redirect.is_some();
        let hidden = match (&dir.hidden, moved) {
            (None, false) => None,
            (None, true) => directory(look_up(&dir.lower, name)?),
            (hidden @ Some(_), _) => directory(look_up(hidden, name)?),
        };
        let opaque = moved && !dir.whole;
        Ok(Pending { path, upper: Some(upper), lower: directory(below), hidden, opaque, whole: moved || dir.whole })
    }
}

/// The entries of an upper directory; whiteouts under the names that they delete.
fn list_upper(fd: BorrowedFd<'_>, path: &[u8], opaque: bool, items: &mut BTreeMap<Vec<u8>, Item>) -> Result<()> {
    let names = confined::sorted_names(fd).at(path)?;
    let mut deleted = BTreeSet::new();
    for name in names {
        let here = join(path, &name);
        match decode_aufs_name(OsStr::from_bytes(&name)) {
            AufsName::Opaque | AufsName::Bookkeeping => continue,
            AufsName::Whiteout(target) => {
                deleted.insert(target.as_bytes().to_vec());
                continue;
            }
            AufsName::Plain if name.starts_with(AUFS_PREFIX) => {
                return Err(LayerError::entry(
                    &here,
                    "a layer cannot hold a file of this name: it would be a whiteout",
                ));
            }
            AufsName::Plain => {}
        }
        let stat = rustix::fs::statat(fd, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW).at(&here)?;
        let item = if marks::is_whiteout(fd, &name, &stat).at(&here)? { Item::Whiteout } else { Item::Upper(stat) };
        items.insert(name, item);
    }
    for name in deleted {
        items.entry(name).or_insert(Item::Whiteout);
    }
    if opaque {
        items.retain(|_, item| !matches!(item, Item::Whiteout));
    }
    Ok(())
}
