//! The layers below, seen as one tree: enough of a union's rules to look names up and list directories, read only.
//!
//! The rules are the kernel's (`ovl_lookup`): the topmost layer that has a name decides; directories merge with
//! those below until an opaque one, a non-directory or a whiteout; a redirect says where to go on below.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, Stat};

use crate::confined;
use crate::image::layer::attributes::FileKind;
use crate::image::layer::error::{AtPath, LayerError, Result};
use crate::image::layer::marks;
use crate::image::layer::path::{components, join, split};
use crate::marks::{AufsName, Redirect, decode_aufs_name};

/// A directory in one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) layer: usize,
    pub(crate) path: Vec<u8>,
}

/// A merged directory: its parts, topmost first; the first one has its attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LowerDir {
    pub(crate) parts: Vec<Part>,
}

/// Something that is no directory.
#[derive(Clone, Debug)]
pub(crate) struct LowerFile {
    pub(crate) part: Part,
    pub(crate) stat: Stat,
    /// The directory it is in, without the layers down to its own.
    below: LowerDir,
}

/// What a name is.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    Directory(LowerDir),
    Other(LowerFile),
}

/// The stack, topmost first.
#[derive(Clone, Copy)]
pub(crate) struct LowerView<'a> {
    layers: &'a [BorrowedFd<'a>],
}

