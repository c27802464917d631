//! Finding an entry's directory: component by component, symbolic links followed by us and never beyond the root,
//! and what is missing looked up in the layers below.

use std::collections::VecDeque;
use std::os::fd::AsFd;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::attributes::{self, Attributes, FileKind};
use super::error::{AtPath, LayerError, Result};
use super::extract::Extractor;
use super::lower_view::Found;
use super::path::{components, join, pop, push};
use super::{confined, marks};

/// Symbolic links followed for one name (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// What to do about directories that this layer does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Make them, as the lower layers have them.
    Make,
    /// Go on in the lower layers.
    Leave,
}

/// What one component is.
enum Step {
    Directory,
    Link(Vec<u8>),
    Whiteout,
    NoDirectory,
    Absent,
}

/// What the lower layers have in the place of a missing component.
enum Below {
    Directory(Attributes),
    Link(Vec<u8>),
    Nothing,
}

impl Extractor<'_> {
    /// The directory that `path` names: its own path in this layer, without symbolic links. `None` if it is no
    /// directory, or deleted (only with [`Missing::Leave`]).
    pub(crate) fn resolve(&mut self, path: &[u8], missing: Missing) -> Result<Option<Vec<u8>>> {
        if self.dirs.holds(path) {
            return Ok(Some(path.to_vec()));
        }
        let mut real = Vec::new();
        let mut rest: VecDeque<Vec<u8>> = components(path).map(<[u8]>::to_vec).collect();
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == b".." {
                pop(&mut real);
                continue;
            }
            let here = join(&real, &name);
            if here.len() > self.options.limits.path {
                return Err(LayerError::entry(path, "its directory's path is too long"));
            }
            let target = match self.step(&real, &name, &here, missing)? {
                Step::Directory => None,
                Step::Link(target) => Some(target),
                Step::NoDirectory | Step::Whiteout if missing == Missing::Leave => return Ok(None),
                Step::NoDirectory => {
                    return Err(LayerError::entry(
                        path,
                        format!("{} is not a directory", super::error::printable(&here)),
                    ));
                }
                Step::Whiteout => {
                    self.replace_whiteout(&real, &name, &here)?;
                    None
                }
                Step::Absent => match self.below(&here)? {
                    Below::Link(target) => Some(target),
                    Below::Directory(attributes) => {
                        if missing == Missing::Make {
                            self.make_implied(&real, &name, &here, &attributes)?;
                        }
                        None
                    }
                    Below::Nothing if missing == Missing::Leave => return Ok(None),
                    Below::Nothing => {
                        self.make_implied(&real, &name, &here, &Attributes::of_implied_directory())?;
                        None
                    }
                },
            };
            match target {
                None => push(&mut real, &name),
                Some(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(LayerError::entry(path, "too many symbolic links"));
                    }
                    if target.starts_with(b"/") {
                        real.clear();
                    }
                    components(&target).rev_each(|part| rest.push_front(part.to_vec()));
                }
            }
        }
        Ok(Some(real))
    }

    fn step(&mut self, parent: &[u8], name: &[u8], here: &[u8], missing: Missing) -> Result<Step> {
        if self.dirs.holds(here) {
            return Ok(Step::Directory);
        }
        let dir = match self.dirs.get(parent) {
            Ok(dir) => dir,
            // Looking around below, where this layer has no directory.
            Err(LayerError::Io { source, .. })
                if missing == Missing::Leave && source.kind() == std::io::ErrorKind::NotFound =>
            {
                return Ok(Step::Absent);
            }
            Err(error) => return Err(error),
        };
        let stat = match confined::stat_entry(dir.as_fd(), name) {
            Ok(Some(stat)) => stat,
            Ok(None) => return Ok(Step::Absent),
            Err(Errno::NAMETOOLONG) => return Err(LayerError::entry(here, "a component of its path is too long")),
            Err(error) => return Err(LayerError::io(here, error)),
        };
        Ok(match FileKind::of(&stat) {
            FileKind::Directory => Step::Directory,
            FileKind::Symlink => {
                Step::Link(rustix::fs::readlinkat(dir.as_fd(), name, Vec::new()).at(here)?.into_bytes())
            }
            _ if marks::is_whiteout(dir.as_fd(), name, &stat).at(here)? => Step::Whiteout,
            _ => Step::NoDirectory,
        })
    }

    /// What the lower layers show at `path`, unless this layer hides it.
    pub(crate) fn found_below(&mut self, path: &[u8]) -> Result<Option<Found>> {
        self.outcome.depends_on_lower = true;
        if self.lowers.is_empty() {
            return Ok(None);
        }
        let mut ancestor = path.to_vec();
        while !ancestor.is_empty() {
            pop(&mut ancestor);
            match confined::open_dir(self.root, &ancestor) {
                Ok(dir) if marks::hides_lower(dir.as_fd()).at(&ancestor)? => return Ok(None),
                Ok(_) | Err(Errno::NOENT) => {}
                // Something else is in the directory's place here.
                Err(Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(error) => return Err(LayerError::io(&ancestor, error)),
            }
        }
        self.lowers.lookup_path(path)
    }

    fn below(&mut self, path: &[u8]) -> Result<Below> {
        Ok(match self.found_below(path)? {
            Some(Found::Directory(dir)) => match dir.parts.first() {
                Some(part) => {
                    let (parent, name) = self.lowers.open_parent(part)?;
                    let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW).at(path)?;
                    Below::Directory(attributes::read(parent.as_fd(), name, &stat).at(path)?.1)
                }
                None => Below::Nothing,
            },
            Some(Found::Other(file)) if FileKind::of(&file.stat) == FileKind::Symlink => {
                let (parent, name) = self.lowers.open_parent(&file.part)?;
                Below::Link(rustix::fs::readlinkat(&parent, name, Vec::new()).at(path)?.into_bytes())
            }
            Some(Found::Other(_)) | None => Below::Nothing,
        })
    }
}

/// Visiting the parts of a link's target from the last to the first.
trait RevEach<'a> {
    fn rev_each(self, visit: impl FnMut(&'a [u8]));
}

impl<'a, I: Iterator<Item = &'a [u8]>> RevEach<'a> for I {
    fn rev_each(self, visit: impl FnMut(&'a [u8])) {
        let parts: Vec<_> = self.collect();
        parts.into_iter().rev().for_each(visit);
    }
}
