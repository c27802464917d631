//! A view of layer directories as a mount would show them, but without a mount. `strata diff`, `commit`, `which` and
//! unpacking use it. The rules are in [`crate::union::merge`]; this module only applies them.

use std::ffi::{CStr, CString};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use crate::marks::Opaque;
use crate::union::layer::{Dir, LayerDir, LayerId, LayerStack, LowerRef, Stat};
use crate::union::merge::listing::Moved;
use crate::union::merge::{self, Found, Listing, MergedDir, Resolution, Source};

/// A stack of read-only layers.
#[derive(Debug)]
pub struct View {
    stack: LayerStack,
}

/// A directory of an upper layer, seen above a view.
#[derive(Clone, Debug)]
pub struct UpperPart {
    dir: Dir,
    /// Its entries may be xattr whiteouts.
    xattr_whiteouts: bool,
    /// True if nothing of the lower layers shows through.
    opaque: bool,
}

/// An entry of one directory of an upper layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpperEntry {
    /// The name; for a whiteout, the name that it deletes.
    pub name: CString,
    /// True if it deletes the name.
    pub whiteout: bool,
}

/// Anything but a directory.
#[derive(Clone, Debug)]
pub struct File {
    /// Its layer.
    pub layer: LayerId,
    /// Path below the layer's root.
    pub path: Arc<CStr>,
    /// Its attributes.
    pub stat: Stat,
    /// The place of its content, if that is in another layer (metacopy).
    pub content: Option<(LayerId, Arc<CStr>)>,
}

/// The meaning of a name.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A directory: its parts, topmost first. The first one has its attributes.
    Directory(Vec<LowerRef>),
    /// Anything else.
    Other(File),
}

impl UpperPart {
    /// The upper's root, or any other directory regarded as a root.
    ///
    /// # Errors
    /// Those of reading its marks.
    pub fn root(dir: OwnedFd) -> Result<Self, Errno> {
        let dir = Dir::new(dir);
        let opaque = dir.marks(c"")?.opaque();
        let is_opaque = opaque == Opaque::Yes || merge::has_opaque_entry(&dir, c"")?;
        Ok(Self { dir, xattr_whiteouts: opaque == Opaque::XattrWhiteouts, opaque: is_opaque })
    }

    /// The subdirectory `name`, which a lookup found to be `found`.
    ///
    /// # Errors
    /// Those of opening it.
    pub fn child(&self, name: &CStr, found: &Found) -> Result<Self, Errno> {
        Ok(Self {
            dir: self.dir.open_dir(name)?,
            xattr_whiteouts: found.marks.opaque() == Opaque::XattrWhiteouts,
            opaque: found.closed,
        })
    }

    /// The directory.
    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    /// True if an entry of the directory deletes `name` in the layers below (`.wh.NAME`).
    ///
    /// # Errors
    /// Those of `statx(2)`.
    pub(crate) fn deletes_by_name(&self, name: &CStr) -> Result<bool, Errno> {
        merge::is_deleted_by_name(&self.dir, name)
    }

    /// True if nothing of the lower layers shows through.
    pub fn is_opaque(&self) -> bool {
        self.opaque
    }

    /// Its entries and whiteouts, sorted by name.
    ///
    /// # Errors
    /// Those of listing.
    pub fn entries(&self) -> Result<Vec<UpperEntry>, Errno> {
        let mut entries = merge::listing::entries_of(&LayerDir::Held(self.dir.clone()), self.xattr_whiteouts)?;
        entries.sort_unstable();
        Ok(entries.into_iter().map(|(name, whiteout)| UpperEntry { name, whiteout }).collect())
    }
}