impl<'a> LowerView<'a> {
    pub(crate) fn new(layers: &'a [BorrowedFd<'a>]) -> Self {
        Self { layers }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// The root directory, merged from all layers.
    pub(crate) fn root(&self) -> Result<LowerDir> {
        self.root_from(0)
    }

    fn root_from(&self, first: usize) -> Result<LowerDir> {
        let mut parts = Vec::new();
        for (layer, fd) in self.layers.iter().enumerate().skip(first) {
            parts.push(Part { layer, path: Vec::new() });
            if marks::hides_lower(*fd).at(b"")? {
                break;
            }
        }
        Ok(LowerDir { parts })
    }

    fn layer(&self, index: usize) -> Result<BorrowedFd<'a>> {
        self.layers.get(index).copied().ok_or_else(|| LayerError::entry(b"", "no such layer"))
    }

    /// Opens the directory that `part` is in, and gives the name by which it is there.
    pub(crate) fn open_parent<'p>(&self, part: &'p Part) -> Result<(OwnedFd, &'p [u8])> {
        let (parent, name) = split(&part.path).unwrap_or((b"", b"."));
        Ok((confined::open_dir(self.layer(part.layer)?, parent).at(parent)?, name))
    }

    /// Looks `name` up in a merged directory.
    pub(crate) fn lookup(&self, dir: &LowerDir, name: &[u8]) -> Result<Option<Found>> {
        let mut parts = Vec::new();
        let mut name = name.to_vec();
        for (at, parent) in dir.parts.iter().enumerate() {
            let path = join(&parent.path, &name);
            let parent_fd = confined::open_dir(self.layer(parent.layer)?, &parent.path).at(&parent.path)?;
            let deleted_below = marks::has_aufs_whiteout(parent_fd.as_fd(), &name).at(&path)?;
            match confined::stat_entry(parent_fd.as_fd(), &name).at(&path)? {
                None if deleted_below => break,
                None => continue,
                Some(stat) if marks::is_whiteout(parent_fd.as_fd(), &name, &stat).at(&path)? => break,
                Some(stat) if FileKind::of(&stat) != FileKind::Directory => {
                    if parts.is_empty() {
                        let below = LowerDir { parts: dir.parts.get(at + 1..).unwrap_or_default().to_vec() };
                        let part = Part { layer: parent.layer, path };
                        return Ok(Some(Found::Other(LowerFile { part, stat, below })));
                    }
                    break;
                }
                Some(_) => {}
            }
            let fd = confined::open_dir(parent_fd.as_fd(), &name).at(&path)?;
            let redirect = marks::redirect(parent_fd.as_fd(), &name, &path)?;
            parts.push(Part { layer: parent.layer, path });
            if deleted_below || marks::hides_lower(fd.as_fd()).at(&name)? {
                break;
            }
            match redirect {
                None => {}
                Some(Redirect::Relative(other)) => name = other,
                Some(Redirect::Absolute(other)) => {
                    if let Some(Found::Directory(rest)) = self.lookup_path_from(parent.layer + 1, &other)? {
                        parts.extend(rest.parts);
                    }
                    break;
                }
            }
        }
        Ok((!parts.is_empty()).then_some(Found::Directory(LowerDir { parts })))
    }

    /// Looks a path up from the root; symbolic links are not followed.
    pub(crate) fn lookup_path(&self, path: &[u8]) -> Result<Option<Found>> {
        self.lookup_path_from(0, path)
    }

    fn lookup_path_from(&self, first: usize, path: &[u8]) -> Result<Option<Found>> {
        let mut dir = self.root_from(first)?;
        if dir.parts.is_empty() {
            return Ok(None);
        }
        let mut names = components(path).peekable();
        while let Some(name) = names.next() {
            match self.lookup(&dir, name)? {
                Some(Found::Directory(found)) => dir = found,
                Some(other) if names.peek().is_none() => return Ok(Some(other)),
                Some(Found::Other(_)) | None => return Ok(None),
            }
        }
        Ok(Some(Found::Directory(dir)))
    }

    /// Where the lower part of the entry `name` of a directory merged with `below` is, by the entry's redirect.
    pub(crate) fn below_redirect(&self, redirect: &Redirect, below: Option<&LowerDir>) -> Result<Option<Found>> {
        match (redirect, below) {
            (Redirect::Absolute(path), _) => self.lookup_path(path),
            (Redirect::Relative(name), Some(dir)) => self.lookup(dir, name),
            (Redirect::Relative(_), None) => Ok(None),
        }
    }

    /// Names visible in the merged directory, sorted.
    pub(crate) fn names(&self, dir: &LowerDir) -> Result<BTreeSet<Vec<u8>>> {
        let mut candidates = BTreeSet::new();
        for part in &dir.parts {
            let fd = confined::open_dir(self.layer(part.layer)?, &part.path).at(&part.path)?;
            candidates.extend(confined::sorted_names(fd.as_fd()).at(&part.path)?);
        }
        let mut visible = BTreeSet::new();
        for name in candidates {
            let plain = decode_aufs_name(std::os::unix::ffi::OsStrExt::from_bytes(name.as_slice())) == AufsName::Plain;
            if plain && self.lookup(dir, &name)?.is_some() {
                visible.insert(name);
            }
        }
        Ok(visible)
    }

    /// Opens the contents of a regular file, which may be further down.
    pub(crate) fn open_contents(&self, file: &LowerFile) -> Result<OwnedFd> {
        let (dir, name) = self.open_parent(&file.part)?;
        self.open_contents_at(dir.as_fd(), name, &file.part.path, Some(&file.below), file.part.layer + 1)
    }

    /// Opens the contents of the regular file `name` of `dir`. If the file is a metacopy, they are below: by its
    /// redirect, or by its name in `below`.
    pub(crate) fn open_contents_at(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        below: Option<&LowerDir>,
        first_below: usize,
    ) -> Result<OwnedFd> {
        if !marks::is_metacopy(dir, name).at(path)? {
            return confined::beneath(dir, name, OFlags::RDONLY | OFlags::NONBLOCK).at(path);
        }
        let found = match (marks::redirect(dir, name, path)?, below) {
            (Some(Redirect::Absolute(target)), _) => self.lookup_path_from(first_below, &target)?,
            (Some(Redirect::Relative(target)), Some(dir)) => self.lookup(dir, &target)?,
            (None, Some(dir)) => self.lookup(dir, name)?,
            (_, None) => None,
        };
        match found {
            Some(Found::Other(file)) if FileKind::of(&file.stat) == FileKind::Regular => self.open_contents(&file),
            _ => Err(LayerError::entry(path, "a metacopy whose contents are in no lower layer")),
        }
    }
}
