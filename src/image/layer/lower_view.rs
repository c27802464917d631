//! The layers below, for unpacking, snapshots and comparisons: a [`View`] with paths as bytes, and errors that name the path.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Stat};
use rustix::io::Errno;

use crate::confined;
use crate::image::layer::attributes::{self, Attributes, FileKind, OverrideKey};
use crate::image::layer::error::{AtPath, LayerError, Result};
use crate::image::layer::path::{components, split};
use crate::union::layer::LowerRef;
use crate::union::view::{Entry, File, View};

/// A merged directory: its parts, topmost first; the first one has its attributes.
#[derive(Clone, Debug, Default)]
pub(crate) struct LowerDir {
    pub(crate) parts: Vec<LowerRef>,
}

/// Something other than a directory.
#[derive(Clone, Debug)]
pub(crate) struct LowerFile {
    pub(crate) part: LowerRef,
    pub(crate) stat: Stat,
    file: File,
}

/// The meaning of a name.
#[derive(Clone, Debug)]
pub(crate) enum LowerEntry {
    Directory(LowerDir),
    Other(Box<LowerFile>),
}

/// The stack, topmost first.
#[derive(Debug)]
pub(crate) struct LowerView {
    view: View,
    /// Where owner, mode and type of its files are stored, if not in the inodes.
    key: Option<OverrideKey>,
}

/// Why the union cannot tell what is at `path`.
pub(crate) fn unknown(path: &[u8], errno: Errno) -> LayerError {
    match errno {
        Errno::IO => LayerError::entry(path, "a damaged mark, or a metacopy whose contents are in no lower layer"),
        errno => LayerError::io(path, errno),
    }
}

/// A name for system calls.
pub(crate) fn c_name(name: &[u8]) -> Result<CString> {
    CString::new(name).map_err(|_| LayerError::entry(name, "a name with a NUL"))
}

impl LowerView {
    /// A view of complete layers.
    pub(crate) fn new(layers: &[BorrowedFd<'_>], key: Option<OverrideKey>) -> Result<Self> {
        Ok(Self { view: View::new(layers, true).at(b"")?, key })
    }

    /// A view of layers that may still be unpacked, and have no valid inventories.
    pub(crate) fn of_unfinished(layers: &[BorrowedFd<'_>], key: Option<OverrideKey>) -> Result<Self> {
        Ok(Self { view: View::new(layers, false).at(b"")?, key })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.view.is_empty()
    }

    /// The union that applies the rules.
    pub(crate) fn union(&self) -> &View {
        &self.view
    }

    /// The root directory, merged from all layers.
    pub(crate) fn root(&self) -> Result<LowerDir> {
        self.view.root().map(|parts| LowerDir { parts }).at(b"")
    }

    /// Opens the directory of `part`, and returns its name there.
    pub(crate) fn open_parent<'p>(&self, part: &'p LowerRef) -> Result<(OwnedFd, &'p [u8])> {
        let (parent, name) = split(part.path.to_bytes()).unwrap_or((b"", b"."));
        let layer = self.view.stack().lower(part.layer).at(part.path.to_bytes())?;
        Ok((confined::open_dir(layer.root().as_fd(), parent).at(parent)?, name))
    }

    /// Type and attributes of the entry `name` of `dir`, as a mount shows them.
    pub(crate) fn shown(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
    ) -> rustix::io::Result<(FileKind, Attributes)> {
        attributes::read(dir, name, stat, self.key)
    }

    /// The same for `part`, with its real attributes. `path` is for messages.
    pub(crate) fn shown_part(&self, part: &LowerRef, path: &[u8]) -> Result<(FileKind, Attributes, Stat)> {
        let (parent, name) = self.open_parent(part)?;
        let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW).at(path)?;
        let (kind, attributes) = self.shown(parent.as_fd(), name, &stat).at(path)?;
        Ok((kind, attributes, stat))
    }

    /// Looks `name` up in a merged directory.
    pub(crate) fn lookup(&self, dir: &LowerDir, name: &[u8]) -> Result<Option<LowerEntry>> {
        let found = match self.view.lookup(&dir.parts, &c_name(name)?) {
            // No layer can have such a name.
            Err(Errno::NAMETOOLONG) => None,
            found => found.map_err(|errno| unknown(name, errno))?,
        };
        Ok(match found {
            None => None,
            Some(Entry::Directory(parts)) => Some(LowerEntry::Directory(LowerDir { parts })),
            Some(Entry::Other(file)) => {
                let part = LowerRef {
                    layer: file.layer,
                    xattr_whiteouts: false,
                    impure: false,
                    number: None,
                    path: file.path.clone(),
                };
                let (parent, name) = self.open_parent(&part)?;
                let stat = confined::stat_entry(parent.as_fd(), name).at(part.path.to_bytes())?;
                let stat = stat.ok_or_else(|| LayerError::io(part.path.to_bytes(), Errno::NOENT))?;
                Some(LowerEntry::Other(Box::new(LowerFile { part, stat, file })))
            }
        })
    }

    /// Looks a path up from the root; symbolic links are not followed.
    pub(crate) fn lookup_path(&self, path: &[u8]) -> Result<Option<LowerEntry>> {
        let mut dir = self.root()?;
        if dir.parts.is_empty() {
            return Ok(None);
        }
        let mut names = components(path).peekable();
        while let Some(name) = names.next() {
            match self.lookup(&dir, name)? {
                Some(LowerEntry::Directory(found)) => dir = found,
                Some(other) if names.peek().is_none() => return Ok(Some(other)),
                Some(LowerEntry::Other(_)) | None => return Ok(None),
            }
        }
        Ok(Some(LowerEntry::Directory(dir)))
    }

    /// Names visible in the merged directory, sorted.
    pub(crate) fn names(&self, dir: &LowerDir) -> Result<BTreeSet<Vec<u8>>> {
        let path = dir.parts.first().map(|part| part.path.clone()).unwrap_or_default();
        let listing = self.view.list(&dir.parts).map_err(|errno| unknown(path.to_bytes(), errno))?;
        Ok(listing.iter().map(|listed| listed.name.to_bytes().to_vec()).collect())
    }

    /// Opens the contents of a regular file, which may be further down.
    pub(crate) fn open_contents(&self, file: &LowerFile) -> Result<OwnedFd> {
        self.view.open(&file.file).at(file.part.path.to_bytes())
    }
}
