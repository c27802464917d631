//! Tracks where the entries of a tar stream went, and which names of the layer directory they explain.
//!
//! Only the final directory can be inspected. So symbolic links that were replaced are remembered, and existing
//! ones count only from their entry on. If the layers below decided the place of an entry, it is *astray*: only
//! its last name is known, and every file of that name is taken for it.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::confined;
use crate::image::layer::attributes::{FileKind, kind_of};
use crate::image::layer::error::{AtPath, Result};
use crate::image::layer::marks;
use crate::image::layer::path::{components, is_at_or_below, join, pop, push, split};

/// Symbolic links followed for one name (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// Hashes of paths, eight bytes each, because a layer may have millions. The key of the hash is random, so a
/// collision cannot be provoked.
#[derive(Default)]
struct Names {
    key: RandomState,
    hashes: Vec<u64>,
}

impl Names {
    fn add(&mut self, path: &[u8], is_whiteout: bool) {
        if self.hashes.len() == self.hashes.capacity() {
            self.order();
            if self.hashes.len() > self.hashes.capacity() / 2 {
                self.hashes.reserve(self.hashes.len());
            }
        }
        self.hashes.push(self.key.hash_one((path, is_whiteout)));
    }

    fn order(&mut self) {
        self.hashes.sort_unstable();
        self.hashes.dedup();
    }

    /// Valid only after [`Names::order`].
    fn has(&self, path: &[u8], is_whiteout: bool) -> bool {
        self.hashes.binary_search(&self.key.hash_one((path, is_whiteout))).is_ok()
    }
}

/// A resolved directory.
pub(crate) struct LedgerDir {
    /// Its path without symbolic links.
    pub(crate) path: Vec<u8>,
    pub(crate) dir: OwnedFd,
}

impl LedgerDir {
    fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self { path: self.path.clone(), dir: self.dir.try_clone()? })
    }
}

pub(crate) struct Ledger<'a> {
    layer: BorrowedFd<'a>,
    names: Names,
    /// Existing symbolic links, from their entry on: hashes of their paths.
    links: HashSet<u64>,
    /// Symbolic links at this point of the stream that are replaced later, and their targets.
    former_links: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The last names of entries whose place is unknown.
    astray: HashSet<u64>,
    /// True if one of them made a directory opaque.
    opaque_astray: bool,
    /// The directory of the last entry, and the path in the entry's name.
    last: Option<(Vec<u8>, LedgerDir)>,
}

impl<'a> Ledger<'a> {
    pub(crate) fn new(layer: BorrowedFd<'a>) -> Self {
        Self {
            layer,
            names: Names::default(),
            links: HashSet::new(),
            former_links: BTreeMap::new(),
            astray: HashSet::new(),
            opaque_astray: false,
            last: None,
        }
    }

    fn hash(&self, path: &[u8]) -> u64 {
        self.names.key.hash_one(path)
    }

    /// Notes that an entry made this.
    pub(crate) fn account(&mut self, path: &[u8]) {
        self.names.add(path, false);
    }

    /// Notes that an entry deleted this.
    pub(crate) fn account_whiteout(&mut self, path: &[u8]) {
        self.names.add(path, true);
    }

    /// Notes an entry with this last name and an unknown place.
    pub(crate) fn stray(&mut self, name: &[u8]) {
        self.astray.insert(self.hash(name));
    }

    /// Notes an opaque mark with an unknown place.
    pub(crate) fn stray_opaque(&mut self) {
        self.opaque_astray = true;
    }

    /// Notes that an entry at `path` is a symbolic link; `is_there` is true if it still exists.
    pub(crate) fn link(&mut self, path: &[u8], target: &[u8], is_there: bool) {
        if is_there {
            self.links.insert(self.hash(path));
        } else {
            self.former_links.insert(path.to_vec(), target.to_vec());
            self.last = None;
        }
    }

    /// Notes that an entry at `path` replaces the existing file; a directory keeps its entries. `is_other` is true if
    /// the final file has another type.
    pub(crate) fn replace(&mut self, path: &[u8], is_directory: bool, is_other: bool) {
        if !self.former_links.is_empty() {
            let before = self.former_links.len();
            self.former_links.retain(|link, _| link != path && (is_directory || !is_at_or_below(link, path)));
            if before != self.former_links.len() {
                self.last = None;
            }
        }
        if !self.links.is_empty() {
            let removed = self.links.remove(&self.hash(path));
            if is_other && !is_directory {
                // The links below it are known only by their hashes.
                self.links.clear();
            }
            if removed || is_other {
                self.last = None;
            }
        }
    }

    /// The directory that `path` names at this point of the stream; `None` if the layer alone does not tell.
    pub(crate) fn find(&mut self, path: &[u8]) -> Result<Option<LedgerDir>> {
        if let Some((last, found)) = &self.last
            && last == path
        {
            return found.try_clone().map(Some).at(path);
        }
        let Some(found) = self.open(path)? else { return Ok(None) };
        let mut ancestor = found.path.clone();
        while !ancestor.is_empty() {
            self.names.add(&ancestor, false);
            pop(&mut ancestor);
        }
        self.last = Some((path.to_vec(), found.try_clone().at(path)?));
        Ok(Some(found))
    }

