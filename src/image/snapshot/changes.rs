//! The changes in an upper directory as a list, as `docker diff` prints it.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::BorrowedFd;

use crate::image::layer::attributes::Attributes;
use crate::image::layer::error::Result;
use crate::image::layer::lower_view::{LowerDir, LowerEntry, LowerView};
use crate::image::layer::path::{join, split};
use crate::image::snapshot::key_of;
use crate::image::snapshot::walk::{self, Omitted, Visit, walk};
use crate::union::layer::XattrPermissions;

/// How a path was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChangeKind {
    /// New.
    Added,
    /// It existed, and now has other contents, other attributes, or (a directory) other entries.
    Changed,
    /// It existed.
    Deleted,
}

impl fmt::Display for ChangeKind {
    /// The letter that `docker diff` prints.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Added => "A",
            Self::Changed => "C",
            Self::Deleted => "D",
        })
    }
}

/// One changed path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// How it changed.
    pub kind: ChangeKind,
    /// The absolute path.
    pub path: Vec<u8>,
}

/// The changes of the upper directory `upper` against `lowers` (topmost first), sorted by path. A directory is
/// changed if its own attributes are, or if an entry was added or deleted in it.
///
/// # Errors
/// [`crate::image::layer::LayerError`], naming the unreadable file.
pub fn changes(upper: BorrowedFd<'_>, lowers: &[BorrowedFd<'_>]) -> Result<Vec<Change>> {
    changes_without(upper, lowers, &Omitted::default(), XattrPermissions::Auto)
}

/// As above, without some paths of the upper, for a union that stores owners and modes as `permissions` says.
///
/// # Errors
/// As for [`changes`].
pub fn changes_without(
    upper: BorrowedFd<'_>,
    lowers: &[BorrowedFd<'_>],
    omitted: &Omitted,
    permissions: XattrPermissions,
) -> Result<Vec<Change>> {
    let key = key_of(permissions, Some(upper), lowers)?;
    let mut list = List { view: LowerView::new(lowers, key)?, found: BTreeMap::new() };
    walk(upper, lowers, omitted, key, &mut list)?;
    Ok(list.found.into_iter().map(|(path, kind)| Change { kind, path: [b"/", path.as_slice()].concat() }).collect())
}

struct List {
    view: LowerView,
    found: BTreeMap<Vec<u8>, ChangeKind>,
}

impl List {
    fn below(&self, path: &[u8]) -> Result<Option<LowerEntry>> {
        if self.view.is_empty() { Ok(None) } else { self.view.lookup_path(path) }
    }

    fn record(&mut self, path: &[u8], kind: ChangeKind) {
        self.found.insert(path.to_vec(), kind);
        if kind == ChangeKind::Changed {
            return;
        }
        if let Some((parent, _)) = split(path).filter(|(parent, _)| !parent.is_empty()) {
            self.found.entry(parent.to_vec()).or_insert(ChangeKind::Changed);
        }
    }

    fn directory(
        &mut self,
        path: &[u8],
        attributes: &Attributes,
        opaque: bool,
        hides: Option<&LowerDir>,
    ) -> Result<()> {
        if !path.is_empty() {
            let unchanged = match self.below(path)? {
                None => {
                    self.record(path, ChangeKind::Added);
                    return Ok(());
                }
                Some(LowerEntry::Other(_)) => false,
                Some(LowerEntry::Directory(dir)) => match dir.parts.first() {
                    Some(part) => !opaque && self.view.shown_part(part, path)?.1 == *attributes,
                    None => false,
                },
            };
            self.found.remove(path);
            if !unchanged {
                self.record(path, ChangeKind::Changed);
            }
        }
        // The hidden entries are deleted, unless the upper has them too: such an entry is reported later, and overrides this.
        let Some(hidden) = hides else { return Ok(()) };
        for name in self.view.names(hidden)? {
            self.record(&join(path, &name), ChangeKind::Deleted);
        }
        Ok(())
    }

    fn file(&mut self, path: &[u8], changed: &walk::Changed<'_>) -> Result<()> {
        let kind = match self.below(path)? {
            None => ChangeKind::Added,
            Some(LowerEntry::Directory(_)) => ChangeKind::Changed,
            Some(LowerEntry::Other(file)) => {
                let (kind, attributes, stat) = self.view.shown_part(&file.part, path)?;
                // Size and time decide, as in rsync; contents are not read.
                if (kind, &attributes, stat.st_size) == (changed.kind, &changed.attributes, changed.stat.st_size) {
                    self.found.remove(path);
                    return Ok(());
                }
                ChangeKind::Changed
            }
        };
        self.record(path, kind);
        Ok(())
    }
}

impl Visit for List {
    fn visit(&mut self, path: &[u8], change: &walk::Visited<'_>) -> Result<()> {
        match change {
            walk::Visited::Directory { attributes, opaque, hides } => self.directory(path, attributes, *opaque, *hides),
            walk::Visited::File(changed) => self.file(path, changed),
            walk::Visited::Whiteout => {
                if self.below(path)?.is_some() {
                    self.record(path, ChangeKind::Deleted);
                }
                Ok(())
            }
        }
    }
}
