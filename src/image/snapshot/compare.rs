//! The difference between two stacks of layers.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

use crate::image::layer::attributes::{Attributes, FileKind};
use crate::image::layer::error::{AtPath, Result};
use crate::image::layer::lower_view::{LowerDir, LowerEntry, LowerFile, LowerView};
use crate::image::layer::path::{join, split};
use crate::image::snapshot::changes::{Change, ChangeKind};
use crate::image::snapshot::key_of;
use crate::union::layer::{FileId, LayerId, LowerRef, XattrPermissions};

/// The changes that turn `old` into `new` (both topmost first), sorted by path, in the form of
/// [`changes`](crate::image::snapshot::changes()). Every entry of an added directory is listed, but only the directory itself
/// if it was deleted. Files with equal size and time count as equal, as in rsync; contents are not read.
///
/// # Errors
/// [`crate::image::layer::LayerError`], naming the unreadable file.
pub fn compare(old: &[BorrowedFd<'_>], new: &[BorrowedFd<'_>], permissions: XattrPermissions) -> Result<Vec<Change>> {
    let mut comparison =
        Comparison { old: Side::new(old, permissions)?, new: Side::new(new, permissions)?, found: BTreeMap::new() };
    comparison.run()?;
    let change = |(path, kind)| Change { kind, path: [&b"/"[..], path].concat() };
    Ok(comparison.found.iter().map(|(path, kind)| change((path.as_slice(), *kind))).collect())
}

struct Side {
    view: LowerView,
    /// The layers' directories of both stacks.
    roots: BTreeMap<LayerId, FileId>,
}

/// Directories with one path that must be compared, or one new directory.
struct Pending {
    path: Vec<u8>,
    old: Option<LowerDir>,
    new: LowerDir,
}

struct Comparison {
    old: Side,
    new: Side,
    found: BTreeMap<Vec<u8>, ChangeKind>,
}

impl Side {
    fn new(layers: &[BorrowedFd<'_>], permissions: XattrPermissions) -> Result<Self> {
        let view = LowerView::new(layers, key_of(permissions, None, layers)?)?;
        let mut roots = BTreeMap::new();
        let stack = view.union().stack();
        for (id, layer) in stack.ids().zip(stack.lowers()) {
            roots.insert(id, layer.root().stat_self().at(b"")?.id());
        }
        Ok(Self { view, roots })
    }

    fn root(&self, part: &LowerRef) -> Option<FileId> {
        self.roots.get(&part.layer).copied()
    }

    fn lookup(&self, dir: &LowerDir, name: &[u8]) -> Result<Option<LowerEntry>> {
        self.view.lookup(dir, name)
    }

    fn attributes(&self, part: &LowerRef) -> Result<(FileKind, Attributes)> {
        let (kind, attributes, _) = self.view.shown_part(part, part.path.to_bytes())?;
        Ok((kind, attributes))
    }

    fn target(&self, part: &LowerRef) -> Result<Vec<u8>> {
        let (parent, name) = self.view.open_parent(part)?;
        Ok(rustix::fs::readlinkat(&parent, name, Vec::new()).at(part.path.to_bytes())?.into_bytes())
    }
}

impl Comparison {
    fn run(&mut self) -> Result<()> {
        let mut pending =
            vec![Pending { path: Vec::new(), old: Some(self.old.view.root()?), new: self.new.view.root()? }];
        while let Some(Pending { path, old, new }) = pending.pop() {
            if old.as_ref().is_some_and(|old| self.are_one(&old.parts, &new.parts)) {
                continue;
            }
            let mut names = self.new.view.names(&new)?;
            if let Some(old) = &old {
                names.extend(self.old.view.names(old)?);
            }
            for name in names {
                let before = match &old {
                    Some(old) => self.old.lookup(old, &name)?,
                    None => None,
                };
                let after = self.new.lookup(&new, &name)?;
                pending.extend(self.compare(join(&path, &name), before, after)?);
            }
        }
        Ok(())
    }

    /// Compares the entries at a path; directories that are in both stacks, or only in the new one, are queued.
    fn compare(
        &mut self,
        path: Vec<u8>,
        before: Option<LowerEntry>,
        after: Option<LowerEntry>,
    ) -> Result<Option<Pending>> {
        match (before, after) {
            (None, None) => Ok(None),
            (Some(_), None) => {
                self.record(&path, ChangeKind::Deleted);
                Ok(None)
            }
            (None, Some(after)) => {
                self.record(&path, ChangeKind::Added);
                Ok(directory(after).map(|new| Pending { path, old: None, new }))
            }
            (Some(LowerEntry::Directory(old)), Some(LowerEntry::Directory(new))) => {
                if !self.alike(&old.parts, &new.parts)? {
                    self.record(&path, ChangeKind::Changed);
                }
                Ok(Some(Pending { path, old: Some(old), new }))
            }
            (Some(LowerEntry::Other(old)), Some(LowerEntry::Other(new))) => {
                if !self.same_file(&old, &new)? {
                    self.record(&path, ChangeKind::Changed);
                }
                Ok(None)
            }
            (Some(_), Some(after)) => {
                self.record(&path, ChangeKind::Changed);
                Ok(directory(after).map(|new| Pending { path, old: None, new }))
            }
        }
    }

    /// True for the same directories of the same layers: nothing below can differ.
    fn are_one(&self, old: &[LowerRef], new: &[LowerRef]) -> bool {
        old.len() == new.len() && old.iter().zip(new).all(|(old, new)| self.is_one(old, new))
    }

    fn is_one(&self, old: &LowerRef, new: &LowerRef) -> bool {
        self.old.root(old) == self.new.root(new) && old.path == new.path
    }

    /// Compares the attributes of two merged directories, which are those of their first parts.
    fn alike(&self, old: &[LowerRef], new: &[LowerRef]) -> Result<bool> {
        match (old.first(), new.first()) {
            (Some(old), Some(new)) if self.is_one(old, new) => Ok(true),
            (Some(old), Some(new)) => Ok(self.old.attributes(old)? == self.new.attributes(new)?),
            (old, new) => Ok(old.is_none() == new.is_none()),
        }
    }

    fn same_file(&self, old: &LowerFile, new: &LowerFile) -> Result<bool> {
        if self.is_one(&old.part, &new.part) {
            return Ok(true);
        }
        let before = self.old.attributes(&old.part)?;
        if before != self.new.attributes(&new.part)? || old.stat.st_size != new.stat.st_size {
            return Ok(false);
        }
        Ok(before.0 != FileKind::Symlink || self.old.target(&old.part)? == self.new.target(&new.part)?)
    }

    /// A directory is changed if an entry was added or deleted in it.
    fn record(&mut self, path: &[u8], kind: ChangeKind) {
        self.found.insert(path.to_vec(), kind);
        if let Some((parent, _)) = split(path).filter(|(parent, _)| kind != ChangeKind::Changed && !parent.is_empty()) {
            self.found.entry(parent.to_vec()).or_insert(ChangeKind::Changed);
        }
    }
}

fn directory(found: LowerEntry) -> Option<LowerDir> {
    match found {
        LowerEntry::Directory(dir) => Some(dir),
        LowerEntry::Other(_) => None,
    }
}