    fn open(&self, path: &[u8]) -> Result<Option<LedgerDir>> {
        if !self.former_links.keys().any(|link| is_at_or_below(path, link)) {
            match confined::open_dir(self.layer, path) {
                Ok(dir) => return Ok(Some(LedgerDir { path: path.to_vec(), dir })),
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::LOOP | Errno::NOTDIR) if !self.links.is_empty() => {}
                Err(Errno::LOOP | Errno::NOTDIR) => return Ok(None),
                Err(error) => return Err(error).at(path),
            }
        }
        let Some(path) = self.follow(path)? else { return Ok(None) };
        match confined::open_dir(self.layer, &path) {
            Ok(dir) => Ok(Some(LedgerDir { path, dir })),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error).at(&path),
        }
    }

    /// Resolves it component by component, like unpacking.
    fn follow(&self, path: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut here = Vec::new();
        let mut rest: VecDeque<Vec<u8>> = components(path).map(<[u8]>::to_vec).collect();
        let mut followed = 0;
        while let Some(name) = rest.pop_front() {
            if name == b".." {
                pop(&mut here);
                continue;
            }
            push(&mut here, &name);
            let target = match self.former_links.get(&here) {
                Some(target) => target.clone(),
                None => match self.link_or_directory(&here, &name)? {
                    LinkOr::Link(target) => target,
                    LinkOr::Directory => continue,
                    LinkOr::Neither => return Ok(None),
                },
            };
            followed += 1;
            if followed > MAX_LINKS {
                return Ok(None);
            }
            if target.starts_with(b"/") {
                here.clear();
            } else {
                pop(&mut here);
            }
            let parts: Vec<&[u8]> = components(&target).collect();
            parts.into_iter().rev().for_each(|part| rest.push_front(part.to_vec()));
        }
        Ok(Some(here))
    }

    fn link_or_directory(&self, path: &[u8], name: &[u8]) -> Result<LinkOr> {
        let (parent, _) = split(path).unwrap_or_default();
        let dir = match confined::open_dir(self.layer, parent) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => return Ok(LinkOr::Neither),
            Err(error) => return Err(error).at(parent),
        };
        let kind = match confined::stat_entry(dir.as_fd(), name) {
            Ok(stat) => stat.map(|stat| kind_of(&stat)),
            Err(Errno::NAMETOOLONG) => None,
            Err(error) => return Err(error).at(path),
        };
        Ok(match kind {
            Some(FileKind::Directory) => LinkOr::Directory,
            Some(FileKind::Symlink) if self.links.contains(&self.hash(path)) => {
                LinkOr::Link(rustix::fs::readlinkat(&dir, name, Vec::new()).at(path)?.into_bytes())
            }
            _ => LinkOr::Neither,
        })
    }

    /// Everything in the layer directory that no entry explains, sorted by path.
    pub(crate) fn added(mut self) -> Result<BTreeSet<Vec<u8>>> {
        self.names.order();
        let mut added = BTreeSet::new();
        let opaque_root = marks::hides_lower(self.layer).at(b"")?;
        let mut below = vec![Vec::new()];
        while let Some(path) = below.pop() {
            let dir = confined::open_dir(self.layer, &path).at(&path)?;
            for entry in rustix::fs::Dir::read_from(&dir).at(&path)? {
                let entry = entry.at(&path)?;
                let name = entry.file_name().to_bytes();
                if matches!(name, b"." | b"..") {
                    continue;
                }
                let child = join(&path, name);
                let is_directory = match entry.file_type() {
                    FileType::Unknown => confined::open_dir(dir.as_fd(), name).is_ok(),
                    other => other == FileType::Directory,
                };
                if !self.names.has(&child, false) {
                    let hides_root = opaque_root && path.is_empty();
                    match self.is_excused(dir.as_fd(), name, &child, is_directory, hides_root)? {
                        Excuse::None => drop(added.insert(child.clone())),
                        Excuse::Whiteout => {}
                        Excuse::Astray => excuse_parents(&child, &mut added),
                    }
                }
                if is_directory {
                    below.push(child);
                }
            }
        }
        Ok(added)
    }

    fn is_excused(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        is_directory: bool,
        hides_root: bool,
    ) -> Result<Excuse> {
        if self.astray.contains(&self.hash(name)) {
            return Ok(Excuse::Astray);
        }
        if is_directory {
            let is_opaque = || marks::hides_lower(confined::open_dir(dir, name)?.as_fd());
            return Ok(if self.opaque_astray && is_opaque().at(path)? { Excuse::Astray } else { Excuse::None });
        }
        // An opaque root becomes one whiteout for each name of the lower root.
        if !hides_root && !self.names.has(path, true) {
            return Ok(Excuse::None);
        }
        let Some(stat) = confined::stat_entry(dir, name).at(path)? else { return Ok(Excuse::None) };
        Ok(if marks::is_whiteout(dir, name, &stat).at(path)? { Excuse::Whiteout } else { Excuse::None })
    }
}

/// Possible explanations for a name that no entry made.
enum Excuse {
    None,
    Whiteout,
    Astray,
}

/// The meaning of a component of a path.
enum LinkOr {
    Link(Vec<u8>),
    Directory,
    Neither,
}

/// Removes directories that were made for an entry that went astray.
fn excuse_parents(path: &[u8], added: &mut BTreeSet<Vec<u8>>) {
    let mut ancestor = path.to_vec();
    while !ancestor.is_empty() {
        pop(&mut ancestor);
        added.remove(&ancestor);
    }
}