impl View {
    /// A view of the layers with the roots `layers`, topmost first. With `inventories`, their inventories are used, so
    /// none of the layers may be changing.
    ///
    /// # Errors
    /// Those of `dup(2)` and `statx(2)`.
    pub fn new(layers: &[BorrowedFd<'_>], inventories: bool) -> Result<Self, Errno> {
        let roots = layers.iter().map(|layer| rustix::io::fcntl_dupfd_cloexec(layer, 0)).collect::<Result<_, _>>()?;
        Ok(Self { stack: LayerStack::of_roots(roots, inventories)? })
    }

    /// True if there is no layer.
    pub fn is_empty(&self) -> bool {
        self.stack.lowers().is_empty()
    }

    /// The layers.
    pub fn stack(&self) -> &LayerStack {
        &self.stack
    }

    /// Parts of the root directory.
    ///
    /// # Errors
    /// Those of reading its marks.
    pub fn root(&self) -> Result<Vec<LowerRef>, Errno> {
        merge::root_parts(&self.stack)
    }

    fn dir_of<'a>(&'a self, part: &'a LowerRef) -> Result<LayerDir<'a>, Errno> {
        let layer = self.stack.lower(part.layer)?;
        match layer.listed_dir(part) {
            Some(listed) => Ok(listed),
            None => layer.open_dir(&part.path).map(LayerDir::Held),
        }
    }

    /// The meaning of `name` in the directory with these parts.
    ///
    /// # Errors
    /// Those of the layers; `IO` for a damaged mark and for a metacopy whose content is in no layer.
    pub fn resolve(&self, upper: Option<&UpperPart>, lowers: &[LowerRef], name: &CStr) -> Result<Resolution, Errno> {
        let open_lower = |index: usize| self.dir_of(lowers.get(index).ok_or(Errno::IO)?);
        let dir = MergedDir {
            stack: &self.stack,
            upper: upper.map(|part| &part.dir),
            lowers: if upper.is_some_and(|part| part.opaque) { &[] } else { lowers },
            open_lower: &open_lower,
            listing: None,
            upper_xattr_whiteouts: upper.is_some_and(|part| part.xattr_whiteouts),
            upper_may_have_marks: true,
            follow_redirects: true,
            metacopy: true,
        };
        merge::resolve(&dir, name)
    }

    /// The entry `name` of the directory with these parts.
    ///
    /// # Errors
    /// As for [`Self::resolve`].
    pub fn lookup(&self, parts: &[LowerRef], name: &CStr) -> Result<Option<Entry>, Errno> {
        let Resolution::Found(found) = self.resolve(None, parts, name)? else { return Ok(None) };
        if found.stat.is_dir() {
            return Ok(Some(Entry::Directory(found.lowers)));
        }
        let Source::Lower(index) = found.source else { return Err(Errno::IO) };
        let part = parts.get(usize::from(index)).ok_or(Errno::IO)?;
        let (layer, path) = (part.layer, part.child_path(name));
        Ok(Some(Entry::Other(File { layer, path, stat: found.stat, content: found.data })))
    }

    /// The merged listing of the directory with these parts.
    ///
    /// # Errors
    /// Those of listing.
    pub fn list(&self, parts: &[LowerRef]) -> Result<Listing, Errno> {
        let opened = parts.iter().map(|part| Ok((part, self.dir_of(part)?))).collect::<Result<Vec<_>, Errno>>()?;
        Listing::of_lowers(&opened, &Moved::default())
    }

    /// Opens the content of a regular file.
    ///
    /// # Errors
    /// Those of `openat(2)`.
    pub fn open(&self, file: &File) -> Result<OwnedFd, Errno> {
        let (layer, path) = file.content.as_ref().map_or((file.layer, &file.path), |(layer, path)| (*layer, path));
        self.open_content(layer, path)
    }

    /// Opens the regular file `path` of `layer`.
    ///
    /// # Errors
    /// Those of `openat(2)`.
    pub(crate) fn open_content(&self, layer: LayerId, path: &CStr) -> Result<OwnedFd, Errno> {
        self.stack.lower(layer)?.open_file(path)
    }
}
