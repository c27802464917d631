//! Finds the directory of an entry, component by component. Symbolic links are followed here and never leave the
//! root; missing components are looked up in the layers below.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use crate::confined;
use crate::image::layer::attributes::{Attributes, FileKind, kind_of};
use crate::image::layer::error::{AtPath, LayerError, Result, printable};
use crate::image::layer::lower_view::LowerEntry;
use crate::image::layer::marks;
use crate::image::layer::path::{components, join, pop, push};
use crate::image::unpack::unpacking::Unpacking;

/// Symbolic links followed for one name (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// How to handle directories that this layer does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Make them with the lower layers' attributes.
    Make,
    /// Continue in the lower layers.
    Leave,
}

/// The meaning of one component.
enum Step {
    Directory,
    Link(Vec<u8>),
    Whiteout,
    NoDirectory,
    Absent,
}

/// What the lower layers have for a missing component.
enum Below {
    Directory(Attributes),
    Link(Vec<u8>),
    Nothing,
}

/// The position of a walk: a directory of this layer, or one that only lower layers have. Each step down costs
/// one system call at any depth, so long paths do not make an archive slow.
#[derive(Default)]
struct Cursor {
    path: Vec<u8>,
    /// The directory, opened when it was first needed.
    dir: Option<OwnedFd>,
}

impl Cursor {
    fn open(&mut self, root: BorrowedFd<'_>) -> rustix::io::Result<BorrowedFd<'_>> {
        let dir = match self.dir.take() {
            Some(dir) => dir,
            None => confined::open_dir(root, &self.path)?,
        };
        let dir: &OwnedFd = self.dir.insert(dir);
        Ok(dir.as_fd())
    }

    fn down(&mut self, name: &[u8]) {
        push(&mut self.path, name);
        // If it cannot be opened from here, it is opened by its path when it is needed, and the error is reported then.
        self.dir = self.dir.take().and_then(|dir| confined::open_dir(dir.as_fd(), name).ok());
    }

    fn up(&mut self) {
        pop(&mut self.path);
        self.dir = None;
    }
}

impl Unpacking<'_> {
    /// The directory that `path` names, as a path in this layer without symbolic links. Returns `None` if it
    /// is no directory, or was deleted (only with [`Missing::Leave`]).
    pub(crate) fn resolve(&mut self, path: &[u8], missing: Missing) -> Result<Option<Vec<u8>>> {
        if self.dirs.try_get(path)?.is_some() {
            return Ok(Some(path.to_vec()));
        }
        let mut cursor = Cursor::default();
        let mut rest: VecDeque<Vec<u8>> = components(path).map(<[u8]>::to_vec).collect();
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == b".." {
                cursor.up();
                continue;
            }
            let here = join(&cursor.path, &name);
            if here.len() > self.options.limits.path {
                return Err(LayerError::entry(path, "its directory's path is too long"));
            }
            let target = match self.step(&mut cursor, &name, &here, missing)? {
                Step::Directory => None,
                Step::Link(target) => Some(target),
                Step::NoDirectory | Step::Whiteout if missing == Missing::Leave => return Ok(None),
                Step::NoDirectory => {
                    return Err(LayerError::entry(path, format!("{} is not a directory", printable(&here))));
                }
                Step::Whiteout => {
                    self.replace_whiteout(&cursor.path, &name, &here)?;
                    None
                }
                Step::Absent => match (self.below(&here)?, missing) {
                    (Below::Link(target), _) => Some(target),
                    (Below::Nothing, Missing::Leave) => return Ok(None),
                    (Below::Directory(_), Missing::Leave) => None,
                    (Below::Directory(attributes), Missing::Make) => {
                        self.make_implied(&cursor.path, &name, &here, &attributes)?;
                        None
                    }
                    (Below::Nothing, Missing::Make) => {
                        self.make_implied(&cursor.path, &name, &here, &Attributes::of_implied_directory())?;
                        None
                    }
                },
            };
            let Some(target) = target else {
                cursor.down(&name);
                continue;
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(LayerError::entry(path, "too many symbolic links"));
            }
            if target.starts_with(b"/") {
                cursor = Cursor::default();
            }
            let parts: Vec<&[u8]> = components(&target).collect();
            parts.into_iter().rev().for_each(|part| rest.push_front(part.to_vec()));
        }
        Ok(Some(cursor.path))
    }

    /// The directory that `path` names; makes it if it is missing.
    pub(crate) fn resolve_or_make(&mut self, path: &[u8]) -> Result<Vec<u8>> {
        self.resolve(path, Missing::Make)?.ok_or_else(|| LayerError::entry(path, "not a directory"))
    }

    /// The meaning of `name` in the directory at the cursor.
    fn step(&mut self, cursor: &mut Cursor, name: &[u8], here: &[u8], missing: Missing) -> Result<Step> {
        let dir = match cursor.open(self.root) {
            Ok(dir) => dir,
            // The walk is in the lower layers, and this layer has no such directory.
            Err(Errno::NOENT) if missing == Missing::Leave => return Ok(Step::Absent),
            Err(error) => return Err(LayerError::io(&cursor.path, error)),
        };
        let stat = match confined::stat_entry(dir, name) {
            Ok(Some(stat)) => stat,
            Ok(None) => return Ok(Step::Absent),
            Err(Errno::NAMETOOLONG) => return Err(LayerError::entry(here, "a component of its path is too long")),
            Err(error) => return Err(LayerError::io(here, error)),
        };
        Ok(match kind_of(&stat) {
            FileKind::Directory => Step::Directory,
            FileKind::Symlink => Step::Link(rustix::fs::readlinkat(dir, name, Vec::new()).at(here)?.into_bytes()),
            _ if marks::is_whiteout(dir, name, &stat).at(here)? => Step::Whiteout,
            _ => Step::NoDirectory,
        })
    }

    fn below(&mut self, path: &[u8]) -> Result<Below> {
        Ok(match self.found_below(path)? {
            Some(LowerEntry::Directory(dir)) => match dir.parts.first() {
                Some(part) => Below::Directory(self.lowers.shown_part(part, path)?.1),
                None => Below::Nothing,
            },
            Some(LowerEntry::Other(file)) if kind_of(&file.stat) == FileKind::Symlink => {
                let (parent, name) = self.lowers.open_parent(&file.part)?;
                Below::Link(rustix::fs::readlinkat(&parent, name, Vec::new()).at(path)?.into_bytes())
            }
            Some(LowerEntry::Other(_)) | None => Below::Nothing,
        })
    }
}
